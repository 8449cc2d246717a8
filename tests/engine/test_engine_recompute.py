"""``num_recomputed_tokens`` is what a request computed more than once, however often it was preempted."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from engine_driver import Driver, make_request
from engine_runs import simulate

from policies.base import Policy
from policies.fcfs import Fcfs
from policies.priority import Priority
from sim.engine.reference.recompute import note_resumed, note_stopped
from sim.engine.request import Content, Request


class Watched(Driver):
    """Notes which tokens of each request are computed, and how many of them a second time."""

    def __init__(self, policy: Policy | None = None, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self._computed: dict[Request, set[int]] = defaultdict(set)
        self.twice: dict[Request, int] = defaultdict(int)

    def one_step(self) -> dict[str, int]:
        tokens = super().one_step()
        for request, num_tokens in self.batches[-1].scheduled.items():
            end = request.num_computed_tokens
            now = set(range(end - num_tokens, end))
            self.twice[request] += len(now & self._computed[request])
            self._computed[request] |= now
        return tokens


SETTINGS: list[dict[str, Any]] = [
    {},
    {"async_scheduling": True},
    {"sliding_window": 20, "max_model_len": 300},
    {"sliding_window": 20, "max_model_len": 300, "async_scheduling": True, "block_size": 1},
    {"enable_prefix_caching": False},
    {"num_swap_blocks": 12, "enable_prefix_caching": False},
]


@pytest.mark.parametrize("policy", [Fcfs, Priority])
@pytest.mark.parametrize("more", SETTINGS)
def test_recomputed_is_what_was_computed_twice(more: dict[str, Any], policy: type[Any]) -> None:
    """Prompts in chunks, so that requests are preempted again before they are where they were."""
    twice = 0
    for seed in range(20):
        rng = random.Random(seed)
        block_size = more.get("block_size", 4)
        driver = Watched(
            policy(),
            **{
                "block_size": block_size,
                "num_gpu_blocks": 80 // block_size,
                "max_num_batched_tokens": 16,
                "long_prefill_token_threshold": rng.choice([0, 1, 5]),
                "scheduler_reserve_full_isl": rng.random() < 0.5,
                **more,
            },
        )
        requests = []
        for row in range(8):
            content = Content(row, ((100, 16),))
            request = make_request(row, rng.randint(17, 40), rng.randint(1, 30), arrival_ns=row, content=content)
            requests.append(request)
        driver.add(*requests)
        driver.run(max_steps=20_000)
        assert [request.num_recomputed_tokens for request in requests] == [driver.twice[each] for each in requests]
        twice += sum(driver.twice.values())
    assert twice > 200


def test_a_second_preemption_counts_only_what_was_computed_again() -> None:
    request = make_request(0, 100, 10)
    request.num_cached_tokens = 32
    note_stopped(request, 50)
    request.num_preemptions = 1
    note_resumed(request, 16)
    assert request.num_recomputed_tokens == 18  # if it runs to its end: tokens 32 to 49
    note_stopped(request, 40)
    assert request.num_recomputed_tokens == 8  # tokens 32 to 39
    note_resumed(request, 0)
    assert request.num_recomputed_tokens == 8 + 34  # and 16 to 49
    assert request.computed_spans == ((16, 50),)


@pytest.mark.parametrize("stepping", ["fast", "reference"])
def test_a_run_computes_what_it_needs_and_what_is_lost(stepping: str) -> None:
    """A request of 24 tokens in and 30 out needs 53 tokens computed; without a prefix cache all else is lost work."""
    workload = {
        "requests": 12,
        "arrival": {"process": "burst"},
        "input_tokens": {"dist": "fixed", "value": 24},
        "output_tokens": {"dist": "fixed", "value": 30},
    }
    settings: dict[str, Any] = {
        "num_gpu_blocks_override": 40,
        "block_size": 4,
        "max_model_len": 100,
        "max_num_seqs": 12,
        "max_num_batched_tokens": 16,
        "scheduler_reserve_full_isl": False,
    }
    run = simulate(workload, stepping=stepping, **settings)
    computed = sum(sum(tokens.values()) for _, tokens in run.plan)
    preemptions = run.results.summary["preemptions"]
    assert preemptions["total"] > 5
    assert preemptions["recomputed_tokens"] == computed - 12 * 53
