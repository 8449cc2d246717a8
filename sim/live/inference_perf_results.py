"""Reports of inference-perf: statistics of a stage or of all, and every request.

Keys as kubernetes-sigs/inference-perf's ``inference_perf/reportgen/base.py`` and ``apis/base.py`` write them.
``per_request_lifecycle_metrics.json`` is a list of requests: ``start_time`` and ``end_time`` in seconds, ``error``, and
under ``info`` ``request_metrics.text.input_tokens`` and ``response_metrics`` with ``output_tokens``, ``server_usage``
and ``output_token_times`` (before: all of these under ``info``). ``stage_<n>_lifecycle_metrics.json`` and
``summary_lifecycle_metrics.json`` have ``successes.latency`` in seconds: ``time_to_first_token``,
``time_per_output_token`` (as vLLM defines TPOT), ``request_latency``. Its inter_token_latency counts the tokens of one
chunk as apart by nothing (and in versions of before, a token more per chunk), so that it is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.live.observation_file import Observation
from sim.live.other_tools import (
    PERCENTILES,
    ToolRun,
    collected,
    completed,
    failed,
    instant_ns,
    number,
    section,
    statistics,
)

TOOL = "inference-perf"
NAMES = {"mean": "mean", "median": "median", **{name: name for name in PERCENTILES}}
LATENCIES = {"ttft": "time_to_first_token", "tpot": "time_per_output_token", "e2el": "request_latency"}


def is_inference_perf(document: Any) -> bool:
    """Whether inference-perf wrote this document."""
    if isinstance(document, list):
        return bool(document) and all(
            isinstance(each, Mapping) and {"start_time", "end_time", "info"} <= each.keys() for each in document
        )
    return isinstance(document, Mapping) and isinstance(document.get("successes"), Mapping) and "failures" in document


def read_inference_perf(file: str, document: Any) -> ToolRun:
    """The run of a report. Raises InputError for requests that cannot be."""
    run = ToolRun(TOOL)
    if isinstance(document, list):
        run.observations = collected(enumerate(document), _request, file, "")
        run.notes.append(f"{TOOL}: tokens of one chunk count as one event")
        return run
    run.figures = _figures(document)
    run.why_no_requests = (
        f"a summary of {TOOL}: it has statistics alone. Set report.request_lifecycle.per_request: true, and give "
        "per_request_lifecycle_metrics.json; `simrun fit` takes statistics"
    )
    run.notes.append(f"{TOOL}: its inter_token_latency counts tokens of one chunk as apart by nothing; left out")
    return run


def _request(row: int, told: Mapping[str, Any]) -> Observation:
    info, response = section(told, "info"), section(told, "info", "response_metrics")
    inputs = section(info, "request_metrics", "text").get("input_tokens", info.get("input_tokens"))
    outputs = section(response, "server_usage").get("completion_tokens") or response.get("output_tokens")
    outputs = info.get("output_tokens") if outputs is None else outputs
    if told.get("error") or not outputs or inputs == 0:
        error = section(told, "error")
        return failed(row, str(row), inputs, error.get("error_msg") or error.get("error_type") or told.get("error"))
    times = response.get("output_token_times") or info.get("output_token_times")
    if not times:
        raise ValueError("no output_token_times: measure with streaming (api.streaming: true)")
    instants = [instant_ns("output_token_times", each) for each in times]
    events = [each for place, each in enumerate(instants) if place == 0 or each != instants[place - 1]]
    return completed(row, str(row), instant_ns("start_time", told.get("start_time")), events, inputs, outputs)


def _figures(document: Mapping[str, Any]) -> dict[str, Any]:
    good = section(document, "successes")
    found: dict[str, Any] = {}
    for metric, name in LATENCIES.items():
        found |= statistics(section(good, "latency", name), metric, 1000.0, NAMES)
    rates = {"request_throughput": "requests_per_sec", "output_throughput": "output_tokens_per_sec"}
    rates |= {"total_token_throughput": "total_tokens_per_sec"}
    for key, theirs in rates.items():
        if (value := number(section(good, "throughput").get(theirs))) is not None:
            found[key] = value
    if duration := number(document.get("benchmark_time_seconds")):
        found["duration"] = duration
    done = good.get("count")
    if type(done) is not int:
        return found
    found["completed"] = done
    bad = section(document, "failures").get("count")
    if type(bad) is int:
        found["failed"] = bad
    for key, names in (("input", ("prompt_tokens", "prompt_len")), ("output", ("output_tokens", "output_len"))):
        total = number(section(good, names[0]).get("total"))
        mean = number(section(good, names[1]).get("mean"))
        if total is not None or mean is not None:
            found[f"total_{key}_tokens"] = round(total if total is not None else (mean or 0.0) * done)
    if "duration" not in found and found.get("request_throughput"):
        found["duration"] = done / found["request_throughput"]
    return found
