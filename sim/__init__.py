"""simrun: LLM serving, simulated step for step as vLLM's V1 scheduler does it.

>>> import sim
>>> results = sim.simulate("scenarios/quickstart.yaml")  # doctest: +SKIP
>>> results.summary["p95_ttft_ms"]  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sim.version import __version__ as __version__

if TYPE_CHECKING:
    from sim.explore.fit_result import Fit
    from sim.results.results import Results
    from sim.scenario.loader import LoadedScenario
    from sim.scenario.schema import Scenario
    from sim.uncertainty import SeedRuns


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


def simulate_seeds(
    scenario: str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario,
    *,
    seeds: int = 5,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    jobs: int | None = None,
) -> SeedRuns:
    """Simulate several seeds side by side, so that every headline number has an interval.

    Args:
        scenario, overrides: as for ``simulate``.
        seeds: how many; the first is the scenario's own, or ``seed``, the others are the next numbers.
        jobs: runs at a time; None = one for each CPU.

    Raises:
        sim.errors.InputError: the scenario cannot be run, or ``seeds`` or ``jobs`` is not positive.
        sim.errors.SimulationError: one of the runs failed.
    """
    from sim.uncertainty import simulate_seeds as simulate_all

    return simulate_all(scenario, seeds=seeds, overrides=overrides, seed=seed, jobs=jobs)


def fit(
    measured: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    scenario: str
    | os.PathLike[str]
    | Mapping[str, Any]
    | Scenario
    | LoadedScenario
    | list[str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario],
    *,
    overrides: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
) -> Fit:
    """Fit step costs, host and client times to measured runs.

    Args:
        measured: files of ``simrun observe`` or ``vllm bench serve``, one or several.
        scenario: what was measured, in any form that ``simulate`` takes; one, or a list with one for each file.
        overrides: as for ``simulate``, for every scenario.
        out: the file to write that ``latency.fit`` takes; one that exists is overwritten.

    Raises:
        sim.errors.InputError: a file or scenario cannot be used, or the figures say nothing of any parameter.
        sim.errors.OutputError: ``out`` cannot be written.
    """
    from sim.explore.fit import fit as fit_runs

    files = [measured] if isinstance(measured, str | os.PathLike) else measured
    scenarios = list(scenario) if isinstance(scenario, list) else [scenario]
    found = fit_runs(files, scenarios, overrides=overrides)
    if out is not None:
        found.write(out)
    return found
