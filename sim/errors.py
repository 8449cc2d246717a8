"""The project's own exceptions. The command line turns them into exit codes; nothing else catches them."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input: where, what, and what to do about it."""

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.message}" if place else self.message


class SimrunError(Exception):
    """Base of every error this project raises on purpose."""


class InputError(SimrunError):
    """The user's input cannot be used. Carries every problem found, not only the first. Exit code 2."""

    def __init__(self, problems: list[Problem] | Problem | str) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: list[Problem] = problems if isinstance(problems, list) else [problems]
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SimulationError(SimrunError):
    """The simulation itself failed: a leak, a deadlock, an impossible state. Exit code 1."""


class OutputError(SimrunError):
    """What a run found could not be written: a full disk, a closed stream. Exit code 1."""

    def __init__(self, target: object, error: OSError, consequence: str = "") -> None:
        """``cannot write TARGET: REASON``, with ``consequence`` after it where there is one."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"cannot write {target}: {reason}" + (f"; {consequence}" if consequence else ""))
