"""A case as a scenario, run by the simulator as users run it, with the decisions file as the answer."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines import any_block
from real_scheduler import RealScheduler
from traces import MAX_RECORDS, Case, CaseRequest, StepRecord

from sim.errors import SimulationError


@dataclass(frozen=True, slots=True)
class TimedRecord:
    """A line of the decisions file."""

    time_s: float
    record: StepRecord


def as_trace(case: Case) -> Case:
    """The case less what a trace file cannot say: ids in order of arrival, ends by length, one shared prompt."""

    def plain(position: int, request: CaseRequest) -> CaseRequest:
        return replace(
            request,
            request_id=f"r{position:03d}",
            max_tokens=request.output_tokens,
            segments=request.segments[:1],
            session=None,
            tenant=request.tier,
            class_name="default",
            expected_output_tokens=None,
            deadline_steps=40 if case.requests[0].deadline_steps else None,
        )

    return replace(case, requests=tuple(plain(position, request) for position, request in enumerate(case.requests)))


def windowed_model(trace: Path, window: int) -> str:
    """The config.json, beside ``trace``, of a model whose layers all have this window."""
    path = trace.with_name("windowed.json")
    path.write_text(
        json.dumps(
            {
                "model_type": "mistral",
                "num_hidden_layers": 2,
                "hidden_size": 64,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "vocab_size": 64,
                "max_position_embeddings": 65536,
                "sliding_window": window,
            }
        )
    )
    return str(path)


def scenario_of(case: Case, trace: Path, stepping: str, policy: Any, predictor: Any) -> dict[str, Any]:
    """The scenario in which a step takes a second. Writes ``trace``."""
    rows = ["arrival_s,input_tokens,output_tokens,request_id,priority,tenant,prefix_group,prefix_tokens"]
    for request in case.requests:
        group, tokens = request.segments[0] if request.segments else ("", "")
        rows.append(
            f"{request.arrival_step},{request.prompt_tokens},{request.output_tokens},{request.request_id},"
            f"{request.priority},{request.tenant},{group},{tokens}"
        )
    trace.write_text("\n".join(rows) + "\n")
    settings = case.settings
    workload: dict[str, Any] = {"trace": {"path": str(trace), "format": "generic"}}
    if case.requests[0].deadline_steps:
        workload["deadline_s"] = case.requests[0].deadline_steps
    return {
        "name": "case",
        "workload": workload,
        "engine": any_block(
            {
                "model": "llama-2-7b"
                if settings.sliding_window is None
                else windowed_model(trace, settings.sliding_window),
                "gpu": "a100-80gb-sxm",
                "block_size": settings.block_size,
                "num_gpu_blocks_override": settings.num_gpu_blocks,
                "max_num_seqs": settings.max_num_seqs,
                "max_num_batched_tokens": settings.max_num_batched_tokens,
                "max_model_len": settings.max_model_len,
                "enable_chunked_prefill": settings.enable_chunked_prefill,
                "long_prefill_token_threshold": settings.long_prefill_token_threshold,
                "long_prefill_token_threshold_adaptive": settings.long_prefill_token_threshold_adaptive,
                "scheduler_reserve_full_isl": settings.scheduler_reserve_full_isl,
                "watermark": settings.watermark,
                "enable_prefix_caching": settings.enable_prefix_caching,
                "async_scheduling": settings.async_scheduling,
                "stepping": stepping,
                "policy": policy,
                "predictor": predictor,
            }
        ),
        "latency": {"kind": "constant", "step_s": 1.0},
    }


def decisions_of(scenario: dict[str, Any]) -> list[TimedRecord]:
    """Every step of a run; up to its failure where preemption goes in a circle."""
    from sim.run import load, run

    stream = io.StringIO()
    try:
        run(load(scenario), decisions=stream)
    except SimulationError as error:
        if "is stuck" not in str(error):
            raise
    records = []
    for number, text in enumerate(stream.getvalue().splitlines()[:MAX_RECORDS]):
        line = json.loads(text)
        record = StepRecord(
            number,
            tuple(line["scheduled"].items()),
            tuple(line["preempted"]),
            tuple(line["finished"]),
            line["free_blocks"],
        )
        records.append(TimedRecord(line["time_s"], record))
    return records


def replay_at(case: Case, real: RealScheduler, instants: Sequence[float]) -> list[TimedRecord]:
    """What vLLM's scheduler decides when it is called at ``instants``."""
    pending = deque(case.requests)
    finished: tuple[str, ...] = ()
    records = []
    for number, instant in enumerate(instants):
        while pending and pending[0].arrival_step <= instant:
            real.add_request(pending.popleft())
        scheduled, preempted = real.schedule(int(instant))
        records.append(TimedRecord(instant, StepRecord(number, scheduled, preempted, finished, real.free_blocks)))
        finished = real.settle(was_empty=not scheduled)
    if len(records) < MAX_RECORDS and (pending or not real.is_idle):
        raise AssertionError(f"{case.name}: the simulator is done, vLLM is not")
    return records
