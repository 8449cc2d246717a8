"""Content kept as runs decides exactly as content kept block by block."""

from __future__ import annotations

from typing import Any

from engine_driver import Driver, make_request
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from policies.priority import Priority
from sim.engine.fast.run_kv_cache import RunKVCache
from sim.engine.reference.kv_cache import PrefixKVCache
from sim.engine.request import Content, Request, State

NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a whole run takes minutes; the failing example is small enough as it is."""

REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 60),  # prompt
        st.integers(1, 40),  # output
        st.integers(0, 40),  # arrival step
        st.integers(0, 2),  # priority
        st.sampled_from([None, None, 1, 2, "talk"]),  # shared prefix group, or one conversation
        st.integers(1, 60),  # tokens of the prefix
        st.sampled_from([0, 0, 3]),  # max_tokens beyond the output
    ),
    min_size=2,
    max_size=20,
)
ENGINES = st.fixed_dictionaries(
    {
        "num_gpu_blocks": st.integers(14, 40),
        "block_size": st.sampled_from([2, 4, 8]),
        "max_num_seqs": st.integers(2, 8),
        "max_num_batched_tokens": st.sampled_from([8, 33, 64]),
        "async_scheduling": st.booleans(),
        "scheduler_reserve_full_isl": st.booleans(),
    }
)


def content_of(row: int, prompt: int, group: Any, prefix: int) -> Content:
    """Own content, one shared prefix before it, or a conversation shared position by position."""
    if group == "talk":
        return Content(99, own_is_shared=True)
    segments = ((group, min(prefix, prompt)),) if group is not None else ()
    return Content(100 + row, segments)


@settings(max_examples=300, deadline=None, phases=NO_SHRINK)
@given(rows=REQUESTS, engine=ENGINES, use_priority=st.booleans())
def test_runs_decide_as_blocks_do(rows: list[tuple[Any, ...]], engine: dict[str, Any], use_priority: bool) -> None:
    def decisions(cache: type[PrefixKVCache] | type[RunKVCache]) -> tuple[list[Any], list[int]]:
        driver = Driver(Priority() if use_priority else None, **engine)
        driver.scheduler.kv = cache(engine["num_gpu_blocks"], engine["block_size"])
        pending, requests = [], []
        for row, (prompt, output, step, priority, group, prefix, slack) in enumerate(rows):
            request = make_request(
                row,
                prompt,
                output,
                priority=priority,
                arrival_ns=step,
                content=content_of(row, prompt, group, prefix),
                max_tokens=output + slack,
            )
            if driver.scheduler.why_never(request) is None:
                pending.append((step, request))
                requests.append(request)
        pending.sort(key=lambda pair: (pair[0], pair[1].row))
        while pending or driver.scheduler.has_requests() or driver._in_flight:
            while pending and pending[0][0] <= driver.step:
                driver.add(pending.pop(0)[1])
            driver.one_step()
        driver.scheduler.kv.check_empty()
        steps = [
            ([(r.row, n) for r, n in batch.scheduled.items()], [r.row for r in batch.preempted], batch.num_free_blocks)
            for batch in driver.batches
        ]
        return steps, [request.num_recomputed_tokens for request in requests]

    assert decisions(RunKVCache) == decisions(PrefixKVCache)


def test_the_order_of_free_blocks_matters_while_somebody_can_find_one() -> None:
    kv = RunKVCache(20, 4)
    request = Request(
        row=0,
        request_id="0",
        arrival_ns=0,
        num_prompt_tokens=16,
        output_tokens=9,
        max_tokens=9,
        max_model_len=99,
        content=Content(1),
    )
    kv.admit(request, [], 16)
    kv.cache_blocks(request, 16)
    request.state = State.PREEMPTED
    kv.free(request)
    assert not kv.forget_order()
    assert len(kv.lookup(request)) == 3
    kv.admit(request, kv.lookup(request), 16)
    request.state = State.FINISHED
    kv.free(request)
    assert kv.forget_order()
    assert not kv.lookup(request)
    assert kv.num_free_blocks == 19
