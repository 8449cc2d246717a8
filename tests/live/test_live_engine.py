"""A real engine on CPU with a tiny Llama, run by the policies: what goes first, what yields, what must not change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from plugin_cases import LIVE_POLICIES

from benchmarks.live_engine import PLUGIN, LiveEngine, LiveRequest, LiveRun
from benchmarks.live_policies import simulated
from policies.vllm_settings import Settings, build

ENGINE: dict[str, Any] = {
    "block_size": 32,
    "max_model_len": 256,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 96,
    "num_gpu_blocks_override": 14,
}
"""Four seats, and blocks for not quite two of the longest requests."""

PARAMS: dict[str, dict[str, Any]] = {
    "tiered": {"ttft_slo_ms": {"premium": 8000.0, "standard": 30_000.0}, "age_promote_s": 60.0},
    "fair": {"weights": {"premium": 3.0}},
    "deadline": {"ttft_slo_ms": 10_000.0, "e2el_slo_ms": 40_000.0, "give_up_after_ms": 30_000.0},
    "adaptive": {"low_tokens": 24, "mid_tokens": 48, "high_tokens": 96, "window_steps": 8},
}
TIERS = ("premium", "standard", "budget")


@pytest.fixture(scope="module")
def stock() -> LiveEngine:
    return LiveEngine(**ENGINE)


@pytest.fixture(scope="module")
def plugin() -> Iterator[LiveEngine]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SIMRUN_POLICY", "srtf")
        yield LiveEngine(scheduler_cls=PLUGIN, **ENGINE)


def run_by(engine: LiveEngine, requests: Sequence[LiveRequest], policy: str, **params: Any) -> LiveRun:
    engine.use_policy(build(Settings(policy, params, "exact", {})))
    return engine.run(requests)


def request(
    name: str, step: int, prompt_tokens: int, output_tokens: int, tier: str = "standard", priority: int = 0
) -> LiveRequest:
    """A request with a prompt of its own."""
    rng = random.Random(name)
    return LiveRequest(
        request_id=name,
        arrival_step=step,
        prompt=tuple(rng.randrange(3, 512) for _ in range(prompt_tokens)),
        output_tokens=output_tokens,
        priority=priority,
        hints={"tenant": tier, "expected_output_tokens": output_tokens},
    )


def mixed() -> list[LiveRequest]:
    """Two bursts of short and long requests of three tiers."""
    rng = random.Random("mixed")
    requests = []
    for position in range(24):
        is_long = rng.random() < 0.35
        tier = rng.randrange(3)
        requests.append(
            request(
                f"r{position:03d}",
                1 + 25 * (position // 12),
                rng.randint(60, 150) if is_long else rng.randint(5, 40),
                rng.randint(30, 70) if is_long else rng.randint(2, 12),
                TIERS[tier],
                tier,
            )
        )
    return requests


@pytest.fixture(scope="module")
def stock_run(stock: LiveEngine) -> LiveRun:
    return stock.run(mixed())


@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_tokens_are_stocks_and_every_end_is_the_simulators(
    policy: str, plugin: LiveEngine, stock_run: LiveRun, record_property: Callable[[str, object], None]
) -> None:
    params = PARAMS.get(policy, {})
    if policy in ("srtf", "tiered"):
        # By default a simulated engine derives the weight from its step costs, which vLLM's does not know.
        params = {**params, "output_weight": 3}
    live = run_by(plugin, mixed(), policy, **params)
    assert live.tokens == stock_run.tokens, "a policy decides when tokens are computed, never which"
    predicted, num_preemptions = simulated(mixed(), policy, params, ENGINE)
    assert live.e2e_steps == predicted
    assert len(live.preempted) == num_preemptions
    assert plugin.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 13
    record_property("parity traces", 1)
    record_property("parity steps", live.num_steps)
    record_property("parity preemptions", len(live.preempted))


def test_the_mix_presses(stock_run: LiveRun) -> None:
    assert stock_run.preempted, "without preemption, equal tokens would show less"
    assert len({len(tokens) for tokens in stock_run.tokens.values()}) > 10
    assert len(set(stock_run.tokens.values())) == 24, "equal answers would hide an exchange"


def test_admission_follows_the_policy(stock: LiveEngine, plugin: LiveEngine) -> None:
    """Four requests fill the seats; of those that wait, which is admitted next is the policy's choice."""
    first = [request(f"seat{number}", 1, 8, 30 + number) for number in range(4)]
    waiting = [
        request("long", 2, 20, 60, "budget", priority=0),
        request("medium", 2, 20, 25, "premium", priority=2),
        request("short", 2, 20, 5, "standard", priority=1),
    ]
    orders = {
        "fcfs": ["long", "medium", "short"],
        "sjf": ["short", "medium", "long"],
        "priority": ["long", "short", "medium"],
        "tiered": ["medium", "short", "long"],
    }
    tokens = stock.run([*first, *waiting]).tokens
    for policy, order in orders.items():
        run = run_by(plugin, [*first, *waiting], policy, **({"ttft_slo_ms": {}} if policy == "tiered" else {}))
        assert run.admitted[4:] == order, policy
        assert run.tokens == tokens, policy


def test_srtf_evicts_the_longest_and_it_resumes_where_it_was(stock: LiveEngine, plugin: LiveEngine) -> None:
    requests = [request(f"long{number}", 1, 20, 80 + 10 * number) for number in range(4)]
    requests.append(request("short", 20, 10, 4))
    stock_run = stock.run(requests)
    assert stock_run.e2e_steps["short"] > 60, "stock makes it wait for a seat"
    run = run_by(plugin, requests, "srtf")
    assert run.preempted[:1] == ["long3"]
    assert run.e2e_steps["short"] == 4
    assert run.tokens == stock_run.tokens
    assert len(run.tokens["long3"]) == 110


def test_ageing_lets_an_old_low_tier_pass(plugin: LiveEngine) -> None:
    """A budget request among a stream of premium ones that never leaves a seat empty."""
    arrivals = [1, 1, 1, 1, *range(2, 182, 5)]
    stream = [request(f"premium{number:02d}", step, 8, 24, "premium") for number, step in enumerate(arrivals)]
    requests = [*stream[:5], request("old", 2, 8, 6, "budget"), *stream[5:]]
    places = {
        age: run_by(plugin, requests, "tiered", age_promote_s=age, ttft_slo_ms={}).admitted.index("old")
        for age in (None, 15.0)
    }
    assert places[None] == 40, "without ageing it comes last"
    assert 5 < places[15.0] < 20
