"""``simrun fit``: a few physical parameters of a deployment, from runs that were measured on it.

Each run is simulated; the logarithms of predicted over measured figures, each over the error that it may have, are what
least squares makes small, together with each parameter's distance from its default in the spread that is expected of
it. So a parameter that the figures say nothing of keeps its default. What they cannot tell apart is read off the
derivatives at the solution: a direction in which the figures hardly change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sim.checks.all_checks import check_all
from sim.cluster.deployment import served_image
from sim.errors import InputError, Problem
from sim.explore.fit_case import Case, Floats
from sim.explore.fit_noise import WORTH, try_values
from sim.explore.fit_parameters import Parameter, choose_late, choose_parameters, fits_spells, rounded
from sim.explore.fit_result import Fit
from sim.explore.fit_spells import PARAMETERS as SPELL_PARAMETERS
from sim.explore.fit_spells import Spells, find_spells
from sim.explore.fit_traffic import misfit_problems, traffic_problems
from sim.explore.measured_run import RATES, MeasuredRun, read_runs
from sim.latency.build import build_step_cost
from sim.latency.fitted import Fitted
from sim.latency.gpus import load_gpu
from sim.latency.kind import latency_kind
from sim.live.validate import table_of
from sim.run import load
from sim.workload.build_table import build_workload

if TYPE_CHECKING:
    from sim.scenario.loader import LoadedScenario
    from sim.scenario.schema import Scenario
    from sim.workload.table import RequestTable

    AnyScenario = str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario

Progress = Callable[[int, None], None]
"""Called with the number of simulations done; how many it takes shows at the end."""

ERRORS = {"mean": 0.01, "median": 0.01, "p50": 0.01, "p90": 0.02, "p95": 0.03, "p99": 0.05}
RATE_ERROR = 0.01
"""Relative error that a measured figure, or the simulation of it, may have; those of one metric count as one."""
DIFFERENCE, INSIDE = 0.5, 0.1
"""Spreads that derivatives are taken over, enough to stand out of what batches happen to hold; and how far from its
bounds a search begins."""
MOST_ROUNDS, MOST_ROUNDS_WITHOUT = 12, 5
"""Of the solver: with all runs, and with one left out."""
SILENT = 1.0
"""A parameter whose spread moves all figures together by less than this many of their errors is left at its default."""
UNRESOLVED, IN_DIRECTION = 8.0, 0.3
"""A direction that the figures narrow to no less than a third of its spread is not told apart; its parameters are those
that move figures along it by at least this part of what the one that moves them most does."""
STATED = "Spells of slow steps are as the scenario states them."
SCIPY = "simrun fit needs scipy: pip install 'simrun-llm[fit]'"


def fit(
    measured: Sequence[str | os.PathLike[str]],
    scenarios: Sequence[AnyScenario],
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Fit:
    """Fit to the runs in the files ``measured``, under one scenario or one for each.

    Raises InputError with every problem of files and scenarios.
    """
    try:
        import scipy.optimize  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise InputError(SCIPY) from None
    cases = _cases([os.fspath(each) for each in measured], scenarios, overrides)
    first = cases[0].loaded.scenario
    kind = latency_kind(first.engine.gpu, first.latency)
    cost = build_step_cost(first.engine, first.latency, cases[0].loaded.base_dir, cases[0].planned)
    engines = [(case.loaded.scenario.engine, case.planned.model) for case in cases]
    figures = {key for case in cases for key in case.run.figures}
    late = choose_late(first.engine, first.latency, figures)
    solver = _Solver(
        cases,
        choose_parameters(engines, first.latency, cost),
        late,
        Fitted(kind, cases[0].planned.gpu.name),
        progress,
        fits_spells=fits_spells(case.loaded.scenario.latency for case in cases),
    )
    return solver.fit()


def _cases(files: Sequence[str], scenarios: Sequence[AnyScenario], overrides: Sequence[str]) -> list[Case]:
    problems: list[Problem] = []
    runs: list[MeasuredRun] = []
    loaded = []
    if not files:
        raise InputError("fit: give at least one measured run")
    for each in files:
        try:
            runs += read_runs(each)
        except InputError as error:
            problems += error.problems
    for scenario in scenarios:
        try:
            loaded.append(load(scenario, overrides))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    if len(scenarios) not in (1, len(runs)):
        raise InputError(
            f"--scenario: give one, or one for each measured run in order: {len(scenarios)} for {len(runs)} runs"
        )
    each_loaded = loaded * len(runs) if len(loaded) == 1 else loaded
    _check_alike(loaded)
    cases = []
    for measured, its in zip(runs, each_loaded, strict=True):
        cases.append(Case(measured, its, check_all(its), _workload(measured, its), _errors(measured)))
    if other := traffic_problems(cases):
        raise InputError(other)
    return cases


def _check_alike(loaded: Sequence[LoadedScenario]) -> None:
    """Raise InputError where scenarios are not of one GPU and kind of step cost, or have a fit already."""
    for what, told in (
        ("engine.gpu", [load_gpu(each.scenario.engine.gpu).name for each in loaded]),
        ("latency.kind", [latency_kind(each.scenario.engine.gpu, each.scenario.latency) for each in loaded]),
    ):
        if len(set(told)) > 1:
            raise InputError(f"{what}: one fit is of one, and the scenarios have {', '.join(sorted(set(told)))}")
    if any(each.scenario.latency.fit is not None for each in loaded):
        raise InputError(
            "latency.fit: a fit starts from defaults; leave the key out of --scenario (--set latency.fit=null)"
        )


def _workload(measured: MeasuredRun, loaded: LoadedScenario) -> RequestTable:
    """The requests that were sent, where the file has them; else the scenario's."""
    if measured.measured is not None:
        return table_of(measured.measured.completed)
    scenario, engine = loaded.scenario, loaded.scenario.engine
    return build_workload(
        scenario.workload,
        scenario.seed,
        loaded.base_dir,
        engine.max_model_len,
        isolates_tenants=engine.cache_isolation == "tenant",
        serves_loras=engine.enable_lora,
        image=served_image(engine, loaded.base_dir),
    )


def _errors(measured: MeasuredRun) -> Floats:
    """So that one metric counts once, however many of its statistics there are."""
    metrics = ["rate" if key in RATES else key.split("_")[1] for key in measured.figures]
    own = [RATE_ERROR if key in RATES else ERRORS[key.split("_")[0]] for key in measured.figures]
    return np.array([error * metrics.count(metric) ** 0.5 for error, metric in zip(own, metrics, strict=True)])


class _Solver:
    """Least squares over the cases."""

    def __init__(
        self,
        cases: list[Case],
        parameters: list[Parameter],
        late: Parameter | None,
        nothing: Fitted,
        progress: Progress | None,
        *,
        fits_spells: bool,
    ) -> None:
        self.cases = cases
        self.active = list(parameters)
        self.parameters = [*parameters, *([] if late is None else [late])]
        self.fits_spells = fits_spells
        self.spells = Spells(STATED)
        self.late = late
        self.noise: dict[str, float] = {}
        """How late the late ones are, where it is fitted, and half of its interval in spreads."""
        self.noise_widths: dict[str, float] = {}
        self.nothing = nothing
        self._uses_late = True
        self._progress = progress

    def fit(self) -> Fit:
        start = self._start()
        with_defaults = [case.errors_percent(self.fitted(np.zeros(len(start)))) for case in self.cases]
        slopes = np.linalg.norm(self._slopes(self.cases, start), axis=0)
        silent = [each.name for each, slope in zip(self.active, slopes, strict=True) if slope < SILENT]
        self.active = [each for each in self.active if each.name not in silent]
        start = start[slopes >= SILENT]
        if not self.active:
            raise InputError(
                "the measured figures say nothing of any parameter: give latencies (mean_ttft_ms, mean_tpot_ms), "
                "not rates alone"
            )
        found = self._solve_all(self.cases, start, MOST_ROUNDS)
        slopes = self._slopes(self.cases, found)
        information = slopes.T @ slopes
        deviations = np.sqrt(np.diag(np.linalg.inv(information + np.eye(len(found)))))
        fitted = self.fitted(found)
        after = [case.errors_percent(fitted) for case in self.cases]
        if problems := misfit_problems(self.cases, fitted, after):
            raise InputError(problems)
        widths = {each.name: 1.96 * float(one) for each, one in zip(self.active, deviations, strict=True)}
        if self.late is not None and not self.noise:
            silent.append(self.late.name)
        widths |= self.noise_widths | self.spells.widths
        if self.spells.values:
            self.parameters += SPELL_PARAMETERS
        together = _together([each.name for each in self.active], information)
        return Fit(
            fitted=replace(fitted, values=rounded(fitted.values), fitted_on=_engines(self.cases)),
            cases=self.cases,
            parameters=self.parameters,
            widths=widths,
            silent=silent,
            together=together + ([self.spells.together] if self.spells.together else []),
            spells=self.spells.told,
            before=with_defaults,
            after=after,
            left_out=self._left_out(found) if len(self.cases) > 1 else None,
            notes=_notes(self.cases, fitted),
        )

    def fitted(self, places: Floats, spells: Spells | None = None) -> Fitted:
        """The parameters at ``places``, with ``spells`` in place of those that were found."""
        values = {each.name: each.value(place) for each, place in zip(self.active, places.tolist(), strict=True)}
        return replace(self.nothing, values=values | self.noise | (spells or self.spells).values)

    def _solve_all(self, cases: list[Case], start: Floats, rounds: int) -> Floats:
        """All parameters, spells of slow steps if there are some, and how late late requests are if that is worth it.
        Then they have bent the others, which are fitted without what late requests make, and in the end with all
        figures."""
        self.noise, self.noise_widths, self.spells = {}, {}, Spells(STATED)
        found = self._solve(cases, start, rounds)
        if self.fits_spells:
            at, without = found, self.spells
            self.spells = find_spells(cases, lambda values: self.fitted(at, replace(without, values=dict(values))))
            if self.spells.values:
                found = self._solve(cases, found, rounds)
        if self.late is None or not self._try_late(cases, found, self.late):
            return found
        self.noise, self._uses_late = {}, False
        centre = self._solve(cases, start, rounds)
        self._uses_late = True
        self._try_late(cases, centre, self.late)
        return self._solve(cases, centre, MOST_ROUNDS_WITHOUT)

    def _try_late(self, cases: list[Case], centre: Floats, late: Parameter) -> bool:
        """Set how late they are; returns whether it is another value than the default."""

        def misfit(value: float) -> float:
            self.noise = {late.name: value}
            return float(np.sum(self._of(cases, centre) ** 2))

        tried = try_values(late, misfit)
        is_worth_it = tried.gain >= WORTH
        self.noise = {late.name: tried.value} if is_worth_it else {}
        self.noise_widths = {late.name: tried.width} if is_worth_it else {}
        return is_worth_it

    def _start(self) -> Floats:
        """Defaults; under constant step times what a token took."""
        places = np.zeros(len(self.active))
        for index, each in enumerate(self.active):
            if each.name == "step_ms":
                keys = [f"{name}_{metric}_ms" for metric in ("tpot", "itl") for name in ("mean", "median", "p50")]
                told = [case.run.figures[key] for case in self.cases for key in keys if key in case.run.figures]
                if told:
                    places[index] = np.clip(each.place(min(told)), *each.bounds)
        return places

    def _left_out(self, found: Floats) -> list[dict[str, float]]:
        errors, kept = [], (self.noise, self.noise_widths, self.spells)
        for index, case in enumerate(self.cases):
            others = self.cases[:index] + self.cases[index + 1 :]
            places = self._solve_all(others, found, MOST_ROUNDS_WITHOUT)
            errors.append(case.errors_percent(self.fitted(places)))
        self.noise, self.noise_widths, self.spells = kept
        return errors

    def _solve(self, cases: list[Case], start: Floats, rounds: int) -> Floats:
        from scipy.optimize import least_squares

        bounds = np.array([each.bounds for each in self.active])

        def residuals(places: Floats) -> Floats:
            return np.concatenate([self._of(cases, places), places])

        def slopes(places: Floats) -> Floats:
            return np.concatenate([self._slopes(cases, places), np.eye(len(places))])

        # The solver starts inside of its bounds.
        inside = np.clip(start, bounds[:, 0] + INSIDE, bounds[:, 1] - INSIDE)
        found = least_squares(
            residuals, inside, jac=slopes, bounds=(bounds[:, 0], bounds[:, 1]), xtol=3e-3, ftol=1e-3, max_nfev=rounds
        )
        return cast(Floats, found.x)

    def _of(self, cases: list[Case], places: Floats) -> Floats:
        fitted = self.fitted(places)
        told = []
        for case in cases:
            told.append(np.where(case.late & (not self._uses_late), 0.0, case.residuals(fitted)))
            if self._progress is not None:
                self._progress(sum(len(each.known) for each in self.cases), None)
        return np.concatenate(told)

    def _slopes(self, cases: list[Case], places: Floats) -> Floats:
        """Change of each residual by a spread of each active parameter."""
        here, columns = self._of(cases, places), []
        for index, each in enumerate(self.active):
            step = DIFFERENCE if places[index] + DIFFERENCE <= each.bounds[1] else -DIFFERENCE
            moved = places.copy()
            moved[index] += step
            columns.append((self._of(cases, moved) - here) / step)
        return np.stack(columns, axis=1)


def _together(names: list[str], information: Floats) -> list[list[str]]:
    """Parameters of each direction that the figures do not narrow; directions that share one are one group."""
    groups: list[set[str]] = []
    sizes, directions = np.linalg.eigh(information)
    for size, direction in zip(sizes, directions.T, strict=True):
        effects = np.abs(direction) * np.sqrt(np.diag(information))
        members = {name for name, each in zip(names, effects, strict=True) if each >= IN_DIRECTION * effects.max()}
        if size >= UNRESOLVED or len(members) < 2:
            continue
        for other in [group for group in groups if group & members]:
            members |= other
            groups.remove(other)
        groups.append(members)
    return [[name for name in names if name in group] for group in groups]


def _engines(cases: list[Case]) -> tuple[dict[str, Any], ...]:
    from sim.checks.fit_checks import engine_of

    found: list[dict[str, Any]] = []
    for case in cases:
        if (engine := engine_of(case.loaded.scenario.engine)) not in found:
            found.append(engine)
    return tuple(found)


def _notes(cases: list[Case], fitted: Fitted) -> list[str]:
    notes = [note for case in cases for note in case.run.notes]
    for case in cases:
        predicted = case.predict(fitted)
        for key, seen in case.run.counts.items():
            if seen and key in predicted and abs(predicted[key] / seen - 1.0) > 0.02:
                notes.append(
                    f"{case.run.file}: {key} is {seen:,} there and {predicted[key]:,} in the simulation of "
                    f"{case.loaded.scenario.name}: other traffic than was measured"
                )
    return list(dict.fromkeys(notes))
