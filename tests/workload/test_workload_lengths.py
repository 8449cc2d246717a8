"""Length distributions: moments against theory at fixed seeds, clamps, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from sim.scenario.schema import Length
from sim.seeds import rng
from sim.workload.lengths import draw_lengths, length_problems, mean_of_draws
from sim.workload.table import IntColumn

LENGTH: TypeAdapter[Any] = TypeAdapter(Length)
N = 400_000


def draw(n: int = N, seed: int = 3, **length: Any) -> IntColumn:
    return draw_lengths(LENGTH.validate_python(length), rng(seed, "lengths"), n)


def test_fixed_and_values() -> None:
    assert draw(3, dist="fixed", value=7).tolist() == [7, 7, 7]
    assert draw(5, dist="values", values=[4, 2]).tolist() == [4, 2, 4, 2, 4]


def test_uniform_includes_both_ends_evenly() -> None:
    counts = np.bincount(draw(dist="uniform", low=3, high=7))
    assert counts[:3].tolist() == [0, 0, 0]
    assert counts[3:] == pytest.approx([N / 5] * 5, rel=0.02)


@pytest.mark.parametrize(("dist", "mean", "cv"), [("normal", 500.0, 0.2), ("lognormal", 500.0, 1.5)])
def test_mean_and_cv(dist: str, mean: float, cv: float) -> None:
    column = draw(dist=dist, mean=mean, cv=cv)
    assert column.mean() == pytest.approx(mean, rel=4 * cv / math.sqrt(N))
    assert column.std() / column.mean() == pytest.approx(cv, rel=0.05)


def test_lognormal_is_lognormal() -> None:
    logs = np.log(draw(dist="lognormal", mean=5000.0, cv=1.0))
    sigma2 = math.log(2.0)
    assert logs.mean() == pytest.approx(math.log(5000.0) - sigma2 / 2, abs=0.005)
    assert logs.var() == pytest.approx(sigma2, rel=0.01)


@pytest.mark.parametrize("mean", [1.0, 1.5, 3.0, 200.0])
def test_exponential_keeps_its_mean_after_rounding(mean: float) -> None:
    column = draw(dist="exponential", mean=mean)
    # Rounded up, an exponential is geometric: variance m (m - 1).
    assert column.min() == 1
    assert column.mean() == pytest.approx(mean, abs=4 * math.sqrt(mean * (mean - 1) / N) + 1e-12)
    assert column.var() == pytest.approx(mean * (mean - 1), rel=0.02, abs=1e-12)


def test_zipf_shares() -> None:
    counts = np.bincount(draw(dist="zipf", alpha=1.0, low=10, high=13), minlength=14)
    weights = np.array([1, 1 / 2, 1 / 3, 1 / 4])
    assert counts[:10].sum() == 0
    assert counts[10:] / N == pytest.approx(weights / weights.sum(), abs=0.004)


def test_quantiles_interpolate_the_inverse_cdf() -> None:
    column = draw(dist="quantiles", points=[[0, 0], [0.5, 100], [0.9, 100], [1, 1100]])
    assert column.min() == 1  # 0 tokens do not exist
    assert np.mean(column == 100) == pytest.approx(0.4 + 0.5 / 100 * 0.5 + 0.1 * 0.0005, abs=0.004)
    assert np.quantile(column, 0.25) == pytest.approx(50, abs=1)
    assert np.quantile(column, 0.95) == pytest.approx(600, rel=0.02)
    assert column.max() <= 1100


@pytest.mark.parametrize("dist", ["normal", "lognormal", "exponential"])
def test_max_clamps(dist: str) -> None:
    cv = {} if dist == "exponential" else {"cv": 1.0}
    column = draw(dist=dist, mean=100.0, max=120, **cv)
    assert column.max() == 120
    assert column.min() >= 1


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({"dist": "uniform", "low": 5, "high": 4}, "swap"),
        ({"dist": "zipf", "alpha": 1.0, "low": 5, "high": 4}, "swap"),
        ({"dist": "zipf", "alpha": 1.0, "high": 10**9}, "smaller `high`"),
        ({"dist": "lognormal", "mean": 0.5, "cv": 1.0}, "at least 1 token"),
        ({"dist": "quantiles", "points": [[0.1, 5], [1, 6]]}, "probability 0"),
        ({"dist": "quantiles", "points": [[0, 5], [0.5, 6], [0.5, 7], [1, 8]]}, "must increase"),
        ({"dist": "quantiles", "points": [[0, 5], [0.5, 4], [1, 8]]}, "not decrease"),
        ({"dist": "quantiles", "points": [[0, 0], [1, 0]]}, "below 1 token"),
    ],
)
def test_impossible_distributions_are_problems(length: dict[str, Any], message: str) -> None:
    problems = length_problems(LENGTH.validate_python(length), "workload.input_tokens")
    assert len(problems) == 1
    assert str(problems[0]).startswith("workload.input_tokens: ")
    assert message in problems[0].message


LENGTHS = st.one_of(
    st.fixed_dictionaries({"dist": st.just("fixed"), "value": st.integers(1, 10**6)}),
    st.fixed_dictionaries({"dist": st.just("uniform"), "low": st.integers(1, 9), "high": st.integers(9, 99)}),
    st.fixed_dictionaries(
        {
            "dist": st.sampled_from(["normal", "lognormal"]),
            "mean": st.floats(1, 1e6),
            "cv": st.floats(0, 50),
            "max": st.none() | st.integers(1, 10**6),
        }
    ),
    st.fixed_dictionaries({"dist": st.just("exponential"), "mean": st.floats(1, 1e6)}),
    st.fixed_dictionaries({"dist": st.just("zipf"), "alpha": st.floats(0.1, 5), "high": st.integers(1, 1000)}),
    st.fixed_dictionaries({"dist": st.just("values"), "values": st.lists(st.integers(1, 99), min_size=1)}),
)


@settings(max_examples=80, deadline=None)
@given(length=LENGTHS, n=st.integers(0, 100), seed=st.integers(0, 2**32))
def test_whole_tokens_within_bounds_and_a_prefix_of_more(length: dict[str, Any], n: int, seed: int) -> None:
    column = draw(n, seed=seed, **length)
    assert column.dtype == np.int64
    assert len(column) == n
    assert np.all(column >= 1)
    if length.get("max") is not None:
        assert np.all(column <= length["max"])
    assert draw(n + 7, seed=seed, **length)[:n].tolist() == column.tolist()


@pytest.mark.parametrize(
    ("section", "mean"),
    [
        ({"dist": "normal", "mean": 100, "cv": 1}, 108.4),
        ({"dist": "normal", "mean": 100, "cv": 2}, 139.87),
        ({"dist": "normal", "mean": 100, "cv": 1, "max": 150}, None),
        ({"dist": "normal", "mean": 100, "cv": 0}, 100.0),
        ({"dist": "lognormal", "mean": 100, "cv": 2, "max": 200}, None),
        ({"dist": "lognormal", "mean": 100, "cv": 2}, 100.0),
        ({"dist": "exponential", "mean": 100, "max": 120}, None),
        ({"dist": "exponential", "mean": 100}, 100.0),
        ({"dist": "exponential", "mean": 1}, 1.0),
    ],
)
def test_the_mean_of_draws_is_what_is_drawn(section: dict[str, Any], mean: float | None) -> None:
    config = LENGTH.validate_python(section)
    told = mean_of_draws(config)
    assert told is not None
    if mean is not None:
        assert told == pytest.approx(mean, abs=0.1)
    drawn = draw_lengths(config, np.random.default_rng(1), 400_000)
    assert told == pytest.approx(drawn.mean(), rel=0.01)


def test_distributions_without_a_mean_of_their_own_have_none() -> None:
    config = LENGTH.validate_python({"dist": "fixed", "value": 9})
    assert mean_of_draws(config) is None
