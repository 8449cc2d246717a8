"""Metrics against brute force on the sample written out in full."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_records import make_record, random_record

from sim.results.gaps import FLUSH_GAPS, MERGE_VALUES, Gaps
from sim.results.metrics import (
    STATISTICS,
    Presence,
    RequestTimes,
    RowsByReplica,
    Samples,
    exact_dot,
    exact_sum,
    good_requests,
    run_window,
    step_segments,
)

INTEGERS = st.integers(0, 2**42)
PAIRS = st.lists(st.tuples(INTEGERS, st.integers(1, 40)), min_size=1, max_size=40)
LARGE = st.lists(st.integers(-(2**61), 2**61), max_size=30)


def column(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@given(LARGE, LARGE)
def test_exact_sums_do_not_overflow(a: list[int], b: list[int]) -> None:
    n = min(len(a), len(b))
    assert exact_sum(column(a)) == sum(a)
    assert exact_dot(column(a[:n]), column(b[:n])) == sum(x * y for x, y in zip(a[:n], b[:n], strict=True))


@given(PAIRS, st.floats(0, 100))
def test_weighted_percentile_is_numpys_on_the_expansion(pairs: list[tuple[int, int]], q: float) -> None:
    values, weights = column([v for v, _ in pairs]), column([w for _, w in pairs])
    expanded = np.repeat(values, weights)
    assert Samples(values, weights).percentile(q) == np.percentile(expanded, q)
    assert Samples(expanded).percentile(q) == np.percentile(expanded, q)


@given(PAIRS)
def test_weighted_moments_are_exact(pairs: list[tuple[int, int]]) -> None:
    values, weights = column([v for v, _ in pairs]), column([w for _, w in pairs])
    expanded = [int(v) for v in np.repeat(values, weights)]
    mean = Fraction(sum(expanded), len(expanded))
    variance = sum((v - mean) ** 2 for v in expanded) / len(expanded)
    samples = Samples(values, weights)
    assert samples.count == len(expanded)
    assert samples.mean() == float(mean)
    assert samples.std() == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert samples.std() == Samples(column(expanded)).std()


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=40))
def test_float_samples(values: list[float]) -> None:
    array = np.array(values)
    samples = Samples(array)
    assert samples.percentile(95) == np.percentile(array, 95)
    assert samples.mean() == pytest.approx(np.mean(array), rel=1e-12)
    assert samples.std() == pytest.approx(np.std(array), rel=1e-9, abs=1e-3)


def test_no_samples_is_none_and_never_nan() -> None:
    for empty in (Samples(column([])), Samples(column([]), column([])), Samples(np.empty(0))):
        assert empty.statistics() == dict.fromkeys(STATISTICS)


def test_statistics_are_milliseconds() -> None:
    assert Samples(column([1_000_000, 3_000_000])).statistics() == {
        "mean": 2.0,
        "median": 2.0,
        "std": 1.0,
        "p50": 2.0,
        "p90": pytest.approx(2.8),
        "p95": pytest.approx(2.9),
        "p99": pytest.approx(2.98),
    }


def test_request_times_by_hand() -> None:
    times = RequestTimes.of(make_record())
    assert times.ttft_ns.tolist() == [20_000_000, 35_000_000, 20_000_000]
    assert times.e2el_ns.tolist() == [60_000_000, 35_000_000, 40_000_000]
    assert times.queue_ns.tolist() == [0, 10_000_000, 0]
    assert times.tpot_ns[0] == 10_000_000
    assert math.isnan(times.tpot_ns[1]), "a request of one token has no TPOT"
    assert times.samples()["tpot"].count == 2


def test_goodput_takes_the_tightest_limit_and_spares_one_token_requests() -> None:
    times = RequestTimes.of(make_record())
    assert times.good({"ttft_p95_ms": 30}).tolist() == [True, False, True]
    assert times.good({"ttft_p50_ms": 19.9, "ttft_p99_ms": 30}).tolist() == [False, False, False]
    assert times.good({"tpot_p99_ms": 10}).tolist() == [True, True, True], "a limit that is met exactly is met"
    assert times.good({"itl_p99_ms": 9.99}).tolist() == [False, True, False]
    assert times.good({"e2el_mean_ms": 50}).tolist() == [False, True, True]


def test_goodput_by_class() -> None:
    record = make_record(class_slos=[None, {"ttft_p95_ms": 1.0}])
    times = RequestTimes.of(record)
    for limits, expected in ((None, [True, False, True]), ({"e2el_p95_ms": 50.0}, [False, False, True])):
        good = good_requests(record, times, limits)
        assert good is not None
        assert good.tolist() == expected
    assert good_requests(make_record(), times, None) is None


@given(st.integers(0, 2**32))
def test_littles_law_on_any_record(seed: int) -> None:
    record = random_record(seed)
    window = run_window(record)
    start, end = record.requests["arrival_ns"], record.requests["finish_ns"]
    presence = Presence.of(start, end, window)
    assert presence.rate_per_s is not None
    assert presence.mean_stay_s is not None
    assert presence.mean == pytest.approx(presence.rate_per_s * presence.mean_stay_s, rel=1e-9)
    instants = range(window[0], window[1], max(1, (window[1] - window[0]) // 50))
    assert presence.maximum >= max(int(((start <= t) & (t < end)).sum()) for t in instants)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=20))
def test_presence_against_counting_every_nanosecond(intervals: list[tuple[int, int]]) -> None:
    start = column([s for s, _ in intervals])
    end = start + column([d for _, d in intervals])
    window = (int(start.min()), int(end.max()))
    counts = [int(((start <= t) & (t < end)).sum()) for t in range(*window)]
    presence = Presence.of(start, end, window)
    assert presence.maximum == max(counts, default=0)
    assert presence.mean == (pytest.approx(sum(counts) / len(counts)) if counts else None)


def test_segments_end_at_the_next_schedule_or_at_idleness() -> None:
    record = make_record()
    rows = RowsByReplica(record.steps, 2)[0]
    start, end = step_segments(record, rows)
    assert rows.tolist() == [0, 1, 2, 4]
    assert start.tolist() == [0, 20_000_000, 45_000_000, 100_000_000]
    assert end.tolist() == [20_000_000, 45_000_000, 60_000_000, 140_000_000]


@given(st.lists(st.integers(-1, 6), max_size=60), st.sampled_from([7, 40_000]))
def test_rows_of_a_replica_are_those_a_search_finds(replicas: list[int], count: int) -> None:
    values = column(replicas)
    found = RowsByReplica({"replica": values}, count)
    for replica in range(7):
        assert found[replica].tolist() == np.flatnonzero(values == replica).tolist()


@pytest.mark.parametrize("most", [50, 2 * MERGE_VALUES])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_merged_gaps_are_the_gaps(most: int, num_classes: int) -> None:
    """Gaps with a weight, one by one and in steps, merged on the way, add up to what was recorded, class by class."""
    gaps, expected = Gaps(num_classes), [Counter[int]() for _ in range(num_classes)]
    generator = np.random.default_rng(5)
    num_merged = 0
    for _ in range(3):
        for gap, weight in generator.integers(1, [most, 9], (FLUSH_GAPS // 2 - 1, 2)).tolist():
            gaps.add((gap, sum(gaps.units) * weight))
            for each in expected:
                each[gap] += weight
        gaps.trim()
        assert gaps._pairs, "too few to be merged"
        gaps.add((7, 2 * gaps.units[-1]))
        expected[-1][7] += 2
        gaps.trim()
        num_merged += not gaps._pairs
        steps = generator.integers(1, most, 100)
        changes: dict[int, int] = {}
        for first, last, index in generator.integers([0, 50, 0], [50, 101, num_classes], (40, 3)).tolist():
            changes[first] = changes.get(first, 0) + gaps.units[index]
            changes[last] = changes.get(last, 0) - gaps.units[index]
            expected[index].update(steps[first:last].tolist())
        gaps.add_steps(steps, changes)
    assert num_merged == 3
    for (values, weights), each in zip(gaps.of_classes(), expected, strict=True):
        assert dict(zip(values.tolist(), weights.tolist(), strict=True)) == dict(each)
        assert values.tolist() == sorted(each)
    values, weights = gaps.of_all()
    assert dict(zip(values.tolist(), weights.tolist(), strict=True)) == dict(sum(expected, Counter[int]()))
