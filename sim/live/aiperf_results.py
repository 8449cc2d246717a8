"""Exports of AIPerf: ``profile_export.jsonl`` with every request, ``profile_export_aiperf.json`` with statistics.

Keys as ai-dynamo/aiperf's ``common/models/record_models.py``, ``common/models/export_models.py`` and
``docs/tutorials/working-with-profile-exports.md`` have them. A record has ``metadata`` (``request_start_ns``,
``benchmark_phase``, ``was_cancelled``), ``metrics`` of values with units (``time_to_first_token``, ``request_latency``,
``input_sequence_length``, ``output_sequence_length``, and ``inter_chunk_latency`` as a list where chunks are exported)
and ``error``. Its ``inter_token_latency`` is (request latency - TTFT) / (output - 1): what vLLM calls TPOT. Statistics
of GenAI-Perf have the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.live.observation_file import NS_PER_S, Observation
from sim.live.other_tools import (
    LATEST_S,
    LONGEST_MS,
    PERCENTILES,
    ToolRun,
    collected,
    completed,
    failed,
    number,
    section,
    statistics,
)

TOOL = "AIPerf"
TO_MS = {"ms": 1.0, "s": 1000.0, "sec": 1000.0, "seconds": 1000.0, "us": 1e-3, "ns": 1e-6}
NAMES = {"mean": "avg", **{name: name for name in PERCENTILES}}
LATENCIES = {
    "ttft": "time_to_first_token",
    "tpot": "inter_token_latency",
    "itl": "inter_chunk_latency",
    "e2el": "request_latency",
}


def is_records(documents: Sequence[Any]) -> bool:
    """Whether these are the lines of a ``profile_export.jsonl``."""
    return bool(documents) and all(
        isinstance(each, Mapping)
        and isinstance(each.get("metrics"), Mapping)
        and "request_start_ns" in section(each, "metadata")
        for each in documents
    )


def is_statistics(document: Any) -> bool:
    """Whether this is a ``profile_export_aiperf.json``."""
    return "unit" in section(document, "request_latency") and "avg" in section(document, "request_latency")


def read_records(file: str, documents: Sequence[Mapping[str, Any]]) -> ToolRun:
    """The run of a ``profile_export.jsonl``, without its warm-up. Raises InputError for requests that cannot be."""
    run = ToolRun(TOOL)
    rows = [
        (row, told)
        for row, told in enumerate(documents)
        if section(told, "metadata").get("benchmark_phase") != "warmup"
    ]
    if len(rows) < len(documents):
        run.notes.append(f"{TOOL}: {len(documents) - len(rows):,} requests of its warm-up are left out")
    run.observations = collected(rows, _request, file, "")
    run.has_gaps = all("inter_chunk_latency" in told["metrics"] for _, told in rows if not told.get("error"))
    if not run.has_gaps:
        run.notes.append(f"{TOOL} exported no chunks: ITL is not compared")
    return run


def _request(row: int, told: Mapping[str, Any]) -> Observation:
    metadata, metrics = section(told, "metadata"), told["metrics"]
    request_id = str(metadata.get("x_request_id") or row)
    inputs = _value(metrics, "input_sequence_length")
    if inputs is None:
        inputs = _value(metrics, "error_isl")
    outputs = _value(metrics, "output_sequence_length")
    if outputs is None:
        outputs = (_value(metrics, "output_token_count") or 0) + (_value(metrics, "reasoning_token_count") or 0)
    error = section(told, "error")
    if told.get("error") or metadata.get("was_cancelled") or not outputs or inputs == 0:
        return failed(row, request_id, inputs, error.get("message") or error.get("type"))
    sent_ns = metadata["request_start_ns"]
    if type(sent_ns) is not int or not 0 <= sent_ns < LATEST_S * NS_PER_S:
        raise ValueError(f"request_start_ns must be a whole number, found {sent_ns!r:.60}")
    token_ns = [sent_ns + _ns(metrics, "time_to_first_token")]
    gaps = metrics.get("inter_chunk_latency")
    if gaps is not None:
        values, scale = section(metrics, "inter_chunk_latency").get("value"), _scale(gaps)
        for value in values if isinstance(values, list) else [values]:
            token_ns.append(token_ns[-1] + _ms_to_ns("inter_chunk_latency", value, scale))
    elif outputs > 1:
        token_ns.append(sent_ns + _ns(metrics, "request_latency"))
    return completed(row, request_id, sent_ns, token_ns, inputs, outputs)


def _value(metrics: Mapping[str, Any], name: str) -> Any:
    told = metrics.get(name)
    return told.get("value") if isinstance(told, Mapping) else told


def _scale(told: Any) -> float:
    unit = told.get("unit", "ms") if isinstance(told, Mapping) else "ms"
    if not isinstance(unit, str) or unit not in TO_MS:
        raise ValueError(f"unknown unit {unit!r:.20} (known: {', '.join(TO_MS)})")
    return TO_MS[unit]


def _ns(metrics: Mapping[str, Any], name: str) -> int:
    """Nanoseconds of a latency."""
    if name not in metrics:
        raise ValueError(f"no {name}: measure with --streaming")
    return _ms_to_ns(name, _value(metrics, name), _scale(metrics[name]))


def _ms_to_ns(name: str, value: Any, scale: float) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value * scale < LONGEST_MS:
        raise ValueError(f"{name} must be a time, found {value!r:.60}")
    return round(value * scale * 1e6)


def read_statistics(document: Mapping[str, Any]) -> ToolRun:
    """The run of a ``profile_export_aiperf.json``."""
    run = ToolRun(TOOL)
    for metric, name in LATENCIES.items():
        told = section(document, name)
        scale = TO_MS.get(str(told.get("unit", "ms")))
        if scale is not None:
            run.figures |= statistics(told, metric, scale, NAMES)
    for key, name in (
        ("request_throughput", "request_throughput"),
        ("output_throughput", "output_token_throughput"),
        ("total_token_throughput", "total_token_throughput"),
    ):
        if (value := number(section(document, name).get("avg"))) is not None:
            run.figures[key] = value
    lasted = section(document, "benchmark_duration")
    value, scale = number(lasted.get("avg")), TO_MS.get(str(lasted.get("unit", "sec")))
    if value is not None and scale is not None:
        run.figures["duration"] = value * scale / 1000.0
    _add_counts(document, run)
    run.why_no_requests = (
        f"statistics of {TOOL}: requests are in profile_export.jsonl, beside this file (--export-level records); "
        "`simrun fit` takes statistics"
    )
    return run


def _add_counts(document: Mapping[str, Any], run: ToolRun) -> None:
    done = number(section(document, "request_count").get("avg"))
    if done is None:
        return
    run.figures["completed"] = round(done)
    bad = number(section(document, "error_request_count").get("avg"))
    if bad is not None:
        run.figures["failed"] = round(bad)
    for key, total, mean in (
        ("total_input_tokens", "total_isl", "input_sequence_length"),
        ("total_output_tokens", "total_osl", "output_sequence_length"),
    ):
        told, each = number(section(document, total).get("avg")), number(section(document, mean).get("avg"))
        if told is not None or each is not None:
            run.figures[key] = round(told if told is not None else (each or 0.0) * done)
