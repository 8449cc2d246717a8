"""Random workloads with what policies go by (tenants, tiers, hints, deadlines), and random policies."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from traces import Case, CaseRequest, draw_case

LIVE_POLICIES = (
    "fcfs",
    "sjf",
    "srtf",
    "throughput",
    "hybrid",
    "priority",
    "tiered",
    "fair",
    "deadline",
    "adaptive",
)
"""P1-P8, P10 and P11 of docs/requirements.md."""

TIERS = ("premium", "standard", "budget", "trial")
"""The last is no tier of the policy's."""
TENANTS = ("acme", "globex", "initech")


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy and its predictor, as a scenario or the environment would have them."""

    policy: dict[str, Any]
    predictor: dict[str, Any]


def draw_policy(rng: random.Random, name: str) -> PolicySpec:
    """Random parameters of ``name``, with limits of a few dozen steps (of a second each)."""
    predictor = rng.choice(
        [
            {"name": "exact"},
            {"name": "max_tokens"},
            {"name": "class_mean", "means": {"chat": rng.choice([5, 30.5])}},
            {"name": "noisy", "sigma": 0.7},
            {"name": "learned", "by": rng.choice(["class", "tenant"]), "min_samples": rng.choice([1, 3])},
        ]
    )
    weight = {"output_weight": rng.choice([None, 1, 7])}
    params: dict[str, Any] = {}
    if name in ("sjf", "srtf", "hybrid", "tiered"):
        params |= weight
    if name == "srtf":
        params["preemption_margin_tokens"] = rng.choice([0, 0, 5])
    elif name == "hybrid":
        params["latency_weight"] = rng.choice([0.0, 0.25, 0.5, 1.0])
    elif name == "tiered":
        params["age_promote_s"] = rng.choice([None, 3.0, 20.0, 300.0])
        params["ttft_slo_ms"] = rng.choice([None, {}, {"premium": 4000.0}, {"premium": 9000.0, "standard": 30000.0}])
        params["risk_fraction"] = rng.choice([0.0, 0.5, 1.0])
    elif name == "fair":
        params["weights"] = {"acme": rng.choice([0.5, 3.0])}
        params["rate_tokens_per_s"] = rng.choice([None, None, 8.0, {"acme": 3.0}])
        if params["rate_tokens_per_s"] is not None:
            params["burst_tokens"] = rng.choice([None, 60])
    elif name == "deadline":
        params["ttft_slo_ms"] = rng.choice([None, 3000.0, 12000.0])
        params["e2el_slo_ms"] = rng.choice([None, 20000.0, 60000.0])
        params["give_up_after_ms"] = rng.choice([None, 0.0, 15000.0])
    elif name == "adaptive":
        low = rng.choice([4, 16, 40])
        params |= {"low_tokens": low, "mid_tokens": 2 * low, "high_tokens": 4 * low, "window_steps": rng.choice([1, 8])}
    return PolicySpec({"name": name, **params}, predictor)


def _with_hints(rng: random.Random, request: CaseRequest, is_deadline: bool) -> CaseRequest:
    tier = rng.choice(TIERS)
    guess = max(1, round(request.output_tokens * rng.choice([0.5, 1, 1, 2])))
    return replace(
        request,
        tenant=rng.choice(TENANTS),
        tier=tier,
        class_name=rng.choice(["chat", "batch"]),
        expected_output_tokens=rng.choice([None, guess, request.output_tokens]),
        deadline_steps=rng.choice([None, 10, 40, 200]) if is_deadline else None,
    )


def draw_plugin_case(group: str, policy: str, async_scheduling: bool, seed: int) -> tuple[Case, PolicySpec]:
    """A workload and the policy it runs under, always the same for the same parameters."""
    case = draw_case(group, "priority", async_scheduling, seed)
    rng = random.Random(f"{group}/{policy}/{async_scheduling}/{seed}/policy")
    settings = case.settings
    if policy == "adaptive" and not settings.enable_chunked_prefill:
        settings = replace(settings, enable_chunked_prefill=True)  # the policy refuses to run without
    requests = tuple(_with_hints(rng, request, policy == "deadline") for request in case.requests)
    return replace(case, settings=settings, requests=requests), draw_policy(rng, policy)
