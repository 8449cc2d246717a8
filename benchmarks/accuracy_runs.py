"""Runs the experiments of ``benchmarks.accuracy`` and keeps prediction beside measurement."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.accuracy_sets import Experiment
from sim.errors import InputError, SimulationError


@dataclass(frozen=True)
class Outcome:
    """One experiment's predictions, by the same keys as its measurements; none where it cannot be simulated."""

    experiment: Experiment
    predicted: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def error(self, key: str) -> float | None:
        """Predicted over measured, less 1."""
        value = self.predicted.get(key)
        return None if value is None else value / self.experiment.measured[key] - 1.0


def predict(experiment: Experiment) -> Outcome:
    """Simulate one experiment."""
    import sim

    scenario = deepcopy(experiment.scenario)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if experiment.trace is not None:
            path = folder / "trace.csv"
            path.write_text(experiment.trace, encoding="utf-8")
            scenario["workload"]["trace"]["path"] = str(path)
        try:
            summary = sim.simulate(scenario).summary
        except (InputError, SimulationError) as error:
            return Outcome(experiment, failure=str(error).partition("\n")[0])
    missing = [key for key in experiment.measured if summary[key] is None]
    if missing:
        return Outcome(experiment, failure=f"the run has no {', '.join(missing)}")
    return Outcome(experiment, {key: float(summary[key]) for key in experiment.measured})


def predict_all(experiments: Sequence[Experiment], jobs: int = 1) -> list[Outcome]:
    """All of them, in order, in that many processes."""
    if jobs == 1:
        return list(_told(map(predict, experiments), len(experiments)))
    with ProcessPoolExecutor(jobs) as pool:
        return list(_told(pool.map(predict, experiments), len(experiments)))


def _told(outcomes: Iterable[Outcome], count: int) -> Iterable[Outcome]:
    for i, outcome in enumerate(outcomes, start=1):
        errors = [f"{key} {100 * (outcome.error(key) or 0):+.1f} %" for key in outcome.predicted if "mean" in key]
        what = outcome.failure or ", ".join(errors)
        print(f"{i}/{count} {outcome.experiment.group}: {outcome.experiment.name}: {what}", file=sys.stderr, flush=True)
        yield outcome
