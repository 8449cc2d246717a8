"""Arrival processes: exact counts, and moments against theory at fixed seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from sim.errors import InputError
from sim.scenario.schema import Arrival
from sim.seeds import rng
from sim.workload.arrivals import MAX_REQUESTS, arrival_times, weibull_shape
from sim.workload.table import IntColumn

ARRIVAL: TypeAdapter[Any] = TypeAdapter(Arrival)
NS = 1_000_000_000


def times(requests: int | None = None, duration_s: float | None = None, seed: int = 1, **arrival: Any) -> IntColumn:
    return arrival_times(ARRIVAL.validate_python(arrival), rng(seed, "arrivals"), requests, duration_s)


def gap_moments(column: IntColumn) -> tuple[float, float]:
    gaps = np.diff(column, prepend=0) / NS
    return float(gaps.mean()), float(gaps.std() / gaps.mean())


@pytest.mark.parametrize(
    ("arrival", "cv"),
    [
        ({"process": "poisson"}, 1.0),
        ({"process": "gamma", "cv": 0.5}, 0.5),
        ({"process": "gamma", "cv": 3.0}, 3.0),
        ({"process": "weibull", "cv": 0.5}, 0.5),
        ({"process": "weibull", "cv": 2.0}, 2.0),
    ],
)
def test_renewal_gaps_have_mean_and_cv(arrival: dict[str, Any], cv: float) -> None:
    n = 400_000
    mean, measured = gap_moments(times(n, rate=8.0, **arrival))
    assert mean == pytest.approx(1 / 8, rel=4 * cv / math.sqrt(n))
    assert measured == pytest.approx(cv, rel=0.03)


def test_poisson_is_exponential() -> None:
    gaps = np.diff(times(200_000, process="poisson", rate=1.0)) / NS
    for quantile in (0.1, 0.5, 0.9, 0.99):
        assert np.mean(gaps < -math.log1p(-quantile)) == pytest.approx(quantile, abs=0.004)


@pytest.mark.parametrize(("cv", "shape"), [(1.0, 1.0), (math.sqrt(5.0), 0.5), (math.sqrt(4 / math.pi - 1), 2.0)])
def test_weibull_shape_against_closed_forms(cv: float, shape: float) -> None:
    assert weibull_shape(cv) == pytest.approx(shape, rel=1e-9)


def test_weibull_refuses_an_impossible_cv() -> None:
    with pytest.raises(InputError, match="cv"):
        times(10, process="weibull", rate=1.0, cv=1e9)


def test_constant_starts_at_zero_with_equal_gaps() -> None:
    column = times(1000, process="constant", rate=3.0)
    assert column[0] == 0
    assert column.tolist() == [round(k * NS / 3) for k in range(1000)]


def test_duration_is_exclusive() -> None:
    assert times(None, 10.0, process="constant", rate=1.0).tolist() == [k * NS for k in range(10)]


def test_duration_alone_and_requests_alone_give_the_same_arrivals() -> None:
    by_duration = times(None, 30_000.0, process="poisson", rate=5.0)
    by_requests = times(len(by_duration), process="poisson", rate=5.0)
    assert len(by_duration) == pytest.approx(150_000, rel=0.01)
    assert by_duration.tolist() == by_requests.tolist()
    assert by_duration[-1] < 30_000 * NS


def test_whichever_ends_first() -> None:
    assert len(times(100, 1e6, process="poisson", rate=5.0)) == 100
    assert len(times(10**6, 10.0, process="constant", rate=5.0)) == 50
    short = times(10**6, 10.0, process="gamma", rate=5.0, cv=2.0)
    assert 0 < len(short) < 200
    assert short[-1] < 10 * NS


def test_stages_rates_and_end() -> None:
    stages = [{"rate": 50, "duration_s": 400}, {"rate": 0, "duration_s": 300}, {"rate": 100, "duration_s": 400}]
    column = times(process="stages", stages=stages)
    counts = np.histogram(column, bins=[0, 400 * NS, 700 * NS, 1100 * NS, 2000 * NS])[0]
    assert counts[0] == pytest.approx(20_000, abs=4 * math.sqrt(20_000))
    assert counts[1] == 0
    assert counts[2] == pytest.approx(40_000, abs=4 * math.sqrt(40_000))
    assert counts[3] == 0
    gaps = np.diff(column[column > 700 * NS]) / NS
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)


def test_stages_without_rate_are_empty() -> None:
    assert len(times(process="stages", stages=[{"rate": 0, "duration_s": 5}])) == 0


def test_diurnal_follows_its_cosine() -> None:
    period, rate, amplitude, peak = 1000.0, 40.0, 0.8, 250.0
    column = times(None, 10 * period, process="diurnal", rate=rate, amplitude=amplitude, period_s=period, peak_s=peak)
    phase = (column / NS) % period
    counts = np.histogram(phase, bins=20, range=(0, period))[0]
    edges = np.linspace(0, period, 21)
    angle = 2 * math.pi * (edges - peak) / period
    expected = 10 * rate * (np.diff(edges) + amplitude * period / (2 * math.pi) * np.diff(np.sin(angle)))
    chi2 = float(np.sum((counts - expected) ** 2 / expected))
    assert chi2 < 45.3  # 99.9 % point of chi-square with 20 degrees of freedom


def test_diurnal_that_falls_to_zero_with_requests() -> None:
    column = times(5000, process="diurnal", rate=10.0, amplitude=1.0, period_s=100.0)
    assert len(column) == 5000
    middle = (column / NS) % 100.0
    assert np.mean((middle > 45) & (middle < 55)) < 0.01


def test_burst_is_one_instant() -> None:
    assert set(times(7, process="burst", at_s=2.5).tolist()) == {2_500_000_000}


def test_closed_loop_rows_are_think_times() -> None:
    column = times(10, process="closed_loop", concurrency=4, think_time_s=0.5)
    assert column.tolist() == [0] * 4 + [NS // 2] * 6


def test_closed_loop_over_time_alone_prepares_enough_rows() -> None:
    assert len(times(None, 10.0, process="closed_loop", concurrency=4, think_time_s=1.0)) >= 40
    assert len(times(None, 1e7, process="closed_loop", concurrency=256)) == 1_000_000


@pytest.mark.parametrize(
    ("requests", "duration_s", "arrival", "message"),
    [
        (None, None, {"process": "poisson", "rate": 1.0}, "never ends by itself"),
        (None, 5.0, {"process": "burst"}, "a burst needs `requests`"),
        (None, 1e6, {"process": "poisson", "rate": 1e6}, "limit"),
        (MAX_REQUESTS + 1, None, {"process": "poisson", "rate": 1e6}, "limit"),
        (100, None, {"process": "poisson", "rate": 1e-9}, "go on for"),
        (None, 1.0, {"process": "closed_loop", "concurrency": MAX_REQUESTS + 1}, "lower `concurrency`"),
        (None, None, {"process": "stages", "stages": [{"rate": 1e9, "duration_s": 1e3}]}, "limit"),
    ],
)
def test_unbounded_or_absurd_sizes_are_refused(
    requests: int | None, duration_s: float | None, arrival: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        times(requests, duration_s, **arrival)


PROCESSES = st.one_of(
    st.fixed_dictionaries({"process": st.sampled_from(["poisson", "constant"]), "rate": st.floats(0.01, 1e5)}),
    st.fixed_dictionaries(
        {"process": st.sampled_from(["gamma", "weibull"]), "rate": st.floats(0.01, 1e5), "cv": st.floats(0.05, 10)}
    ),
    st.fixed_dictionaries(
        {"process": st.just("diurnal"), "rate": st.floats(0.1, 1e3), "period_s": st.floats(1, 1e4)},
    ),
)


@settings(max_examples=60, deadline=None)
@given(arrival=PROCESSES, n=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_sorted_non_negative_counted_and_a_prefix_of_more(arrival: dict[str, Any], n: int, seed: int) -> None:
    column = times(n, seed=seed, **arrival)
    assert len(column) == n
    assert column.dtype == np.int64
    assert column[0] >= 0
    assert np.all(np.diff(column) >= 0)
    assert times(2 * n, seed=seed, **arrival)[:n].tolist() == column.tolist()
