"""Runs of small clusters with acts."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from sim.cluster.acts import Act, What
from sim.cluster.simulate import simulate_cluster
from sim.results.record import RunRecord, Status
from sim.run import load

SECOND = 1_000_000_000
ENGINE: dict[str, Any] = {
    "model": "llama-2-7b",
    "gpu": "a100-80gb-sxm",
    "num_gpu_blocks_override": 1001,
    "max_model_len": 1000,
    "async_scheduling": False,
}
ONE_SECOND: dict[str, Any] = {"kind": "constant", "step_s": 1.0}


def scenario(workload: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A whole scenario around a workload; a step takes one second unless a section says otherwise."""
    return {"name": "cluster", "workload": workload, "engine": ENGINE, "latency": ONE_SECOND, **sections}


def lengths(inputs: Sequence[int], outputs: Sequence[int], **more: Any) -> dict[str, Any]:
    """A workload whose requests have these lengths in turn."""
    return {
        "input_tokens": {"dist": "values", "values": list(inputs)},
        "output_tokens": {"dist": "values", "values": list(outputs)},
        **more,
    }


def run_with(acts: Sequence[Act], document: dict[str, Any]) -> tuple[RunRecord, list[dict[str, Any]]]:
    """The record and the decisions of a run."""
    stream = io.StringIO()
    record = simulate_cluster(load(document), decisions=stream, acts=acts)
    return record, [json.loads(line) for line in stream.getvalue().splitlines()]


def statuses(record: RunRecord) -> list[str]:
    """How the requests ended, by row."""
    return [Status(each).name.lower() for each in record.requests["status"].tolist()]


def seconds(record: RunRecord, column: str) -> list[float]:
    """A column of instants of the request table."""
    return [ns / SECOND for ns in record.requests[column].tolist()]


def act(at_s: float, what: What, target: int, factor: float = 1.0) -> Act:
    """An act at an instant in seconds."""
    return Act(round(at_s * SECOND), what, target, factor)
