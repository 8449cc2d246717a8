"""Predictors: values by hand, bounds, determinism, learning."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_fakes import View

from policies.base import PolicyError
from policies.predictors import ClassMean, Exact, Learned, MaxTokens, Noisy
from policies.sjf import Sjf


def test_exact_knows_the_truth_or_falls_back() -> None:
    view = View("a", max_tokens=50)
    assert Exact(true_output_tokens={"a": 7}.__getitem__).predict(view) == 7
    assert Exact().predict(view) == 50
    view.expected_output_tokens = 30
    assert Exact().predict(view) == 30
    view.expected_output_tokens = 300
    assert Exact().predict(view) == 50, "never more than it asks for"


def test_max_tokens() -> None:
    assert MaxTokens().predict(View("a", max_tokens=50, expected_output_tokens=3)) == 50


def test_class_mean_prefers_the_scenarios_figure() -> None:
    predictor = ClassMean(means={"chat": 99.6}, class_means={"chat": 1.0, "code": 20.4})
    assert predictor.predict(View("a", class_name="chat")) == 100
    assert predictor.predict(View("a", class_name="code")) == 20
    assert predictor.predict(View("a", class_name="chat", max_tokens=60)) == 60
    assert predictor.predict(View("a", class_name="other", max_tokens=60)) == 60


def test_noise_is_per_request_and_repeatable() -> None:
    def predictions(seed: int) -> list[int]:
        predictor = Noisy(sigma=0.5, true_output_tokens=lambda request_id: 1000, seed=seed)
        return [predictor.predict(View(str(index))) for index in range(50)]

    assert predictions(1) == predictions(1)
    assert predictions(1) != predictions(2)
    assert len(set(predictions(1))) > 40
    backwards = Noisy(sigma=0.5, true_output_tokens=lambda request_id: 1000, seed=1)
    assert [backwards.predict(View(str(index))) for index in reversed(range(50))][::-1] == predictions(1)


def test_noise_is_lognormal_around_the_truth() -> None:
    predictor = Noisy(sigma=0.5, true_output_tokens=lambda request_id: 100_000, seed=3)
    logs = [math.log(predictor.predict(View(str(index), max_tokens=1)) / 100_000) for index in range(4000)]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logs) / len(logs))
    assert mean == pytest.approx(0.0, abs=4 * 0.5 / math.sqrt(4000))
    assert deviation == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2 * 4000))


def test_no_noise_is_exact() -> None:
    assert Noisy(sigma=0.0, true_output_tokens=lambda request_id: 123).predict(View("a")) == 123


def test_learned_mean_by_class_then_of_all_then_the_hint() -> None:
    predictor = Learned(min_samples=2)
    hinted = View("x", class_name="new", max_tokens=500, expected_output_tokens=44)
    assert predictor.predict(hinted) == 44
    for name, outputs in (("chat", 10), ("chat", 15), ("code", 100)):
        predictor.on_finished(View("y", class_name=name, num_output_tokens=outputs))
    assert predictor.predict(View("z", class_name="chat")) == 13, "12.5, half up"
    assert predictor.predict(View("z", class_name="code")) == 42, "one sample is not enough: the mean of all"
    assert predictor.predict(View("z", class_name="chat", max_tokens=5)) == 5


def test_learned_by_tenant_ignores_requests_without_output() -> None:
    predictor = Learned(by="tenant", min_samples=1)
    predictor.on_finished(View("y", tenant="t", num_output_tokens=0))
    predictor.on_finished(View("y", tenant="t", num_output_tokens=8))
    assert predictor.predict(View("z", tenant="t", class_name="whatever")) == 8


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=50))
def test_learned_mean_is_the_rounded_mean(lengths: list[int]) -> None:
    predictor = Learned(min_samples=1)
    for length in lengths:
        predictor.on_finished(View("y", num_output_tokens=length))
    predicted = predictor.predict(View("z", max_tokens=10**9))
    assert abs(predicted - sum(lengths) / len(lengths)) <= 0.5


def test_a_policy_teaches_its_predictor_but_keeps_the_prediction_it_made() -> None:
    predictor = Learned(min_samples=1)
    policy = Sjf(predictor=predictor)
    early = View("a", num_prompt_tokens=1, max_tokens=500)
    assert policy.rank(early, 0) == 501
    policy.on_finished(View("b", num_output_tokens=20))
    assert policy.rank(early, 0) == 501, "its rank does not move under it"
    assert policy.rank(View("c", num_prompt_tokens=1, max_tokens=500), 0) == 21


@pytest.mark.parametrize(
    ("cls", "params", "message"),
    [
        (Noisy, {"sigma": -0.1}, "noisy: sigma is -0.1, but it must be at least 0"),
        (Noisy, {"sigma": float("nan")}, "sigma is nan"),
        (ClassMean, {"means": {"a": 0.0}}, "means.a is 0.0"),
        (Learned, {"by": "user"}, "by is 'user', but it must be class or tenant"),
        (Learned, {"min_samples": 0}, "min_samples is 0"),
    ],
)
def test_bad_parameters_are_refused(cls: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        cls(**params)
