"""A measured run to fit to: its figures, and its requests where the file has them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sim.errors import InputError, Problem
from sim.live.bench_results import BENCH_LISTS, STARTS_SINCE, documents_of, has_no_starts, lists_of, read_requests
from sim.live.measured import (
    Measured,
    bundled_share,
    figures,
    is_record,
    measured_of,
    measured_of_tool,
    named_results,
    read_measured,
    read_text,
    reasons,
)
from sim.live.other_tools import ToolRun
from sim.live.result_kinds import tool_runs
from sim.live.validate import MUCH_BUNDLED
from sim.results.metrics import METRICS, STATISTICS

RATES = ("request_throughput", "output_throughput", "total_token_throughput", "duration")
KEYS = tuple(f"{name}_{metric}_ms" for metric in METRICS for name in STATISTICS if name != "std") + RATES
"""Keys of a result of ``vllm bench serve`` that are fitted to, as far as a file has them."""
COUNTS = ("completed", "total_input_tokens", "total_output_tokens")
"""Keys of a result that say how much traffic a run had."""


@dataclass(slots=True)
class MeasuredRun:
    """One run."""

    file: str
    """Its file, and which result of it where it has several."""
    source: str
    figures: dict[str, float]
    """By the keys of ``KEYS``; at least one."""
    counts: dict[str, int]
    """Requests and tokens, as far as the file says."""
    measured: Measured | None = None
    """Its requests; None where the file has statistics alone."""
    notes: list[str] = field(default_factory=list)


def read_runs(name: str) -> list[MeasuredRun]:
    """The runs in the file ``name``: one, or each of those that ``--append-result`` put one after the other.

    Raises InputError for a file that no known load generator wrote, or for a run that has no figure to fit to.
    """
    text = read_text(name)
    if is_record(text.partition("\n")[0]):
        return [_with_requests(name, name, read_measured(name))]
    documents = documents_of(text)
    others = tool_runs(name, documents)
    if others is not None:
        return [_of_tool(name, run) for run in others]
    results = named_results(name, documents)
    runs, problems = [], []
    for number, (which, result) in enumerate(results, 1):
        try:
            runs.append(_of_result(name, name if len(results) == 1 else f"{name}, result {number}", which, result))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return runs


def _of_result(file: str, called: str, which: str, result: dict[str, Any]) -> MeasuredRun:
    if len(lists_of(result)) == len(BENCH_LISTS):
        return _with_requests(file, called, measured_of(file, which, result))
    found, counts, notes = _statistics(file, called, which, result)
    if lists_of(result) and not has_no_starts(result):
        missing = [key for key in BENCH_LISTS if key not in lists_of(result)]
        notes.append(f"{called}: its requests are left out, for {', '.join(missing)} are not in it")
    if has_no_starts(result):
        return _without_starts(file, called, which, result, found)
    if not found:
        raise InputError(
            Problem(
                f"{which}has none of the figures that `vllm bench serve --save-result` writes (mean_ttft_ms, "
                "mean_tpot_ms, p99_itl_ms and the like), so there is nothing to fit to",
                file,
            )
        )
    return MeasuredRun(called, "vllm bench serve, without requests", _distinct(found), counts, notes=notes)


def _of_tool(file: str, run: ToolRun) -> MeasuredRun:
    """A run of another load generator."""
    called = file + (f", {run.which.removesuffix(': ')}" if run.which else "")
    if run.observations is not None:
        return _with_requests(file, called, measured_of_tool(run))
    found, counts, notes = _statistics(file, called, run.which, run.figures)
    if not found:
        raise InputError(Problem(f"{run.which}{run.why_no_requests}", file))
    notes = [*run.notes, *notes]
    return MeasuredRun(called, f"{run.tool}, without requests", _distinct(found), counts, notes=notes)


def _statistics(
    file: str, called: str, which: str, result: dict[str, Any]
) -> tuple[dict[str, float], dict[str, int], list[str]]:
    """(figures, counts, notes) that a result states. Raises InputError for what cannot be."""
    found, problems, notes = {}, [], []
    for key in KEYS:
        value = result.get(key)
        if isinstance(value, float) and not math.isfinite(value):
            notes.append(f"{called}: {key} is {value}; left out")
        elif value is None:
            continue
        elif isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            problems.append(Problem(f"{which}{key} must be a number of 0 or more, found {value!r:.60}", file))
        elif value > 0:
            found[key] = float(value)
        elif key == "duration":
            problems.append(Problem(f"{which}duration is 0: no run takes no time", file))
    for key in (*COUNTS, "failed"):
        value = result.get(key)
        if value is not None and (type(value) is not int or value < 0):
            problems.append(Problem(f"{which}{key} must be a whole number of 0 or more, found {value!r:.60}", file))
    if problems:
        raise InputError(problems[:20])
    counts = {key: value for key in (*COUNTS, "failed") if (value := result.get(key)) is not None}
    lacking = [key for key in (*COUNTS, "duration") if key not in result]
    if lacking:
        notes.append(
            f"{called}: {', '.join(lacking)} are not in it, so that the scenario's traffic cannot be held against "
            "them; a fit to other traffic is wrong and does not show it"
        )
    return found, counts, notes


def _without_starts(file: str, called: str, which: str, result: dict[str, Any], told: dict[str, float]) -> MeasuredRun:
    """What a vLLM before 0.15 wrote: latencies are those of its requests, rates those that it says itself."""
    rows, notes = read_requests(file, result, which)
    run = _with_requests(file, called, Measured("vllm bench serve, without start times", rows, notes=notes))
    kept = {key: value for key, value in run.figures.items() if key not in RATES}
    run.figures = kept | {key: told[key] for key in RATES if key in told}
    run.measured = None
    run.notes.append(
        f"{called}: when requests were sent is not in it (vLLM writes start_times since {STARTS_SINCE}): the workload "
        "is the scenario's"
    )
    return run


def _with_requests(file: str, called: str, measured: Measured) -> MeasuredRun:
    if not measured.completed:
        why = reasons(measured.observations).most_common(1)
        because = f"; {why[0][1]:,} of {len(measured.observations):,}: {why[0][0]}" if why else ""
        raise InputError(Problem(f"no request completed, so there is nothing to fit to{because}", file))
    told, notes = figures(measured), list(measured.notes)
    found = {key: float(told[key]) for key in KEYS if told[key]}
    if bundled_share(measured) > MUCH_BUNDLED:
        found = {key: value for key, value in found.items() if not key.endswith("_itl_ms")}
        notes.append(f"{called}: tokens came several at a time, so that ITL is left out of the fit")
    left_out = len(measured.observations) - len(measured.completed)
    if left_out:
        notes.append(f"{called}: {left_out:,} of {len(measured.observations):,} requests did not complete; left out")
    counts = {key: int(told[key]) for key in COUNTS}
    return MeasuredRun(called, measured.source, _distinct(found), counts, measured, notes)


def _distinct(found: dict[str, float]) -> dict[str, float]:
    """Without medians that are given as p50 too."""
    return {
        key: value for key, value in found.items() if key.replace("median", "p50") == key or not _has_p50(key, found)
    }


def _has_p50(key: str, found: dict[str, float]) -> bool:
    return key.replace("median", "p50") in found
