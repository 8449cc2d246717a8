"""One measured run to fit to, and its simulation under any parameters."""

from __future__ import annotations

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
            summary = run(self.loaded, workload=self.workload, deployment=deployment).summary
            wanted = (*self.run.figures, "duration", "completed", "total_input_tokens", "total_output_tokens")
            self.known[place] = {key: summary[key] for key in wanted}
        return self.known[place]

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
