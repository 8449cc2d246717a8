"""What holds for every workload: blocks conserved, budgets kept, every request ends once."""

from __future__ import annotations

from typing import Any

from engine_driver import Driver, make_request
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from policies.priority import Priority
from sim.engine.reference.kv_cache import PrefixKVCache
from sim.engine.request import Content
from sim.engine.variants.window import NULL_BLOCK, WindowKVCache

NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a whole run takes minutes; the failing example is small enough as it is."""

REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 60),  # prompt
        st.integers(1, 25),  # output
        st.integers(0, 6),  # arrival step
        st.integers(0, 2),  # priority
        st.integers(0, 3),  # shared prefix group, 0 = none
        st.integers(0, 10),  # max_tokens beyond the output (the end is then an EOS)
    ),
    min_size=1,
    max_size=14,
)
ENGINES = st.fixed_dictionaries(
    {
        "num_gpu_blocks": st.integers(25, 60),
        "block_size": st.sampled_from([4, 16]),
        "max_num_seqs": st.integers(1, 8),
        "max_num_batched_tokens": st.sampled_from([8, 17, 64, 200]),
        "enable_prefix_caching": st.booleans(),
        "async_scheduling": st.booleans(),
        "long_prefill_token_threshold": st.sampled_from([0, 5]),
        "max_prefill_tokens_per_step": st.sampled_from([None, 7]),
        "watermark": st.sampled_from([0.0, 0.1]),
        "scheduler_reserve_full_isl": st.booleans(),
        "sliding_window": st.sampled_from([None, 1, 6, 21]),
    }
)
BASELINES = st.sampled_from(
    [
        {},
        {"contiguous_kv": True, "max_model_len": 90, "enable_prefix_caching": False, "async_scheduling": False},
        {"static_batching": True, "async_scheduling": False},
        {"num_swap_blocks": 20, "block_bytes": 10, "async_scheduling": False, "enable_prefix_caching": False},
    ]
)


def blocks_held(driver: Driver) -> int:
    """Distinct blocks that some request holds."""
    holders = driver.scheduler.kv.holders.values()
    if isinstance(driver.scheduler.kv, PrefixKVCache):
        return len({block for request in holders for block in request.blocks} - {NULL_BLOCK})
    return sum(request.num_blocks for request in holders)


@settings(max_examples=150, deadline=None, phases=NO_SHRINK)
@given(rows=REQUESTS, engine=ENGINES, baseline=BASELINES, use_priority=st.booleans())
def test_invariants_of_every_run(
    rows: list[tuple[int, ...]], engine: dict[str, Any], baseline: dict[str, Any], use_priority: bool
) -> None:
    driver = Driver(Priority() if use_priority else None, **{**engine, **baseline})
    scheduler, limits = driver.scheduler, driver.scheduler.settings
    pending = []
    for row, (prompt, output, step, priority, group, slack) in enumerate(rows):
        content = Content(100 + row, ((group, min(40, prompt)),) if group else ())
        request = make_request(
            row,
            prompt,
            output,
            priority=priority,
            content=content,
            max_tokens=output + slack,
            arrival_ns=step * 1_000_000_000,
            max_model_len=limits.max_model_len,
        )
        if scheduler.why_never(request) is None:
            pending.append((step, request))
    pending.sort(key=lambda pair: (pair[0], pair[1].row))
    submitted = [request for _, request in pending]

    while pending or scheduler.has_requests() or driver._in_flight:
        while pending and pending[0][0] <= driver.step:
            driver.add(pending.pop(0)[1])
        scheduled = driver.one_step()
        assert sum(scheduled.values()) <= limits.max_num_batched_tokens
        assert all(tokens > 0 for tokens in scheduled.values())
        assert len(scheduler.running) <= limits.max_num_seqs
        assert scheduler.kv.num_free_blocks + blocks_held(driver) == scheduler.kv.num_usable_blocks
        if isinstance(scheduler.kv, WindowKVCache):
            most = scheduler.kv.max_blocks_per_request
            assert all(sum(map(bool, each.blocks)) <= most for each in scheduler.kv.holders.values())
        batch = driver.batches[-1]
        assert batch.shape.num_tokens == sum(scheduled.values())
        assert not {request.request_id for request in batch.preempted} & scheduled.keys()
        assert driver.step < 20_000, "no progress"

    assert sorted(request.row for request in driver.finished) == sorted(request.row for request in submitted)
    for request in submitted:
        assert request.num_output_tokens == request._stop_at_output_tokens
        assert request.arrival_ns <= request.scheduled_ns <= request.first_token_ns <= request.last_token_ns
    scheduler.kv.check_empty()
    assert scheduler.outstanding_tokens == 0
    assert scheduler.kv.free_swap_blocks == limits.num_swap_blocks


@settings(max_examples=60, deadline=None, phases=NO_SHRINK)
@given(rows=REQUESTS, engine=ENGINES)
def test_the_same_run_twice_is_the_same(rows: list[tuple[int, ...]], engine: dict[str, Any]) -> None:
    def decisions() -> list[Any]:
        driver = Driver(**engine)
        for row, (prompt, output, *_) in enumerate(rows):
            request = make_request(row, prompt, output)
            if driver.scheduler.why_never(request) is None:
                driver.add(request)
        driver.run()
        return [
            ([(r.row, n) for r, n in batch.scheduled.items()], [r.row for r in batch.preempted], batch.num_free_blocks)
            for batch in driver.batches
        ]

    assert decisions() == decisions()


def test_what_the_prefix_cache_gives_back_is_not_recomputed() -> None:
    """Two requests of 8 + 8 tokens in 9 blocks of 2: the second is evicted after 8 and
    finds one of its four blocks again."""
    for caching, recomputed in ((False, 8), (True, 6)):
        driver = Driver(num_gpu_blocks=10, block_size=2, enable_prefix_caching=caching, max_num_batched_tokens=64)
        requests = [make_request(0, 8, 8), make_request(1, 8, 8)]
        driver.add(*requests)
        driver.run()
        assert requests[1].num_preemptions == 1
        assert (caching, requests[1].num_recomputed_tokens) == (caching, recomputed)
