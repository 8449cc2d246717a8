"""What kind of measured result a file is: of another load generator than ``vllm bench serve``, or none of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.live.aiperf_results import is_records, is_statistics, read_records, read_statistics
from sim.live.guidellm_results import is_guidellm, read_guidellm
from sim.live.inference_perf_results import is_inference_perf, read_inference_perf
from sim.live.other_tools import ToolRun
from sim.live.sglang_results import is_sglang, read_sglang


def tool_runs(file: str, documents: Sequence[Any]) -> list[ToolRun] | None:
    """The runs in a file of these JSON documents, in order; None where no other load generator wrote them.

    Raises InputError for what one of them wrote and that cannot be.
    """
    if len(documents) == 1 and is_guidellm(documents[0]):
        return read_guidellm(file, documents[0])
    if len(documents) == 1 and is_inference_perf(documents[0]):
        return [read_inference_perf(file, documents[0])]
    if len(documents) == 1 and is_statistics(documents[0]):
        return [read_statistics(documents[0])]
    if is_records(documents):
        return [read_records(file, documents)]
    if documents and all(isinstance(each, Mapping) and is_sglang(each) for each in documents):
        of = f" of {len(documents)}: "
        return [
            read_sglang(file, each, "" if len(documents) == 1 else f"result {place}{of}")
            for place, each in enumerate(documents, 1)
        ]
    return None
