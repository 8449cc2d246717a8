"""The baselines that vLLM V1 does not have: swapping, contiguous KV, static batches."""

from __future__ import annotations

from typing import Any

import pytest
from engine_driver import Driver, make_request
from engine_runs import Run, arrivals, backlog, simulate

TIGHT: dict[str, Any] = {
    "block_size": 4,
    "num_gpu_blocks_override": 5,  # four usable
    "max_model_len": 20,
    "max_num_seqs": 3,
    "async_scheduling": False,
}
LLAMA_2_7B_KV_BYTES = 2 * 32 * 32 * 128 * 2
"""Per token: keys and values, 32 layers, 32 heads of 128, two bytes each."""
BLOCK_BYTES = 4 * LLAMA_2_7B_KV_BYTES


# --- swap ----------------------------------------------------------------------------------------


def swap_driver(num_swap_blocks: int, **more: Any) -> Driver:
    settings = {"num_gpu_blocks": 5, "block_size": 4, "enable_prefix_caching": False, "block_bytes": 1000}
    return Driver(num_swap_blocks=num_swap_blocks, **{**settings, **more})


def test_a_swapped_request_goes_on_without_recomputing() -> None:
    workload = backlog([8, 8], [6, 6])
    swapped, recomputed = (simulate(workload, preemption=mode, **TIGHT) for mode in ("swap", "recompute"))
    for run in (swapped, recomputed):
        assert run.plan[:2] == [(0.0, {"0": 8, "1": 8}), (1.0, {"0": 1})]
        assert run.lines[1]["preempted"] == ["1"]
        assert run.seconds("finish_ns") == [6.0, 11.0]  # every step is as long as any other here
    assert swapped.plan[6] == (6.0, {"1": 1})
    assert recomputed.plan[6] == (6.0, {"1": 9})
    assert swapped.results.summary["preemptions"] == {
        "total": 1,
        "requests": 1,
        "recomputed_tokens": 0,
        "computed_tokens": 8 + 5 + 8 + 5,
        "recompute_tax": 0.0,
    }
    assert recomputed.results.summary["preemptions"]["recomputed_tokens"] == 8


def test_swapping_moves_the_blocks_of_the_victim_out_and_in_again() -> None:
    driver = swap_driver(num_swap_blocks=10)
    driver.add(make_request(0, 8, 6), make_request(1, 8, 6))
    driver.run()
    moved = [(step, batch.shape.swap_bytes) for step, batch in enumerate(driver.batches) if batch.shape.swap_bytes]
    assert moved == [(1, 2_000), (6, 2_000)]  # two blocks of 1000 bytes, out when preempted, in when resumed
    assert driver.scheduler.kv.free_swap_blocks == 10
    driver.scheduler.kv.check_empty()


def test_host_blocks_are_taken_while_a_request_is_out() -> None:
    driver = swap_driver(num_swap_blocks=10)
    driver.add(make_request(0, 8, 6), make_request(1, 8, 6))
    left = []
    while driver.scheduler.has_requests():
        driver.one_step()
        left.append(driver.scheduler.kv.free_swap_blocks)
    assert left == [10] + [8] * 5 + [10] * 5


@pytest.mark.parametrize(("num_swap_blocks", "is_swapped"), [(0, False), (1, False), (2, True)])
def test_without_room_on_the_host_a_request_is_recomputed(num_swap_blocks: int, is_swapped: bool) -> None:
    driver = swap_driver(num_swap_blocks)
    first, second = make_request(0, 8, 6), make_request(1, 8, 6)
    driver.add(first, second)
    resumed = driver.run()[6]
    assert resumed == {"r1": 1 if is_swapped else 9}
    assert (second.num_preemptions, second.num_recomputed_tokens) == (1, 0 if is_swapped else 8)
    assert any(batch.shape.swap_bytes for batch in driver.batches) is is_swapped
    assert driver.scheduler.kv.free_swap_blocks == num_swap_blocks


def test_the_host_can_hold_some_and_not_others() -> None:
    """Two victims of one step, blocks for one of them: the first out is swapped, the second recomputed."""
    driver = swap_driver(num_swap_blocks=1, num_gpu_blocks=5)
    requests = [make_request(0, 8, 9), make_request(1, 4, 3), make_request(2, 4, 3)]
    driver.add(*requests)
    driver.one_step()
    driver.one_step()
    assert [request.request_id for request in driver.batches[1].preempted] == ["r2", "r1"]
    assert driver.scheduler.kv.free_swap_blocks == 0
    driver.run()
    assert [request.num_recomputed_tokens for request in requests] == [0, 4, 0]
    assert [request.num_output_tokens for request in requests] == [9, 3, 3]
    assert driver.scheduler.kv.free_swap_blocks == 1


def test_a_prompt_swapped_between_two_chunks_goes_on_where_it_was() -> None:
    driver = swap_driver(
        num_swap_blocks=10, num_gpu_blocks=6, max_num_batched_tokens=9, scheduler_reserve_full_isl=False
    )
    growing, prompt = make_request(0, 7, 12), make_request(1, 12, 1)
    driver.add(growing, prompt)
    steps = driver.run()
    chunks = [step["r1"] for step in steps if "r1" in step]
    assert prompt.num_preemptions == 1
    assert sum(chunks) == 12
    assert prompt.num_recomputed_tokens == 0


def test_swapping_takes_its_time_on_the_link() -> None:
    """The step that moves blocks is longer than the same step without, by bytes over the link's bandwidth."""
    workload = backlog([8, 8], [6, 6])
    settings = {**TIGHT, "preemption": "swap"}
    latency = {"kind": "roofline", "host_overhead_ms": 0.0}
    steps = simulate(workload, latency=latency, **settings).results.record.steps
    alone = simulate(backlog([8], [6]), latency=latency, **settings).results.record.steps
    extra_s = (steps["gpu_ns"][1] - alone["gpu_ns"][1]) / 1e9
    moved_bytes = 2 * BLOCK_BYTES
    assert 10e9 < moved_bytes / extra_s < 32e9  # PCIe 4.0 x16: 32 GB/s at best


def test_swap_space_is_counted_per_gpu() -> None:
    """Room for exactly the victim's two blocks, then for a little less."""
    enough = 2 * BLOCK_BYTES / 2**30
    workload = backlog([8, 8], [6, 6])

    def recomputed(gib: float) -> int:
        run = simulate(workload, preemption="swap", swap_space_gib=gib, **TIGHT)
        return int(run.results.summary["preemptions"]["recomputed_tokens"])

    assert recomputed(enough) == 0
    assert recomputed(enough * 0.99) == 8
    assert recomputed(0.0) == 8


# --- contiguous ----------------------------------------------------------------------------------


def test_contiguous_reserves_max_model_len_and_never_preempts() -> None:
    settings = {**TIGHT, "num_gpu_blocks_override": 1 + 5 * 2, "kv": "contiguous"}
    run = simulate(backlog([8, 8, 8], [6, 2, 3]), **settings)
    assert run.plan[0] == (0.0, {"0": 8, "1": 8})  # two reservations of 20 tokens fill the pool
    assert [line["free_blocks"] for line in run.lines] == [0, 0, 0, 0, 0, 5]
    assert run.lines[2]["scheduled"] == {"0": 1, "2": 8}
    assert run.results.summary["preemptions"]["total"] == 0


def test_contiguous_refuses_where_no_reservation_fits() -> None:
    settings = {**TIGHT, "kv": "contiguous"}  # four blocks, and max_model_len takes five
    run = simulate(backlog([8], [2]), **settings)
    assert run.results.summary["counts"]["rejected"] == 1
    assert "5 KV blocks" in next(iter(run.results.record.reasons.values()))
    assert simulate(backlog([8], [2]), **TIGHT).results.summary["counts"]["completed"] == 1


def test_paging_serves_more_at_once_than_contiguous() -> None:
    settings = {**TIGHT, "num_gpu_blocks_override": 1 + 5 * 4, "max_num_seqs": 20}
    workload = backlog([4] * 20, [4] * 20)
    paged, contiguous = (simulate(workload, kv=kind, **settings) for kind in ("paged", "contiguous"))
    assert len(contiguous.plan[0][1]) == 4
    assert len(paged.plan[0][1]) == 20
    assert paged.results.summary["duration"] < contiguous.results.summary["duration"]


# --- static batches ------------------------------------------------------------------------------

STATIC: dict[str, Any] = {"batching": "static", "max_num_seqs": 2, "async_scheduling": False}


def test_a_static_batch_lets_nobody_in_until_its_last_request_ends() -> None:
    run = simulate(backlog([8, 8, 8, 8], [2, 4, 1, 1]), **STATIC)
    assert run.plan == [
        (0.0, {"0": 8, "1": 8}),
        (1.0, {"0": 1, "1": 1}),
        (2.0, {"1": 1}),
        (3.0, {"1": 1}),
        (4.0, {"2": 8, "3": 8}),
    ]
    assert [line["finished"] for line in run.lines] == [[], [], [], [], ["0", "1"]]
    assert run.lines[3]["free_blocks"] == run.lines[1]["free_blocks"]  # request 0's blocks are kept as well
    assert run.seconds("finish_ns") == [2.0, 4.0, 5.0, 5.0]
    assert run.results.record.steps["num_seats"].tolist() == [2] * 5
    assert run.results.summary["utilization"]["seat_efficiency"] == pytest.approx(8 / 10)


def test_without_waiting_a_static_batch_is_whoever_is_there() -> None:
    run = simulate(arrivals((0.0, 8, 3), (0.5, 8, 1), (1.5, 8, 1)), **STATIC)
    assert run.plan[0] == (0.0, {"0": 8})
    assert run.plan[-1] == (3.0, {"1": 8, "2": 8})


def waiting(*rows: tuple[float, int, int], wait_s: float) -> Run:
    return simulate(arrivals(*rows), static_batch_wait_s=wait_s, **STATIC)


def test_a_batch_starts_when_it_is_full_or_its_first_request_has_waited_long_enough() -> None:
    assert waiting((0.0, 8, 1), (1.5, 8, 1), wait_s=3.0).plan == [(1.5, {"0": 8, "1": 8})]
    assert waiting((0.25, 8, 1), (9.0, 8, 1), wait_s=3.0).plan == [(3.25, {"0": 8}), (12.0, {"1": 8})]
    assert waiting((0.0, 8, 1), (3.0, 8, 1), wait_s=3.0).plan == [(3.0, {"0": 8, "1": 8})]


def test_the_wait_counts_from_the_arrival_even_while_a_batch_runs() -> None:
    run = waiting((0.0, 8, 5), (0.0, 8, 5), (1.0, 8, 1), (6.5, 8, 1), wait_s=3.0)
    assert run.plan[-2:] == [(5.0, {"2": 8}), (9.5, {"3": 8})]


def test_a_static_batch_loses_its_seats_to_preemption_only_until_it_can_resume() -> None:
    run = simulate(backlog([8, 8, 8], [6, 6, 1]), **{**TIGHT, **STATIC})
    counts = run.results.summary["counts"]
    assert counts["completed"] == counts["submitted"] == 3
    assert run.results.summary["preemptions"]["total"] >= 1


@pytest.mark.parametrize("kv", ["paged", "contiguous"])
@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_every_combination_serves_everybody(kv: str, preemption: str, batching: str) -> None:
    run = simulate(
        backlog([8, 3, 12, 1, 5, 9], [6, 2, 3, 10, 1, 7]),
        kv=kv,
        preemption=preemption,
        batching=batching,
        **{**TIGHT, "num_gpu_blocks_override": 8},
    )
    assert run.results.summary["counts"]["completed"] == 6
    assert run.results.record.requests["output_tokens"].tolist() == [6, 2, 3, 10, 1, 7]
    computed = sum(tokens for line in run.lines for tokens in line["scheduled"].values())
    assert computed == run.results.summary["preemptions"]["computed_tokens"]
    extra = run.results.summary["preemptions"]["recomputed_tokens"]
    assert computed == (8 + 3 + 12 + 1 + 5 + 9) + (5 + 1 + 2 + 9 + 0 + 6) + extra
