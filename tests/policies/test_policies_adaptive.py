"""The cap follows the load."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_fakes import View, limits

from policies.adaptive import Adaptive
from policies.base import PolicyError, StepLimits


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, StepLimits(512, False)),
        (299, StepLimits(512, False)),
        (300, StepLimits(2048, True)),
        (699, StepLimits(2048, True)),
        (700, StepLimits(4096, True)),
        (1000, StepLimits(4096, True)),
    ],
)
def test_cap_by_load(tokens: int, expected: StepLimits) -> None:
    policy = Adaptive()
    policy.bind(limits(tokens=8192))
    policy.on_step(tokens, 1000, 1)
    assert policy.load == tokens / 1000
    assert policy.step_limits(0) == expected


def test_starts_with_small_steps_in_arrival_order() -> None:
    policy = Adaptive()
    assert policy.step_limits(0) == StepLimits(512, False)
    assert policy.rank(View("a", 42), 0) == 42


def test_splits_a_prompt_that_finds_no_room_beside_the_decodes() -> None:
    policy = Adaptive()
    first, second = View("a"), View("b")
    for view in (first, second):
        policy.on_arrival(view, 0)
    policy.on_scheduled(first, 1)
    policy.on_step(1, 512, 1)
    assert policy.step_limits(0) == StepLimits(512, False), "one was admitted: the queue moves"
    policy.on_step(1, 512, 1)
    assert policy.step_limits(0) == StepLimits(512, True)
    policy.on_scheduled(second, 1)
    policy.on_step(1, 512, 1)
    assert policy.step_limits(0) == StepLimits(512, False)


def test_a_jump_over_equal_steps_is_stuck_like_its_last() -> None:
    jumping, stepping = Adaptive(), Adaptive()
    for policy in (jumping, stepping):
        policy.on_arrival(View("a"), 0)
        policy.on_arrival(View("b"), 0)
        policy.on_scheduled(View("a"), 1)
    jumping.on_step(1, 512, 2)
    stepping.on_step(1, 512, 1)
    stepping.on_step(1, 512, 1)
    assert jumping == stepping
    assert jumping.step_limits(0).enable_chunked_prefill


def test_stays_within_the_engine() -> None:
    policy = Adaptive()
    policy.bind(limits(tokens=1024))
    policy.on_step(9, 10, 64)
    assert policy.step_limits(0) == StepLimits(1024, True)


def test_needs_chunking() -> None:
    with pytest.raises(PolicyError, match="enable_chunked_prefill is False"):
        Adaptive().bind(limits(chunked=False))


def test_the_window_forgets() -> None:
    policy = Adaptive(window_steps=4)
    policy.on_step(100, 100, 4)
    policy.on_step(0, 100, 3)
    assert policy.load == 0.25
    policy.on_step(0, 100, 1)
    assert policy.load == 0
    policy.on_step(50, 200, 1000)
    assert policy.load == 0.25


runs = st.lists(st.tuples(st.integers(0, 100), st.sampled_from([100, 512]), st.integers(1, 20)), max_size=12)


@given(runs, st.integers(1, 30))
def test_a_run_of_steps_equals_its_single_steps_and_a_plain_window(
    runs: list[tuple[int, int, int]], window: int
) -> None:
    jumping, stepping = Adaptive(window_steps=window), Adaptive(window_steps=window)
    history: list[tuple[int, int]] = []
    for tokens, budget, steps in runs:
        jumping.on_step(tokens, budget, steps)
        for _ in range(steps):
            stepping.on_step(tokens, budget, 1)
            history.append((tokens, budget))
    recent = history[-window:]
    expected = sum(tokens for tokens, _ in recent) / sum(budget for _, budget in recent) if recent else 0
    assert jumping == stepping
    assert jumping.load == expected
    assert jumping.step_limits(0) == stepping.step_limits(0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"low_load": 0.8}, "high_load is 0.7, but it must be at least low_load"),
        ({"high_load": 1.2}, "high_load is 1.2"),
        ({"low_tokens": 0}, "low_tokens is 0"),
        ({"window_steps": -1}, "window_steps is -1"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Adaptive(**params)
