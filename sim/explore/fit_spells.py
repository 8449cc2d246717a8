"""Spells of slow steps (``latency.noise.step``), fitted where the tail of ITL tells them.

A gap between tokens is long where the accelerator was slow, or where a prompt was computed in it. So a percentile of
ITL tells of spells only if the gaps with prompts in them, as the simulation has them, are too few to reach it: of 3 %
such gaps p90 and p95 tell, and p99 does not. Percentiles are read over the median, which what scales all steps leaves
alone. Values are tried, as those of late requests are (``fit_noise``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.explore.fit_case import ITL_MEDIANS
from sim.explore.fit_noise import IN_DOUBT
from sim.explore.fit_parameters import Parameter

if TYPE_CHECKING:
    from sim.explore.fit_case import Case
    from sim.latency.fitted import Fitted

Values = Mapping[str, float]

ERRORS = {"p90": 0.02, "p95": 0.03, "p99": 0.05}
"""Of each percentile over the median."""
PROMPTS_MOST = 2.0 / 3.0
"""Gaps with prompts in them, at most, as a part of the gaps beyond a percentile that tells of spells."""
WORTH_OF_SPELLS = 11.3
"""By how much the sum of squares must fall: three parameters, 1 % of runs without spells."""
SHARE, FACTOR, LENGTH = "spell_share", "spell_factor", "spell_s"
SHARES = (0.02, 0.05, 0.1, 0.2)
LENGTHS_S = (0.1, 1.0)
FACTORS = (0.8, 1.25)
"""Of the factor that the tail itself shows."""
LEAST_FACTOR, MOST_FACTOR = 1.05, 20.0
PARAMETERS = (
    Parameter(SHARE, 0.0, 0.0, 0.5, 0.05),
    Parameter(FACTOR, 1.0, 1.0, MOST_FACTOR, 0.5),
    Parameter(LENGTH, LENGTHS_S[0], 0.001, 60.0, 0.5),
)

NO_PERCENTILES = "Spells of slow steps are not fitted: the files have no median of ITL with a p90, p95 or p99 of it."
AMONG_PROMPTS = (
    "Spells of slow steps cannot be told: prompts were computed in {share:.1%} of the gaps between tokens, and may be "
    "what makes the percentiles of ITL long. A run at a lower rate would tell."
)
NONE_SEEN = "No spells of slow steps: the tail of ITL is no longer than prompts and lengths make it."
FOUND = "Spells of slow steps: the tail of ITL is longer than prompts and lengths make it."


@dataclass(slots=True)
class Spells:
    """What came of it."""

    told: str
    """A sentence for the reader."""
    values: dict[str, float] = field(default_factory=dict)
    """Empty = none were found."""
    widths: dict[str, float] = field(default_factory=dict)
    """Half of each interval, in spreads."""
    together: list[str] = field(default_factory=list)
    """Parameters that the figures cannot tell apart."""


def find_spells(cases: Sequence[Case], fitted: Callable[[Values], Fitted]) -> Spells:
    """Look for spells in ``cases``; ``fitted`` gives the parameters with those of some spells among them."""
    without = fitted({})
    has_percentiles = [case for case in cases if _percentiles(case)]
    if not has_percentiles:
        return Spells(NO_PERCENTILES)
    telling = {id(case): _telling(case, without) for case in has_percentiles}
    if not any(telling.values()):
        return Spells(AMONG_PROMPTS.format(share=min(case.prompt_gap_share(without) for case in has_percentiles)))
    excess = max(math.exp(case.itl_over_median(key, without)) for case in has_percentiles for key in telling[id(case)])

    def misfit(values: Values) -> float:
        told = fitted(values)
        return math.fsum(
            (case.itl_over_median(key, told) / ERRORS[key[:3]]) ** 2
            for case in has_percentiles
            for key in telling[id(case)]
        )

    if excess < LEAST_FACTOR:
        return Spells(NONE_SEEN)
    known = _try_values(misfit, min(excess, MOST_FACTOR))
    best = min(known, key=lambda place: (known[place], place))
    if misfit({}) - known[best] < WORTH_OF_SPELLS:
        return Spells(NONE_SEEN)
    return _found(known, best)


Place = tuple[float, float, float]
"""Share of the time, factor, seconds."""


def _values(place: Place) -> dict[str, float]:
    return dict(zip((SHARE, FACTOR, LENGTH), place, strict=True))


def _try_values(misfit: Callable[[Values], float], excess: float) -> dict[Place, float]:
    """Sums of squares of places that are tried, one coordinate after the other, from the ``excess`` of the tail."""
    known: dict[Place, float] = {}

    def best_of(places: Sequence[Place]) -> Place:
        known.update((place, misfit(_values(place))) for place in places if place not in known)
        return min(places, key=lambda place: (known[place], place))

    _, factor, length = best_of([(share, excess, LENGTHS_S[0]) for share in SHARES])
    share = min(known, key=lambda place: (known[place], place))[0]
    nearer = [min(max(factor * each, LEAST_FACTOR), MOST_FACTOR) for each in (1.0, *FACTORS)]
    _, factor, _ = best_of([(share, each, length) for each in nearer])
    _, _, length = best_of([(share, factor, each) for each in LENGTHS_S])
    at = SHARES.index(share)
    near = [(share + SHARES[other]) / 2 for other in (at - 1, at + 1) if 0 <= other < len(SHARES)]
    best_of([(each, factor, length) for each in (share, *near)])
    return known


def _found(known: Mapping[Place, float], best: Place) -> Spells:
    """The best place, and how far from it the figures still agree."""
    doubtful = [place for place, told in known.items() if told <= known[best] + IN_DOUBT]
    widths, open_ones = {}, []
    for index, parameter in enumerate(PARAMETERS):
        tried = sorted({place[index] for place in known})
        at = tried.index(best[index])
        reached = {place[index] for place in doubtful}
        nearest = tried[max(at - 1, 0) : at + 2]  # what was tried is coarse
        widths[parameter.name] = max(
            abs(parameter.place(value) - parameter.place(best[index])) for value in (*reached, *nearest)
        )
        if len(reached) > 1:
            open_ones.append(parameter.name)
    return Spells(FOUND, _values(best), widths, open_ones if len(open_ones) > 1 else [])


def _percentiles(case: Case) -> list[str]:
    figures = case.run.figures
    if not any(key in figures for key in ITL_MEDIANS):
        return []
    return [f"{name}_itl_ms" for name in ERRORS if f"{name}_itl_ms" in figures]


def _telling(case: Case, fitted: Fitted) -> list[str]:
    """Percentiles of ITL that gaps with prompts in them are too few to reach."""
    share = case.prompt_gap_share(fitted)
    return [key for key in _percentiles(case) if share <= PROMPTS_MOST * (1.0 - int(key[1:3]) / 100.0)]
