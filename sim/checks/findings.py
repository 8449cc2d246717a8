"""Where checks put what they find: problems with their places, and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel

from sim.errors import InputError, Problem
from sim.scenario.document import Document, Path, located
from sim.scenario.messages import dotted

Result = TypeVar("Result")


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


def collect(findings: Findings, action: Callable[[], Result], default: Path) -> Result | None:
    """Run ``action`` and return its result, or None where it raises InputError.

    Problems without a place get that of the key they begin with, else of ``default``.
    """
    try:
        return action()
    except InputError as error:
        findings.problems += [located(problem, findings.document, default) for problem in error.problems]
        return None
