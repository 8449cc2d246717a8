"""KV victims by rank while requests decode in step: as the reference picks them, and without its long way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from engine_driver import make_request
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_fast_scheduler import NO_SHRINK, replay

from policies.base import DecodeRanks, Policy, RankChanges, declared
from policies.predictors import Exact
from policies.registry import POLICIES, build_policy
from policies.srtf import Srtf
from sim.engine.fast.fast_scheduler import FastScheduler
from sim.engine.fast.victims import VictimOrder, plan_evictions
from sim.engine.reference.batch import Batch, Step
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import Request, State

PREDICTIONS: list[Callable[[int, int], int]] = [
    lambda length, row: length,
    lambda length, row: 2 * length,
    lambda length, row: length // 2,
    lambda length, row: 8,
    lambda length, row: length + 7 - 5 * (row % 3),
]
"""Expected output of a true length and a row: right, too long, too short (all end up with 1 left), equal, mixed."""
POLICIES_AND_PARAMS: list[tuple[str, dict[str, Any]]] = [
    ("hybrid", {}),
    ("hybrid", {"latency_weight": 0.0}),
    ("hybrid", {"latency_weight": 1e-14}),
    ("packed", {}),
    ("priority", {}),
    ("sjf", {}),
    ("srtf", {}),
    ("throughput", {}),
]
REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 40),  # prompt
        st.integers(1, 50),  # output
        st.integers(0, 15),  # arrival step
        st.integers(0, 2),  # priority
        st.sampled_from([None, None, None, 1, 2, "talk"]),
        st.integers(1, 40),  # tokens of the prefix
        st.sampled_from([0, 0, 3]),  # max_tokens beyond the output
    ),
    min_size=10,
    max_size=24,
)
PRESSURE = st.sampled_from([1, 2, 4, 16]).flatmap(
    lambda block_size: st.fixed_dictionaries(
        {
            "block_size": st.just(block_size),
            "num_gpu_blocks": st.integers(96 // block_size + 2, 144 // block_size + 4),
            "max_num_seqs": st.integers(4, 14),
            "max_num_batched_tokens": st.sampled_from([64, 300]),
            "async_scheduling": st.booleans(),
            "enable_prefix_caching": st.sampled_from([True, True, True, False]),
            "scheduler_reserve_full_isl": st.sampled_from([True, False, False]),
            "enable_chunked_prefill": st.just(True),
            "num_swap_blocks": st.sampled_from([0, 0, 9]),
            "static_batching": st.sampled_from([False] * 7 + [True]),
        }
    )
)


class Counting(FastScheduler):
    """Counts how shortages were met."""

    taken: ClassVar[Counter[tuple[str, bool]]]

    def _evict_by_rank(self, batch: Batch, step: Step, number: int) -> bool:
        done = super()._evict_by_rank(batch, step, number)
        self.taken[self.policy.name, done] += 1
        return done


def test_ranked_evictions_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    Counting.taken = Counter()

    @settings(max_examples=400, deadline=None, phases=NO_SHRINK)
    @given(
        rows=REQUESTS,
        engine=PRESSURE,
        policy=st.sampled_from(POLICIES_AND_PARAMS),
        predict=st.sampled_from(PREDICTIONS),
    )
    def check(
        rows: list[tuple[Any, ...]],
        engine: dict[str, Any],
        policy: tuple[str, dict[str, Any]],
        predict: Callable[[int, int], int],
    ) -> None:
        def policy_of(name: str, lengths: dict[str, int]) -> Policy:
            predictor = Exact(true_output_tokens=lambda name: predict(lengths[name], int(name[1:])))
            return build_policy(name, policy[1], predictor)

        monkeypatch.setattr("test_engine_fast_scheduler.policy_of", policy_of)
        if any(row[4] == "talk" for row in rows):
            engine = engine | {
                "num_swap_blocks": 0
            }  # overlapping turns swapped in make their keys twice: not held together here
        reference = replay(Scheduler, rows, engine, policy[0])
        fast = replay(Counting, rows, engine, policy[0])
        for place, (theirs, ours) in enumerate(zip(reference, fast, strict=False)):
            assert ours == theirs, f"record {place} after {reference[max(place - 2, 0) : place]}"
        assert len(fast) == len(reference)

    check()
    for name in {name for name, _ in POLICIES_AND_PARAMS}:
        assert Counting.taken[name, True], f"no shortage under {name} was met by the cohort"
    assert any(not done for _, done in Counting.taken), "the long way was never taken"


def running(row: int, number: int, *, arrival_ns: int = 0, shared: tuple[Any, ...] = ()) -> Request:
    request = make_request(row, 10, 90, priority=number, arrival_ns=arrival_ns)
    request.admission, request.state, request.is_counted = row + 1, State.RUNNING, True
    request.num_blocks, request.shared_blocks = 3, list(shared)
    return request


def plan(needy: list[Request], num_free: int, victims: list[Request]) -> Any:
    rest = iter(victims)
    return plan_evictions(needy, num_free, lambda: next(rest, None), lambda request: request.num_blocks)


def test_a_plan_serves_in_order_and_ends_where_a_request_would_evict_itself() -> None:
    a, b, c, d = (running(row, 0) for row in range(4))
    assert plan([a, b], 2, []) == ([], 2)
    evictions, num_taken = plan([a, b, c], 1, [a])
    assert [(e.num_taken_before, e.victim, e.is_served, e.has_new_block) for e in evictions] == [(1, a, True, True)]
    assert num_taken == 2, "a's three blocks and its new one serve b and c"
    evictions, num_taken = plan([a, c], 0, [d])
    assert [(e.num_taken_before, e.victim, e.is_served, e.has_new_block) for e in evictions] == [(0, d, False, False)]
    assert num_taken == 2
    assert plan([a, b], 1, [b]) is None
    assert plan([a, b], 0, []) is None


def test_blocks_that_others_hold_do_not_come_free() -> None:
    class Held:
        references = 2

    block = Held()
    a, b, c = running(0, 0), running(1, 0, shared=(block,) * 1), running(2, 0, shared=(block,))
    b.num_blocks = c.num_blocks = 1
    evictions, num_taken = plan([a], 0, [b, c])
    assert [e.victim for e in evictions] == [b, c], "only the second gives the block that both hold"
    assert num_taken == 1


def test_the_order_follows_rank_then_arrival_then_place() -> None:
    order = VictimOrder(POLICIES["priority"](), lambda request: None)
    a, b, c, d = running(0, 1), running(1, 2), running(2, 2, arrival_ns=5), running(3, 2, arrival_ns=5)
    order.start([a, b])
    order.add(d)
    order.add(c)
    assert order.pop(0, 0) is c
    d.state = State.PREEMPTED
    assert order.pop(0, 0) is b
    assert order.pop(0, 0) is a
    assert order.pop(0, 0) is None


def test_what_a_class_says_of_its_ranks_does_not_hold_for_those_that_derive_from_it() -> None:
    class Own(Srtf):
        def rank(self, request: Any, now_ns: int) -> int:
            return -super().rank(request, now_ns)

    predictor = Exact()
    for policy, ranks, changes in (
        (Srtf(predictor=predictor), DecodeRanks.COUNT_DOWN, RankChanges.PROGRESS),
        (Own(predictor=predictor), DecodeRanks.MOVE, RankChanges.ALWAYS),
    ):
        assert declared(policy, "decode_ranks", DecodeRanks.MOVE) is ranks
        assert declared(policy, "rank_changes", RankChanges.ALWAYS) is changes
