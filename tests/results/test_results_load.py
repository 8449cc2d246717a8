"""Offered rate, the trend of the queue, the steady window, its intervals, and shares of requests not served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from results_records import MS, make_record, random_record

from sim.results.context import RunContext
from sim.results.load import (
    Measure,
    arrival_span,
    is_saturated,
    offered_rate,
    queue_trend,
)
from sim.results.record import RunRecord, Status
from sim.results.results import Results
from sim.results.steady import half_width_ms
from sim.results.summary import build_summary


def queueing(num_requests: int, growth_ms: int) -> RunRecord:
    """Arrivals every 10 ms, each of which waits ``growth_ms`` longer than the one before it."""
    record = random_record(1, num_requests)
    index = np.arange(num_requests)
    requests = record.requests
    requests["arrival_ns"] = index * 10 * MS
    requests["scheduled_ns"] = requests["arrival_ns"] + index * growth_ms * MS
    requests["first_token_ns"] = requests["scheduled_ns"] + MS
    requests["finish_ns"] = requests["first_token_ns"] + 20 * MS
    requests["end_ns"] = requests["finish_ns"]
    return record


def test_rates_and_the_trend_of_a_queue_by_hand() -> None:
    record = queueing(400, 5)  # one is served every 15 ms, so that a third of what arrives is left waiting
    span = arrival_span(record)
    assert span == (0, 3990 * MS)
    offered = offered_rate(record, span)
    assert offered == pytest.approx(100.0)
    trend = queue_trend(record, span)
    assert trend.per_s / offered == pytest.approx(1 / 3, rel=0.02)
    assert trend.t > 100
    load = build_summary(record, RunContext(measure=Measure(warmup_s=1.0)))["load"]
    assert load["saturated"] is True
    assert load["served_rate"] == pytest.approx(1 / 0.015, rel=0.01)


def test_a_queue_that_does_not_grow_is_no_overload() -> None:
    record = queueing(400, 0)
    assert queue_trend(record, arrival_span(record)).per_s == 0.0
    assert build_summary(record, RunContext())["load"]["saturated"] is False


def test_later_turns_are_offered_at_the_rate_of_the_first_ones() -> None:
    record = queueing(33, 0)
    record.requests["arrival_ns"] = np.repeat(np.arange(11), 3) * 1000 * MS + np.tile([0, 400, 90_000], 11) * MS
    record.workload.parent[:] = np.where(np.arange(33) % 3, np.arange(33) - 1, -1)
    assert arrival_span(record) == (0, 10_000 * MS)
    assert offered_rate(record, arrival_span(record)) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("growth", "t", "headroom", "expected"),
    [
        (0.0, 0.0, 0.9, True),  # too short for a queue, but too much by the step costs
        (0.05, 10.0, 1.0, True),
        (0.05, 2.0, 1.0, False),  # could be chance
        (0.01, 10.0, 1.0, False),  # too little to matter
        (0.05, 10.0, 1.3, False),
        (0.2, 10.0, 1.3, True),  # piles up although it fits on average
        (0.05, 10.0, None, True),
        (0.0, 0.0, None, False),
    ],
)
def test_two_witnesses(growth: float, t: float, headroom: float | None, expected: bool) -> None:
    assert is_saturated(growth, t, headroom) is expected


def test_headroom_is_what_could_be_served_over_what_is_offered() -> None:
    record = queueing(400, 0)
    load = build_summary(record, RunContext(capacity=lambda _: 170.0))["load"]
    assert load["headroom"] == pytest.approx(1.7)
    assert build_summary(record, RunContext(capacity=lambda _: None))["load"]["headroom"] is None


def test_the_steady_part_and_the_whole_run() -> None:
    record = queueing(400, 0)
    record.requests["first_token_ns"][:100] += 50 * MS
    for key in ("finish_ns", "end_ns"):
        record.requests[key][:100] += 50 * MS
    whole = build_summary(record, RunContext())
    cut = build_summary(record, RunContext(measure=Measure(warmup_s=1.0)))
    assert cut["mean_ttft_ms"] == whole["mean_ttft_ms"] == pytest.approx(1 + 50 / 4)
    assert cut["load"]["steady"]["mean_ttft_ms"] == 1.0
    assert cut["load"]["steady"]["requests"] == 300
    drained = build_summary(record, RunContext(measure=Measure(1.0, "end")))["load"]
    assert drained["to_s"] == pytest.approx(3.99 + 0.021)
    assert cut["load"]["to_s"] == pytest.approx(3.99)


def test_a_warm_up_longer_than_the_run_is_noted() -> None:
    summary = build_summary(queueing(40, 0), RunContext(measure=Measure(warmup_s=100.0)))
    assert summary["load"]["steady"]["mean_ttft_ms"] is None
    assert any("no steady figures" in note for note in summary["run"]["notes"])
    assert not any("no steady figures" in note for note in build_summary(queueing(40, 0), RunContext())["run"]["notes"])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        column = rng.exponential(100e6, 4000).astype(np.int64)
        width = half_width_ms(column, "p95")
        assert width is not None
        covered += abs(float(np.percentile(column, 95)) / 1e6 - 100 * np.log(20)) <= width
    assert 0.88 <= covered / 200 <= 0.99


def test_a_tail_needs_requests() -> None:
    column = np.random.default_rng(4).permutation(1000) * MS
    assert half_width_ms(column, "p95") is not None
    assert half_width_ms(column, "p99") is None
    assert half_width_ms(np.random.default_rng(1).permutation(2000) * MS, "p99") is not None
    assert half_width_ms(column[:50], "mean") is None


def unserved(rejected: int, cancelled: int) -> RunRecord:
    record = random_record(2, 100)
    record.requests["status"][:rejected] = Status.REJECTED
    record.requests["status"][rejected : rejected + cancelled] = Status.CANCELLED
    return record


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ({}, ["max_rejected", "max_failed"]),
        ({"max_rejected": 0.03}, ["max_failed"]),
        ({"max_rejected": 0.029, "max_failed": 0.02}, ["max_rejected"]),
        ({"max_rejected": 0.03, "max_failed": 0.02}, []),
    ],
)
def test_requests_that_are_not_served_miss(limits: dict[str, float], missed: list[str]) -> None:
    results = Results(unserved(3, 2), RunContext(slo={"e2el_p99_ms": 1e9, **limits}))
    slo: dict[str, Any] = results.summary["slo"]
    assert [name for name, entry in slo["shares"].items() if not entry["met"]] == missed
    assert (slo["met"], results.slo_met) == (not missed, not missed)
    assert [line.split(":")[0] for line in results.misses] == missed
    assert slo["shares"]["max_rejected"]["value"] == 0.03
    assert results.summary["request_goodput"] * results.summary["duration"] == pytest.approx(95)


def test_without_an_slo_every_request_has_to_be_served() -> None:
    assert Results(unserved(0, 0)).misses == []
    results = Results(unserved(0, 1))
    assert results.slo_met
    assert [line.split(":")[0] for line in results.misses] == ["max_failed"]


def test_a_class_may_allow_what_the_run_does_not() -> None:
    record = make_record([{"max_rejected": 0.5}, None])
    assert Results(record).misses == []
    assert Results(record, RunContext(slo={"e2el_p99_ms": 1e9})).misses[0].startswith("max_rejected: 0.25 of")


def waiting_at_random(num_requests: int, stay_ms: int, wait_ms: int) -> RunRecord:
    """Poisson arrivals every 100 ms on average; one in ten waits ``wait_ms``, and all stay ``stay_ms``."""
    record = queueing(num_requests, 0)
    rng = np.random.default_rng(7)
    requests = record.requests
    requests["arrival_ns"] = np.cumsum(rng.exponential(100 * MS, num_requests)).astype(np.int64)
    waits = (np.arange(num_requests) % 10 == 0) * wait_ms * MS
    requests["scheduled_ns"] = requests["arrival_ns"] + waits
    requests["first_token_ns"] = requests["scheduled_ns"] + MS
    requests["finish_ns"] = requests["scheduled_ns"] + stay_ms * MS
    requests["end_ns"] = requests["finish_ns"]
    return record


def test_what_a_run_is_worth_by_hand() -> None:
    """5,000 requests at 80 % load, gaps of squared variation 1 and equal stays: 5,000 * 0.2^2 / 1 = 200."""
    load = build_summary(waiting_at_random(5000, 50, 500), RunContext(capacity=lambda _: 12.5))["load"]
    assert load["headroom"] == pytest.approx(1.25, rel=0.03)
    assert load["relaxations"] == pytest.approx(5000 * (1 - 1 / load["headroom"]) ** 2, rel=0.05)


def test_where_hardly_any_request_waits_each_counts() -> None:
    load = build_summary(waiting_at_random(5000, 50, 1), RunContext(capacity=lambda _: 12.5))["load"]
    assert load["relaxations"] == 5000
    assert build_summary(waiting_at_random(500, 50, 1), RunContext())["load"]["relaxations"] is None


@pytest.mark.parametrize(
    ("offered", "given"),
    [
        (0.5, {"mean", "p50", "p90", "p95", "p99"}),  # worth 1,250
        (0.8, {"mean", "p50", "p90", "p95"}),  # 200
        (0.89, {"mean", "p50", "p90"}),  # 60
        (0.95, {"p50"}),  # 12
        (0.99, set()),  # 0.5
    ],
)
def test_a_single_run_s_intervals_are_given_where_it_is_worth_enough(offered: float, given: set[str]) -> None:
    record = waiting_at_random(5000, 50, 500)
    rate = offered_rate(record, arrival_span(record))
    assert rate is not None
    load = build_summary(record, RunContext(capacity=lambda _: rate / offered))["load"]
    widths = load["steady"]["confidence"]["half_width"]
    assert {name for name in ("mean", "p50", "p90", "p95", "p99") if widths[f"{name}_e2el_ms"] is not None} == given
