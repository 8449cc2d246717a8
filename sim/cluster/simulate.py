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
from sim.cluster.deployment import Deployment, resolve_deployment, served_image
from sim.cluster.gateway import Gateway, Progress
from sim.cluster.speeds import Speeds, start_spells
from sim.engine.clock import Clock
from sim.engine.decisions import DecisionLog
from sim.engine.fast.allowed import NotFollowed, surprise, why_not
from sim.engine.fast.cohort import Member
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.fast.sums import DecodeSums
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.replica import Replica
from sim.engine.reference.scheduler import Scheduler
from sim.engine.variants.drafts import Acceptance, SpeculativeScheduler
from sim.engine.variants.drafts_fast import DraftMember, FastDrafts, why_not_drafts
from sim.engine.variants.lockstep import DataParallelGroup, Rank
from sim.engine.variants.lockstep_fast import FastGroup, FastRank
from sim.engine.variants.offloading_replica import OffloadingReplica
from sim.engine.variants.offloading_scheduler import OffloadingScheduler
from sim.engine.variants.window_fast import WindowMember, WindowReplica
from sim.errors import InputError, SimulationError
from sim.latency.lockstep_cost import GroupCost
from sim.results.record import IntColumn, OffloadCounts, Recorder, RunRecord, Status, requests_of
from sim.scenario.schema import EngineConfig, NamedSpec
from sim.seeds import stream_seed
from sim.workload.build_table import build_workload
from sim.workload.table import NO_GROUP, RequestTable

if TYPE_CHECKING:
    from sim.scenario.loader import LoadedScenario


def simulate_cluster(
    loaded: LoadedScenario,
    *,
    decisions: TextIO | None = None,
    progress: Progress | None = None,
    workload: RequestTable | None = None,
    deployment: Deployment | None = None,
    acts: Sequence[Act] = (),
) -> RunRecord:
    """Run a checked scenario. ``decisions`` gets one JSON line per scheduler step; ``workload`` takes the place
    of the scenario's, ``deployment`` of what its engine is resolved to; ``acts`` happen to the replicas.

    Raises InputError for inputs that only show when they are used (a malformed trace line), and
    SimulationError where a request or a KV block was lost.
    """
    engine = loaded.scenario.engine
    if workload is None:
        workload = build_workload(
            loaded.scenario.workload,
            loaded.scenario.seed,
            loaded.base_dir,
            engine.max_model_len,
            isolates_tenants=engine.cache_isolation == "tenant",
            serves_loras=engine.enable_lora,
            image=served_image(engine, loaded.base_dir),
        )
    if deployment is None:
        deployment = resolve_deployment(engine, loaded.scenario.latency, loaded.base_dir)
    parts = (loaded, progress, workload, deployment, acts)
    every_step, notes = takes_every_step(deployment, workload, loaded.scenario.seed)
    if every_step:
        record = _simulate(*parts, decisions, every_step=True)
        record.notes += notes
        return record
    started_s = time.process_time()
    try:
        return _simulate(*parts, decisions, every_step=False)
    except NotFollowed:
        record = _step_by_step(parts, decisions)
    return replace(record, cpu_s=time.process_time() - started_s, num_restarts=1)


Parts = tuple["LoadedScenario", Progress | None, RequestTable, Deployment, Sequence[Act]]


def _step_by_step(parts: Parts, decisions: TextIO | None) -> RunRecord:
    """Simulate once more: the fast engine met a state that it cannot follow."""
    return _simulate(*parts, decisions, every_step=True)


def _simulate(
    loaded: LoadedScenario,
    progress: Progress | None,
    workload: RequestTable,
    deployment: Deployment,
    acts: Sequence[Act],
    decisions: TextIO | None,
    *,
    every_step: bool,
) -> RunRecord:
    """Simulate from the first arrival to the last end; ``every_step``: the reference takes each."""
    scenario, engine = loaded.scenario, loaded.scenario.engine
    settings, group_cost = deployment.settings, deployment.group_cost
    recorder = Recorder(
        shape_columns=deployment.shape_columns,
        is_lockstep=group_cost is not None,
        num_classes=len(workload.classes),
    )
    if (link := deployment.host_link) is not None:
        rates = (link.load_bytes_per_s / 1e9, link.store_bytes_per_s / 1e9)
        recorder.offloading = OffloadCounts(link.num_host_blocks, *rates)
    env = Clock()
    router = _build_router(scenario.cluster.router, scenario.seed)

    started_s = time.process_time()
    of_clients = (deployment.client_constant_ns, _late_ns(deployment, scenario.seed, workload))
    gateway = Gateway(env, workload, router, settings.max_model_len, recorder, progress, *of_clients)
    # Ranks of a group form their batches of one instant in an order of their own.
    in_order = engine.stepping == "reference" and group_cost is None
    log = None if decisions is None else DecisionLog(decisions, in_order=in_order)
    num_ranks = scenario.cluster.replicas * engine.data_parallel_size
    sums = None if every_step else DecodeSums(deployment.cost, recorder)
    if sums is not None:
        gateway.request_type = _request_type(engine, workload, settings)
    gateway.replicas = [_build_replica(loaded, index, gateway, deployment, log, sums) for index in range(num_ranks)]
    if group_cost is not None:
        _group(gateway, group_cost, deployment)
    step_noise = deployment.noise.step
    gateway.is_acted_on = bool(acts) or step_noise is not None
    for replica in gateway.replicas:
        if sums is None or gateway.acts_on_ends:
            replica.watch(gateway.on_end)
    gateway.cancelled_rows = {act.target for act in acts if act.what is What.CANCEL}
    speeds = Speeds(gateway)
    schedule_acts(env, gateway, speeds, acts)
    if step_noise is not None:
        size = 1 if group_cost is None else engine.data_parallel_size
        start_spells(env, gateway, speeds, step_noise, scenario.seed, size)
    try:
        gateway.deal_out()
        gateway.count_requests()
        env.run()
        for replica in gateway.replicas:
            replica.finish()
        if sums is not None:
            sums.record_gaps()
    except NotFollowed:
        if log is not None:
            log.forget()
        raise
    finally:
        if log is not None:
            log.close()  # also the decisions that led to a failure
    cpu_s = time.process_time() - started_s

    _check_nothing_lost(gateway)
    return _record(loaded, gateway, deployment, cpu_s)


def takes_every_step(deployment: Deployment, workload: RequestTable, seed: int) -> tuple[bool, list[str]]:
    """Whether the reference takes each step: on demand, or because the fast engine is not known to do the same; and
    what the reader should know of it."""
    engine, settings = deployment.engine, deployment.settings
    if engine.stepping == "reference":
        return True, []
    policy = _build_policy(engine, workload, seed)
    keys = [name for name, field in type(engine).model_fields.items() if getattr(engine, name) != field.default]
    reason = surprise(settings, policy, keys, Scheduler)
    if reason is not None:
        return True, [f"steps are taken one by one: {reason}"]
    is_behind = outgrows(workload, settings)
    if settings.enable_prefix_caching and is_behind and has_shared_content(workload):
        return True, []  # a prefix behind a window may be found by its end alone
    if is_behind and deployment.group_cost is not None:
        return True, []  # ranks keep all of their KV
    if engine.speculative is None:
        return why_not(settings, policy) is not None, []
    if settings.drops_last_block and not has_shared_content(workload):
        # Without content that two requests have, only a preempted one finds a prefix, and there the fast engine ends.
        settings = replace(settings, drops_last_block=False)
    return is_behind or deployment.group_cost is not None or why_not_drafts(settings, policy) is not None, []


def has_shared_content(workload: RequestTable) -> bool:
    """Whether some request may have tokens that another one has too."""
    return len(workload.segment_content_id) > 0 or bool((workload.session != NO_GROUP).any())


def _request_type(engine: EngineConfig, workload: RequestTable, settings: SchedulerSettings) -> type[Member]:
    """What a request is to the fast engine."""
    if engine.speculative is not None:
        return DraftMember
    return WindowMember if outgrows(workload, settings) else Member


def outgrows(workload: RequestTable, settings: SchedulerSettings) -> bool:
    """Whether a sliding window makes a difference, or layers of several kinds: some request grows beyond it, or blocks
    are cached, of which vLLM keeps only the ends of prompts. Else every decision is that of full attention: nothing is
    behind the window, and no request needs as many blocks as admission is bounded by."""
    if settings.kv_groups:
        return True
    if settings.sliding_window is None:
        return False
    if settings.enable_prefix_caching:
        return True
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
    deployment: Deployment,
    decisions: DecisionLog | None,
    sums: DecodeSums | None,
) -> Replica | FastReplica:
    engine, recorder, settings = deployment.engine, gateway.recorder, deployment.settings
    wait_ns = round(engine.static_batch_wait_s * 1e9) if settings.static_batching else 0
    cost, depth = deployment.cost, deployment.depth
    common = (cost, depth, recorder, wait_ns, decisions)

    def new_policy() -> Policy:
        return _build_policy(engine, gateway.workload, loaded.scenario.seed)

    if deployment.host_link is not None:

        def new_offloading() -> OffloadingScheduler:
            return OffloadingScheduler(settings, new_policy(), recorder)

        return OffloadingReplica(
            *(gateway.env, index, engine.model, new_offloading, cost, depth, recorder),
            *(deployment.host_link, decisions),
        )

    def new_scheduler() -> Scheduler:
        if engine.speculative is None:
            return Scheduler(settings, new_policy(), recorder)
        acceptance = Acceptance(engine.speculative.rates, loaded.scenario.seed)
        return SpeculativeScheduler(settings, new_policy(), acceptance, recorder)

    try:
        group_cost = deployment.group_cost
        if sums is None:
            if group_cost is not None:
                return Rank(gateway.env, index, engine.model, new_scheduler, group_cost, depth, recorder, decisions)
            return Replica(gateway.env, index, engine.model, new_scheduler, *common)
        of_cost = (cost, sums, recorder, gateway.on_ends, decisions)
        if gateway.request_type is WindowMember:
            return WindowReplica(gateway.env, index, engine.model, settings, new_policy, *of_cost)
        unbounded = replace(settings, sliding_window=None)
        if (speculative := engine.speculative) is not None:
            common_to_fast = (gateway.env, index, engine.model, unbounded, new_policy, *of_cost)
            return FastDrafts(speculative.rates, loaded.scenario.seed, *common_to_fast)
        kind = FastReplica if group_cost is None else FastRank
        return kind(gateway.env, index, engine.model, unbounded, new_policy, *of_cost)
    except PolicyError as error:
        # The policy parts with the engine's limits, which it only learns now.
        raise InputError(loaded.problem(("engine", "policy"), str(error))) from None


def _group(gateway: Gateway, cost: GroupCost, deployment: Deployment) -> None:
    """Make ranks that follow each other in number step together."""
    size = deployment.engine.data_parallel_size
    for first in range(0, len(gateway.replicas), size):
        group = gateway.replicas[first : first + size]
        if fast := [replica for replica in group if isinstance(replica, FastRank)]:
            FastGroup(gateway.env, fast, cost, deployment.depth, gateway.recorder)
        else:
            ranks = [replica for replica in group if isinstance(replica, Rank)]
            DataParallelGroup(gateway.env, ranks, cost, deployment.depth)


def _build_policy(engine: EngineConfig, workload: RequestTable, seed: int) -> Policy:
    """Build the policy of one replica: each has its own, as in live engines."""
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
    """Return the mean output of each class, as an operator would know it from last week's logs."""
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


def _late_ns(deployment: Deployment, seed: int, workload: RequestTable) -> IntColumn | None:
    """What each request takes between client and engine beside what all of them take: for its prompt's tokens, and by
    chance, outputs of one prompt alike. None where there is neither."""
    late, token_ns = deployment.noise.client, deployment.client_token_ns
    if (late is None and not token_ns) or not len(workload):
        return None
    of_tokens = workload.input_tokens.astype(np.int64) * token_ns
    if late is None:
        return of_tokens
    prompts = workload.prompt_numbers()
    return of_tokens + late.draw(seed, int(prompts.max()) + 1)[prompts]


def _seen_by_clients(requests: dict[str, IntColumn], gateway: Gateway) -> dict[str, IntColumn]:
    """Tokens reach a client so much after an engine that got the request without delay would have made them.

    Shifting the way in as well would move every instant of the run alike, so both ways are put behind the tokens.
    """
    if not gateway.client_overhead_ns and gateway.late_ns is None:
        return requests
    late_ns = 0 if gateway.late_ns is None else gateway.late_ns[requests["row"]]
    behind_ns = gateway.client_overhead_ns + late_ns
    shifted = {
        name: np.where(requests[name] >= 0, requests[name] + behind_ns, requests[name])
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
    """Say what the reader should know of requests that were sent late or never."""
    notes = [] if gateway.senders is None else gateway.senders.notes()
    if gateway.num_unsent:
        notes.append(
            f"{gateway.num_unsent:,} turns of conversations were not sent, because their clients had left before them"
        )
    return notes


def _record(loaded: LoadedScenario, gateway: Gateway, deployment: Deployment, cpu_s: float) -> RunRecord:
    engine, recorder = deployment.engine, gateway.recorder
    itl_ns, itl_weight = recorder.itl_columns()
    replicas, workload = gateway.replicas, gateway.workload
    attempts = recorder.attempt_columns()
    interruptions = recorder.interruption_columns(attempts)
    groups = deployment.settings.kv_groups
    group_sizes = tuple(group.block_size for group in groups if group.kind != "state")
    requests = _seen_by_clients(requests_of(attempts, workload, interruptions), gateway)
    return RunRecord(
        workload=workload,
        requests=requests,
        steps=recorder.step_columns(),
        itl_ns=itl_ns,
        itl_weight=itl_weight,
        itl_of_classes=[(itl_ns, itl_weight)] if len(workload.classes) == 1 else recorder.gaps.of_classes(),
        reasons=_reasons_of_cancelled(requests, workload) | recorder.reasons,
        num_gpu_blocks=[replica.num_gpu_blocks for replica in replicas],
        block_size=min(group_sizes, default=engine.block_size),
        tokens_per_block=deployment.planned.memory.tokens_per_block,
        group_block_sizes=group_sizes or (engine.block_size,),
        replica_models=[replica.model for replica in replicas],
        gpus_per_replica=[deployment.gpus for _ in replicas],
        latency={
            **deployment.cost.describe(),
            "client_overhead_ms": deployment.client_overhead_ns / 1e6,
            "client_token_us": deployment.client_token_ns / 1e3,
            "noise": deployment.noise.describe(),
        },
        drafts=recorder.drafts,
        offloading=recorder.offloading,
        interruptions=interruptions,
        data_parallel_size=engine.data_parallel_size,
        reserved_tokens_per_request=engine.max_model_len if engine.kv == "contiguous" else 0,
        terms=deployment.terms,
        notes=[*loaded.notes, *deployment.planned.memory.notes, *workload.notes, *_notes(gateway)],
        cpu_s=cpu_s,
    )
