"""How late a few requests are, fitted when all else is: by trying.

It moves no mean, and derivatives say little of it, so a few values are tried, and one is taken only where it explains
the tail of TTFT clearly better than the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.explore.fit_parameters import Parameter

TRIED_MS = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
WORTH = 4.0
"""By how much the sum of squared residuals must fall: two standard errors of one parameter."""
IN_DOUBT = 3.84
"""Values whose sum is within this of the best are in the interval."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of trying values of one parameter."""

    value: float
    gain: float
    """How much lower the sum of squares is than at the default."""
    width: float
    """Half of the interval, in spreads."""


def try_values(parameter: Parameter, misfit: Callable[[float], float]) -> Tried:
    """The value with the smallest ``misfit`` (a sum of squared residuals), looked for between its neighbours too."""
    known = {value: misfit(value) for value in {*TRIED_MS, parameter.default}}
    for _ in range(2):
        values = sorted(known)
        at = values.index(_best(known))
        near = [(values[at] + values[other]) / 2 for other in (at - 1, at + 1) if 0 <= other < len(values)]
        known.update((value, misfit(value)) for value in near)
    best, values = _best(known), sorted(known)
    at = values.index(best)
    # What was tried is coarse: the interval reaches to the next value at least.
    open_to = [value for value in values if known[value] <= known[best] + IN_DOUBT]
    open_to += values[max(at - 1, 0) : at + 2]
    width = max(abs(parameter.place(value) - parameter.place(best)) for value in open_to)
    return Tried(best, known[parameter.default] - known[best], width)


def _best(known: dict[float, float]) -> float:
    return min(known, key=lambda value: (known[value], value))
