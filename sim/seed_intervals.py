"""The arithmetic of intervals over seeds, and what their reader has to be told.

``docs/uncertainty.md`` has how often they cover what they are of, and what they are not of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sim.results.steady import TAILS

Headline = dict[str, float | None]

T_QUANTILES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
"""Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom."""
LEAST_FOR_RATIOS = 3
"""With two seeds t is 12.7, and as an exponent it says nothing."""
AMPLIFIED = 5.0
"""Near saturation: mean TTFT grows by more than this times the share that steps take longer (a queue at 80 % load)."""
SPREAD = 0.5
"""Near saturation too: the mean TTFTs of the seeds lie further apart than this share of their mean."""
BEYOND = 1.0
"""Relaxations of the queue beyond a statistic that every run needs, for the intervals to cover what an endless run
would have about nine times in ten: 100 for p99, 20 for p95, 10 for a mean."""
TOLD = ("mean", "p95", "p99")
SAME_NOTE = (
    "the seeds change nothing: arrivals and lengths of this workload are not random (a trace, constants), so that the "
    "spread over seeds says nothing about how sure these numbers are"
)
SATURATED_NOTE = (
    "near saturation ({why}): waiting depends on how long the run is, so that the intervals do not cover what an "
    "endless run would have; take more requests, or a lower rate"
)
OVERLOAD_NOTE = (
    "overloaded in {count} of {seeds} seeds: waiting grows with the run, and no endless run has latencies that the "
    "intervals could cover"
)
SHORT_NOTE = (
    "the intervals hold for runs of this length; an endless run's {statistics} would often lie above them, because "
    "their {requests:,} requests are worth {worth} that know nothing of each other; {remedy}"
)
LONGEST = 100.0
"""Longer runs, as a multiple of the present ones, are no advice: the load is."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One number of the summary. ``low <= mean <= high``; units as in the summary."""

    mean: float
    low: float
    high: float
    from_seeds: tuple[float, float] | None
    """The t-interval of the mean over seeds, as changes towards low and towards high; None for one seed."""
    from_profile: tuple[float, float]
    """Change of the first seed's value towards low and towards high."""
    by_seed: tuple[float | None, ...]


def intervals(by_seed: Sequence[Headline], scaled: Sequence[Headline]) -> dict[str, Interval]:
    """The interval of every number that any seed has. ``scaled``: the first seed's with other step times."""
    found: dict[str, Interval] = {}
    for name in by_seed[0]:
        values = [value for each in by_seed if (value := each.get(name)) is not None]
        if values:
            others = [value for each in scaled if (value := each.get(name)) is not None]
            found[name] = interval(values, by_seed[0][name], others, tuple(each.get(name) for each in by_seed))
    return found


def interval(
    values: Sequence[float], first: float | None, scaled: Sequence[float], by_seed: tuple[float | None, ...]
) -> Interval:
    """The interval of one number: what seeds and what other step times do, each side by itself, added as squares."""
    mean = math.fsum(values) / len(values)
    from_seeds = _of_seeds(values, mean) if len(values) > 1 else None
    changes = [] if first is None else [value - first for value in scaled]
    down, up = min(0.0, *changes, 0.0), max(0.0, *changes, 0.0)
    below, above = from_seeds or (0.0, 0.0)
    return Interval(
        mean=mean,
        low=max(0.0, mean - math.hypot(below, down)),
        high=mean + math.hypot(above, up),
        from_seeds=from_seeds,
        from_profile=(down, up),
        by_seed=by_seed,
    )


def _of_seeds(values: Sequence[float], mean: float) -> tuple[float, float]:
    """How far the 95 % t-interval of the mean goes down and up.

    By ratios, mean / f to mean * f with f from the spread of logarithms: waiting is skewed, and where few seeds happen
    to agree on too little of it the ratio reaches further up. 10, 12 and 15 give -4.9 and +8.1 about a mean of 12.3;
    differences would give 6.3 both ways. By differences for two seeds, and where a value is 0.
    """
    t = t_quantile(len(values) - 1)
    if len(values) < LEAST_FOR_RATIOS or min(values) <= 0:
        half = t * _deviation(values) / math.sqrt(len(values))
        return (-half, half)
    factor = math.exp(t * _deviation([math.log(value) for value in values]) / math.sqrt(len(values)))
    return (mean / factor - mean, mean * factor - mean)


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_quantile(degrees: int) -> float:
    """Student's t at 97.5 %: the table, and beyond it the expansion in 1 / ``degrees`` (off by less than 1e-4)."""
    if degrees <= len(T_QUANTILES):
        return T_QUANTILES[degrees - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


@dataclass(frozen=True, slots=True)
class SeedLoads:
    """What ``load`` of every seed's summary says of the queue."""

    saturated: tuple[bool, ...]
    relaxations: tuple[float | None, ...]
    requests: tuple[int, ...]
    """Completed, by seed."""

    @staticmethod
    def of(summaries: Sequence[Mapping[str, Any]]) -> SeedLoads:
        """From whole summaries, the first seed's first."""
        loads = [each["load"] for each in summaries]
        return SeedLoads(
            saturated=tuple(bool(each["saturated"]) for each in loads),
            relaxations=tuple(each["relaxations"] for each in loads),
            requests=tuple(int(each["completed"]) for each in summaries),
        )

    def worth(self) -> float | None:
        """The median of the relaxations; None where no seed has any."""
        known = [each for each in self.relaxations if each is not None]
        return median(known) if known else None


def notes(by_seed: Sequence[Headline], longer: Headline | None, error: float, loads: SeedLoads) -> list[str]:
    """What the reader of the intervals has to know: seeds without effect, overload, and runs too short for their load.

    ``longer``: the first seed's numbers with steps longer by ``error``.
    """
    if len(by_seed) > 1 and all(each == by_seed[0] for each in by_seed):
        return [SAME_NOTE]
    found: list[str] = []
    if any(loads.saturated):
        found.append(OVERLOAD_NOTE.format(count=sum(loads.saturated), seeds=len(by_seed)))
    if all(loads.saturated):
        return found
    why = _amplification(by_seed[0], longer, error)
    worth = loads.worth()
    if why is None and (worth is None or worth * TAILS["mean"] < BEYOND):
        why = _spread([each["mean_ttft_ms"] for each in by_seed])
    if why is not None:
        found.append(SATURATED_NOTE.format(why=why))
    return [*found, *(_too_short(loads) if len(by_seed) > 1 else [])]


def _too_short(loads: SeedLoads) -> list[str]:
    worth, requests = loads.worth(), median(loads.requests)
    missed = [name for name in TOLD if worth is not None and worth * TAILS[name] < BEYOND]
    if worth is None or not missed:
        return []
    needed = BEYOND / min(TAILS[name] for name in missed)
    statistics = f"{', '.join(missed[:-1])} and {missed[-1]}" if len(missed) > 1 else missed[0]
    return [
        SHORT_NOTE.format(
            statistics=statistics,
            requests=round(requests),
            worth=f"{worth:.0f}" if worth >= 1 else "less than one",
            remedy=f"runs of about {_two_digits(requests * needed / worth):,} would do"
            if needed <= LONGEST * worth
            else "take a lower rate, no length that one can run would do",
        )
    ]


def _two_digits(number: float) -> int:
    """Rounded up to two digits: 1,234 gives 1,300."""
    unit: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit


def _amplification(first: Headline, longer: Headline | None, error: float) -> str | None:
    """That waiting grows by much more than the steps, if so."""
    before, after = first["mean_ttft_ms"], None if longer is None else longer["mean_ttft_ms"]
    if not before or after is None or not error or after / before - 1 <= AMPLIFIED * error:
        return None
    return f"steps {error:.1%} longer make the mean TTFT {after / before - 1:.0%} longer"


def _spread(ttfts: Sequence[float | None]) -> str | None:
    """That the seeds wait for different times, if so."""
    known = [value for value in ttfts if value is not None]
    if len(known) < 2 or max(known) - min(known) <= SPREAD * math.fsum(known) / len(known):
        return None
    return f"mean TTFTs of the seeds go from {min(known):,.0f} to {max(known):,.0f} ms"
