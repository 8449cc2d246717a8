"""The host's time per step and per request, fitted on the training half of the Qwen3-32B points alone.

That engine (vLLM 0.12) does not schedule ahead, so all of its host time shows in TPOT. Predictions without host time
are subtracted from what was measured; what is left is a straight line over the number of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.accuracy_experiment import Experiment
from benchmarks.accuracy_runs import Outcome, predict_all
from benchmarks.accuracy_sets import QWEN

LEAST_OUTPUT = 512
"""Tokens out from which TPOT is mostly decode steps."""
MOST_TTFT_MS = 2000.0
"""Longer means that requests waited for KV blocks, so that fewer ran than there were clients."""
ROUNDS = 30
"""Of weighing points by the inverse of how far they are off: the least sum of relative errors."""


@dataclass(frozen=True)
class HostFit:
    """Milliseconds per step and microseconds per request in it, and what is left."""

    step_ms: float
    request_us: float
    num_points: int
    median_error: float
    """Relative, of TPOT at the fitted points."""

    def __str__(self) -> str:
        return (
            f"{self.step_ms:.2f} ms per step and {self.request_us:.0f} us per request in it, from {self.num_points}"
            f" points; median error there {100 * self.median_error:.1f} %"
        )


def training(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The points to fit on, without host time."""
    chosen = []
    for each in experiments:
        if each.group != QWEN or not each.is_training or each.measured["mean_ttft_ms"] > MOST_TTFT_MS:
            continue
        if each.scenario["workload"]["output_tokens"]["value"] < LEAST_OUTPUT:
            continue
        scenario = deepcopy(each.scenario)
        scenario["latency"]["host_overhead_ms"] = 0
        chosen.append(replace(each, scenario=scenario))
    return chosen


def fit_host(experiments: Sequence[Experiment], jobs: int = 1) -> HostFit:
    """Simulate the training points and fit. Raises ValueError where there are fewer than three."""
    return fit(predict_all(training(experiments), jobs))


def fit(outcomes: Sequence[Outcome]) -> HostFit:
    """The line with the least sum of relative errors of TPOT."""
    points = [each for each in outcomes if not each.failure]
    if len(points) < 3:
        raise ValueError(f"{len(points)} training points: too few to fit two numbers")
    clients = np.array([each.experiment.scenario["workload"]["arrival"]["concurrency"] for each in points], dtype=float)
    measured = np.array([each.experiment.measured["mean_tpot_ms"] for each in points])
    left = measured - np.array([each.predicted["mean_tpot_ms"] for each in points])
    terms = np.stack([np.ones_like(clients), clients], axis=1) / measured[:, None]
    weights = np.ones_like(clients)
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        line = np.linalg.lstsq(terms * root[:, None], left / measured * root, rcond=None)[0]
        errors = np.abs(left / measured - terms @ line)
        weights = 1.0 / np.maximum(errors, 1e-3)
    return HostFit(float(line[0]), float(line[1]) * 1e3, len(points), float(np.median(errors)))
