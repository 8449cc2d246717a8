"""A loaded scenario from its checks to its results: what the command line and ``sim.simulate`` share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from sim.cluster.deployment import Deployment
    from sim.results.context import Price, RunContext
    from sim.results.record import RunRecord
    from sim.results.results import Results
    from sim.scenario.loader import LoadedScenario
    from sim.scenario.schema import ResolvedScenario, Scenario
    from sim.workload.table import RequestTable


def run(
    loaded: LoadedScenario,
    *,
    decisions: TextIO | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    workload: RequestTable | None = None,
    deployment: Deployment | None = None,
) -> Results:
    """Check ``loaded`` against models, traces and policies, simulate it, and return the results.

    ``workload`` takes the place of the scenario's own requests, ``deployment`` of what its engine is resolved to.

    Raises:
        InputError: the scenario cannot be run; every problem at once.
        SimulationError: a request or a KV block was lost.
    """
    from sim.checks.all_checks import check_all
    from sim.checks.traffic_checks import traffic_notes
    from sim.cluster.deployment import resolve_deployment
    from sim.cluster.simulate import simulate_cluster
    from sim.results.results import Results

    planned = check_all(loaded)
    started_s = time.perf_counter()
    scenario = loaded.scenario
    if deployment is None:
        deployment = resolve_deployment(scenario.engine, scenario.latency, loaded.base_dir, planned)
    record = simulate_cluster(loaded, decisions=decisions, progress=progress, workload=workload, deployment=deployment)
    record.notes += traffic_notes(scenario.engine, record.workload)
    record.notes += _notes_on_defaults(deployment, record)
    return Results(record, _context(loaded, deployment, time.perf_counter() - started_s))


def _notes_on_defaults(deployment: Deployment, record: RunRecord) -> list[str]:
    from sim.latency.engine_defaults import notes_on_changed_defaults

    steps, workload = record.steps, record.workload
    tokens = steps["num_prefill_tokens"] + steps["num_decodes"] + steps.get("num_draft_tokens", 0)
    memory, pool = deployment.planned.memory, deployment.settings.num_gpu_blocks
    share = 0.0
    if deployment.engine.num_gpu_blocks_override is None and deployment.engine.kv_cache_memory_bytes is None:
        unused = int(steps["free_blocks"].min(initial=pool)) * memory.block_size * memory.kv_bytes_per_token
        share = (memory.requested_bytes - unused) / memory.total_bytes
    return notes_on_changed_defaults(
        deployment.engine,
        longest=int((workload.input_tokens + workload.output_tokens).max(initial=0)),
        most_running=int(steps["num_running"].max(initial=0)),
        most_tokens=int(tokens.max(initial=0)),
        share_used=share,
    )


def load(
    scenario: str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario,
    overrides: Sequence[str] = (),
    seed: int | None = None,
) -> LoadedScenario:
    """A scenario in any of the forms that ``sim.simulate`` takes, with overrides put in.

    Raises InputError with every problem.
    """
    from sim.checks.loading import from_scenario, load_data, load_scenario
    from sim.scenario.loader import LoadedScenario
    from sim.scenario.schema import Scenario

    if isinstance(scenario, str | os.PathLike):
        return load_scenario(Path(scenario), overrides, seed)
    changed = bool(overrides) or seed is not None
    if isinstance(scenario, LoadedScenario):
        if not changed:
            return scenario
        return load_data(_given(scenario.scenario), overrides, seed, scenario.base_dir)
    if isinstance(scenario, Scenario):
        return load_data(_given(scenario), overrides, seed) if changed else from_scenario(scenario)
    return load_data(scenario, overrides, seed)


def _given(scenario: Scenario) -> dict[str, Any]:
    """The keys that were written, so that a default is not taken for a choice."""
    return scenario.model_dump(mode="json", exclude_unset=True)


def _context(loaded: LoadedScenario, deployment: Deployment, wall_s: float) -> RunContext:
    from functools import partial

    from sim.capacity import estimate_capacity
    from sim.results.context import RunContext
    from sim.results.load import Measure
    from sim.scenario.resolved import resolved_yaml

    scenario = loaded.scenario
    slo = scenario.slo.model_dump(exclude_none=True) if scenario.slo else None
    return RunContext(
        name=scenario.name,
        seed=scenario.seed,
        slo=slo or None,
        work=deployment.work,
        price=_price(deployment),
        max_num_seqs=scenario.engine.max_num_seqs,
        max_loras=scenario.engine.max_loras if scenario.engine.enable_lora else None,
        setup=_setup(scenario, deployment),
        capacity=partial(estimate_capacity, loaded, deployment),
        whole_runs=_whole_runs(deployment),
        measure=Measure(scenario.measure.warmup_s, scenario.measure.until),
        scenario_yaml=resolved_yaml(scenario),
        report=scenario.outputs.report,
        trace=scenario.outputs.trace,
        requests=scenario.outputs.requests,
        steps=scenario.outputs.steps,
        wall_s=wall_s,
    )


def _whole_runs(deployment: Deployment) -> dict[str, Any]:
    """What measured runs say of predictions for this engine; empty where no model or GPU sets step times."""
    from sim.latency.profile.library import profile_for_gpu
    from sim.latency.validated import whole_runs

    engine, described = deployment.engine, deployment.cost.describe()
    if described["kind"] == "constant":
        return {}
    model = deployment.planned.model
    gpu = engine.gpu if isinstance(engine.gpu, str) else engine.gpu.name
    found = whole_runs(
        model.name,
        is_moe=model.num_moe_layers > 0,
        gpu=gpu,
        dtype=str(described["dtype"]),
        tp=engine.tensor_parallel_size,
        version=engine.vllm_version,
    )
    if described["kind"] == "profile":
        return found
    if profile_for_gpu(gpu):  # its sets were predicted from the profile, and say nothing of the roofline
        return {"validated": False, "text": "not validated: the step times are an estimate", "sets": []}
    return {**found, "text": f"there is no measured profile of {gpu}; {found['text']}"}


def _price(deployment: Deployment) -> Price | None:
    """The GPU's price; None where the scenario describes a GPU without one."""
    from sim.results.context import Price

    gpu = deployment.engine.gpu
    if isinstance(gpu, str):
        return deployment.price
    return None if gpu.usd_per_hour is None else Price(gpu.usd_per_hour, f"the scenario's, for {gpu.name}")


def _setup(scenario: ResolvedScenario, deployment: Deployment) -> dict[str, str | int]:
    """What runs, in the scenario's own words; ``dtype: auto`` as it came out."""
    engine, cluster = scenario.engine, scenario.cluster

    def name(spec: Any) -> str:
        return spec if isinstance(spec, str) else str(spec.name)

    return {
        "model": engine.model,
        "dtype": deployment.planned.model.dtype if engine.dtype == "auto" else engine.dtype,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "gpu": engine.gpu if isinstance(engine.gpu, str) else engine.gpu.name,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "data_parallel_size": engine.data_parallel_size,
        "replicas": cluster.replicas,
        "policy": name(engine.policy),
        "router": name(cluster.router),
    }
