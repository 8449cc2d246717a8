"""One step in detail: the sums that its cost is made of, the cap on prefill tokens, outputs still in flight."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from engine_driver import STEP_NS, Driver, make_request
from engine_runs import backlog, simulate

from policies.base import EngineState, Policy, RequestView, StepLimits
from policies.fcfs import Fcfs


def shapes(driver: Driver) -> list[tuple[int, ...]]:
    """(prefills, prefill tokens, prefill context, attention pairs, decodes, decode context, sampled) of each step."""
    return [
        (
            batch.shape.num_prefills,
            batch.shape.num_prefill_tokens,
            batch.shape.prefill_context_tokens,
            batch.shape.prefill_attention_pairs,
            batch.shape.num_decodes,
            batch.shape.decode_context_tokens,
            batch.shape.num_sampled,
        )
        for batch in driver.batches
        if batch.scheduled
    ]


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_the_sums_of_a_chunked_prompt_and_its_decodes(async_scheduling: bool) -> None:
    driver = Driver(max_num_batched_tokens=4, max_num_seqs=4, async_scheduling=async_scheduling)
    driver.add(make_request(0, 10, 3))
    driver.run()
    assert shapes(driver) == [
        (1, 4, 4, 4 * (0 + 4), 0, 0, 0),
        (1, 4, 8, 4 * (4 + 8), 0, 0, 0),
        (1, 2, 10, 2 * (8 + 10), 0, 0, 1),
        (0, 0, 0, 0, 1, 11, 1),
        (0, 0, 0, 0, 1, 12, 1),
    ]


def test_chunks_of_any_size_have_the_pairs_of_the_whole_prompt() -> None:
    """Twice the pairs of causal attention over n tokens are n squared, however they are cut."""
    for budget in (3, 7, 50, 97, 100):
        driver = Driver(max_num_batched_tokens=budget, max_num_seqs=1)
        driver.add(make_request(0, 97, 1))
        driver.run()
        assert sum(batch.shape.prefill_attention_pairs for batch in driver.batches) == 97**2


def test_a_mixed_step_adds_up() -> None:
    driver = Driver(max_num_batched_tokens=64, enable_prefix_caching=False)
    driver.add(make_request(0, 20, 9), make_request(1, 7, 9))
    driver.one_step()
    driver.add(make_request(2, 30, 2), make_request(3, 100, 2))
    driver.one_step()
    assert shapes(driver)[-1] == (2, 30 + 32, 30 + 32, 30**2 + 32**2, 2, 21 + 8, 3)


def test_recomputed_tokens_are_a_prefill() -> None:
    driver = Driver(num_gpu_blocks=5, block_size=4, enable_prefix_caching=False)
    driver.add(make_request(0, 8, 6), make_request(1, 8, 6))
    driver.run()
    assert shapes(driver)[6] == (1, 9, 9, 81, 0, 0, 1)  # eight of the prompt and one generated


def test_a_cap_on_prefill_tokens_holds_for_all_prompts_of_a_step_together() -> None:
    driver = Driver(max_prefill_tokens_per_step=7, max_num_batched_tokens=100, enable_prefix_caching=False)
    driver.add(*(make_request(row, 5, 3) for row in range(3)))
    assert driver.run() == [
        {"r0": 5, "r1": 2},
        {"r0": 1, "r1": 3, "r2": 4},
        {"r0": 1, "r1": 1, "r2": 1},
        {"r1": 1, "r2": 1},
        {"r2": 1},
    ]
    assert max(batch.shape.num_prefill_tokens for batch in driver.batches) == 7


# --- a policy's cap on the step ------------------------------------------------------------------


class Capped(Fcfs):
    """Steps of eight tokens, prompts whole."""

    def step_limits(self, now_ns: int) -> StepLimits:
        return StepLimits(max_num_batched_tokens=8, enable_chunked_prefill=False)


def test_a_prompt_longer_than_a_policys_cap_is_chunked_all_the_same() -> None:
    driver = Driver(Capped(), max_num_batched_tokens=64)
    driver.add(make_request(0, 20, 1))
    assert driver.run() == [{"r0": 8}, {"r0": 8}, {"r0": 4}]


def test_a_prompt_that_the_cap_holds_waits_for_a_step_with_room() -> None:
    driver = Driver(Capped(), max_num_batched_tokens=64)
    driver.add(make_request(0, 5, 2), make_request(1, 6, 1))
    assert driver.run() == [{"r0": 5}, {"r0": 1, "r1": 6}]
    chunked = Driver(max_num_batched_tokens=8)
    chunked.add(make_request(0, 5, 2), make_request(1, 6, 1))
    assert chunked.run() == [{"r0": 5, "r1": 3}, {"r0": 1, "r1": 3}]


# --- what is remembered of the first admission ---------------------------------------------------


def test_cached_tokens_are_those_of_the_first_admission() -> None:
    """Finding its own blocks again after a preemption is no prefix hit."""
    driver = Driver(num_gpu_blocks=9, block_size=4)
    first, second = make_request(0, 16, 12), make_request(1, 12, 6)
    driver.add(first, second)
    driver.run()
    assert second.num_preemptions == 1
    resumed = [batch.scheduled[second] for batch in driver.batches if batch.scheduled.get(second, 0) > 1]
    assert resumed[1] < 12 + 1  # some of it was found again
    assert second.num_cached_tokens == 0
    assert second.scheduled_ns == 0


# --- preempted while its output is in flight -----------------------------------------------------


def overlapping(lines: list[dict[str, Any]], ends_ns: list[int]) -> int:
    """How often a request was preempted while a batch with it was in flight. Fails where it was scheduled again
    before that batch had ended: the token would be computed twice."""
    in_flight_until: dict[str, int] = {}
    barred: dict[str, int] = {}
    overlaps = 0
    steps = iter(ends_ns)
    for line in lines:
        now_ns = round(line["time_s"] * 1e9)
        for name in line["preempted"]:
            barred[name] = in_flight_until.get(name, 0)
            overlaps += barred[name] > now_ns
        end_ns = next(steps) if line["scheduled"] else 0
        for name in line["scheduled"]:
            assert now_ns >= barred.get(name, 0), f"{name} at {now_ns}"
            in_flight_until[name] = end_ns
    return overlaps


def preempted_in_flight(seed: int, stages: int, policy: str, *, async_scheduling: bool) -> int:
    """``overlapping`` of a random workload under KV pressure."""
    generator = random.Random(seed)
    inputs = [generator.randint(5, 70) for _ in range(12)]
    outputs = [generator.randint(2, 40) for _ in range(12)]
    run = simulate(
        {**backlog(inputs, outputs), "arrival": {"process": "constant", "rate": 400.0}},
        latency={"kind": "roofline", "host_overhead_ms": 0.0},
        pipeline_parallel_size=stages,
        async_scheduling=async_scheduling,
        num_gpu_blocks_override=generator.choice([16, 20, 28]),
        block_size=8,
        max_num_batched_tokens=generator.choice([16, 32, 200]),
        max_num_seqs=10,
        policy=policy,
    )
    assert run.results.record.requests["output_tokens"].tolist() == outputs
    steps = run.results.record.steps
    assert set(steps["num_steps"].tolist()) == {1}
    return overlapping(run.lines, steps["end_ns"].tolist())


@pytest.mark.parametrize("policy", ["fcfs", "priority", "srtf"])
@pytest.mark.parametrize(
    ("stages", "seeds"), [(1, (0, 1, 2)), (2, (3, 4, 12, 23)), (4, (4, 12, 24, 44, 77)), (6, (4, 23, 42, 139))]
)
def test_a_preempted_request_waits_for_its_output_in_flight(stages: int, seeds: tuple[int, ...], policy: str) -> None:
    overlaps = [preempted_in_flight(seed, stages, policy, async_scheduling=stages == 1) for seed in seeds]
    assert sum(overlaps) > 0


@dataclass(kw_only=True)
class EvictOnce(Policy):
    """Evicts the first of ``running`` in the third step; otherwise by arrival."""

    name = "evict_once"
    summary = "for a test"

    def rank(self, request: RequestView, now_ns: int) -> int:
        return 0

    def preempt(
        self, running: Sequence[RequestView], waiting: Sequence[RequestView], state: EngineState
    ) -> Sequence[RequestView]:
        return running[:1] if state.now_ns == 3 * STEP_NS else ()


def test_who_has_output_in_flight_is_passed_over() -> None:
    """Evicted with a token in flight, the first in line lets the next one in and comes back when the token is there."""
    driver = Driver(EvictOnce(), async_scheduling=True, enable_prefix_caching=False)
    evicted = make_request(0, 8, 9)
    driver.add(evicted)
    assert [driver.one_step() for _ in range(3)] == [{"r0": 8}, {"r0": 1}, {"r0": 1}]
    driver.add(make_request(1, 4, 2, arrival_ns=driver.now_ns))
    assert driver.one_step() == {"r1": 4}
    assert driver.batches[-1].preempted == [evicted]
    assert driver.one_step() == {"r1": 1, "r0": 8 + 3}
    driver.run()
    assert evicted.num_output_tokens == 9
