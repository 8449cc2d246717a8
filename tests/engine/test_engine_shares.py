"""What vLLM's scheduler cannot express, in an engine: passing over (P12) and shares of a step (P9, P13)."""

from __future__ import annotations

from typing import Any

import pytest
from engine_driver import Driver, make_request
from engine_runs import simulate

from policies.base import Policy
from policies.fair import Fair
from policies.fcfs import Fcfs
from policies.packed import Packed
from policies.predictors import MaxTokens
from policies.tiered import Tiered
from sim.engine.request import Request

BUDGET = 100
TIERS = ("premium", "standard", "budget")


def tiered(shares: dict[str, float], share_mode: str) -> Tiered:
    return Tiered(shares=shares, share_mode=share_mode, ttft_slo_ms={}, predictor=MaxTokens())


def long_prompts(key: str, names: tuple[str, ...]) -> list[Request]:
    """One prompt of ten steps' tokens for each tier or tenant; the one of the last name first."""
    return [make_request(row, 10 * BUDGET, 2, **{key: name}) for row, name in enumerate(reversed(names))]


def first_step(policy: Policy, requests: list[Request], key: str, **settings: Any) -> dict[str, int]:
    """Tokens that each tier or tenant gets in the first step."""
    driver = Driver(policy, max_num_batched_tokens=BUDGET, enable_prefix_caching=False, **settings)
    driver.add(*requests)
    scheduled = driver.one_step()
    return {getattr(each, key): scheduled[each.request_id] for each in requests if each.request_id in scheduled}


@pytest.mark.parametrize(
    ("shares", "mode", "expected"),
    [
        ({"premium": 0.6, "standard": 0.9, "budget": 1.0}, "fill", {"premium": 60, "standard": 30, "budget": 10}),
        ({"premium": 0.4, "standard": 0.4}, "reserve", {"premium": 40, "standard": 40, "budget": 20}),
    ],
)
def test_tiers_share_a_step(shares: dict[str, float], mode: str, expected: dict[str, int]) -> None:
    assert first_step(tiered(shares, mode), long_prompts("tier", TIERS), "tier") == expected


def test_what_premium_leaves_of_its_fill_others_take() -> None:
    shares = {"premium": 0.6, "standard": 0.9, "budget": 1.0}
    requests = long_prompts("tier", TIERS[1:])
    assert first_step(tiered(shares, "fill"), requests, "tier") == {"standard": 90, "budget": 10}


def test_without_shares_the_first_tier_takes_the_step() -> None:
    policy = Tiered(ttft_slo_ms={}, predictor=MaxTokens())
    assert first_step(policy, long_prompts("tier", TIERS), "tier") == {"premium": BUDGET}


def test_tenants_share_a_step_by_weight() -> None:
    policy = Fair(weights={"a": 3, "b": 1}, shares=True)
    assert first_step(policy, long_prompts("tenant", ("a", "b")), "tenant") == {"a": 75, "b": 25}


@pytest.mark.parametrize(("policy", "expected"), [(Packed(), {"r0": 64, "r2": 4}), (Fcfs(), {"r0": 64})])
def test_packed_passes_over_what_does_not_fit(policy: Policy, expected: dict[str, int]) -> None:
    driver = Driver(policy, num_gpu_blocks=1 + 10, block_size=16, enable_prefix_caching=False)
    driver.add(*(make_request(row, prompt, 2) for row, prompt in enumerate((64, 128, 4))))
    assert driver.one_step() == expected, "ten blocks: four are taken, eight are asked for, one is"


@pytest.mark.parametrize("stepping", ["fast", "reference"])
@pytest.mark.parametrize(
    "policy",
    [
        {"name": "tiered", "tiers": ["late", "early"], "shares": {"late": 0.5, "early": 1.0}},
        {"name": "fair", "shares": True},
    ],
)
def test_decisions_hold_the_order_of_ranks_under_shares(stepping: str, policy: dict[str, Any]) -> None:
    """The requests of ``late`` are admitted after the others, and ranked before them."""
    classes = [
        {
            "name": name,
            "tenant": name,
            "priority": priority,
            "requests": 3,
            "arrival": {"process": "burst", "at_s": at_s},
            "input_tokens": {"dist": "fixed", "value": 30},
            "output_tokens": {"dist": "fixed", "value": 12},
        }
        for name, at_s, priority in (("early", 0.0, 0), ("late", 3.0, -1))
    ]
    settings: dict[str, Any] = {"max_num_batched_tokens": 200, "max_num_seqs": 16, "async_scheduling": False}
    run = simulate({"classes": classes}, policy=policy, stepping=stepping, **settings)
    orders = [list(tokens) for _, tokens in run.plan if len(tokens) == 6]
    assert len(orders) > 5
    assert orders[0] == ["0", "1", "2", "3", "4", "5"]  # running ones first, then admissions
    assert orders[-1] == ["3", "4", "5", "0", "1", "2"]
