"""What ``benchmarks.accuracy`` works on: experiments (a scenario, and what was measured), and the sets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.latency.models import MODELS

Scenario = dict[str, Any]


def weights_of(engine: Mapping[str, Any]) -> str:
    """Number format of an engine section's weights: ``auto`` is the preset's."""
    told = str(engine.get("dtype", "bfloat16"))
    return MODELS[engine["model"]].dtype if told == "auto" else told


@dataclass(frozen=True)
class Experiment:
    """One simulated run and the milliseconds that were measured, by key of ``summary.json``."""

    group: str
    """The set that it is scored in."""
    name: str
    scenario: Scenario
    measured: Mapping[str, float]
    trace: str | None = None
    """Content of the generic trace (CSV) that the scenario replays."""
    is_training: bool = False
    """Of the half that an assumption was chosen on, or that causes were looked for in: not scored."""
    version: str | None = None
    """Of the engine that was measured; None = not recorded."""
    fitted_to: Experiment | None = None
    """The measured run that step costs, host and client times are fitted to first; None = the defaults."""
    unsaid: tuple[str, ...] = ()
    """What the server did that the scenario cannot say."""


@dataclass(frozen=True)
class Unscored:
    """Rows of a set that no run stands for, and why."""

    what: str
    count: int
    reason: str


@dataclass(frozen=True)
class Section:
    """Something else that is compared with measurements: a section of the pages."""

    title: str
    text: str
    failures: tuple[str, ...] = ()
    """What ``--check`` does not let pass, a line each."""


@dataclass
class Sets:
    """All experiments found under a data folder."""

    experiments: list[Experiment] = field(default_factory=list)
    unscored: list[Unscored] = field(default_factory=list)

    def groups(self) -> list[str]:
        """Names of the sets, in order."""
        return list(dict.fromkeys(each.group for each in self.experiments))
