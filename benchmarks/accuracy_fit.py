"""Runs predicted after a fit to one other run of that GPU and kind of model, as ``simrun fit`` does it for a user."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from benchmarks.accuracy_experiment import Experiment, Sets
from benchmarks.accuracy_open_loop import LITE_0151
from sim.latency.models import MODELS

LITE_FITTED = "vLLM 0.15.1, fitted to one other run"


def add_fitted(sets: Sets) -> None:
    """Each run of ``LITE_0151`` after a fit to each other of its GPU and kind of model, dense or with experts."""
    runs = [each for each in sets.experiments if each.group == LITE_0151]
    sets.experiments += [
        replace(run, group=LITE_FITTED, name=f"{run.name}, fitted to {first.name}", fitted_to=first)
        for first in runs
        for run in runs
        if run is not first and _kind(run) == _kind(first)
    ]


def _kind(run: Experiment) -> tuple[str, bool]:
    engine = run.scenario["engine"]
    return engine["gpu"], MODELS[engine["model"]].num_experts > 0


def fit_to(run: Experiment, folder: Path) -> Path:
    """Fit to the statistics of ``run`` alone; the file that ``latency.fit`` takes. Raises InputError."""
    from sim.explore.fit import fit

    measured = folder / "measured.json"
    measured.write_text(json.dumps(dict(run.measured)), encoding="utf-8")
    found = fit([measured], [deepcopy(run.scenario)])
    path = folder / "FIT.yaml"
    found.write(path)
    return path


def fitted(run: Experiment, fit: Path) -> Experiment:
    """The run under that fit."""
    scenario = deepcopy(run.scenario)
    scenario["latency"]["fit"] = str(fit)
    return replace(run, scenario=scenario)
