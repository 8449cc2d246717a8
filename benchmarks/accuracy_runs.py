"""Runs the experiments of ``benchmarks.accuracy`` and keeps prediction beside measurement."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.accuracy_experiment import Experiment
from benchmarks.accuracy_fit import fit_to, fitted
from sim.errors import InputError, SimulationError


@dataclass(frozen=True)
class Outcome:
    """One experiment's predictions, by the same keys as its measurements; none where it cannot be simulated."""

    experiment: Experiment
    predicted: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    is_saturated: bool = False
    """Whether the run says of itself that more was offered than it served."""

    @property
    def is_of_statistics(self) -> bool:
        """Whether end-to-end times were measured too, so that the run has a table of its own."""
        return "mean_e2el_ms" in self.experiment.measured

    def error(self, key: str) -> float | None:
        """Predicted over measured, less 1."""
        value = self.predicted.get(key)
        return None if value is None else value / self.experiment.measured[key] - 1.0


def predict_together(experiments: Sequence[Experiment]) -> list[Outcome]:
    """Simulate experiments that share a fit; alone where there is none."""
    first = experiments[0].fitted_to
    if first is None:
        return [predict(each) for each in experiments]
    with tempfile.TemporaryDirectory() as name:
        try:
            fit = fit_to(first, Path(name))
        except (InputError, SimulationError) as error:
            return [Outcome(each, failure=f"fit: {str(error).partition(chr(10))[0]}") for each in experiments]
        return [replace(predict(fitted(each, fit)), experiment=each) for each in experiments]


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
    load = summary.get("load") or {}
    return Outcome(
        experiment,
        {key: float(summary[key]) for key in experiment.measured},
        is_saturated=bool(load.get("saturated")),
    )


def predict_all(experiments: Sequence[Experiment], jobs: int = 1) -> list[Outcome]:
    """All of them, in order, in that many processes. Experiments of one scenario are simulated once."""
    together: dict[str, list[Experiment]] = {}
    for kind, each in {_kind(each): each for each in reversed(experiments)}.items():
        together.setdefault(kind if each.fitted_to is None else f"fit {_kind(each.fitted_to)}", []).append(each)
    parts = list(reversed(together.values()))
    known: dict[str, Outcome] = {}
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
        found = map(predict_together, parts) if pool is None else pool.map(predict_together, parts)
        for part, outcomes in zip(parts, found, strict=True):
            for each, outcome in zip(part, outcomes, strict=True):
                known[_kind(each)] = outcome
                _tell(outcome, len(known))
    return [replace(known[_kind(each)], experiment=each) for each in experiments]


def _kind(experiment: Experiment) -> str:
    """What a run depends on, and which figures of it are wanted."""
    scenario = {key: value for key, value in experiment.scenario.items() if key != "name"}
    fitted_to = "" if experiment.fitted_to is None else _kind(experiment.fitted_to)
    return json.dumps([scenario, sorted(experiment.measured), experiment.trace, fitted_to], sort_keys=True)


def _tell(outcome: Outcome, place: int) -> None:
    errors = [f"{key} {100 * (outcome.error(key) or 0):+.1f} %" for key in outcome.predicted if "mean" in key]
    what = outcome.failure or ", ".join(errors)
    name = f"{outcome.experiment.group}: {outcome.experiment.name}"
    print(f"{place} {name}: {what}", file=sys.stderr, flush=True)
