"""Fair queueing: counters, lifting, weights, token buckets, shares."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_fakes import SECOND, TinyEngine, View, limits

from policies.base import PolicyError
from policies.fair import Fair, TokenBucket


def arrive(policy: Fair, tenant: str, request_id: str, now_ns: int = 0, **others: Any) -> View:
    view = View(request_id, now_ns, tenant=tenant, **others)
    policy.on_arrival(view, now_ns)
    return view


def test_the_least_served_tenant_is_first() -> None:
    policy = Fair()
    a, b = arrive(policy, "a", "1"), arrive(policy, "b", "2")
    policy.on_scheduled(a, 100)
    policy.on_scheduled(b, 60)
    assert policy.rank(b, 0) < policy.rank(a, 0)
    policy.on_scheduled(b, 41)
    assert policy.rank(a, 0) < policy.rank(b, 0)


def test_weights_divide_service_exactly() -> None:
    policy = Fair(weights={"a": 3, "b": 0.7})
    a, b, c = arrive(policy, "a", "1"), arrive(policy, "b", "2"), arrive(policy, "c", "3")
    for view, tokens in ((a, 300), (b, 70), (c, 100)):
        policy.on_scheduled(view, tokens)
    assert policy.rank(a, 0) == policy.rank(b, 0) == policy.rank(c, 0), "each had 100 per weight"
    policy.on_scheduled(a, 1)
    assert policy.rank(a, 0) > policy.rank(b, 0)


def test_a_tenant_that_comes_back_is_lifted_to_the_least_waiting() -> None:
    policy = Fair()
    a, b, _, _ = (arrive(policy, tenant, str(index)) for index, tenant in enumerate("abab"))
    policy.on_scheduled(a, 500)
    policy.on_scheduled(b, 900)
    late = arrive(policy, "c", "5")
    assert policy.rank(late, 0) == policy.rank(a, 0), "not from 0: idling saved up nothing"
    assert policy.rank(late, 0) < policy.rank(b, 0)


def test_with_an_empty_queue_it_is_lifted_to_the_tenant_that_left_last() -> None:
    policy = Fair()
    a, b = arrive(policy, "a", "1"), arrive(policy, "b", "2")
    policy.on_scheduled(b, 900)
    policy.on_scheduled(a, 500)
    newcomer = arrive(policy, "c", "3")
    assert policy.rank(newcomer, 0) == policy.rank(a, 0) < policy.rank(b, 0)


def test_lifting_never_lowers() -> None:
    policy = Fair()
    a, b = arrive(policy, "a", "1"), arrive(policy, "b", "2")
    policy.on_scheduled(a, 900)
    before = policy.rank(a, 0)
    again = arrive(policy, "a", "3")
    assert policy.rank(again, 0) == before
    assert policy.rank(b, 0) < before


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), min_size=2),
    st.lists(st.integers(1, 60), min_size=3, max_size=6),
)
def test_backlogged_tenants_get_service_in_proportion(weights: dict[str, int], prompts: list[int]) -> None:
    """Sheng et al., theorem 4.4: counters of backlogged tenants differ by no more than one batch's service."""
    policy = Fair(weights={tenant: float(weight) for tenant, weight in weights.items()})
    requests = [
        View(f"{tenant}{index}", 0, tenant=tenant, num_prompt_tokens=prompts[index % len(prompts)], true_output=3)
        for tenant in weights
        for index in range(40)
    ]
    served = dict.fromkeys(weights, 0)
    spreads = []

    def watch(engine: TinyEngine) -> None:
        waiting = {view.tenant for view in engine.waiting}
        if len(waiting) == len(weights):
            per_weight = [Fraction(served[tenant], weights[tenant]) for tenant in weights]
            spreads.append(max(per_weight) - min(per_weight))

    count = policy.on_scheduled

    def counted(view: View, tokens: int) -> None:
        served[view.tenant] += tokens
        count(view, tokens)

    policy.on_scheduled = counted  # type: ignore[method-assign, assignment]
    TinyEngine(policy, limits(seqs=2, tokens=64), watch=watch).run(requests)
    assert spreads
    assert max(spreads) <= 2 * (max(prompts) + 3), "two seats: at most two requests' worth apart"


# --- token buckets ---------------------------------------------------------------------------


def test_bucket_by_hand() -> None:
    bucket = TokenBucket(Fraction(10), burst=100)
    assert bucket.take(60, 0) == 0
    assert bucket.take(60, 0) == 2 * SECOND, "20 short at 10 a second"
    assert bucket.take(10, 2 * SECOND) == 3 * SECOND
    assert bucket.take(100, 1000 * SECOND) == 1000 * SECOND, "full again, and no fuller"
    assert bucket.take(1, 1000 * SECOND) == 1000 * SECOND + SECOND // 10


def test_a_request_larger_than_the_bucket_waits_for_a_full_one() -> None:
    bucket = TokenBucket(Fraction(10), burst=100)
    assert bucket.take(250, 0) == 0, "full: it may run, and leaves a debt of 150"
    assert bucket.take(1, 0) == 15 * SECOND + SECOND // 10


def test_unused_tokens_come_back() -> None:
    bucket = TokenBucket(Fraction(10), burst=100)
    bucket.take(100, 0)
    bucket.give_back(70)
    assert bucket.take(70, 0) == 0
    assert bucket.take(1, 0) == SECOND // 10


@given(
    st.fractions(Fraction(1, 7), 1000),
    st.integers(1, 500),
    st.lists(st.tuples(st.integers(0, 10 * SECOND), st.integers(1, 600)), min_size=1, max_size=20),
)
def test_bucket_against_a_plain_one(rate: Fraction, burst: int, requests: list[tuple[int, int]]) -> None:
    """A bucket that is refilled and emptied step by step, in exact fractions."""
    bucket = TokenBucket(rate, burst)
    level, now = Fraction(burst), 0
    for gap, tokens in requests:
        now += gap
        level = min(Fraction(burst), level + rate * gap / SECOND)
        missing = max(Fraction(0), min(tokens, burst) - level)
        wait_ns = missing / rate * SECOND
        assert bucket.take(tokens, now) == now + -(-wait_ns.numerator // wait_ns.denominator)
        level -= tokens


def test_a_tenant_over_its_limit_is_behind_all_others_until_the_bucket_covers_it() -> None:
    policy = Fair(rate_tokens_per_s={"greedy": 10.0}, burst_tokens={"greedy": 100})
    arrive(policy, "greedy", "1", num_prompt_tokens=50, max_tokens=50)
    over = arrive(policy, "greedy", "2", num_prompt_tokens=10, max_tokens=10)
    other = arrive(policy, "modest", "3")
    policy.on_scheduled(other, 10**9)
    assert policy.rank(over, 2 * SECOND - 1) > policy.rank(other, 0)
    assert policy.next_change_ns(over, 0) == 2 * SECOND
    assert policy.rank(over, 2 * SECOND) < policy.rank(other, 0)
    assert policy.next_change_ns(over, 2 * SECOND) is None


def test_what_a_request_did_not_generate_is_given_back() -> None:
    policy = Fair(rate_tokens_per_s=10.0, burst_tokens=100)
    first = arrive(policy, "a", "1", num_prompt_tokens=10, max_tokens=90)
    first.num_output_tokens = 30
    policy.on_finished(first)
    second = arrive(policy, "a", "2", num_prompt_tokens=10, max_tokens=50)
    assert policy.next_change_ns(second, 0) is None


def test_default_burst_is_ten_seconds() -> None:
    policy = Fair(rate_tokens_per_s=10.0)
    arrive(policy, "a", "1", num_prompt_tokens=50, max_tokens=50)
    assert policy.next_change_ns(arrive(policy, "a", "2", num_prompt_tokens=5, max_tokens=5), 0) == SECOND


# --- shares and parameters -------------------------------------------------------------------


def test_shares_go_by_weight_among_tenants_with_requests() -> None:
    policy = Fair(weights={"a": 3.0}, shares=True)
    a, _ = arrive(policy, "a", "1"), arrive(policy, "b", "2")
    assert policy.share(a) == "a"
    assert policy.share_budgets(1000) == {"a": 750, "b": 250}
    assert not policy.shares_accumulate
    policy.on_finished(a)
    assert policy.share_budgets(1000) == {"b": 1000}
    assert "shares" in str(policy.live_refusal())
    assert Fair().share_budgets(1000) is None
    assert Fair().is_live


def test_with_shares_overdue_before_high_before_normal() -> None:
    policy = Fair(shares=True, overdue_after_s=5.0)
    normal = arrive(policy, "a", "1", 100 * SECOND)
    high = arrive(policy, "b", "2", 100 * SECOND, priority=-1)
    overdue = arrive(policy, "c", "3", 95 * SECOND)
    late = arrive(policy, "c", "4", 99 * SECOND, deadline_ns=99 * SECOND + 1)
    policy.on_scheduled(high, 10**6)
    policy.on_scheduled(overdue, 10**9)
    now = 100 * SECOND
    ranks = [policy.rank(view, now) for view in (overdue, late, high, normal)]
    assert ranks[0] == ranks[1] < ranks[2] < ranks[3]
    assert policy.rank(overdue, now - 1) > policy.rank(high, now - 1)
    assert policy.next_change_ns(normal, now) == 105 * SECOND
    assert Fair().rank(high, now) == Fair().rank(normal, now), "without shares there is no urgency"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weights": {"a": 0.0}}, "weights.a is 0.0, but it must be above 0"),
        ({"default_weight": float("nan")}, "default_weight is nan"),
        ({"rate_tokens_per_s": -1.0}, "rate_tokens_per_s"),
        ({"rate_tokens_per_s": {"a": 0.0}}, "rate_tokens_per_s \\(a\\)"),
        ({"rate_tokens_per_s": 1.0, "burst_tokens": 0}, "burst_tokens"),
        ({"burst_tokens": 10}, "null without rate_tokens_per_s"),
        ({"overdue_after_s": -1.0}, "overdue_after_s is -1.0"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Fair(**params)
