"""Decisions when KV space or a step's tokens are short, by hand. The live tests hold the same rules against vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from engine_driver import Driver, make_request

from policies.priority import Priority

NO_CACHE: dict[str, Any] = {"enable_prefix_caching": False, "block_size": 4}


def preempted_by_step(driver: Driver) -> dict[int, list[str]]:
    """Which requests were preempted in which step."""
    return {
        step: [request.request_id for request in batch.preempted]
        for step, batch in enumerate(driver.batches)
        if batch.preempted
    }


def test_the_watermark_holds_back_admissions_only_while_somebody_runs() -> None:
    driver = Driver(num_gpu_blocks=11, watermark=0.5, **NO_CACHE)  # five blocks are kept
    driver.add(make_request(0, 32, 3), make_request(1, 4, 1))
    assert driver.run() == [{"r0": 32}, {"r0": 1}, {"r0": 1}, {"r1": 4}]
    without = Driver(num_gpu_blocks=11, **NO_CACHE)
    without.add(make_request(0, 32, 3), make_request(1, 4, 1))
    assert without.one_step() == {"r0": 32, "r1": 4}


def test_of_equal_priority_the_later_arrival_yields() -> None:
    driver = Driver(Priority(), num_gpu_blocks=5, **NO_CACHE)
    driver.add(make_request(0, 8, 4))
    driver.one_step()
    driver.add(make_request(1, 4, 2, arrival_ns=driver.now_ns))
    driver.run()
    # In step 1 both are there and the pool is full; request 1 finds no second block in step 2 and yields itself.
    assert preempted_by_step(driver) == {2: ["r1"]}


def test_the_earlier_arrival_takes_the_blocks_of_the_later() -> None:
    driver = Driver(Priority(), num_gpu_blocks=4, **NO_CACHE)
    driver.add(make_request(0, 3, 4))
    driver.one_step()
    driver.add(make_request(1, 8, 2, arrival_ns=driver.now_ns))
    assert driver.one_step() == {"r0": 1, "r1": 8}
    assert driver.one_step() == {"r0": 1}
    assert preempted_by_step(driver) == {2: ["r1"]}


@pytest.mark.parametrize(("reserve", "resumed_in", "chunk"), [(True, 9, 8), (False, 6, 7)])
def test_the_reservation_counts_generated_tokens_too(reserve: bool, resumed_in: int, chunk: int) -> None:
    """Preempted with nine tokens: three blocks to reserve, although its first chunk fits the two that are free."""
    driver = Driver(num_gpu_blocks=6, max_num_batched_tokens=8, scheduler_reserve_full_isl=reserve, **NO_CACHE)
    driver.add(make_request(0, 4, 9), make_request(1, 4, 7))
    steps = driver.run()
    assert preempted_by_step(driver)[5] == ["r1"]
    assert next(step for step in range(6, len(steps)) if "r1" in steps[step]) == resumed_in
    assert steps[resumed_in]["r1"] == chunk


def test_tokens_of_a_victim_that_was_already_scheduled_go_to_those_behind() -> None:
    """The victim stands before the request that evicts it: its token is given back, and none is skipped."""
    driver = Driver(
        Priority(), num_gpu_blocks=7, max_num_batched_tokens=3, scheduler_reserve_full_isl=False, **NO_CACHE
    )
    driver.add(make_request(0, 3, 12, priority=5))
    driver.one_step()
    driver.add(make_request(1, 4, 12, priority=0))
    driver.one_step()
    driver.one_step()
    driver.add(make_request(2, 12, 1, priority=1))
    assert [driver.one_step() for _ in range(4)] == [{"r0": 1, "r1": 1, "r2": 1}] * 4
    assert driver.one_step() == {"r1": 1, "r2": 2}
    assert preempted_by_step(driver) == {7: ["r0"]}


def test_a_victims_share_of_the_prefill_cap_is_given_back() -> None:
    driver = Driver(
        Priority(),
        num_gpu_blocks=11,
        max_prefill_tokens_per_step=8,
        long_prefill_token_threshold=6,
        scheduler_reserve_full_isl=False,
        **NO_CACHE,
    )
    driver.add(make_request(0, 60, 2, priority=5))
    driver.one_step()
    driver.add(make_request(1, 2, 30, priority=0))
    driver.one_step()
    driver.add(make_request(2, 60, 2, priority=1))
    assert [driver.one_step() for _ in range(3)] == [
        {"r0": 6, "r1": 1, "r2": 2},
        {"r0": 6, "r1": 1, "r2": 2},
        {"r1": 1, "r2": 6},
    ]
    assert preempted_by_step(driver) == {4: ["r0"]}


def test_nobody_is_admitted_in_a_step_that_preempts() -> None:
    driver = Driver(num_gpu_blocks=6, **NO_CACHE)
    driver.add(make_request(0, 8, 3), make_request(1, 12, 2), make_request(2, 1, 1))
    assert driver.one_step() == {"r0": 8, "r1": 12}
    assert driver.one_step() == {"r0": 1}
    assert preempted_by_step(driver) == {1: ["r1"]}
    assert driver.batches[-1].num_free_blocks == 2  # enough for request 2, which stands behind request 1


def test_the_adaptive_threshold_shares_the_budget_among_all_there_are() -> None:
    settings: dict[str, Any] = {"long_prefill_token_threshold": 2, "max_num_batched_tokens": 64, **NO_CACHE}
    driver = Driver(long_prefill_token_threshold_adaptive=True, **settings)
    driver.add(*(make_request(row, 60, 1) for row in range(4)))
    assert driver.one_step() == {"r0": 16, "r1": 16, "r2": 16, "r3": 16}
    plain = Driver(**settings)
    plain.add(*(make_request(row, 60, 1) for row in range(4)))
    assert plain.one_step() == {"r0": 2, "r1": 2, "r2": 2, "r3": 2}


@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_async_caches_a_block_only_when_all_its_tokens_have_been_computed(block_size: int) -> None:
    """The last known token is still being computed by the batch in flight: its block cannot be found yet."""
    driver = Driver(async_scheduling=True, block_size=block_size)
    request = make_request(0, 5, 12)
    driver.add(request)
    while driver.scheduler.has_requests():
        before = request.num_tokens
        driver.one_step()
        if request.num_tokens > before and request.num_cached_blocks:
            assert request.num_cached_blocks * block_size <= max(5, request.num_tokens - 1)
