"""Ranks worked out by hand, and what holds for every policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_fakes import SECOND, View, decoding, exact_for, limits

from policies.base import Policy, PolicyError, RankChanges
from policies.fcfs import Fcfs
from policies.hybrid import Hybrid
from policies.packed import Packed
from policies.predictors import MaxTokens
from policies.priority import Priority
from policies.registry import POLICIES, build_policy
from policies.sjf import Sjf
from policies.srtf import Srtf
from policies.throughput import Throughput


def order(policy: Policy, *views: View, now_ns: int = 0) -> str:
    """Ids in admission order."""
    ranked = sorted(views, key=lambda view: (policy.rank(view, now_ns), view.arrival_ns, view.request_id))
    return "".join(view.request_id for view in ranked)


def test_stock_modes_rank_as_vllm_orders() -> None:
    first, second, urgent = View("a", 5), View("b", 7, priority=1), View("c", 9, priority=-1)
    assert (Fcfs.stock_mode, Priority.stock_mode) == ("fcfs", "priority")
    assert order(Fcfs(), urgent, second, first) == "abc"
    assert order(Priority(), urgent, second, first) == "cab"
    assert order(Packed(), urgent, second, first) == "abc"


def test_packed_is_for_the_simulator_only() -> None:
    assert Packed().pass_over
    assert not Packed().is_live
    assert "pass" in str(Packed().live_refusal())
    assert Fcfs().is_live


def test_sjf_counts_prompt_plus_expected_output() -> None:
    small = View("a", num_prompt_tokens=100, true_output=20)
    large = View("b", num_prompt_tokens=10, true_output=115)
    policy = Sjf(predictor=exact_for(small, large))
    assert (policy.rank(small, 0), policy.rank(large, 0)) == (120, 125)
    small.num_computed_tokens, small.num_output_tokens = 105, 6
    assert policy.rank(small, 0) == 120, "progress does not move a total"


@pytest.mark.parametrize(("seqs", "weight"), [(1, 512), (64, 8)])
def test_output_weight_is_the_engines_when_null(seqs: int, weight: int) -> None:
    """Equal steps with a budget of 512 tokens: an output token is 1/64 of one with 64 seats, as are 8 prompt tokens."""
    view = View("a", num_prompt_tokens=100, true_output=20)
    policy = Sjf(predictor=exact_for(view), output_weight=None)
    policy.bind(limits(tokens=512, seqs=seqs))
    assert policy.rank(view, 0) == 100 + weight * 20
    with pytest.raises(PolicyError, match="output_weight is 0, but it must be above 0"):
        Sjf(predictor=MaxTokens(), output_weight=0)


def test_srtf_counts_what_is_left() -> None:
    view = View("a", num_prompt_tokens=100, true_output=20)
    policy = Srtf(predictor=exact_for(view), output_weight=1)
    assert policy.rank(view, 0) == 120
    view.num_computed_tokens = 64
    assert policy.rank(view, 0) == 36 + 20
    view.num_computed_tokens, view.num_output_tokens = 100, 1
    assert policy.rank(view, 0) == 19
    view.num_computed_tokens, view.num_output_tokens = 0, 15
    assert policy.rank(view, 0) == 5, "preempted: what is computed again does not make it longer"
    view.num_output_tokens = 25
    assert policy.rank(view, 0) == 1, "past its prediction: at least one token"


def test_throughput_counts_the_next_step() -> None:
    long, longer, decode = (
        View("a", num_prompt_tokens=3000),
        View("b", 1, num_prompt_tokens=9000),
        decoding("c", 9, 3, 9),
    )
    resumed = View("d", num_prompt_tokens=50, num_output_tokens=7)
    policy = Throughput()
    assert [policy.rank(view, 0) for view in (long, longer, decode, resumed)] == [3000, 9000, 1, 57]
    policy.bind(limits(tokens=2048))
    assert [policy.rank(view, 0) for view in (long, longer, decode, resumed)] == [2048, 2048, 1, 57]
    assert order(policy, longer, long, decode, resumed) == "cdab"


def test_hybrid_lies_between_remaining_and_next_step() -> None:
    prompt_heavy = View("a", num_prompt_tokens=100, true_output=10)
    output_heavy = View("b", num_prompt_tokens=10, true_output=390)
    predictor = exact_for(prompt_heavy, output_heavy)
    even = Hybrid(predictor=predictor, latency_weight=0.5)
    assert even.rank(prompt_heavy, 0) == pytest.approx(-(0.5 / 110 + 0.5 / 100))
    assert even.rank(output_heavy, 0) == pytest.approx(-(0.5 / 400 + 0.5 / 10))
    assert order(Hybrid(predictor=predictor, latency_weight=1.0), prompt_heavy, output_heavy) == "ab"
    assert order(Hybrid(predictor=predictor, latency_weight=0.0), prompt_heavy, output_heavy) == "ba"
    even.bind(limits(tokens=50))
    assert even.rank(prompt_heavy, 0) == pytest.approx(-(0.5 / 110 + 0.5 / 50)), "a step holds 50"


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_hybrid_refuses_weights_outside_0_to_1(weight: float) -> None:
    with pytest.raises(PolicyError, match="latency_weight is"):
        Hybrid(predictor=MaxTokens(), latency_weight=weight)


views = st.builds(
    View,
    request_id=st.text("0123456789", min_size=1, max_size=3),
    arrival_ns=st.integers(0, 10_000 * SECOND),
    priority=st.integers(-5, 5),
    num_prompt_tokens=st.integers(1, 100_000),
    num_computed_tokens=st.integers(0, 1000),
    num_output_tokens=st.integers(0, 1000),
    max_tokens=st.integers(1, 10_000),
    tenant=st.sampled_from(["a", "b"]),
    tier=st.sampled_from(["premium", "standard", "budget", "other"]),
    deadline_ns=st.none() | st.integers(0, 10_000 * SECOND),
)
times = st.integers(0, 20_000 * SECOND)


@pytest.mark.parametrize("name", POLICIES)
@given(view=views, now_ns=times, later=st.integers(1, 1000 * SECOND), fraction=st.floats(0, 1))
def test_a_rank_is_constant_strictly_before_its_next_change(
    name: str, view: View, now_ns: int, later: int, fraction: float
) -> None:
    policy = build_policy(name, {}, MaxTokens())
    policy.on_arrival(view, view.arrival_ns)
    now_ns = max(now_ns, view.arrival_ns)
    rank = policy.rank(view, now_ns)
    assert rank == rank, "NaN has no order"
    change = policy.next_change_ns(view, now_ns)
    if change is None:
        assert policy.rank(view, now_ns + later) == rank
        return
    assert change > now_ns
    assert RankChanges.TIME in policy.rank_changes
    between = now_ns + int((change - 1 - now_ns) * fraction)
    assert policy.rank(view, between) == rank
    assert policy.rank(view, change - 1) == rank


@pytest.mark.parametrize("name", POLICIES)
@given(view=views, tokens=st.lists(st.integers(1, 500), min_size=1, max_size=5), now_ns=times)
def test_feedback_of_many_steps_equals_its_sum(name: str, view: View, tokens: list[int], now_ns: int) -> None:
    one_by_one, at_once = (build_policy(name, {}, MaxTokens()) for _ in range(2))
    for policy in (one_by_one, at_once):
        policy.on_arrival(view, view.arrival_ns)
    for number in tokens:
        one_by_one.on_scheduled(view, number)
    at_once.on_scheduled(view, sum(tokens))
    assert one_by_one == at_once
    assert one_by_one.rank(view, now_ns) == at_once.rank(view, now_ns)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("num_scheduled", [0, 5])
def test_nothing_is_kept_of_a_request_that_ended(name: str, num_scheduled: int) -> None:
    params = {"fair": {"rate_tokens_per_s": 1.0, "burst_tokens": 1}}.get(name, {})
    policy = build_policy(name, params, MaxTokens())
    view = View("request-17", tier="premium", max_tokens=99)
    policy.on_arrival(view, 0)
    policy.rank(view, 0)
    if num_scheduled:
        policy.on_scheduled(view, num_scheduled)
    policy.on_finished(view)
    assert "request-17" not in repr(vars(policy))
