"""simrun: LLM serving, simulated step for step as vLLM's V1 scheduler does it.

>>> import sim
>>> results = sim.simulate("scenarios/quickstart.yaml")  # doctest: +SKIP
>>> results.summary["p95_ttft_ms"]  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.results.results import Results
    from sim.scenario.loader import LoadedScenario
    from sim.scenario.schema import Scenario

__version__ = "0.1.0"


def simulate(
    scenario: str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
) -> Results:
    """Simulate a scenario: a file's path, the same as a dictionary, or one loaded or made before.

    Args:
        scenario: what to simulate. Relative paths in a dictionary start at the working directory.
        overrides: ``dotted.key=value`` texts, as after ``--set``.
        seed: takes the place of the scenario's seed.

    Raises:
        sim.errors.InputError: the scenario cannot be run; every problem at once.
        sim.errors.SimulationError: the simulation itself failed.
    """
    from sim.run import load, run

    return run(load(scenario, overrides, seed))
