"""A scenario from a file, plain data or Python: read, and checked as far as the scenario alone shows.

What needs model, trace and policy files to be looked at is left to ``all_checks.check_all``, unless there are
problems already: then those are looked for too, so that all are told at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.checks.all_checks import scenario_problems, surroundings_problems
from sim.errors import InputError
from sim.scenario.document import Document, ordered
from sim.scenario.loader import Draft, LoadedScenario, Parts, read_data, read_file
from sim.scenario.schema import EngineConfig, ResolvedScenario, Scenario
from sim.scenario.vllm_version import version_problem


def load_scenario(path: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> LoadedScenario:
    """Read, override and check the scenario file at ``path``.

    ``overrides`` are ``dotted.key=value`` texts (``--set``), put in before anything is checked;
    ``seed`` takes the place of the scenario's.

    Raises InputError with every problem, sorted by place.
    """
    return _checked(read_file(Path(path), str(path), overrides, seed))


def load_data(
    data: Mapping[str, Any], overrides: Sequence[str] = (), seed: int | None = None, base_dir: Path | None = None
) -> LoadedScenario:
    """Check a scenario given as plain data (what YAML would give) as a file is; its problems have no positions.

    ``base_dir`` is where relative paths start, the current directory by default. Raises InputError.
    """
    return _checked(read_data(data, base_dir or Path("."), overrides, seed))


def from_scenario(scenario: Scenario, base_dir: Path | None = None) -> LoadedScenario:
    """Check a scenario made in Python as a file is; its problems have no positions.

    Raises InputError with every problem that the scenario alone shows.
    """
    parts = Parts.of(scenario, base_dir or Path("."))
    return _checked(Draft(scenario, parts, Document(), []))


def _checked(draft: Draft) -> LoadedScenario:
    """The scenario of ``draft``. Raises InputError with every problem, those of its surroundings included."""
    notes: list[str] = []
    parts = _filled_in(draft.parts, notes)
    problems = draft.problems + scenario_problems(parts, draft.document, notes)
    if problems or draft.scenario is None or not isinstance(parts.engine, EngineConfig):
        problems += surroundings_problems(parts, draft.document, [])
        raise InputError(ordered(problems, draft.document.file))
    return draft.accepted(_with_engine(draft.scenario, parts.engine), notes)


def _filled_in(parts: Parts, notes: list[str]) -> Parts:
    """The parts with an engine in which nothing is left open, as far as model and GPU are known; adds to ``notes``.

    Where they are not, the engine stays as written: the checks of what it names say why.
    """
    from sim.latency.engine_defaults import resolve_engine

    if parts.engine is None or version_problem(parts.engine.vllm_version):
        return parts
    try:
        engine, found = resolve_engine(parts.engine, parts.base_dir)
    except InputError:
        return parts
    notes += found
    return replace(parts, engine=engine)


def _with_engine(scenario: Scenario, engine: EngineConfig) -> ResolvedScenario:
    if isinstance(scenario, ResolvedScenario) and scenario.engine is engine:
        return scenario
    sections = {key: getattr(scenario, key) for key in type(scenario).model_fields} | {"engine": engine}
    return ResolvedScenario.model_construct(_fields_set=set(scenario.model_fields_set), **sections)
