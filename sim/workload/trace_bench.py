"""A result of ``vllm bench serve`` as a trace: start times and lengths of a measured run.

Keys as vLLM's ``vllm/benchmarks/serve.py`` writes them. An output that neither the server nor the text counted is as
long as its stream had pieces; one without any failed (``sim/live/bench_results.py`` takes it the same).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.workload.table import IntColumn
from sim.workload.trace_fields import IntField, TimeField
from sim.workload.trace_files import TraceProblems, open_trace, take_cell
from sim.workload.trace_table import Source, Trace


def read_vllm_bench(source: Source) -> Trace:
    """Start times and lengths of a benchmark run; failed requests have 0 tokens of output."""
    problems, limit = source.problems, source.config.limit
    for key in ("columns", "time_unit"):
        if getattr(source.config, key) is not None:
            problems.add(f"workload.trace.{key}: vllm bench serve has keys of its own, in seconds; leave it out")
    arrival = TimeField("start_times", "seconds")
    inputs, outputs = IntField("input_lens", minimum=0), IntField("output_lens", minimum=0)
    fields = (arrival, inputs, outputs)
    with open_trace(source.path, problems) as stream:
        text = stream.read()
    found = _json_values(text, [field.name for field in fields], problems)
    _refuse_lacking([field.name for field in fields if field.name not in found], problems)
    lengths = {name: len(values) for name, values in found.items() if isinstance(values, list)}
    if len(lengths) < len(fields) or len(set(lengths.values())) > 1:
        problems.add(f"start_times, input_lens and output_lens must be lists of one length, found {lengths}")
        problems.raise_if_any()
    for column in fields:
        _take_list(column, found[column.name][:limit], problems)
    problems.raise_if_any()
    counted = outputs.column().copy()
    if np.any(counted == 0):
        _count_pieces(counted, text, problems)
    times, done = arrival.column(), counted > 0
    first_ns = times[done].min(initial=2**63 - 1)
    return Trace(np.where(done, times - first_ns, 0), inputs.column(), counted)


def _refuse_lacking(missing: list[str], problems: TraceProblems) -> None:
    if missing == ["start_times"] and not problems.listed:
        problems.add(
            "this result has lengths but no start_times, which `vllm bench serve` writes since vLLM 0.15 and SGLang's "
            "bench_serving does not: measure with the benchmark of a later vLLM (the server may stay as it is), or "
            "give lengths and an arrival process"
        )
    elif missing and not problems.listed:
        problems.add(
            f"this result has no {', '.join(missing)}: run `vllm bench serve` with both --save-result and "
            "--save-detailed, which write the lengths and the start time of each request"
        )
    problems.raise_if_any()


def _count_pieces(outputs: IntColumn, text: str, problems: TraceProblems) -> None:
    """Lengths of outputs that were not counted: a token for each piece of their streams."""
    told = _json_values(text, ["ttfts", "itls", "errors"], problems)
    ttfts, itls, errors = (told.get(key) for key in ("ttfts", "itls", "errors"))
    if not (isinstance(ttfts, list) and isinstance(itls, list)) or min(len(ttfts), len(itls)) < len(outputs):
        return
    for row in np.flatnonzero(outputs == 0).tolist():
        has_failed = isinstance(errors, list) and row < len(errors) and bool(errors[row])
        if not has_failed and isinstance(itls[row], list) and (itls[row] or ttfts[row]):
            outputs[row] = 1 + len(itls[row])


def _take_list(column: TimeField | IntField, values: list[Any], problems: TraceProblems) -> None:
    try:
        if values:
            column.extend(values)
    except (ValueError, TypeError, OverflowError):
        for index, value in enumerate(values):
            take_cell(column, value, problems, None, f"{column.name}[{index}]")


def _json_values(text: str, wanted: Sequence[str], problems: TraceProblems) -> dict[str, Any]:
    """The wanted keys of the one JSON object in ``text``; the other values are dropped as they are passed."""
    decoder = json.JSONDecoder()
    found: dict[str, Any] = {}

    def skip_blank(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    def expect(at: int, characters: str) -> int:
        at = skip_blank(at)
        if at >= len(text) or text[at] not in characters:
            raise json.JSONDecodeError(f"expected {' or '.join(map(repr, characters))}", text, at)
        return at + 1

    try:
        at = skip_blank(expect(0, "{"))
        more = text[at : at + 1] != "}"
        at = at if more else at + 1
        while more:
            key, at = decoder.raw_decode(text, skip_blank(at))
            value, at = decoder.raw_decode(text, skip_blank(expect(at, ":")))
            if key in wanted:
                found[key] = value
            at = expect(at, ",}")
            more = text[at - 1] == ","
        if text[at:].strip():
            problems.add(
                "the file holds more than one result (--append-result); keep the one to replay in its own file"
            )
    except json.JSONDecodeError as error:
        problems.add(f"not a benchmark result: {error.msg}", error.lineno, error.colno)
    except (ValueError, RecursionError) as error:
        problems.add(f"not a benchmark result: {error}")
    return found
