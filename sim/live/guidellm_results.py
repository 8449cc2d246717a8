"""Reports of guidellm: ``benchmarks.json``, with a benchmark for each rate or concurrency that was tried.

Keys as vllm-project/guidellm's ``src/guidellm/schemas/request_stats.py`` and ``schemas/info.py`` write them: under
``benchmarks[].requests`` the lists ``successful``, ``incomplete`` and ``errored``; of a request ``prompt_tokens``,
``output_tokens`` and, under ``info.timings`` in seconds, ``request_start``, ``first_token_iteration`` and
``last_token_iteration`` (0.3: ``first_iteration``; before: ``start_time``, ``first_token_time`` at the top). Its
``inter_token_latency_ms`` is what vLLM calls TPOT: when each token came is not recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.live.observation_file import Observation
from sim.live.other_tools import ToolRun, collected, completed, failed, instant_ns, section

TOOL = "guidellm"
STATUSES = ("successful", "incomplete", "errored")
SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "start": (
        ("info", "timings", "request_start"),
        ("scheduler_info", "request_timings", "request_start"),
        ("request_start_time",),
        ("start_time",),
    ),
    "first token": (
        ("info", "timings", "first_token_iteration"),
        ("info", "timings", "first_iteration"),
        ("scheduler_info", "request_timings", "first_iteration"),
        ("first_token_time",),
    ),
    "last token": (
        ("info", "timings", "last_token_iteration"),
        ("info", "timings", "last_iteration"),
        ("scheduler_info", "request_timings", "last_iteration"),
        ("last_token_time",),
        ("request_end_time",),
        ("end_time",),
    ),
    "prompt tokens": (("prompt_tokens",), ("input_metrics", "text_tokens")),
    "output tokens": (("output_tokens",), ("output_metrics", "text_tokens")),
}
"""Where versions keep what is read of a request, the newest first."""


def is_guidellm(document: Any) -> bool:
    """Whether guidellm wrote this document."""
    benchmarks = document.get("benchmarks") if isinstance(document, Mapping) else None
    return isinstance(benchmarks, list) and all(isinstance(each, Mapping) and "requests" in each for each in benchmarks)


def read_guidellm(file: str, document: Mapping[str, Any]) -> list[ToolRun]:
    """A run for each benchmark of the report. Raises InputError for requests that cannot be."""
    benchmarks = document["benchmarks"]
    runs = []
    for place, benchmark in enumerate(benchmarks, 1):
        which = "" if len(benchmarks) == 1 else f"benchmark {place} of {len(benchmarks)}: "
        runs.append(_read_one(file, benchmark, which))
    return runs


def _read_one(file: str, benchmark: Mapping[str, Any], which: str) -> ToolRun:
    run = ToolRun(TOOL, which, has_gaps=False)
    requests = section(benchmark, "requests")
    lists = {status: requests[status] for status in STATUSES if isinstance(requests.get(status), list)}
    totals = section(benchmark, "metrics", "request_totals") or section(benchmark, "request_totals")
    kept, total = len(lists.get("successful", ())), totals.get("successful")
    if not kept or (type(total) is int and kept < total):
        of = f"{kept:,} of its {total:,}" if type(total) is int else "none of its"
        run.why_no_requests = (
            f"a report of {TOOL} with {of} successful requests: the load of the others would be missing. Run it "
            "without a sample of requests (--sample-requests)"
        )
        return run
    rows = enumerate((status, told) for status in STATUSES for told in lists.get(status, ()))
    run.observations = collected(rows, _request, file, which)
    run.notes.append(f"{TOOL} does not record when each token came: ITL is not compared")
    return run


def _request(row: int, told: tuple[str, Any]) -> Observation:
    status, request = told
    request_id = str(request.get("request_id") or row)
    inputs, outputs = _first(request, "prompt tokens"), _first(request, "output tokens")
    if status != "successful" or not outputs or inputs == 0:
        return failed(row, request_id, inputs, section(request, "info").get("error") or f"guidellm: {status}")
    sent_ns, first_ns, last_ns = (
        instant_ns(what, _first(request, what)) for what in ("start", "first token", "last token")
    )
    tokens = [first_ns] if outputs == 1 else [first_ns, last_ns]
    return completed(row, request_id, sent_ns, tokens, inputs, outputs)


def _first(request: Mapping[str, Any], what: str) -> Any:
    """The first of the places of ``what`` that holds something."""
    for *path, key in SOURCES[what]:
        value = section(request, *path).get(key)
        if value is not None:
            return value
    return None
