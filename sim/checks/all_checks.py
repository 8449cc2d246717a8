"""What the schema cannot see: keys that contradict each other, keys without effect, things that do not exist.

``scenario_problems`` needs only the scenario. ``surroundings_problems`` looks at models, GPUs, policies
and trace files, and imports what knows about them only then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.checks.engine_checks import check_cluster, check_engine_settings, check_latency
from sim.checks.findings import Findings, collect
from sim.checks.workload_checks import check_lengths, check_workload
from sim.errors import InputError, Problem
from sim.scenario.document import Document, ordered

if TYPE_CHECKING:
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
    from sim.checks.policy_checks import check_names

    findings = Findings(document, notes=notes)
    check_names(parts, findings)
    _check_memory(parts, findings)
    _check_profile(parts, findings)
    if parts.workload is not None:
        check_workload(parts.workload, parts.base_dir, findings)
    return findings.problems


def check_all(loaded: LoadedScenario) -> None:
    """Every check there is. Adds to ``loaded.notes``; raises one InputError with every problem, sorted by place."""
    problems = scenario_problems(loaded.parts, loaded.document, loaded.notes)
    problems += surroundings_problems(loaded.parts, loaded.document, loaded.notes)
    if problems:
        raise InputError(ordered(problems, loaded.document.file))


def check_engine(loaded: LoadedScenario) -> None:
    """Whether model and KV cache fit the GPU. Raises InputError with places and by how many GB they do not."""
    findings = Findings(loaded.document, notes=loaded.notes)
    _check_memory(loaded.parts, findings)
    if findings.problems:
        raise InputError(ordered(findings.problems, loaded.document.file))


def _check_memory(parts: Parts, findings: Findings) -> None:
    from sim.checks.parallel_checks import check_parallel
    from sim.latency.memory import plan_memory

    engine = parts.engine
    if engine is not None:
        collect(findings, lambda: plan_memory(engine, parts.base_dir), ("engine", "model"))
        check_parallel(engine, parts, findings)


def _check_profile(parts: Parts, findings: Findings) -> None:
    from sim.latency.gpus import GPUS
    from sim.latency.kind import latency_kind
    from sim.latency.profile.library import check_profile

    engine, latency = parts.engine, parts.latency
    if engine is None or latency is None or engine.gpu not in GPUS or latency_kind(engine.gpu, latency) != "profile":
        return
    gpu = GPUS[engine.gpu]
    collect(findings, lambda: check_profile(latency.profile, gpu, parts.base_dir), ("latency",))
