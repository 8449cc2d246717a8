"""What a policy says with ``is_calm``, and a predictor with ``is_pure``, holds."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_fakes import SECOND, View, decoding, exact_for, limits

from policies.base import EngineState
from policies.eviction import has_room
from policies.registry import POLICIES, PREDICTORS, build_policy
from policies.srtf import Srtf
from sim.engine.fast.ahead import AheadScheduler
from sim.engine.fast.steady import is_steady_kind
from sim.engine.reference.batch import SchedulerSettings

CALM = sorted(name for name, kind in POLICIES.items() if kind.is_calm)
ROWS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 60), st.integers(1, 90)), min_size=1, max_size=6)


def test_who_says_so() -> None:
    assert CALM == ["hybrid", "sjf", "srtf", "throughput"]
    assert sorted(name for name, kind in PREDICTORS.items() if getattr(kind, "is_pure", False)) == [
        "class_mean",
        "exact",
        "max_tokens",
        "noisy",
    ]


@pytest.mark.parametrize("name", CALM)
@given(rows=ROWS, prompt=st.integers(1, 500), free_blocks=st.integers(0, 40), at_s=st.integers(0, 1000))
def test_nobody_is_evicted_for_who_has_room_and_ranks_stand_still(
    name: str, rows: list[tuple[int, int, int]], prompt: int, free_blocks: int, at_s: int
) -> None:
    running = [decoding(f"r{i}", *row) for i, row in enumerate(rows)]
    waiting = View("w", num_prompt_tokens=prompt, true_output=20)
    policy = build_policy(name, {}, exact_for(waiting, *running))
    bounds = limits(seqs=len(running) + 1)
    policy.bind(bounds)
    first = policy.rank(waiting, 0)
    state = EngineState(at_s * SECOND, free_blocks, len(running), 1)
    if has_room(waiting, bounds, state):
        assert not policy.preempt(running, [waiting], state)
    policy.on_finished(running[0])
    assert policy.rank(waiting, at_s * SECOND) == first
    assert policy.next_change_ns(waiting, 0) is None


class Derived(Srtf):
    """Says nothing of itself."""


class DerivedAndSure(Srtf):
    is_calm: ClassVar[bool] = True


@pytest.mark.parametrize(("kind", "is_taken"), [(Srtf, True), (Derived, False), (DerivedAndSure, True)])
def test_a_derived_class_says_it_anew(kind: type[Srtf], is_taken: bool) -> None:
    policy = kind(predictor=exact_for())
    scheduler = AheadScheduler(SchedulerSettings(num_gpu_blocks=100, async_scheduling=True), policy)
    assert is_steady_kind(scheduler) is is_taken
