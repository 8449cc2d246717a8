"""Shortest remaining time first: what it evicts, that it ends, and that nothing beats it one at a time."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies_fakes import SECOND, TinyEngine, View, decoding, exact_for, limits

from policies.base import EngineState, PolicyError
from policies.predictors import MaxTokens
from policies.registry import POLICIES, build_policy
from policies.srtf import Srtf

WEIGHT = 2048


def bound(*views: View, seqs: int = 2, margin: int = 0, blocks: int = 1000) -> Srtf:
    policy = Srtf(predictor=exact_for(*views), preemption_margin_tokens=margin)
    policy.bind(limits(seqs=seqs, tokens=WEIGHT, blocks=blocks))
    return policy


def evicted(policy: Srtf, running: list[View], head: View, free_blocks: int = 1000) -> list[str]:
    state = EngineState(0, free_blocks, len(running), 1)
    return [victim.request_id for victim in policy.preempt(running, [head], state)]


def test_evicts_the_longest_when_no_seat_is_free() -> None:
    long, longer, head = (
        decoding("a", 16, 1, 50),
        decoding("b", 16, 1, 90),
        View("c", num_prompt_tokens=16, true_output=5),
    )
    policy = bound(long, longer, head)
    assert evicted(policy, [long, longer], head) == ["b"]
    assert evicted(policy, [long], head) == [], "a seat is free"


def test_does_not_evict_for_equal_or_longer() -> None:
    running, equal = decoding("a", 16, 5, 25), View("b", num_prompt_tokens=16, true_output=20)
    assert evicted(bound(running, equal, seqs=1), [running], equal) == []


def test_what_is_computed_again_counts_against_evicting() -> None:
    running = decoding("a", 3000, 1, 12)
    slightly, clearly = View("b", num_prompt_tokens=8, true_output=10), View("c", num_prompt_tokens=8, true_output=9)
    assert evicted(bound(running, slightly, seqs=1), [running], slightly) == [], "11 steps left, 10 + 1.5 to redo"
    assert evicted(bound(running, clearly, seqs=1), [running], clearly) == ["a"]


def test_margin_holds_evictions_down() -> None:
    running, head = decoding("a", 16, 1, 50), View("b", num_prompt_tokens=16, true_output=40)
    assert evicted(bound(running, head, seqs=1, margin=0), [running], head) == ["a"]
    assert evicted(bound(running, head, seqs=1, margin=9), [running], head) == []
    with pytest.raises(PolicyError, match="preemption_margin_tokens is -1"):
        Srtf(predictor=MaxTokens(), preemption_margin_tokens=-1)


def test_evicts_as_many_as_the_blocks_need_and_nobody_in_vain() -> None:
    running = [decoding(name, 32, 1, total) for name, total in (("a", 60), ("b", 90), ("c", 70), ("d", 30))]
    head = View("e", num_prompt_tokens=16 * 5, true_output=5)
    policy = bound(*running, head, seqs=10)
    assert evicted(policy, running, head, free_blocks=5) == []
    assert evicted(policy, running, head, free_blocks=4) == ["b"], "each holds 2 blocks"
    assert evicted(policy, running, head, free_blocks=1) == ["b", "c"]
    assert evicted(policy, running, head, free_blocks=0) == ["b", "c", "a"]
    huge = View("f", num_prompt_tokens=16 * 11, true_output=5)
    assert evicted(bound(*running, huge, seqs=10), running, huge, free_blocks=2) == [], "10 of 11 blocks do not help"


def test_waits_where_room_comes_by_itself_before_it_would_be_done() -> None:
    soon, long = decoding("a", 16, 1, 6), decoding("b", 16, 1, 90)
    shorter, longer = View("c", num_prompt_tokens=16, true_output=4), View("d", num_prompt_tokens=16, true_output=5)
    assert evicted(bound(soon, long, shorter), [soon, long], shorter) == ["b"], "done in 4 steps, a seat in 5"
    assert evicted(bound(soon, long, longer), [soon, long], longer) == []


def test_blocks_come_free_by_ends_too() -> None:
    running = [decoding("a", 16, 1, 4), decoding("b", 16, 1, 9), decoding("c", 160, 1, 90)]
    head = View("d", num_prompt_tokens=16 * 4, true_output=6)
    policy = bound(*running, head, seqs=10)
    assert evicted(policy, running, head, free_blocks=3) == [], "one block comes free in 3 steps"
    assert evicted(policy, running, head, free_blocks=2) == ["c"], "two only in 8"


def test_unbound_policy_evicts_nobody() -> None:
    running, head = decoding("a", 16, 1, 50), View("b", true_output=2)
    assert evicted(Srtf(predictor=exact_for(running, head)), [running], head) == []


def srpt_mean_e2e(requests: list[View]) -> float:
    """Mean of (end - arrival) in steps under Schrage's rule, from first principles."""
    coming = sorted((view.arrival_ns // SECOND, view.true_output) for view in requests)
    now, total, index = 0, 0, 0
    heap: list[tuple[int, int]] = []
    while heap or index < len(coming):
        while index < len(coming) and coming[index][0] <= now:
            heapq.heappush(heap, (coming[index][1], coming[index][0]))
            index += 1
        now += 1
        if heap:
            left, arrival = heapq.heappop(heap)
            if left > 1:
                heapq.heappush(heap, (left - 1, arrival))
            else:
                total += now - arrival
    return total / len(requests)


def traffic(seed: int, number: int = 60) -> list[View]:
    rng, now, views = random.Random(seed), 0, []
    for index in range(number):
        now += rng.randrange(0, 24)
        prompt, output = rng.randrange(1, 40), min(100, 1 + int(rng.expovariate(0.1)))
        tier = rng.choice(["premium", "standard", "budget"])
        tenant = rng.choice("xyz")
        views.append(
            View(str(index), now * SECOND, rng.randrange(3), prompt, tier=tier, tenant=tenant, true_output=output)
        )
    return views


def mean_e2e(name: str, seed: int) -> float:
    requests = traffic(seed)
    engine = TinyEngine(build_policy(name, {}, exact_for(*requests)), limits(seqs=1))
    engine.run(requests)
    ends = engine.ended_ns
    return sum(ends[view.request_id] - view.arrival_ns for view in requests) / len(requests) / SECOND


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_least_mean_e2e_of_all_policies_one_at_a_time(seed: int) -> None:
    means = {name: mean_e2e(name, seed) for name in POLICIES}
    best = means.pop("srtf")
    assert best == pytest.approx(srpt_mean_e2e(traffic(seed)), abs=1e-9), "exactly Schrage's rule"
    assert best < min(means.values())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(17, 40),
    st.sampled_from([1, None]),
    st.integers(64, 256),
)
def test_everybody_ends_whatever_is_evicted(
    requests: list[tuple[int, int, int]], seqs: int, blocks: int, weight: int | None, tokens: int
) -> None:
    views = [
        View(str(index), arrival * SECOND, num_prompt_tokens=prompt, true_output=output)
        for index, (arrival, prompt, output) in enumerate(requests)
    ]
    policy = Srtf(predictor=exact_for(*views), output_weight=weight)
    engine = TinyEngine(policy, limits(seqs=seqs, blocks=blocks, tokens=tokens))
    work = sum(view.true_output + view.num_prompt_tokens // tokens + 1 for view in views)
    # Every eviction is for a strictly shorter request, so at most each pair changes over once by rank.
    engine.run(views, max_steps=41 + work * (1 + len(views)))
    assert len(engine.ended_ns) == len(views)
    assert len(engine.evictions) <= len(views) ** 2
