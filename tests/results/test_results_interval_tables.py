"""Intervals on a terminal, and how the source of step times is worded."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from sim.results import interval_tables
from sim.results.wording import source_of


def section(seeds: list[int], error: float, **metrics: tuple[float, float, float]) -> dict[str, Any]:
    named = {name: dict(zip(("mean", "low", "high"), each, strict=True)) for name, each in metrics.items()}
    return {"seeds": seeds, "profile_error": error, "slo_met_by_seed": None, "metrics": named}


def drawn(*tables: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80)
    for table in tables:
        console.print(table)
    return out.getvalue()


@pytest.mark.parametrize(
    ("seeds", "error", "expected"),
    [
        ([3, 4], 0.052, "Mean of 2 seeds, 3 to 4 [low, high]: the spread over seeds and step times off by 5.2%"),
        ([3], 0.052, "Mean of seed 3 [low, high]: step times off by 5.2%"),
        ([3, 4], 0.0, "Mean of 2 seeds, 3 to 4 [low, high]: the spread over seeds"),
        ([3], 0.0, "Mean of seed 3 [low, high]: nothing is uncertain"),
    ],
)
def test_the_heading_says_what_is_in_the_interval(seeds: list[int], error: float, expected: str) -> None:
    assert interval_tables.heading(section(seeds, error)) == expected


def test_the_notes_say_what_the_intervals_are_of() -> None:
    (of,) = interval_tables.notes(section([3, 4], 0.1))
    assert of == "intervals are of the mean over runs of this length, not of one run or of an endless one"
    assert interval_tables.notes({**section([3, 4], 0.1), "notes": ["a"]}) == [of, "a"]
    assert interval_tables.notes(section([3], 0.1)) == []


def test_values_with_their_intervals_and_a_dash_for_what_nobody_had() -> None:
    found = section([0, 1], 0.1, p95_ttft_ms=(177.2, 142.4, 212.3), request_throughput=(5.66, 5.3, 6.02))
    text = drawn(interval_tables.totals(found), *interval_tables.latencies(found))
    assert "177 [142, 212]" in text
    assert "5.66 [5.3, 6.02]  requests/s" in text
    assert "within their SLO" not in text  # no goodput, no row
    assert text.count(" -") == 19  # of four metrics times five statistics, one is known


def test_the_slo_s_verdict_counts_seeds() -> None:
    found = section([7, 8, 9], 0.1)
    assert interval_tables.verdict(found) is None
    found["slo_met_by_seed"] = [True, False, True]
    assert interval_tables.verdict(found) == "SLO met in 2 of 3 seeds; in seed 7:"


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        (
            {"kind": "roofline", "time_scale": 1.0, "gpu": "rtx-4090"},
            "ESTIMATE, not measured: a roofline of datasheet figures of rtx-4090",
        ),
        (
            {"kind": "roofline", "time_scale": 1.2},
            "ESTIMATE, not measured: a roofline of datasheet figures; all times x 1.2",
        ),
        ({"kind": "profile", "profile": "mine"}, "measured, profile mine"),
        (
            {"kind": "profile", "profile": "mine", "scaled_from": "a100-80gb-sxm"},
            "measured on a100-80gb-sxm, scaled to this GPU's memory",
        ),
    ],
)
def test_where_step_times_come_from(latency: dict[str, Any], expected: str) -> None:
    assert source_of(latency) == expected
