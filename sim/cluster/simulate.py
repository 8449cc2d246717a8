"""A scenario run to its end: build the cluster, let SimPy run, check that nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

import numpy as np

from policies.base import Policy, PolicyError, Router
from policies.registry import build_policy, build_predictor, build_router
from sim.cluster.acts import Act, What, schedule_acts
from sim.cluster.gateway import Gateway, Progress
from sim.engine.clock import Clock
from sim.engine.decisions import DecisionLog
from sim.engine.fast.allowed import why_not
from sim.engine.fast.cohort import Member
from sim.engine.fast.jumps import FastReplica
from sim.engine.fast.sums import DecodeSums
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.replica import Replica
from sim.engine.reference.scheduler import Scheduler
from sim.engine.variants.drafts import Acceptance, SpeculativeScheduler
from sim.engine.variants.lockstep import DataParallelGroup, Rank
from sim.engine.variants.lockstep_fast import FastGroup, FastRank
from sim.errors import InputError, SimulationError
from sim.latency.base import StepCost
from sim.latency.build import build_step_cost
from sim.latency.kind import client_overhead_ns
from sim.latency.lockstep import LockstepCost
from sim.latency.memory import MemoryPlan, plan_memory
from sim.latency.pipelining import is_asynchronous, pipeline_depth
from sim.latency.profile.cost import ProfileCost
from sim.latency.speculative import SpeculativeCost
from sim.results.record import DRAFT_COLUMNS, SWAP_COLUMNS, IntColumn, Recorder, RunRecord, Status, requests_of
from sim.scenario.schema import EngineConfig, NamedSpec
from sim.seeds import stream_seed
from sim.workload.build import build_workload
from sim.workload.table import RequestTable

if TYPE_CHECKING:
    from sim.scenario.loader import LoadedScenario

_WITH_TERMS = (ProfileCost, SpeculativeCost, LockstepCost)
"""Step costs whose time has terms, where they stand on a profile."""


def simulate_cluster(
    loaded: LoadedScenario,
    *,
    decisions: TextIO | None = None,
    progress: Progress | None = None,
    workload: RequestTable | None = None,
    acts: Sequence[Act] = (),
) -> RunRecord:
    """Run a checked scenario. ``decisions`` gets one JSON line per scheduler step; ``workload`` takes the place
    of the scenario's; ``acts`` happen to the replicas at their instants.

    Raises InputError for inputs that only show when they are used (a malformed trace line), and
    SimulationError where a request or a KV block was lost.
    """
    scenario, engine = loaded.scenario, loaded.scenario.engine
    if workload is None:
        workload = build_workload(scenario.workload, scenario.seed, loaded.base_dir, engine.max_model_len)
    cost = build_step_cost(engine, scenario.latency, loaded.base_dir)
    memory = plan_memory(engine, loaded.base_dir)
    settings = scheduler_settings(engine, memory)
    drafts, swaps = engine.speculative is not None, settings.num_swap_blocks > 0
    of_shape = (DRAFT_COLUMNS if drafts else ()) + (SWAP_COLUMNS if swaps else ())
    recorder = Recorder(shape_columns=of_shape, is_lockstep=isinstance(cost, LockstepCost))
    env = Clock()
    router = _build_router(scenario.cluster.router, scenario.seed)

    started_s = time.process_time()
    client_ns = client_overhead_ns(engine.gpu, scenario.latency)
    gateway = Gateway(env, workload, router, settings.max_model_len, recorder, progress, client_ns)
    # Ranks of a group form their batches of one instant in an order of their own.
    in_order = engine.stepping == "reference" and not isinstance(cost, LockstepCost)
    log = None if decisions is None else DecisionLog(decisions, in_order=in_order)
    num_ranks = scenario.cluster.replicas * engine.data_parallel_size
    sums = None if takes_every_step(engine, workload, settings, scenario.seed) else DecodeSums(cost, recorder)
    if sums is not None:
        gateway.request_type = Member
    gateway.replicas = [_build_replica(loaded, index, gateway, settings, cost, log, sums) for index in range(num_ranks)]
    if isinstance(cost, LockstepCost):
        _group(gateway, cost, engine)
    gateway.is_acted_on = bool(acts)
    for replica in gateway.replicas:
        if sums is None or gateway.acts_on_ends:
            replica.watch(gateway.on_end)
    gateway.cancelled_rows = {act.target for act in acts if act.what is What.CANCEL}
    schedule_acts(env, gateway, acts)
    try:
        gateway.deal_out()
        env.run()
        for replica in gateway.replicas:
            replica.finish()
        if sums is not None:
            sums.record_gaps()
    finally:
        if log is not None:
            log.close()  # also the decisions that led to a failure
    cpu_s = time.process_time() - started_s

    _check_nothing_lost(gateway)
    return _record(loaded, gateway, memory, cost, cpu_s)


def scheduler_settings(engine: EngineConfig, memory: MemoryPlan) -> SchedulerSettings:
    """What of an engine's configuration decides what runs."""
    max_model_len = engine.max_model_len
    if not engine.enable_chunked_prefill:
        # Nothing longer than one step's budget could ever be scheduled; vLLM refuses to start.
        max_model_len = min(max_model_len, engine.max_num_batched_tokens)
    gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size
    block_bytes = memory.kv_bytes_per_token * engine.block_size * gpus
    speculative = engine.speculative
    drafts = 0 if speculative is None else speculative.num_speculative_tokens
    has_draft_model = speculative is not None and speculative.method == "draft_model"
    swap_bytes = int(engine.swap_space_gib * 2**30) * gpus if engine.preemption == "swap" else 0
    return SchedulerSettings(
        num_gpu_blocks=memory.num_gpu_blocks,
        block_size=engine.block_size,
        max_model_len=max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        enable_chunked_prefill=engine.enable_chunked_prefill,
        max_prefill_tokens_per_step=engine.max_prefill_tokens_per_step,
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=engine.long_prefill_token_threshold_adaptive,
        scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
        watermark=engine.watermark,
        enable_prefix_caching=engine.enable_prefix_caching,
        async_scheduling=is_asynchronous(engine),
        contiguous_kv=engine.kv == "contiguous",
        static_batching=engine.batching == "static",
        num_swap_blocks=swap_bytes // block_bytes,
        sliding_window=memory.sliding_window,
        pipeline_parallel_size=engine.pipeline_parallel_size,
        num_speculative_tokens=drafts,
        num_lookahead_tokens=drafts if has_draft_model else 0,
        draft_slots=int(has_draft_model),
        block_bytes=block_bytes,
    )


def takes_every_step(engine: EngineConfig, workload: RequestTable, settings: SchedulerSettings, seed: int) -> bool:
    """Whether the reference takes each step: on demand, or because the fast engine is not known to do the same."""
    if engine.stepping == "reference" or engine.speculative is not None or outgrows(workload, settings):
        return True
    return why_not(settings, _build_policy(engine, workload, seed)) is not None


def outgrows(workload: RequestTable, settings: SchedulerSettings) -> bool:
    """Whether some request grows beyond the sliding window. While none does, every decision is that of full
    attention: nothing is behind the window, a prefix whose last window is cached is cached whole, and no request
    needs as many blocks as admission is bounded by."""
    if settings.sliding_window is None:
        return False
    outputs = np.minimum(workload.output_tokens, workload.max_tokens)
    tokens = np.minimum(workload.input_tokens + outputs, settings.max_model_len)
    return bool((tokens > settings.sliding_window).any())


def _named(spec: str | NamedSpec) -> tuple[str, dict[str, object]]:
    return (spec, {}) if isinstance(spec, str) else (spec.name, spec.params)


def _build_router(spec: str | NamedSpec, seed: int) -> Router:
    name, params = _named(spec)
    return build_router(name, params, seed=seed)


def _build_replica(
    loaded: LoadedScenario,
    index: int,
    gateway: Gateway,
    settings: SchedulerSettings,
    cost: StepCost,
    decisions: DecisionLog | None,
    sums: DecodeSums | None,
) -> Replica | FastReplica:
    engine, recorder = loaded.scenario.engine, gateway.recorder
    wait_ns = round(engine.static_batch_wait_s * 1e9)
    depth = pipeline_depth(engine)
    common = (cost, depth, recorder, wait_ns, decisions)

    def new_policy() -> Policy:
        return _build_policy(engine, gateway.workload, loaded.scenario.seed)

    def new_scheduler() -> Scheduler:
        if engine.speculative is None:
            return Scheduler(settings, new_policy(), recorder)
        acceptance = Acceptance(engine.speculative.rates, loaded.scenario.seed)
        return SpeculativeScheduler(settings, new_policy(), acceptance, recorder)

    try:
        if sums is None:
            if isinstance(cost, LockstepCost):
                return Rank(gateway.env, index, engine.model, new_scheduler, cost, depth, recorder, decisions)
            return Replica(gateway.env, index, engine.model, new_scheduler, *common)
        unbounded = replace(settings, sliding_window=None)
        of_cost = (cost, sums, recorder, gateway.on_ends, decisions)
        kind = FastRank if isinstance(cost, LockstepCost) else FastReplica
        return kind(gateway.env, index, engine.model, unbounded, new_policy, *of_cost)
    except PolicyError as error:
        # The policy parts with the engine's limits, which it only learns now.
        raise InputError(loaded.problem(("engine", "policy"), str(error))) from None


def _group(gateway: Gateway, cost: LockstepCost, engine: EngineConfig) -> None:
    """Ranks that follow each other in number step together."""
    size, depth = engine.data_parallel_size, pipeline_depth(engine)
    for first in range(0, len(gateway.replicas), size):
        group = gateway.replicas[first : first + size]
        if ranks := [replica for replica in group if isinstance(replica, FastRank)]:
            FastGroup(gateway.env, ranks, cost, depth, gateway.recorder)
        else:
            DataParallelGroup(gateway.env, [rank for rank in group if isinstance(rank, Rank)], cost, depth)


def _build_policy(engine: EngineConfig, workload: RequestTable, seed: int) -> Policy:
    """A policy of its own for each replica, as in live engines."""
    name, params = _named(engine.predictor)
    rows = {request_id: row for row, request_id in enumerate(workload.request_ids or ())}

    def true_output_tokens(request_id: str) -> int:
        return int(workload.output_tokens[rows[request_id] if rows else int(request_id)])

    predictor = build_predictor(
        name,
        params,
        true_output_tokens=true_output_tokens,
        seed=stream_seed(seed, "predictor"),
        class_means=_class_means(workload) if name == "class_mean" else None,
    )
    name, params = _named(engine.policy)
    return build_policy(name, params, predictor)


def _class_means(workload: RequestTable) -> dict[str, float]:
    """Mean output of each class, as an operator would know it from last week's logs."""
    means = {}
    for index, info in enumerate(workload.classes):
        outputs = workload.output_tokens[workload.class_index == index]
        if len(outputs):
            means[info.name] = float(outputs.mean())
    return means


def _check_nothing_lost(gateway: Gateway) -> None:
    for replica in gateway.replicas:
        replica.check_empty()
    missing = len(gateway.workload) - gateway.num_ended - gateway.num_unsent
    if missing and gateway.workload.release_until_ns is None:
        raise SimulationError(f"{missing} of {len(gateway.workload)} requests never arrived")


def _seen_by_clients(requests: dict[str, IntColumn], overhead_ns: int) -> dict[str, IntColumn]:
    """Tokens reach a client ``overhead_ns`` after an engine that got the request without delay would have made them.

    Shifting the way in as well would move every instant of the run alike, so both ways are put behind the tokens.
    """
    if not overhead_ns:
        return requests
    shifted = {
        name: np.where(requests[name] >= 0, requests[name] + overhead_ns, requests[name])
        for name in ("first_token_ns", "finish_ns", "end_ns")
    }
    return {**requests, **shifted}


def _reasons_of_cancelled(requests: dict[str, IntColumn], workload: RequestTable) -> dict[int, str]:
    """Why requests were cancelled, by row: patience that ran out, unless they were cancelled from outside."""
    found = {}
    cancelled = np.flatnonzero(requests["status"] == Status.CANCELLED)
    names = ("row", "class_index", "arrival_ns", "end_ns")
    for row, class_index, arrival_ns, end_ns in zip(*(requests[n][cancelled].tolist() for n in names), strict=True):
        patience_ns = workload.classes[class_index].patience_ns
        ran_out = patience_ns is not None and end_ns - arrival_ns >= patience_ns
        found[row] = f"its client left after {(end_ns - arrival_ns) / 1e9:g} s" if ran_out else "cancelled"
    return found


def _notes(gateway: Gateway) -> list[str]:
    """What the reader should know of requests that never were."""
    if not gateway.num_unsent:
        return []
    return [f"{gateway.num_unsent:,} turns of conversations were not sent, because their clients had left before them"]


def _record(loaded: LoadedScenario, gateway: Gateway, memory: MemoryPlan, cost: StepCost, cpu_s: float) -> RunRecord:
    engine, recorder = loaded.scenario.engine, gateway.recorder
    itl_ns, itl_weight = recorder.itl_columns()
    replicas, workload = gateway.replicas, gateway.workload
    attempts = recorder.attempt_columns(workload, gateway.max_model_len)
    requests = _seen_by_clients(requests_of(attempts, workload), gateway.client_overhead_ns)
    return RunRecord(
        workload=workload,
        requests=requests,
        steps=recorder.step_columns(),
        itl_ns=itl_ns,
        itl_weight=itl_weight,
        reasons=_reasons_of_cancelled(requests, workload) | recorder.reasons,
        num_gpu_blocks=[replica.num_gpu_blocks for replica in replicas],
        block_size=engine.block_size,
        replica_models=[replica.model for replica in replicas],
        gpus_per_replica=[engine.tensor_parallel_size * engine.pipeline_parallel_size for _ in replicas],
        latency={**cost.describe(), "client_overhead_ms": gateway.client_overhead_ns / 1e6},
        drafts=recorder.drafts,
        data_parallel_size=engine.data_parallel_size,
        terms=cost.terms if isinstance(cost, _WITH_TERMS) and cost.kind == "profile" else None,
        notes=[*loaded.notes, *memory.notes, *workload.notes, *_notes(gateway)],
        cpu_s=cpu_s,
    )
