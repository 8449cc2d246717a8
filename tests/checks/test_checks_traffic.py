"""Notes about settings that the requests leave without effect, as a run reports them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sim

DATA: dict[str, Any] = {
    "name": "x",
    "workload": {
        "requests": 6,
        "arrival": {"process": "poisson", "rate": 4},
        "input_tokens": {"dist": "fixed", "value": 40},
        "output_tokens": {"dist": "fixed", "value": 3},
    },
    "engine": {
        "model": "llama-2-7b",
        "gpu": "a100-80gb-sxm",
        "gpu_memory_utilization": 0.9,
        "async_scheduling": False,
    },
    "latency": {"kind": "constant", "step_s": 0.01},
}
PREFIX = "workload.prefix={groups: 2, tokens: 32}"
SESSIONS = "workload.sessions={turns: 2, think_time_s: 1}"


def notes(*overrides: str) -> list[str]:
    found: list[str] = sim.simulate(DATA, overrides=overrides).summary["run"]["notes"]
    return found


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["engine.policy={name: fair, weights: {nobody: 3}}"], "`engine.policy.weights` names 'nobody', which no"),
        (
            ["engine.policy={name: 'policies.fair:Fair', rate_tokens_per_s: {x: 3, default: 9}}"],
            "`engine.policy.rate_tokens_per_s` names 'x', which no request has as its tenant (tenants: 'default')",
        ),
        (["engine.policy=tiered"], "policy tiered tells none apart: no request is of one of its tiers ('premium', "),
        (
            [
                "engine.policy=tiered",
                "workload.classes=[{name: a, share: 1, tier: premium}, {name: b, share: 1, tier: gold}]",
            ],
            "policy tiered: requests of 'gold' count as of its last tier, 'budget'",
        ),
        (["engine.policy=deadline"], "policy deadline orders by arrival alone"),
        (["engine.policy=deadline", "slo={ttft_p95_ms: 100}"], "policy deadline orders by arrival alone"),
        ([PREFIX, "engine.enable_prefix_caching=false"], "requests share prompt beginnings"),
        ([SESSIONS, "engine.enable_prefix_caching=false"], "requests share prompt beginnings"),
        (
            [PREFIX, "engine.enable_prefix_caching=false", "engine.kv=contiguous"],
            "requests share prompt beginnings (a `prefix`, `sessions`, or a trace's), but with "
            "enable_prefix_caching: false and kv: contiguous each computes its own",
        ),
        (["engine.cache_isolation=tenant"], "cache_isolation: tenant changes nothing: all requests are of one tenant"),
        (
            ["workload.arrival={process: closed_loop, concurrency: 6}"],
            "closed loop: with 6 clients for 6 requests no client sends a second one",
        ),
    ],
)
def test_one_note(overrides: Sequence[str], start: str) -> None:
    (note,) = notes(*overrides)
    assert note.startswith(start)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["engine.policy=fair"],
        ["engine.policy={name: fair, weights: {default: 3}}"],
        ["engine.policy={name: fair, rate_tokens_per_s: 100}"],
        ["engine.policy=tiered", "workload.tier=budget"],
        ["engine.policy=tiered", "workload.tenant=premium"],
        ["engine.policy={name: tiered, tiers: [default]}"],
        ["engine.policy=deadline", "workload.deadline_s=5"],
        ["engine.policy={name: deadline, ttft_slo_ms: 100}"],
        ["engine.policy={name: deadline, e2el_slo_ms: 100}"],
        [PREFIX],
        [SESSIONS],
        ["engine.enable_prefix_caching=false"],
        ["workload.prefix={groups: 1, tokens: 32}", "workload.requests=1", "engine.enable_prefix_caching=false"],
        ["workload.arrival={process: closed_loop, concurrency: 5}"],
    ],
)
def test_no_note_without_reason(overrides: Sequence[str]) -> None:
    assert notes(*overrides) == []


def test_the_tenants_of_a_trace_count(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,tenant\n0,10,2,acme\n1,10,2,zeta\n")
    document = {**DATA, "workload": {"trace": {"path": str(trace), "format": "generic"}}}
    weights = "engine.policy={name: fair, weights: {acme: 2, zeta: 1, acne: 3}}"
    (note,) = sim.simulate(document, overrides=[weights]).summary["run"]["notes"]
    assert note == (
        "`engine.policy.weights` names 'acne', which no request has as its tenant (tenants: 'acme', 'zeta')"
    )
