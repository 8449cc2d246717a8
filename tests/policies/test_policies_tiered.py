"""Tiers: order, ageing, eviction for an SLO at risk, KV shortage, shares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_fakes import SECOND, TinyEngine, View, decoding, exact_for, limits

from policies.base import EngineState, PolicyError, Predictor
from policies.predictors import MaxTokens
from policies.tiered import Tiered

MS = 1_000_000


def tiered(predictor: Predictor | None = None, **params: Any) -> Tiered:
    return Tiered(predictor=predictor or MaxTokens(), **params)


def test_tier_before_length_and_length_within_a_tier() -> None:
    views = [
        View("long premium", tier="premium", max_tokens=900),
        View("short premium", tier="premium", max_tokens=5),
        View("short standard", tier="standard", max_tokens=2),
        View("short budget", tier="budget", max_tokens=1),
    ]
    policy = tiered()
    order = sorted(views, key=lambda view: policy.rank(view, 0))
    assert [view.request_id for view in order] == ["short premium", "long premium", "short standard", "short budget"]
    assert policy.rank(View("x", tier="nobody listed this", max_tokens=1), 0) == policy.rank(views[3], 0)


def test_ageing_to_the_nanosecond() -> None:
    policy, arrival, age = tiered(), 7, 300 * SECOND
    view = View("a", arrival, tier="budget", max_tokens=50)
    own = [policy.rank(View("b", arrival, tier=tier, max_tokens=50), arrival) for tier in policy.tiers]
    for promotions, rank in enumerate([own[2], own[1], own[0], -1]):
        instant = arrival + promotions * age
        assert policy.rank(view, instant) == rank
        assert policy.rank(view, instant + age - 1) == rank
        assert policy.next_change_ns(view, instant) == (instant + age if promotions < 3 else None)


def test_ageing_can_be_turned_off() -> None:
    policy = tiered(age_promote_s=None)
    view = View("a", tier="budget")
    assert policy.rank(view, 0) == policy.rank(view, 10**6 * SECOND)
    assert policy.next_change_ns(view, 0) is None


def test_a_promoted_request_keeps_its_promotion_while_it_runs_and_when_it_is_evicted() -> None:
    policy, now = tiered(), 301 * SECOND
    view = View("a", 0, tier="budget", max_tokens=50)
    policy.on_arrival(view, 0)
    policy.on_scheduled(view, 1)
    view.num_computed_tokens, view.num_output_tokens = 1, 1
    assert policy.level(view, now) == 2, "standard"
    view.num_computed_tokens = 0
    assert policy.level(view, now) == 2
    peer = View("b", now, tier="budget", max_tokens=1)
    assert policy.rank(view, now) < policy.rank(peer, now)


@given(st.sampled_from(["premium", "standard", "budget"]), st.integers(1, 10**6), st.integers(0, 10**9))
def test_nobody_starves(tier: str, length: int, newer_by: int) -> None:
    """Once aged to the front, a request is ahead of all that arrive later, whatever its tier and length."""
    policy = tiered()
    view = View("a", 0, tier=tier, max_tokens=length)
    now = 900 * SECOND
    newcomer = View("b", 1 + newer_by, tier="premium", max_tokens=1)
    assert (policy.rank(view, now), view.arrival_ns) < (policy.rank(newcomer, now), newcomer.arrival_ns)


def test_ageing_ends_starvation_in_an_engine() -> None:
    budget = View("budget", 0, tier="budget", true_output=3)
    premium = [View(f"p{step}", step * SECOND, tier="premium", true_output=1) for step in range(60)]
    ends = {}
    for age in (None, 10.0):
        for view in (budget, *premium):
            view.num_computed_tokens = view.num_output_tokens = 0
        policy = tiered(exact_for(budget, *premium), age_promote_s=age, ttft_slo_ms={})
        engine = TinyEngine(policy, limits(seqs=1))
        engine.run([*premium, budget])
        ends[age] = engine.ended_ns["budget"] // SECOND
    assert ends == {None: 63, 10.0: 33}, "starved to the very end; first at 30 s, then three steps"


# --- eviction --------------------------------------------------------------------------------


def at_risk_case(policy: Tiered, waiting: View, running: list[View], now_ns: int, free_blocks: int = 100) -> list[str]:
    policy.bind(limits(seqs=len(running)))
    policy.on_arrival(waiting, waiting.arrival_ns)
    state = EngineState(now_ns, free_blocks, len(running), 1)
    return [victim.request_id for victim in policy.preempt(running, [waiting], state)]


def runners() -> list[View]:
    return [
        decoding("p", 16, 1, 9, tier="premium", max_tokens=999),
        decoding("s", 16, 1, 9, tier="standard", max_tokens=99),
        decoding("b-short", 16, 1, 9, tier="budget", max_tokens=20),
        decoding("b-long", 16, 1, 9, tier="budget", max_tokens=90),
    ]


def test_premium_evicts_the_longest_of_the_lowest_tier_once_its_slo_is_at_risk() -> None:
    premium = View("x", 0, tier="premium")
    assert at_risk_case(tiered(), premium, runners(), 250 * MS - 1) == []
    assert at_risk_case(tiered(), premium, runners(), 250 * MS) == ["b-long"], "half of 500 ms"
    assert at_risk_case(tiered(risk_fraction=0.9), premium, runners(), 250 * MS) == []


def test_risk_is_told_in_advance() -> None:
    policy, premium = tiered(), View("x", 5, tier="premium")
    policy.on_arrival(premium, 5)
    assert policy.next_change_ns(premium, 5) == 5 + 250 * MS
    policy.on_scheduled(premium, 1)
    assert policy.next_change_ns(premium, 5) == 5 + 300 * SECOND, "it runs: the next change is its promotion"


@pytest.mark.parametrize(("tier", "expected"), [("premium", ["b-long"]), ("standard", ["b-long"]), ("budget", [])])
def test_only_lower_tiers_are_evicted(tier: str, expected: list[str]) -> None:
    now = 100 * SECOND
    assert at_risk_case(tiered(), View("x", 0, tier=tier), runners(), now) == expected
    same_or_higher = [view for view in runners() if view.tier in ("premium", tier)]
    assert at_risk_case(tiered(), View("x", 0, tier=tier), same_or_higher, now) == []


def test_premium_is_never_evicted_for_a_lower_tier() -> None:
    only_premium = [decoding(str(index), 16, 1, 9, tier="premium", max_tokens=999) for index in range(3)]
    for tier in ("premium", "standard", "budget"):
        assert at_risk_case(tiered(), View("x", 0, tier=tier), only_premium, 250 * SECOND) == []


def test_eviction_frees_as_many_blocks_as_the_head_needs() -> None:
    premium = View("x", 0, tier="premium", num_prompt_tokens=16 * 3)
    assert at_risk_case(tiered(), premium, runners(), SECOND, free_blocks=1) == ["b-long", "b-short"]
    huge = View("y", 0, tier="premium", num_prompt_tokens=16 * 50)
    assert at_risk_case(tiered(), huge, runners(), SECOND, free_blocks=1) == [], "three blocks would not do"


def test_no_limit_no_eviction() -> None:
    policy = tiered(ttft_slo_ms={})
    assert not policy.preempts
    assert at_risk_case(policy, View("x", 0, tier="premium"), runners(), 250 * SECOND) == []


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from(["premium", "standard", "budget"]),
            st.integers(1, 60),
            st.integers(1, 40),
        ),
        min_size=2,
        max_size=12,
    ),
    st.integers(7, 14),
)
def test_under_kv_shortage_the_lowest_running_tier_yields(
    requests: list[tuple[int, str, int, int]], blocks: int
) -> None:
    views = {
        str(index): View(str(index), arrival * SECOND, tier=tier, num_prompt_tokens=prompt, true_output=output)
        for index, (arrival, tier, prompt, output) in enumerate(requests)
    }
    policy = tiered(exact_for(*views.values()), age_promote_s=None)
    engine = TinyEngine(policy, limits(blocks=blocks, seqs=4))
    evict = engine.evict

    def checked(victim: View) -> None:
        tiers = [policy.tier_index(view) for view in engine.running]
        assert policy.tier_index(victim) == max(tiers)
        evict(victim)

    engine.evict = checked  # type: ignore[method-assign, assignment]
    engine.run(list(views.values()))
    assert len(engine.ended_ns) == len(views)


# --- shares and parameters -------------------------------------------------------------------


def test_fill_shares_accumulate_from_the_top() -> None:
    policy = tiered(shares={"premium": 0.6, "standard": 0.9, "budget": 1.0})
    assert policy.shares_accumulate
    assert policy.share_budgets(2048) == {"premium": 1228, "standard": 1843, "budget": 2048}
    assert policy.share(View("a", tier="standard")) == "standard"
    assert policy.share(View("a", tier="unlisted")) == "budget"
    assert tiered(shares={"premium": 0.29}).share_budgets(100) == {"premium": 29, "standard": 100, "budget": 100}


def test_reserved_shares_leave_the_rest() -> None:
    policy = tiered(shares={"premium": 0.4, "standard": 0.4}, share_mode="reserve")
    assert not policy.shares_accumulate
    assert policy.share_budgets(1000) == {"premium": 400, "standard": 400, "budget": 200}


def test_shares_cannot_run_live_and_it_says_so() -> None:
    assert tiered().is_live
    assert tiered().share_budgets(2048) is None
    refusal = tiered(shares={"premium": 0.6}).live_refusal()
    assert refusal is not None
    assert "shares" in refusal


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tiers": []}, "tiers is \\[\\]"),
        ({"tiers": ["a", "a"]}, "different names"),
        ({"age_promote_s": 0.0}, "age_promote_s is 0.0, but it must be above 0"),
        ({"risk_fraction": 1.5}, "risk_fraction is 1.5"),
        ({"ttft_slo_ms": {"gold": 1.0}}, "ttft_slo_ms names 'gold', but the tiers are"),
        ({"ttft_slo_ms": {"premium": -1.0}}, "ttft_slo_ms.premium is -1.0"),
        ({"shares": {"gold": 0.5}}, "shares names 'gold'"),
        ({"shares": {"premium": 1.5}}, "shares.premium is 1.5"),
        (
            {"shares": {"premium": 0.9, "standard": 0.6}},
            "shares.standard is 0.6, but it must be at least that of premium",
        ),
        ({"shares": {"premium": 0.9}, "share_mode": "reserve"}, "for every tier but one"),
        ({"shares": {"premium": 0.9, "standard": 0.2}, "share_mode": "reserve"}, "at most 1 together"),
        ({"share_mode": "both"}, "share_mode is 'both', but it must be fill or reserve"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        tiered(**params)


def test_default_limits_go_by_tier_name() -> None:
    assert tiered(tiers=["gold", "standard"]).preempts
    assert not tiered(tiers=["gold", "silver"]).preempts
