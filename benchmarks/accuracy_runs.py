"""Runs the experiments of ``benchmarks.accuracy`` and keeps prediction beside measurement."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.accuracy_experiment import Experiment
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
    kinds: dict[str, Experiment] = {}
    for each in experiments:
        kinds.setdefault(_kind(each), each)
    if jobs == 1:
        return list(_told(_shared(experiments, map(predict, kinds.values())), len(experiments)))
    with ProcessPoolExecutor(jobs) as pool:
        return list(_told(_shared(experiments, pool.map(predict, kinds.values())), len(experiments)))


def _kind(experiment: Experiment) -> str:
    """What a run depends on, and which figures of it are wanted."""
    scenario = {key: value for key, value in experiment.scenario.items() if key != "name"}
    return json.dumps([scenario, sorted(experiment.measured), experiment.trace], sort_keys=True)


def _shared(experiments: Iterable[Experiment], outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """One outcome for each experiment, from one for each scenario in the order in which they first come."""
    known: dict[str, Outcome] = {}
    for each in experiments:
        kind = _kind(each)
        if kind not in known:
            known[kind] = next(outcomes)
        yield replace(known[kind], experiment=each)


def _told(outcomes: Iterable[Outcome], count: int) -> Iterable[Outcome]:
    for i, outcome in enumerate(outcomes, start=1):
        errors = [f"{key} {100 * (outcome.error(key) or 0):+.1f} %" for key in outcome.predicted if "mean" in key]
        what = outcome.failure or ", ".join(errors)
        print(f"{i}/{count} {outcome.experiment.group}: {outcome.experiment.name}: {what}", file=sys.stderr, flush=True)
        yield outcome
