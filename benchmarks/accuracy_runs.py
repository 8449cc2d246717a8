"""Runs the experiments of ``benchmarks.accuracy`` and keeps prediction beside measurement."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.accuracy_sets import Experiment, Link
from sim.errors import InputError, SimulationError

if TYPE_CHECKING:
    from sim.latency.profile.file import Profile


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


def with_link(profile: Profile, link: Link, num_gpus: int) -> Profile:
    """The profile with one curve each for all-reduce and all-gather: the link's fixed time and bandwidth.

    A ring sends 2 (n - 1) / n of the payload over each link for an all-reduce, half of that for an all-gather.
    """
    from sim.latency.profile.file import Curve, Operator

    sizes = [1024 << power for power in range(18)]
    operators = dict(profile.operators)
    for name, share in (("all_reduce", 2.0), ("all_gather", 1.0)):
        share *= (num_gpus - 1) / num_gpus
        times = tuple(1e9 * (link.start_s + size * share / link.bytes_per_s) for size in sizes)
        curve = Curve(key=("nccl", num_gpus), at=tuple(sizes), time_ns=times)
        operators[name] = Operator(kernel="NCCL", origin="start and bandwidth of a link", curves=(curve,))
    return profile.model_copy(update={"operators": operators, "name": f"{profile.name}-link"})


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
        if experiment.link is not None:
            path = folder / "profile.json"
            _save_with_link(path, experiment.link, scenario["engine"])
            scenario["latency"]["profile"] = str(path)
        try:
            summary = sim.simulate(scenario).summary
        except (InputError, SimulationError) as error:
            return Outcome(experiment, failure=str(error).partition("\n")[0])
    missing = [key for key in experiment.measured if summary[key] is None]
    if missing:
        return Outcome(experiment, failure=f"the run has no {', '.join(missing)}")
    return Outcome(experiment, {key: float(summary[key]) for key in experiment.measured})


def _save_with_link(path: Path, link: Link, engine: dict[str, object]) -> None:
    from sim.latency.gpus import GPUS
    from sim.latency.profile.file import save_profile
    from sim.latency.profile.library import find_profile

    found = find_profile(None, GPUS[str(engine["gpu"])])
    save_profile(with_link(found.profile, link, int(str(engine["tensor_parallel_size"]))), path)


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
