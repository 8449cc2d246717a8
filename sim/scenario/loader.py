"""Reading a scenario file: every problem that the schema sees, each with its place (``sim.checks`` sees the rest)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sim.errors import InputError, Problem
from sim.scenario import overrides as command_line
from sim.scenario.document import Document, Path, Place, parse
from sim.scenario.messages import nearest_of, translate
from sim.scenario.schema import ClusterConfig, EngineSection, LatencyConfig, ResolvedScenario, Scenario, WorkloadConfig

MAX_BYTES = 64 * 2**20
"""A larger file is not a scenario but, most likely, a trace."""

Section = TypeVar("Section", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class LoadedScenario:
    """A scenario and where it came from."""

    scenario: ResolvedScenario
    path: FilePath | None = None
    base_dir: FilePath = FilePath(".")
    """Relative paths in the scenario start here."""
    notes: list[str] = field(default_factory=list)
    """What the user should know although nothing is wrong: keys without effect, settings that changed others."""
    document: Document = field(default_factory=Document, repr=False, compare=False)
    """Where each key and value was written."""

    @property
    def parts(self) -> Parts:
        """The sections, for the checks."""
        return Parts.of(self.scenario, self.base_dir)

    def position(self, path: Path) -> tuple[int | None, int | None]:
        """Line and column (from 1) of the value at ``path``, or of the nearest section around it.

        (None, None) for a value that ``--set`` gave and for a scenario that was not read from a file.
        """
        place = self.document.value_place(path)
        return place.line, place.column

    def problem(self, path: Path, message: str) -> Problem:
        """``message`` at the place where the value at ``path`` was written."""
        return self.document.problem(path, message)


@dataclass(frozen=True, slots=True)
class Parts:
    """The sections of a scenario that are valid by themselves; None = not given or with problems of their own."""

    workload: WorkloadConfig | None = None
    cluster: ClusterConfig | None = None
    engine: EngineSection | None = None
    """An ``EngineConfig`` once it is filled in."""
    latency: LatencyConfig | None = None
    base_dir: FilePath = FilePath(".")

    @classmethod
    def of(cls, scenario: Scenario, base_dir: FilePath) -> Parts:
        """The sections of a scenario that is valid."""
        return cls(scenario.workload, scenario.cluster, scenario.engine, scenario.latency, base_dir)


@dataclass(frozen=True, slots=True)
class Draft:
    """A scenario as it was written: as far as the schema accepts it, with the problems that reading it showed."""

    scenario: Scenario | None
    """None = the schema refuses a part of it."""
    parts: Parts
    document: Document
    problems: list[Problem]
    path: FilePath | None = None

    def accepted(self, scenario: ResolvedScenario, notes: list[str]) -> LoadedScenario:
        """The scenario, once nothing is wrong with it."""
        return LoadedScenario(scenario, self.path, self.parts.base_dir, notes, self.document)


def read_file(path: FilePath, given: str, overrides: Sequence[str] = (), seed: int | None = None) -> Draft:
    """Read and override the scenario file at ``path``, called ``given`` in messages.

    Raises InputError where the file cannot be read at all.
    """
    return _draft(parse(_read(path, given), given), overrides, seed, path, path.parent)


def read_data(data: Mapping[str, Any], base_dir: FilePath, overrides: Sequence[str], seed: int | None) -> Draft:
    """Override a scenario given as plain data, which is left as it is."""
    return _draft(Document(data=copy.deepcopy(dict(data))), overrides, seed, None, base_dir)


def _draft(
    document: Document, overrides: Sequence[str], seed: int | None, path: FilePath | None, base_dir: FilePath
) -> Draft:
    problems = [*document.problems]
    for override in overrides:
        problems += command_line.apply(document, override)
    if seed is not None and isinstance(document.data, dict):
        document.data["seed"] = seed
        document.mark(("seed",), Place(f"--seed {seed}"))
    scenario, parts, found = _validate(document, base_dir)
    return Draft(scenario, parts, document, problems + found, path)


def _read(path: FilePath, given: str) -> str:
    """The text of the file. Raises InputError with one clear line if there is none."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise InputError(Problem("too large for a scenario; a trace goes under `workload.trace.path`", given))
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(Problem(f"no such scenario file{_nearby(path)}", given)) from None
    except IsADirectoryError:
        raise InputError(Problem("a directory; give the scenario file in it", given)) from None
    except OSError as error:
        raise InputError(Problem(f"cannot be read: {error.strerror or error}", given)) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(Problem("not a text file; a scenario is YAML in UTF-8", given))
    return text


def _nearby(path: FilePath) -> str:
    try:
        names = {entry.stem: entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")}
    except OSError:
        return f"; there is no folder {path.parent} either"
    nearest = nearest_of(path.stem, names)  # by stems: the ending that all have makes none of them alike
    return f"; did you mean `{names[nearest]}`?" if nearest else ""


def _validate(document: Document, base_dir: FilePath) -> tuple[Scenario | None, Parts, list[Problem]]:
    """The scenario if the schema accepts it, the sections that it accepts, and what it does not."""
    data = document.data
    if not isinstance(data, dict):
        what = "is empty" if data is None else "must be a section of `key: value` lines"
        message = f"the scenario {what}; it needs at least `name`, `workload` and `engine`"
        return None, Parts(), [document.value_place(()).problem(message)]
    try:
        scenario = Scenario.model_validate(data)
        return scenario, Parts.of(scenario, base_dir), []
    except ValidationError as error:
        problems = translate(error.errors(include_url=False), document)
    parts = Parts(
        _section(WorkloadConfig, data.get("workload")),
        _section(ClusterConfig, data.get("cluster")),
        _section(EngineSection, data.get("engine")),
        _section(LatencyConfig, data.get("latency")),
        base_dir,
    )
    return None, parts, problems


def _section(model: type[Section], data: Any) -> Section | None:
    try:
        return model.model_validate(data)
    except ValidationError:
        return None
