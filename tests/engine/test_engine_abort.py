"""A request ended from outside, wherever it is. The live tests hold the same against vLLM's ``finish_requests``."""

from __future__ import annotations

from typing import Any

import pytest
from engine_driver import Driver, make_request

from policies.base import RequestView
from policies.fcfs import Fcfs
from policies.priority import Priority
from sim.engine.request import Request, State

SMALL: dict[str, Any] = {"block_size": 4, "num_gpu_blocks": 6}


class Counting(Fcfs):
    """First come, first served; counts the ends it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []

    def on_finished(self, request: RequestView) -> None:
        self.ended.append(request.request_id)


def names(requests: list[Request]) -> list[str]:
    return [request.request_id for request in requests]


def check_nothing_left(driver: Driver) -> None:
    driver.run()
    driver.scheduler.kv.check_empty()
    assert driver.scheduler.outstanding_tokens == 0


@pytest.mark.parametrize("policy", [Fcfs, Priority])
def test_a_waiting_request_never_runs(policy: type[Any]) -> None:
    driver = Driver(policy(), max_num_seqs=1, **SMALL)
    first, second, third = (make_request(row, 4, 2) for row in range(3))
    driver.add(first, second, third)
    driver.one_step()
    driver.scheduler.abort(second, driver.now_ns)
    assert driver.run() == [{"r0": 1}, {"r2": 4}, {"r2": 1}]
    assert names(driver.batches[1].finished) == ["r1"]
    assert names(driver.finished) == ["r0", "r2"]
    check_nothing_left(driver)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_running_request_leaves_its_blocks_and_its_seat_at_once(async_scheduling: bool) -> None:
    driver = Driver(Counting(), max_num_seqs=1, async_scheduling=async_scheduling, **SMALL)
    first, second = make_request(0, 9, 5), make_request(1, 4, 1)
    driver.add(first, second)
    driver.one_step()
    assert driver.scheduler.kv.num_free_blocks == 2
    driver.scheduler.abort(first, driver.now_ns)
    assert driver.scheduler.kv.num_free_blocks == 5
    assert driver.one_step() == {"r1": 4}
    assert names(driver.batches[1].finished) == ["r0"]
    check_nothing_left(driver)
    # What was in flight is dropped: in asynchronous mode no token of the request has come out yet.
    assert first.num_output_tokens == (0 if async_scheduling else 1)
    assert driver.scheduler.policy.ended == ["r0", "r1"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_swap_blocks", [0, 10])
@pytest.mark.parametrize("policy", [Fcfs, Priority])
def test_a_preempted_request_with_stale_output_in_flight(policy: type[Any], num_swap_blocks: int) -> None:
    driver = Driver(
        policy(), async_scheduling=True, num_swap_blocks=num_swap_blocks, enable_prefix_caching=False, **SMALL
    )
    driver.depth = 3  # so that a batch of before the preemption is in flight between two steps
    first, second = make_request(0, 8, 12), make_request(1, 8, 12, arrival_ns=1)
    driver.add(first, second)
    while second.state is not State.PREEMPTED:
        driver.one_step()
    assert second.num_stale_batches == 1
    assert driver.scheduler.kv.free_swap_blocks == (8 if num_swap_blocks else 0)
    had = second.num_output_tokens
    driver.scheduler.abort(second, driver.now_ns)
    assert driver.scheduler.kv.free_swap_blocks == num_swap_blocks
    assert driver.one_step() == {"r0": 1}
    assert names(driver.batches[-1].finished) == ["r1"]
    check_nothing_left(driver)
    assert second.num_output_tokens == had


def test_an_abort_of_what_has_ended_does_nothing() -> None:
    driver = Driver(Counting(), **SMALL)
    request = make_request(0, 4, 1)
    driver.add(request)
    driver.run()
    driver.scheduler.abort(request, driver.now_ns)
    driver.scheduler.abort(request, driver.now_ns)
    assert driver.scheduler.policy.ended == ["r0"]  # type: ignore[attr-defined]
    assert names(driver.scheduler.schedule(driver.now_ns).finished) == ["r0"]


def test_what_an_aborted_request_computed_can_be_found_again() -> None:
    driver = Driver(block_size=4, num_gpu_blocks=20)
    request = make_request(0, 9, 5)
    driver.add(request)
    driver.one_step()
    driver.scheduler.abort(request, driver.now_ns)
    driver.add(make_request(1, 9, 1, content=request.content))
    assert driver.run() == [{"r1": 1}]


def test_a_static_batch_keeps_the_seat_of_an_aborted_request_until_all_have_ended() -> None:
    driver = Driver(block_size=4, num_gpu_blocks=20, max_num_seqs=2, static_batching=True)
    first, second, third = (make_request(row, 4, 3) for row in range(3))
    driver.add(first, second, third)
    driver.one_step()
    driver.scheduler.abort(first, driver.now_ns)
    assert driver.scheduler.num_seats == 2
    assert driver.run() == [{"r1": 1}, {"r1": 1}, {"r2": 4}, {"r2": 1}, {"r2": 1}]
    check_nothing_left(driver)


def test_a_waiting_request_holds_no_seat_of_a_static_batch() -> None:
    driver = Driver(block_size=4, num_gpu_blocks=20, max_num_seqs=2, static_batching=True, max_num_batched_tokens=4)
    first, second, third = (make_request(row, 4, 3) for row in range(3))
    driver.add(first, second, third)
    driver.one_step()
    driver.scheduler.abort(second, driver.now_ns)
    assert driver.scheduler.num_seats == 1
    assert driver.run() == [{"r0": 1}, {"r0": 1}, {"r2": 4}, {"r2": 1}, {"r2": 1}]
    check_nothing_left(driver)
