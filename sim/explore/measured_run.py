"""A measured run to fit to: its figures, and its requests where the file has them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from sim.errors import InputError, Problem
from sim.live.measured import (
    BENCH_LISTS,
    Measured,
    bundled_share,
    figures,
    is_record,
    read_measured,
    read_text,
    reasons,
)
from sim.live.validate import MUCH_BUNDLED
from sim.results.metrics import METRICS, STATISTICS

RATES = ("request_throughput", "output_throughput", "total_token_throughput", "duration")
KEYS = tuple(f"{name}_{metric}_ms" for metric in METRICS for name in STATISTICS if name != "std") + RATES
"""Keys of a result of ``vllm bench serve`` that are fitted to, as far as a file has them."""
COUNTS = ("completed", "total_input_tokens", "total_output_tokens")


@dataclass(slots=True)
class MeasuredRun:
    """One run."""

    file: str
    source: str
    figures: dict[str, float]
    """By the keys of ``KEYS``; at least one."""
    counts: dict[str, int]
    """Requests and tokens, as far as the file says."""
    measured: Measured | None = None
    """Its requests; None where the file has statistics alone."""
    notes: list[str] = field(default_factory=list)


def read_run(name: str) -> MeasuredRun:
    """The run in the file ``name``.

    Raises InputError for a file that neither ``simrun observe`` nor ``vllm bench serve`` wrote, or that has no figure
    to fit to.
    """
    text = read_text(name)
    if is_record(text.partition("\n")[0]):
        return _with_requests(name)
    result = _result(name, text)
    if all(isinstance(result.get(key), list) for key in BENCH_LISTS):
        return _with_requests(name)
    found, problems = {}, []
    for key in KEYS:
        value = result.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            problems.append(Problem(f"{key} must be a number of 0 or more, found {value!r:.60}", name))
        elif value > 0:
            found[key] = float(value)
    if not found and not problems:
        problems.append(
            Problem(
                "has none of the figures that `vllm bench serve --save-result` writes (mean_ttft_ms, mean_tpot_ms, "
                "p99_itl_ms and the like), so there is nothing to fit to",
                name,
            )
        )
    if problems:
        raise InputError(problems[:20])
    counts = {key: result[key] for key in COUNTS if type(result.get(key)) is int}
    return MeasuredRun(name, "vllm bench serve, without requests", _distinct(found), counts)


def _result(name: str, text: str) -> dict[str, Any]:
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(
            Problem(
                "neither a record of `simrun observe` nor one result of `vllm bench serve --save-result` (with "
                "--append-result, keep the one to fit to in its own file)",
                name,
            )
        ) from None
    if not isinstance(result, dict):
        raise InputError(Problem("expected the one JSON object that `vllm bench serve` writes", name))
    return result


def _with_requests(name: str) -> MeasuredRun:
    measured = read_measured(name)
    if not measured.completed:
        why = reasons(measured.observations).most_common(1)
        because = f"; {why[0][1]:,} of {len(measured.observations):,}: {why[0][0]}" if why else ""
        raise InputError(Problem(f"no request completed, so there is nothing to fit to{because}", name))
    told, notes = figures(measured), list(measured.notes)
    found = {key: float(told[key]) for key in KEYS if told[key]}
    if bundled_share(measured) > MUCH_BUNDLED:
        found = {key: value for key, value in found.items() if not key.endswith("_itl_ms")}
        notes.append(f"{name}: tokens came several at a time, so that ITL is left out of the fit")
    left_out = len(measured.observations) - len(measured.completed)
    if left_out:
        notes.append(f"{name}: {left_out:,} of {len(measured.observations):,} requests did not complete; left out")
    counts = {key: int(told[key]) for key in COUNTS}
    return MeasuredRun(name, measured.source, _distinct(found), counts, measured, notes)


def _distinct(found: dict[str, float]) -> dict[str, float]:
    """Without medians that are given as p50 too."""
    return {
        key: value for key, value in found.items() if key.replace("median", "p50") == key or not _has_p50(key, found)
    }


def _has_p50(key: str, found: dict[str, float]) -> bool:
    return key.replace("median", "p50") in found
