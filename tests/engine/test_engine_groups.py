"""Layers of several kinds: what requests hold of one pool in each KV group, and which prefixes all groups can use.

Decisions are held against vLLM's own scheduler in ``tests/live/test_group_parity.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
from engine_driver import Driver, make_request

from sim.engine.reference.batch import SchedulerSettings
from sim.engine.request import Content
from sim.engine.variants.choice import build_kv_cache
from sim.engine.variants.groups import GroupedHit, GroupedKVCache
from sim.errors import SimulationError
from sim.latency.kv_layout import KvGroup

FULL, WINDOW = KvGroup("full", 4), KvGroup("window", 4, 8)
CHUNK, STATE = KvGroup("chunk", 4, 12), KvGroup("state", 4)
SIZES: dict[str, Any] = {"block_size": 4, "max_num_batched_tokens": 8}


def held_by_step(*groups: KvGroup, **more: Any) -> list[int]:
    """Blocks held after each step that schedules a request of 24 + 6 tokens, alone."""
    driver = Driver(**{**SIZES, "enable_prefix_caching": False, "max_model_len": 100, "kv_groups": groups, **more})
    driver.add(make_request(0, 24, 6))
    kv = driver.scheduler.kv
    held = []
    while driver.scheduler.has_requests():
        if driver.one_step():
            held.append(kv.num_usable_blocks - driver.batches[-1].num_free_blocks)
    kv.check_empty()
    return held


def test_each_group_takes_and_gives_back_blocks_of_its_own() -> None:
    """Chunks of 8 over blocks of 4. A window of 8 gives two blocks back once 16 tokens are computed; a chunk of 12
    three once 12 are; a state without a prefix cache is one block."""
    full, window = [2, 4, 6, 7, 7, 7, 7, 8], [2, 4, 4, 3, 3, 3, 2, 3]
    chunk, state = [2, 4, 3, 1, 1, 1, 1, 2], [1] * 8
    assert held_by_step(FULL, WINDOW) == [a + b for a, b in zip(full, window, strict=True)]
    assert held_by_step(FULL, WINDOW, WINDOW) == [a + 2 * b for a, b in zip(full, window, strict=True)]
    assert held_by_step(CHUNK, FULL) == [a + b for a, b in zip(full, chunk, strict=True)]
    assert held_by_step(FULL, STATE) == [a + b for a, b in zip(full, state, strict=True)]


def test_blocks_of_a_group_have_a_size_of_their_own() -> None:
    """24 tokens and 6: blocks of 8 are taken at 1, 9, 17 and 25."""
    assert held_by_step(KvGroup("latent", 8), FULL) == [1 + 2, 2 + 4, 3 + 6, 4 + 7, 4 + 7, 4 + 7, 4 + 7, 4 + 8]


def test_admission_asks_for_the_sum_over_the_groups() -> None:
    """40 tokens are 10 blocks of full attention; a window of 8 with 8 in flight has 4 and one more."""
    settings = SchedulerSettings(num_gpu_blocks=100, **SIZES, kv_groups=(FULL, WINDOW), enable_prefix_caching=False)
    cache = build_kv_cache(settings)
    request = make_request(0, 40, 10)
    hit = cache.lookup(request)
    assert cache.blocks_to_admit(request, hit, 40, is_whole=True) == 10 + 5
    assert cache.blocks_to_admit(request, hit, 8) == 2 + 2
    driver = Driver(**SIZES, kv_groups=(FULL, WINDOW), num_gpu_blocks=15, max_model_len=100)
    assert driver.scheduler.why_never(make_request(1, 37, 1)) == "needs 15 KV blocks at its longest, the pool has 14"
    assert driver.scheduler.why_never(make_request(1, 36, 1)) is None


def found_again(*groups: KvGroup, prompt: int = 40, **more: Any) -> GroupedHit:
    """What a second request finds whose first ``prompt`` tokens are those of one that has ended."""
    driver = Driver(**{**SIZES, "num_gpu_blocks": 200, "max_model_len": 200, "kv_groups": groups, **more})
    shared = ((9, prompt),)
    driver.add(make_request(0, prompt, 9, content=Content(1, shared)))
    driver.run()
    hit = driver.scheduler.kv.lookup(make_request(1, 60, 1, content=Content(2, shared)))
    assert isinstance(hit, GroupedHit)
    return hit


def test_a_prefix_needs_all_of_one_group_and_the_end_of_another() -> None:
    """Of the window's blocks those before the place where a resend of the prompt would go on are cached: 36 tokens."""
    hit = found_again(FULL, WINDOW)
    assert hit.num_tokens == 36
    assert [block == 0 for block in hit.tables[1]] == [True] * 7 + [False] * 2
    assert 0 not in hit.tables[0]
    assert len(hit.tables[0]) == 9
    assert hit.num_evictable == 9 + 2
    assert hit.shared_prefix == 40, "full attention has one block more, which the window does not"


def test_prefixes_end_where_blocks_of_all_groups_do() -> None:
    """Blocks of 4 and 12: of 40 tokens with one to compute, 36."""
    assert found_again(FULL, KvGroup("window", 12, 8)).num_tokens == 36
    assert found_again(FULL, KvGroup("window", 12, 8), prompt=35).num_tokens == 24


def test_a_prefix_goes_on_from_one_state() -> None:
    """Its chunk ends there, and the state is the only block of it that is found."""
    hit = found_again(FULL, STATE)
    assert hit.num_tokens == 36
    assert [block == 0 for block in hit.tables[1]] == [True] * 8 + [False]


def test_more_of_a_cache_is_kept_where_it_is_asked_for() -> None:
    """A request that parts from the first after 20 tokens: nothing is kept there unless everything is."""
    assert found_again(FULL, STATE, prompt=40, prefix_cache_retention_interval=None).num_tokens == 40
    for interval, expected in ((0, 0), (8, 16), (None, 20)):
        sizes = {"block_size": 4, "max_num_batched_tokens": 4, "num_gpu_blocks": 200}
        driver = Driver(**sizes, kv_groups=(FULL, STATE), prefix_cache_retention_interval=interval)
        driver.add(make_request(0, 40, 1, content=Content(1, ((9, 20),))))
        driver.run()
        hit = driver.scheduler.kv.lookup(make_request(1, 60, 1, content=Content(2, ((9, 20),))))
        assert hit.num_tokens == expected


def test_no_request_goes_on_from_a_state_of_the_same_step() -> None:
    driver = Driver(**{**SIZES, "max_num_batched_tokens": 100}, kv_groups=(FULL, STATE), num_gpu_blocks=200)
    shared = ((9, 38),)
    driver.add(*(make_request(row, 38, 2, content=Content(row + 1, shared)) for row in range(2)))
    assert driver.one_step() == {"r0": 36}
    assert driver.one_step() == {"r0": 2}, "the state at 36 counts as new while it is the prompt's last"
    assert driver.one_step() == {"r0": 1, "r1": 2}


def test_a_state_in_mid_chunk_saves_a_step() -> None:
    """Mamba-2 writes the state at 36 while it computes all 40 tokens."""
    settings = {**SIZES, "max_num_batched_tokens": 100, "num_gpu_blocks": 200}
    for alignment, expected in ((None, {"r0": 36}), (1, {"r0": 40})):
        driver = Driver(**settings, kv_groups=(FULL, KvGroup("state", 4, checkpoint_alignment=alignment)))
        driver.add(make_request(0, 40, 2))
        assert driver.one_step() == expected


@pytest.mark.parametrize(
    ("groups", "more", "message"),
    [
        ((FULL, KvGroup("state", 8)), {}, "inside a block of states"),
        ((KvGroup("full", 8), KvGroup("state", 4, checkpoint_alignment=1)), {}, "middle of a chunk"),
        ((FULL, STATE), {"num_speculative_tokens": 2}, "drafts beside layers with a state"),
        ((KvGroup("full", 8), KvGroup("chunk", 4, 16)), {}, "other block sizes"),
        ((FULL, KvGroup("window", 4)), {}, "needs sliding_window"),
        ((FULL, WINDOW), {"num_swap_blocks": 9}, "preemption: swap"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(
    groups: tuple[KvGroup, ...], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(SimulationError, match=message):
        build_kv_cache(SchedulerSettings(num_gpu_blocks=100, block_size=4, kv_groups=groups, **more))
    assert isinstance(
        build_kv_cache(SchedulerSettings(num_gpu_blocks=100, block_size=4, kv_groups=(FULL, WINDOW))), GroupedKVCache
    )
