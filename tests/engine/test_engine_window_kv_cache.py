"""A sliding window: what is behind it is given back, and only the window has to be found again."""

from __future__ import annotations

from typing import Any

import pytest
from engine_driver import Driver, make_request
from hypothesis import given, settings
from hypothesis import strategies as st
from windowed_model import windowed_model

from policies.priority import Priority
from sim.cluster import simulate
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.replica import Replica
from sim.engine.request import Content
from sim.engine.variants.choice import build_kv_cache
from sim.engine.variants.window import NULL_BLOCK, WindowKVCache
from sim.engine.variants.window_fast import WindowReplica
from sim.errors import SimulationError
from sim.run import load, run

WINDOW: dict[str, Any] = {"sliding_window": 8, "block_size": 4, "max_num_batched_tokens": 8}


def held_by_step(**more: Any) -> list[int]:
    """Blocks held after each step that schedules a request of 24 + 6 tokens, alone."""
    driver = Driver(**{**WINDOW, "enable_prefix_caching": False, **more})
    driver.add(make_request(0, 24, 6))
    kv = driver.scheduler.kv
    held = []
    while driver.scheduler.has_requests():
        if driver.one_step():
            held.append(kv.num_usable_blocks - driver.batches[-1].num_free_blocks)
    kv.check_empty()
    return held


def test_blocks_behind_the_window_are_given_back() -> None:
    """Chunks of 8 over blocks of 4: after 16 tokens the next looks back on 9 to 16, so that two blocks go."""
    assert held_by_step() == [2, 4, 4, 3, 3, 3, 2, 3]
    assert held_by_step(sliding_window=None) == [2, 4, 6, 7, 7, 7, 7, 8]


def test_a_batch_in_flight_still_reads_its_window() -> None:
    """A step ahead, what the batch before is computing does not count as computed."""
    assert held_by_step(async_scheduling=True) == [2, 4, 6, 5, 3, 3, 3, 3]


def test_a_small_pool_serves_any_length() -> None:
    """7 tokens of window and 8 in flight are 4 blocks, and one more since they may begin inside one."""
    for num_usable in (4, 5):
        driver = Driver(**WINDOW, num_gpu_blocks=num_usable + 1, max_model_len=20_000)
        request = make_request(0, 10_000, 50)
        refusal = driver.scheduler.why_never(request)
        if num_usable == 4:
            assert refusal == "needs 5 KV blocks at its longest, the pool has 4"
            continue
        assert refusal is None
        driver.add(request)
        driver.run()
        assert request.num_output_tokens == 50
        assert request.num_preemptions == 0
        driver.scheduler.kv.check_empty()


def test_a_short_request_needs_no_more_than_its_tokens() -> None:
    cache = WindowKVCache(SchedulerSettings(num_gpu_blocks=100, **WINDOW))
    assert [cache.blocks_to_reserve(tokens) for tokens in (1, 8, 16, 17, 400)] == [1, 2, 4, 5, 5]
    assert [cache.blocks_in_use(tokens) for tokens in (1, 8, 10, 11, 400, 401)] == [1, 2, 3, 2, 2, 3]


def test_a_prefix_is_found_by_its_last_window() -> None:
    driver = Driver(**WINDOW, num_gpu_blocks=100)
    first, second = (make_request(row, 40, 1, content=Content(row + 1, ((9, 40),))) for row in (0, 1))
    driver.add(first)
    driver.run()
    kv = driver.scheduler.kv
    hit = kv.lookup(second)
    assert hit.blocks[:7] == (NULL_BLOCK,) * 7
    assert hit.num_tokens == 4 * len(hit.blocks) == 36
    assert NULL_BLOCK not in hit.blocks[7:]
    assert hit.num_evictable == 2
    driver.add(second)
    assert driver.one_step() == {"r1": 4}
    assert second.num_cached_tokens == 36
    assert kv.num_usable_blocks - driver.batches[-1].num_free_blocks == 3
    driver.run()
    kv.check_empty()


def scan_from_the_right(cached: set[int], num_blocks: int, needed: int) -> int:
    """Blocks of the longest hit, found as vLLM does: block by block from the right."""
    in_a_row = 0
    for index in reversed(range(num_blocks)):
        in_a_row = in_a_row + 1 if index in cached else 0
        if in_a_row == needed:
            return index + needed
    return in_a_row


@settings(max_examples=300, deadline=None)
@given(
    cached=st.sets(st.integers(0, 24)),
    prompt=st.integers(1, 100),
    window=st.integers(2, 40),
    block_size=st.sampled_from([1, 3, 4]),
)
def test_lookups_equal_a_scan_block_by_block(cached: set[int], prompt: int, window: int, block_size: int) -> None:
    cache = WindowKVCache(SchedulerSettings(num_gpu_blocks=100, block_size=block_size, sliding_window=window))
    request = make_request(0, prompt, 1, content=Content(5))
    for index in cached:
        (key,) = Content(5).block_keys(index, index + 1, block_size)
        cache._block_of[key] = index + 1
    num_blocks, needed = (prompt - 1) // block_size, -(-(window - 1) // block_size)
    blocks = cache.lookup(request).blocks
    assert len(blocks) == scan_from_the_right(cached, num_blocks, needed)
    num_behind = max(0, len(blocks) * block_size - window + 1) // block_size
    assert blocks == (*[NULL_BLOCK] * num_behind, *[index + 1 for index in range(num_behind, len(blocks))])


def test_it_is_used_wherever_there_is_a_window() -> None:
    given: dict[str, Any] = {"num_gpu_blocks": 10, "max_model_len": 100}
    assert isinstance(build_kv_cache(SchedulerSettings(**given, sliding_window=99)), WindowKVCache)
    assert isinstance(build_kv_cache(SchedulerSettings(**given, sliding_window=100)), WindowKVCache)
    assert not build_kv_cache(SchedulerSettings(**given)).has_window
    assert not build_kv_cache(SchedulerSettings(**given, sliding_window=99, contiguous_kv=True)).has_window
    with pytest.raises(SimulationError, match="sliding_window"):
        WindowKVCache(SchedulerSettings(**given))


def test_swapping_moves_the_window_only() -> None:
    """A prompt of higher priority takes the blocks of a request of 24 tokens: 2 of its 6 are in the window."""
    driver = Driver(
        Priority(),
        **WINDOW,
        num_gpu_blocks=6,
        num_swap_blocks=20,
        block_bytes=1,
        scheduler_reserve_full_isl=False,
        max_model_len=64,
    )
    victim = make_request(0, 14, 30, priority=1)
    driver.add(victim)
    while victim.num_computed_tokens < 23:
        driver.one_step()
    driver.add(make_request(1, 40, 2, priority=0))
    moved, swapped_tokens = 0, {0}
    while driver.scheduler.has_requests():
        driver.one_step()
        moved += driver.batches[-1].shape.swap_bytes
        swapped_tokens.add(victim.num_swapped_tokens)
    assert swapped_tokens == {0, 24}
    assert moved == 2 * 2
    assert victim.num_recomputed_tokens == 0
    assert driver.scheduler.kv.free_swap_blocks == 20
    driver.scheduler.kv.check_empty()


def whole_run(inputs: list[int], stepping: str, *, caches_prompts: bool) -> tuple[Any, list[Any]]:
    """Request columns, and the replicas, of a run with a window of 300 and prompts that share 40 tokens."""
    scenario = {
        "name": "window",
        "workload": {
            "requests": 30,
            "arrival": {"process": "poisson", "rate": 20},
            "input_tokens": {"dist": "values", "values": inputs},
            "output_tokens": {"dist": "values", "values": [60, 1, 100]},
            "prefix": {"groups": 2, "tokens": 40},
        },
        "engine": {
            "model": windowed_model(300),
            "gpu": "a100-80gb-sxm",
            "max_model_len": 1024,
            "num_gpu_blocks_override": 90,
            "max_num_batched_tokens": 128,
            "max_num_seqs": 64,
            "enable_prefix_caching": caches_prompts,
            "stepping": stepping,
        },
    }
    replicas: list[Any] = []
    real = simulate._check_nothing_lost

    def spy(gateway: Any) -> None:
        real(gateway)
        replicas.extend(gateway.replicas)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "_check_nothing_lost", spy)
        results = run(load(scenario))
    return {name: column.tolist() for name, column in results.record.requests.items()}, replicas


@pytest.mark.parametrize(
    ("inputs", "caches_prompts", "kind"),
    [
        ([150, 200, 90], False, FastReplica),
        ([150, 400, 90], False, WindowReplica),
        ([150, 200, 90], True, Replica),
        ([150, 400, 90], True, Replica),
    ],
)
def test_a_window_that_makes_no_difference_is_none_to_fast_stepping(
    inputs: list[int], caches_prompts: bool, kind: type[Any]
) -> None:
    """With 200 + 100 tokens nothing is ever behind the window of 300, and the run is one of full attention. Shared
    content is the reference's: vLLM caches the ends of prompts only."""
    theirs, reference = whole_run(inputs, "reference", caches_prompts=caches_prompts)
    ours, fast = whole_run(inputs, "fast", caches_prompts=caches_prompts)
    assert isinstance(reference[0].scheduler.kv, WindowKVCache)
    assert type(fast[0]) is kind
    assert ours == theirs
