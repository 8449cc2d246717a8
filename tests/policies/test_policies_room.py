"""While a waiting request has a seat and blocks, none is evicted for it, and its rank stands still."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_fakes import SECOND, View, decoding, exact_for, limits

from policies.base import EngineState
from policies.eviction import has_room
from policies.registry import build_policy

ROWS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 60), st.integers(1, 90)), min_size=1, max_size=6)


@pytest.mark.parametrize("name", ["hybrid", "sjf", "srtf", "throughput"])
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
