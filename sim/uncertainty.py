"""How sure a prediction is: the spread over seeds, and what the step times' own error does to it.

Several seeds of a scenario run side by side. The first one runs twice more, with all accelerator times longer and
shorter by the error that the profile states of itself; what queueing makes of that error is then in the results. Both
parts are put together as the root of the sum of their squares. ``docs/uncertainty.md`` says what that tells.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import InputError
from sim.seed_intervals import Headline, Interval, SeedLoads, intervals, notes
from sim.workers import POLL_S, Workers

if TYPE_CHECKING:
    from sim.results.results import Results
    from sim.scenario.loader import LoadedScenario
    from sim.scenario.schema import Scenario

CONFIDENCE = 0.95
STATISTICS = ("mean", "median", "p50", "p90", "p95", "p99")
LATENCIES = ("ttft", "tpot", "itl", "e2el")
TOP = ("duration", "request_throughput", "request_goodput", "output_throughput", "total_token_throughput")
COST = ("usd", "usd_per_million_tokens", "usd_per_million_output_tokens")
HOW = (
    "value: mean over seeds. from_seeds: how far the 95 % t-interval of that mean, the expectation over runs of this "
    "length, goes down and up, by ratios: not the range of single runs, nor an interval of an endless run's value, "
    "from which a finite run's p99 and all that waits near saturation are off. from_profile: change of the "
    "first seed's value when all accelerator times are 1 - error and 1 + error times as long. low and high: mean less "
    "and plus the root of the sum of squares of the two. The profile's error is a median: half of its steps are off by "
    "more, so the interval as a whole is no 95 % interval."
)

Progress = Callable[[int, int], None]
"""Called with (runs finished, runs in all)."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while runs were under way; the text says which had finished."""


@dataclass(frozen=True, slots=True)
class StatedError:
    """Relative error of a step's time, and where that figure comes from."""

    value: float
    source: str
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By term of the step: share of the run's accelerator time, error, where the error comes from."""


@dataclass(frozen=True, slots=True)
class SeedRuns:
    """What several seeds of a scenario found."""

    results: Results
    """Of the first seed; its summary has the section ``intervals``."""
    seeds: tuple[int, ...]
    by_seed: tuple[Headline, ...]
    shorter: Headline | None
    """The first seed with accelerator times of 1 - error; None where step times state no error."""
    longer: Headline | None
    error: StatedError
    intervals: dict[str, Interval]
    slo_met: tuple[bool, ...] | None
    """By seed; None without an SLO."""
    loads: SeedLoads

    def section(self) -> dict[str, Any]:
        """``intervals`` of summary.json."""
        return {
            "seeds": list(self.seeds),
            "confidence_over_seeds": CONFIDENCE,
            "profile_error": self.error.value,
            "slo_met_by_seed": None if self.slo_met is None else list(self.slo_met),
            "metrics": {
                name: {"mean": each.mean, "low": each.low, "high": each.high} for name, each in self.intervals.items()
            },
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """What the reader of the intervals has to know."""
        return notes(self.by_seed, self.longer, self.error.value, self.loads)

    def document(self) -> dict[str, Any]:
        """The content of ``seeds.json``."""
        error = self.error
        metrics = {
            name: {
                "mean": each.mean,
                "low": each.low,
                "high": each.high,
                "from_seeds": None
                if each.from_seeds is None
                else {"low": each.from_seeds[0], "high": each.from_seeds[1]},
                "from_profile": {"low": each.from_profile[0], "high": each.from_profile[1]},
            }
            for name, each in self.intervals.items()
        }
        scaled = [(1.0 - error.value, self.shorter), (1.0 + error.value, self.longer)]
        return {
            "scenario": self.results.summary["run"]["scenario"],
            "how": HOW,
            "notes": self.notes(),
            "confidence_over_seeds": CONFIDENCE,
            "profile_error": {"value": error.value, "source": error.source, "terms": error.terms},
            "slo_met_by_seed": None
            if self.slo_met is None
            else dict(zip(map(str, self.seeds), self.slo_met, strict=True)),
            "metrics": metrics,
            "seeds": [
                {"seed": seed, "metrics": headline} for seed, headline in zip(self.seeds, self.by_seed, strict=True)
            ],
            "scaled": [
                {"seed": self.seeds[0], "step_times": factor, "metrics": headline}
                for factor, headline in scaled
                if headline is not None
            ],
        }

    def write(self, out_dir: str | os.PathLike[str]) -> list[Path]:
        """The first seed's files and ``seeds.json`` into ``out_dir``; errors as of ``Results.write``."""
        text = json.dumps(self.document(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        return self.results.write(out_dir, {"seeds.json": text})


def simulate_seeds(
    scenario: str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario,
    *,
    seeds: int = 5,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> SeedRuns:
    """Simulate ``seeds`` seeds of a scenario, the first one being its own (or ``seed``), the others the next numbers.

    The first runs here, the others in at most ``jobs`` - 1 processes beside it (None = one run for each CPU).

    Raises:
        InputError: the scenario cannot be run, or ``seeds`` or ``jobs`` is not positive.
        SimulationError: one of the runs failed.
        Interrupted: Ctrl-C; all processes have gone.
    """
    from sim.checks.all_checks import check_all
    from sim.run import load

    places = _checked(seeds, jobs)
    loaded = load(scenario, overrides, seed)
    check_all(loaded)
    first = loaded.scenario.seed
    if first + seeds > 2**63:
        raise InputError(f"seeds: {first} and the {seeds - 1} after it are beyond the largest seed, 2**63 - 1")
    numbers = tuple(range(first, first + seeds))
    with Workers(places - 1) as workers:
        runs = _Runs(workers, progress, {each: f"seed {each}" for each in numbers})
        try:
            return _all(loaded, numbers, runs)
        except KeyboardInterrupt:
            raise Interrupted(runs.finished_text()) from None


def _checked(seeds: int, jobs: int | None) -> int:
    """The number of runs at a time."""
    if seeds < 1:
        raise InputError(f"seeds: {seeds}; give at least 1")
    if jobs is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs < 1:
        raise InputError(f"jobs: {jobs}; give at least 1")
    return jobs


class _Runs:
    """The runs under way, by a key of each."""

    def __init__(self, workers: Workers, progress: Progress | None, names: Mapping[int, str]) -> None:
        self._workers = workers
        self._progress = progress
        self._names: dict[int | str, str] = dict(names.items())
        self._futures: dict[int | str, Future[dict[str, Any]]] = {}
        self._done: set[int | str] = set()
        self.expected = len(names)

    def start(self, key: int | str, name: str, loaded: LoadedScenario) -> None:
        self._names[key] = name
        self._futures[key] = self._workers.start(loaded, name)

    def done(self, key: int | str) -> None:
        """A run that this process did itself."""
        self._done.add(key)
        self._workers.add_place()
        self.watch()

    def watch(self) -> None:
        """Tell progress; raise what a run failed with."""
        for key, future in self._futures.items():
            if future.done():
                future.result()
                self._done.add(key)
        if self._progress is not None:
            self._progress(len(self._done), self.expected)

    def collect(self) -> dict[int | str, dict[str, Any]]:
        """All summaries, once all runs have ended. Raises what one of them failed with."""
        left = set(self._futures.values())
        while left:
            left = wait(left, timeout=POLL_S, return_when=FIRST_COMPLETED).not_done
            self.watch()
        return {key: future.result() for key, future in self._futures.items()}

    def finished_text(self) -> str:
        """Which runs had ended."""
        self._done |= {key for key, future in self._futures.items() if future.done() and not future.cancelled()}
        if not self._done:
            return f"none of the {self.expected} runs had finished"
        names = ", ".join(name for key, name in self._names.items() if key in self._done)
        return f"{len(self._done)} of {self.expected} runs had finished ({names}); nothing is written"


def _all(loaded: LoadedScenario, seeds: tuple[int, ...], runs: _Runs) -> SeedRuns:
    from sim.run import run

    runs.expected += 2
    for seed in seeds[1:]:
        runs.start(seed, f"seed {seed}", _changed(loaded, seed, 1.0))
    results = run(loaded, progress=lambda *_: runs.watch())
    summary = results.summary
    error = stated_error(summary)
    if error.value:
        for sign, word in ((-1.0, "shorter"), (1.0, "longer")):
            name = f"seed {seeds[0]} with step times {error.value:.1%} {word}"
            runs.start(word, name, _changed(loaded, seeds[0], 1.0 + sign * error.value))
    else:
        runs.expected -= 2
    runs.done(seeds[0])
    others = runs.collect()
    summaries = [summary, *(others[seed] for seed in seeds[1:])]
    headlines = tuple(headline(each) for each in summaries)
    shorter, longer = (headline(others[word]) if word in others else None for word in ("shorter", "longer"))
    found = SeedRuns(
        results=results,
        seeds=seeds,
        by_seed=headlines,
        shorter=shorter,
        longer=longer,
        error=error,
        intervals=intervals(headlines, [each for each in (shorter, longer) if each is not None]),
        slo_met=None if summary["slo"] is None else tuple(bool(each["slo"]["met"]) for each in summaries),
        loads=SeedLoads.of(summaries),
    )
    summary["intervals"] = found.section()
    return found


def _changed(loaded: LoadedScenario, seed: int, factor: float) -> LoadedScenario:
    scenario = loaded.scenario
    latency = scenario.latency.model_copy(update={"time_scale": scenario.latency.time_scale * factor})
    return replace(loaded, scenario=scenario.model_copy(update={"seed": seed, "latency": latency}))


def headline(summary: Mapping[str, Any]) -> Headline:
    """The numbers of a summary that get an interval, by their keys there (``cost.usd`` for those of ``cost``)."""
    found: Headline = {name: summary[name] for name in TOP}
    found.update({f"{each}_{metric}_ms": summary[f"{each}_{metric}_ms"] for metric in LATENCIES for each in STATISTICS})
    cost = summary["cost"] or {}
    found.update({f"cost.{name}": cost[name] for name in COST if name in cost})
    return found


def stated_error(summary: Mapping[str, Any]) -> StatedError:
    """The relative error of a run's accelerator times: what the run charged, each term by its own error
    (``sim.results.charged_error``)."""
    kind, error = summary["run"]["latency"]["kind"], summary["error"]
    if kind == "constant":
        return StatedError(0.0, "constant step times are an assumption, without error")
    sources = {"profile": f"profile {summary['run']['latency'].get('profile')}"}
    source = (
        f"{sources.get(kind, f'a {kind} estimate')}: the errors of the run's terms, weighted by their share of "
        "accelerator time"
    )
    return StatedError(error["accelerator"], source, error["terms"])
