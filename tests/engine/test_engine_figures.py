"""The figures quoted for continuous batching, mixed steps, chunking and block accounting (requirements E1-E10)."""

from __future__ import annotations

import numpy as np
import pytest
from engine_driver import Driver, make_request

from sim.engine.reference.kv_cache import KVCache, ceil_div, slot_of
from sim.engine.variants.contiguous import ContiguousKVCache


def with_decodes(num_decodes: int, **settings: object) -> Driver:
    """An engine in which ``num_decodes`` requests are already decoding."""
    driver = Driver(**settings)
    driver.add(*(make_request(row, 4, 10_000) for row in range(num_decodes)))
    driver.one_step()
    return driver


@pytest.mark.parametrize(
    ("prompts", "num_decodes", "tokens"),
    [([256, 512], 3, 771), ([128, 256, 512], 5, 901), ([200, 150], 3, 353)],
)
def test_mixed_step_adds_prefills_to_decodes(prompts: list[int], num_decodes: int, tokens: int) -> None:
    driver = with_decodes(num_decodes)
    driver.add(*(make_request(100 + row, prompt, 5) for row, prompt in enumerate(prompts)))
    assert sum(driver.one_step().values()) == tokens


@pytest.mark.parametrize(
    ("prompt", "cap", "steps"), [(2_000, 512, 4), (4_096, 512, 8), (1_000, 256, 4), (10_000, 512, 20)]
)
@pytest.mark.parametrize("setting", ["max_num_batched_tokens", "max_prefill_tokens_per_step"])
def test_chunks_of_a_lone_prompt(prompt: int, cap: int, steps: int, setting: str) -> None:
    driver = Driver(**{setting: cap})
    driver.add(make_request(0, prompt, 1))
    assert len(driver.run()) == steps


def test_a_shared_budget_costs_the_long_prompt_one_more_chunk() -> None:
    driver = with_decodes(3, max_num_batched_tokens=512)
    long = make_request(100, 4_096, 2)
    driver.add(long)
    steps = 0
    while long.num_output_tokens == 0:
        driver.one_step()
        steps += 1
    assert steps == 9


def test_the_long_prefill_threshold_is_off_for_a_lone_request() -> None:
    alone = Driver(long_prefill_token_threshold=512, max_num_batched_tokens=4_096)
    alone.add(make_request(0, 4_096, 1))
    assert alone.one_step() == {"r0": 4_096}
    together = with_decodes(1, long_prefill_token_threshold=512, max_num_batched_tokens=4_096)
    together.add(make_request(100, 4_096, 1))
    assert together.one_step() == {"r0": 1, "r100": 512}


@pytest.mark.parametrize(("cap", "longest_gap_tokens"), [(256, 257), (2_048, 2_049)])
def test_a_prefill_cap_bounds_the_step_that_others_wait_for(cap: int, longest_gap_tokens: int) -> None:
    driver = with_decodes(1, max_prefill_tokens_per_step=cap, max_num_batched_tokens=8_192)
    driver.add(make_request(100, 8_000, 2))
    assert max(sum(driver.one_step().values()) for _ in range(8)) == longest_gap_tokens


def test_block_counts_and_slots() -> None:
    assert ceil_div(42, 16) == 3
    table = [5, 12, 8]
    assert [slot_of(table, position, 16) for position in (0, 15, 16, 47)] == [80, 95, 192, 143]
    with pytest.raises(IndexError):
        slot_of(table, 48, 16)  # the 49th token needs a fourth block


def test_contiguous_reservation_wastes_what_paging_does_not() -> None:
    paged, contiguous = KVCache(10_000, 16), ContiguousKVCache(10_000, 16, reserved_tokens=2_048)
    reserved = contiguous.blocks_for(200) * 16
    assert 1 - 200 / reserved == pytest.approx(0.90, abs=0.005)
    assert 1 - 42 / (paged.blocks_for(42) * 16) == pytest.approx(0.125)
    wastes = {length: 1 - length / (paged.blocks_for(length) * 16) for length in range(1, 2_048)}
    assert max(waste for length, waste in wastes.items() if length > 360) < 0.04
    # On average a request wastes half a block: under 4 % from about 180 tokens on.
    average = np.mean([waste for length, waste in wastes.items() if 180 <= length < 196])
    assert average < 0.04


def test_paging_fits_seven_to_eight_times_more_sequences_of_a_quarter_thousand_tokens() -> None:
    paged, contiguous = KVCache(1 + 128 * 8, 16), ContiguousKVCache(1 + 128 * 8, 16, reserved_tokens=2_048)
    lengths = np.random.default_rng(0).integers(200, 340, 1_000)
    per_sequence = np.mean([paged.blocks_for(int(length)) for length in lengths])
    gain = (paged.num_usable_blocks / per_sequence) / (contiguous.num_usable_blocks // contiguous.blocks_for(1))
    assert 7 <= gain <= 8


def steps_to_serve(outputs: list[int], batch: int, *, static: bool) -> int:
    """Steps of one second each to serve a backlog of one-token prompts."""
    driver = Driver(max_num_seqs=batch, static_batching=static, enable_prefix_caching=False)
    driver.add(*(make_request(row, 1, output) for row, output in enumerate(outputs)))
    return len(driver.run())


def test_static_batching_is_as_good_at_equal_lengths() -> None:
    outputs = [20] * 64
    assert steps_to_serve(outputs, 8, static=True) == steps_to_serve(outputs, 8, static=False)


def test_static_against_continuous_as_lengths_spread() -> None:
    """1.5x at 10/10/15/20, about 2x uniform, 4-5x exponential (the harmonic number of 64 is 4.74)."""
    generator = np.random.default_rng(7)
    batch, rounds = 64, 120
    mixed = [10, 10, 15, 20] * (batch * rounds // 4)
    uniform = generator.integers(1, 101, batch * rounds).tolist()
    exponential = np.maximum(1, generator.exponential(60, batch * rounds).round()).astype(int).tolist()
    gains = {
        name: steps_to_serve(outputs, batch, static=True) / steps_to_serve(outputs, batch, static=False)
        for name, outputs in {"mixed": mixed, "uniform": uniform, "exponential": exponential}.items()
    }
    assert gains["mixed"] == pytest.approx(20 / 13.75, rel=0.03)
    assert gains["uniform"] == pytest.approx(2.0, rel=0.06)
    harmonic = sum(1 / k for k in range(1, batch + 1))
    assert 4 < gains["exponential"] < 5
    assert gains["exponential"] == pytest.approx(harmonic, rel=0.15)


def test_seat_use_of_static_and_continuous_batches() -> None:
    outputs = [10, 10, 15, 20]
    static = Driver(max_num_seqs=4, static_batching=True)
    static.add(*(make_request(row, 1, output) for row, output in enumerate(outputs)))
    used = seats = 0
    while static.scheduler.has_requests():
        used += len(static.one_step())
        seats += 4
    assert used / seats == pytest.approx(sum(outputs) / (4 * 20))


def test_a_victim_of_a_hundred_blocks_leaves_130_free() -> None:
    driver = Driver(num_gpu_blocks=1 + 230, max_num_batched_tokens=8_192, enable_prefix_caching=False)
    driver.add(make_request(0, 100 * 16, 50), make_request(1, 100 * 16 - 1, 50))
    driver.one_step()
    assert driver.scheduler.kv.num_free_blocks == 30
    driver.scheduler._preempt(driver.scheduler.running[1], driver.now_ns)
    assert driver.scheduler.kv.num_free_blocks == 130
