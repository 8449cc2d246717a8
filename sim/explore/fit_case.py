"""One measured run to fit to, and its simulation under any parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.cluster.deployment import resolve_deployment
from sim.explore.measured_run import MeasuredRun
from sim.latency.fitted import Fitted
from sim.run import run

if TYPE_CHECKING:
    from sim.latency.memory import PlannedEngine
    from sim.scenario.loader import LoadedScenario
    from sim.workload.table import RequestTable

Floats = npt.NDArray[np.float64]
LATE_FIGURES = ("p95_ttft_ms", "p99_ttft_ms")
ASKED = ("duration", "completed", "total_input_tokens", "total_output_tokens")
PROMPT_GAPS = "share of gaps with prompts in them"
ITL_MEDIANS = ("p50_itl_ms", "median_itl_ms")


@dataclass(slots=True)
class Case:
    """One measured run, and what simulates it."""

    run: MeasuredRun
    loaded: LoadedScenario
    planned: PlannedEngine
    workload: RequestTable
    errors: Floats
    """Of each figure, in the order of ``run.figures``."""
    known: dict[tuple[tuple[str, float], ...], dict[str, Any]] = field(default_factory=dict)

    def predict(self, fitted: Fitted) -> dict[str, Any]:
        """The summary under these parameters."""
        place = tuple(sorted(fitted.values.items()))
        if place not in self.known:
            scenario = self.loaded.scenario
            base_dir = self.loaded.base_dir
            deployment = resolve_deployment(scenario.engine, scenario.latency, base_dir, self.planned, fitted=fitted)
            results = run(self.loaded, workload=self.workload, deployment=deployment)
            self.known[place] = {key: results.summary[key] for key in (*self.run.figures, *ASKED)}
            self.known[place][PROMPT_GAPS] = _prompt_gap_share(results.record.steps)
        return self.known[place]

    def prompt_gap_share(self, fitted: Fitted) -> float:
        """The share of gaps between tokens in which prompts were computed: 3 % where three steps of a hundred have
        some and all steps are of one size."""
        return float(self.predict(fitted)[PROMPT_GAPS])

    def itl_over_median(self, key: str, fitted: Fitted) -> float:
        """How much longer ``p99_itl_ms`` over the median was measured than it is predicted, as a logarithm."""
        seen, predicted = self.run.figures, self.predict(fitted)
        median = next(each for each in ITL_MEDIANS if each in seen)
        if not predicted[key] or not predicted[median]:
            return 0.0
        return float(np.log(seen[key] / seen[median]) - np.log(predicted[key] / predicted[median]))

    @property
    def late(self) -> npt.NDArray[np.bool_]:
        """Which figures late requests make: upper percentiles of TTFT; none where there are no others."""
        found = np.array([key in LATE_FIGURES for key in self.run.figures])
        return np.zeros_like(found) if found.all() else found

    def residuals(self, fitted: Fitted) -> Floats:
        """Of each figure: log of predicted over measured, in its errors; 0 where the simulation has no such figure."""
        predicted = self.predict(fitted)
        logs = [np.log(predicted[key] / seen) if predicted[key] else 0.0 for key, seen in self.run.figures.items()]
        return np.array(logs) / self.errors

    def errors_percent(self, fitted: Fitted) -> dict[str, float]:
        """100 * (predicted - measured) / measured of each figure."""
        predicted = self.predict(fitted)
        return {
            key: 100.0 * (predicted[key] / seen - 1.0)
            for key, seen in self.run.figures.items()
            if predicted[key] is not None
        }


def _prompt_gap_share(steps: Mapping[str, npt.NDArray[np.int64]]) -> float:
    gaps = steps["num_decodes"] * steps["num_steps"]
    return float(gaps[steps["num_prefills"] > 0].sum() / max(int(gaps.sum()), 1))
