"""Step by step, the fast scheduler decides as the reference."""

from __future__ import annotations

from collections import deque
from typing import Any

from engine_driver import STEP_NS, make_request
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from policies.base import Policy
from policies.predictors import Exact
from policies.registry import POLICIES, build_policy
from sim.engine.fast.fast_scheduler import FastScheduler
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import Content

NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 70),  # prompt
        st.integers(1, 50),  # output
        st.integers(0, 60),  # arrival step
        st.integers(0, 2),  # priority
        st.sampled_from([None, None, 1, 2, "talk"]),
        st.integers(1, 60),  # tokens of the prefix
        st.sampled_from([0, 0, 3]),  # max_tokens beyond the output
    ),
    min_size=2,
    max_size=24,
)
ENGINES = st.fixed_dictionaries(
    {
        "num_gpu_blocks": st.integers(16, 70),
        "block_size": st.sampled_from([2, 4, 16]),
        "max_num_seqs": st.integers(1, 10),
        "max_num_batched_tokens": st.sampled_from([12, 33, 64, 300]),
        "async_scheduling": st.booleans(),
        "enable_prefix_caching": st.booleans(),
        "scheduler_reserve_full_isl": st.booleans(),
        "enable_chunked_prefill": st.sampled_from([True, True, False]),
        "long_prefill_token_threshold": st.sampled_from([0, 0, 6]),
        "max_prefill_tokens_per_step": st.sampled_from([None, None, 9]),
        "watermark": st.sampled_from([0.0, 0.1]),
    }
)


def policy_of(name: str, lengths: dict[str, int]) -> Policy:
    """A built-in policy with exact predictions."""
    return build_policy(name, {}, Exact(true_output_tokens=lengths.__getitem__))


def replay(kind: type[Scheduler], rows: list[tuple[Any, ...]], engine: dict[str, Any], policy: str) -> list[Any]:
    """Every decision, and every request's times and counters at its end."""
    max_model_len = 1 << 20 if engine["enable_chunked_prefill"] else engine["max_num_batched_tokens"]
    lengths = {f"r{row}": output for row, (_, output, *_) in enumerate(rows)}
    scheduler = kind(SchedulerSettings(max_model_len=max_model_len, **engine), policy_of(policy, lengths))
    pending = []
    for row, (prompt, output, step, priority, group, prefix, slack) in enumerate(rows):
        content = Content(99, own_is_shared=True) if group == "talk" else Content(100 + row)
        if isinstance(group, int):
            content = Content(100 + row, ((group, min(prefix, prompt)),))
        request = make_request(
            row,
            prompt,
            output,
            priority=priority,
            arrival_ns=step * STEP_NS,
            content=content,
            max_tokens=output + slack,
            max_model_len=max_model_len,
            tenant=f"tenant-{row % 3}",
            tier=["premium", "standard", "budget"][row % 3],
        )
        if scheduler.why_never(request) is None:
            pending.append((step, request))
    pending.sort(key=lambda pair: (pair[0], pair[1].row))
    log: list[Any] = []
    depth = 2 if engine["async_scheduling"] else 1
    in_flight: deque[Any] = deque()
    step = 0
    while pending or scheduler.has_requests() or in_flight:
        while pending and pending[0][0] <= step:
            scheduler.add_request(pending.pop(0)[1], step * STEP_NS)
        batch = scheduler.schedule(step * STEP_NS)
        log.append(
            (
                step,
                scheduler.scheduled_tokens(batch),
                [r.row for r in batch.preempted],
                [r.row for r in batch.finished],
                batch.num_free_blocks,
                batch.shape,
                len(scheduler.waiting),
                scheduler.outstanding_tokens,
            )
        )
        in_flight.append(batch)
        step += 1
        is_empty = batch.is_empty
        while in_flight and (is_empty or len(in_flight) >= depth):
            for r in scheduler.update(in_flight.popleft(), step * STEP_NS):
                log.append(
                    (
                        (r.row, r.scheduled_ns, r.first_token_ns, r.last_token_ns, r.num_output_tokens),
                        (r.num_preemptions, r.num_cached_tokens, r.num_recomputed_tokens),
                    )
                )
        if step > 5_000:
            break  # requests of equal rank can preempt each other for ever, in vLLM as here
    else:
        log.append(("free at the end", scheduler.kv.num_free_blocks, list(scheduler.kv.holders)))
    gaps, weights = scheduler.recorder.itl_columns()
    return [*log, list(zip(gaps.tolist(), weights.tolist(), strict=True))]


@settings(max_examples=200, deadline=None, phases=NO_SHRINK)
@given(rows=REQUESTS, engine=ENGINES, policy=st.sampled_from(sorted(POLICIES)))
def test_fast_decides_as_the_reference(rows: list[tuple[Any, ...]], engine: dict[str, Any], policy: str) -> None:
    if policy == "adaptive" and not engine["enable_chunked_prefill"]:
        policy = "fcfs"
    reference = replay(Scheduler, rows, engine, policy)
    fast = replay(FastScheduler, rows, engine, policy)
    for place, (theirs, ours) in enumerate(zip(reference, fast, strict=False)):
        assert ours == theirs, f"record {place} after {reference[max(place - 2, 0) : place]}"
    assert len(fast) == len(reference)


def test_a_talker_whose_last_token_is_in_flight_makes_no_more_keys() -> None:
    rows = [(7, 2, 9, 0, "talk", 1, 3), (2, 3, 6, 0, "talk", 1, 0)]
    engine = {
        "num_gpu_blocks": 24,
        "block_size": 1,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 300,
        "async_scheduling": True,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
    }
    assert replay(FastScheduler, rows, engine, "fcfs") == replay(Scheduler, rows, engine, "fcfs")
