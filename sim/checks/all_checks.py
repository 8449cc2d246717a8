"""What the schema cannot see: keys that contradict each other, keys without effect, things that do not exist.

``scenario_problems`` needs only the scenario. ``surroundings_problems`` looks at models, GPUs, policies
and trace files, and imports what knows about them only then.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sim.checks.engine_checks import check_cluster, check_engine_settings, check_latency
from sim.checks.findings import Findings, collect
from sim.checks.workload_checks import check_lengths, check_workload
from sim.errors import InputError, Problem
from sim.scenario.document import Document, ordered
from sim.scenario.schema import EngineConfig

if TYPE_CHECKING:
    from sim.latency.memory import PlannedEngine
    from sim.scenario.loader import LoadedScenario, Parts


def scenario_problems(parts: Parts, document: Document, notes: list[str]) -> list[Problem]:
    """Problems that the scenario alone shows, section by section and between sections; adds to ``notes``."""
    findings = Findings(document, notes=notes)
    if parts.workload is not None:
        check_lengths(parts.workload, parts.engine, findings)
    if parts.cluster is not None:
        check_cluster(parts.cluster, parts.engine, findings)
    if parts.engine is not None:
        check_engine_settings(parts.engine, findings)
    if parts.latency is not None:
        check_latency(parts.latency, parts.engine, findings)
    return findings.problems


def surroundings_problems(parts: Parts, document: Document, notes: list[str]) -> list[Problem]:
    """Problems of what the scenario names: model and GPU, latency model, policies, presets, traces."""
    findings = Findings(document, notes=notes)
    _check_surroundings(parts, findings)
    return findings.problems


def check_all(loaded: LoadedScenario) -> PlannedEngine:
    """Run every check there is, add to ``loaded.notes``, and return what the engine's settings name.

    Raises InputError with every problem, sorted by place.
    """
    problems = scenario_problems(loaded.parts, loaded.document, loaded.notes)
    findings = Findings(loaded.document, problems, loaded.notes)
    planned = _check_surroundings(loaded.parts, findings)
    if planned is None or findings.problems:
        raise InputError(ordered(findings.problems, loaded.document.file))
    return planned


def _check_surroundings(parts: Parts, findings: Findings) -> PlannedEngine | None:
    """The engine as planned; None = ``findings`` says why there is none."""
    from sim.checks.graph_checks import check_compilation
    from sim.checks.image_checks import check_images
    from sim.checks.lora_checks import check_lora
    from sim.checks.policy_checks import check_names

    check_names(parts, findings)
    if parts.engine is not None:
        check_lora(parts.engine, parts, findings)
        check_images(parts.engine, parts, findings)
    planned = _check_memory(parts, findings)
    _check_profile(parts, findings)
    check_compilation(parts, planned, findings)
    if parts.latency is not None and parts.latency.fit is not None:
        from sim.checks.fit_checks import check_fit

        check_fit(parts.engine, parts.latency, parts.base_dir, findings)
    if parts.workload is not None:
        check_workload(parts.workload, parts.base_dir, findings)
    return planned


def _check_memory(parts: Parts, findings: Findings) -> PlannedEngine | None:
    from sim.checks.image_checks import check_image_model
    from sim.checks.lora_checks import check_lora_model
    from sim.checks.parallel_checks import check_parallel
    from sim.latency.memory import load_model_and_gpu, plan_engine
    from sim.latency.models import load_model

    engine = parts.engine
    if engine is None:
        return None
    where = ("engine", "model")
    planned = None
    if isinstance(engine, EngineConfig):
        planned = collect(findings, partial(plan_engine, engine, parts.base_dir), where)
    else:  # nothing could be filled in: its model, its GPU or its version is unknown
        collect(findings, partial(load_model_and_gpu, engine, parts.base_dir), where)
    try:
        # A model that is known is looked at also where it does not fit.
        model = load_model(engine.model, parts.base_dir) if planned is None else planned.model
    except InputError:
        return None
    check_parallel(engine, model, parts, findings)
    check_lora_model(engine, model, findings)
    check_image_model(engine, model, parts, findings)
    return planned


def _check_profile(parts: Parts, findings: Findings) -> None:
    from sim.latency.gpus import load_gpu
    from sim.latency.kind import latency_kind
    from sim.latency.profile.library import check_profile

    engine, latency = parts.engine, parts.latency
    if engine is None or latency is None or latency_kind(engine.gpu, latency) != "profile":
        return
    try:
        gpu = load_gpu(engine.gpu)
    except InputError:
        return  # told by the memory plan
    collect(findings, lambda: check_profile(latency.profile, gpu, parts.base_dir), ("latency",))
