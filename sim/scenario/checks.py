"""What the schema cannot see: keys that contradict each other, keys without effect, things that do not exist.

``scenario_problems`` needs only the scenario. ``surroundings_problems`` looks at models, GPUs, policies
and trace files, and imports what knows about them only then.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sim.errors import InputError, Problem
from sim.scenario.document import Document, Path, located, ordered
from sim.scenario.messages import dotted

if TYPE_CHECKING:
    from sim.scenario.loader import LoadedScenario, Parts
    from sim.scenario.schema import NamedSpec


@dataclass(slots=True)
class Findings:
    """Where checks put what they find."""

    document: Document
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, path: Path, message: str) -> None:
        """Something that cannot be run, about the value or section at ``path``."""
        self.problems.append(self.document.problem(path, message))

    def note(self, message: str) -> None:
        """Something to know."""
        if message not in self.notes:
            self.notes.append(message)

    def unused(self, section: BaseModel | None, path: Path, key: str, because: str) -> None:
        """Note that ``key`` has no effect, if it was given and says something else than its default."""
        if section is None or key not in section.model_fields_set:
            return
        if getattr(section, key) != type(section).model_fields[key].get_default():
            self.note(f"`{dotted((*path, key))}` has no effect: {because}")


def scenario_problems(parts: Parts, document: Document, notes: list[str]) -> list[Problem]:
    """Problems that the scenario alone shows, section by section and between sections; adds to ``notes``."""
    from sim.scenario.engine_checks import check_cluster, check_engine_settings, check_latency
    from sim.scenario.workload_checks import check_lengths

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
    from sim.scenario.workload_checks import check_workload

    findings = Findings(document, notes=notes)
    _check_names(parts, findings)
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


def collect(findings: Findings, action: Callable[[], object], default: Path) -> None:
    """Run ``action``; problems without a place get that of the key they begin with, else of ``default``."""
    try:
        action()
    except InputError as error:
        findings.problems += [located(problem, findings.document, default) for problem in error.problems]


def _check_memory(parts: Parts, findings: Findings) -> None:
    from sim.latency.memory import plan_memory
    from sim.scenario.parallel_checks import check_parallel

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


def _check_names(parts: Parts, findings: Findings) -> None:
    """Policy, predictor and router: that they exist and take their parameters."""
    from policies.registry import build_policy, build_predictor, build_router

    if parts.engine is not None:
        policy = _build(
            findings,
            ("engine", "policy"),
            parts.engine.policy,
            lambda name, params: build_policy(
                name, params, build_predictor("exact", {}, true_output_tokens=lambda _: 1, seed=0)
            ),
        )
        _build(
            findings,
            ("engine", "predictor"),
            parts.engine.predictor,
            lambda name, params: build_predictor(name, params, true_output_tokens=lambda _: 1, seed=0),
        )
        if policy is not None and not policy.uses_predictor:
            findings.unused(parts.engine, ("engine",), "predictor", f"policy {policy.name} asks for no prediction")
    if parts.cluster is not None:
        _build(
            findings,
            ("cluster", "router"),
            parts.cluster.router,
            lambda name, params: build_router(name, params, seed=0),
        )


def _build(findings: Findings, path: Path, spec: str | NamedSpec, build: Callable[[str, dict[str, Any]], Any]) -> Any:
    """What ``build`` makes of a spec, or None with a problem at the spec, its name or the parameter at fault."""
    from policies.base import PolicyError

    name, params = (spec, {}) if isinstance(spec, str) else (spec.name, spec.params)
    try:
        return build(name, params)
    except PolicyError as error:
        message = str(error)
    place = path if isinstance(spec, str) else (*path, "name")
    at_fault = [word for word in re.findall(r"\w+", message) if word in params]
    findings.problem((*path, at_fault[0]) if at_fault else place, f"`{dotted(path)}`: {message}")
    return None
