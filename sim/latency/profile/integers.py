"""Measured curves as whole numbers: what stepping reads, exact and the same for single steps and for runs of them."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]

SLOPE_BITS = 20
"""Fixed point of slopes between knots: 1 is 2**20."""


class Segments:
    """A function of a whole number, linear between integer knots, exact integer arithmetic."""

    __slots__ = ("knots", "slopes", "values")

    def __init__(self, knots: list[int], values: Floats) -> None:
        """``knots`` rise strictly; beyond the last the last slope goes on."""
        self.knots = knots
        self.values: list[int] = np.rint(values).astype(np.int64).tolist()
        self.slopes: list[int] = [
            ((high - low) << SLOPE_BITS) // (right - left)
            for (left, right), (low, high) in zip(pairwise(knots), pairwise(self.values), strict=True)
        ]
        self.slopes.append(self.slopes[-1] if self.slopes else 0)

    def at(self, count: int) -> int:
        """The value at ``count``; below the first knot the first slope goes on."""
        place = bisect_right(self.knots, count, 1) - 1  # at least 0, since the search begins behind the first knot
        return self.values[place] + ((count - self.knots[place]) * self.slopes[place] >> SLOPE_BITS)

    def many(self, counts: IntColumn) -> IntColumn:
        """The values at ``counts``: the same integers as ``at``."""
        places = np.maximum(np.searchsorted(self.knots, counts, side="right") - 1, 0)
        knots, values, slopes = (np.array(each, dtype=np.int64) for each in (self.knots, self.values, self.slopes))
        result: IntColumn = values[places] + ((counts - knots[places]) * slopes[places] >> SLOPE_BITS)
        return result

    def run(self, first: int, stride: int, length: int) -> IntColumn:
        """Values at ``first``, ``first + stride``, ...: element for element the same integers as ``at``."""
        counts = np.arange(first, first + stride * length, stride, dtype=np.int64)
        knots = self.knots
        left = bisect_right(knots, first, 1) - 1
        right = bisect_right(knots, first + stride * (length - 1), 1) - 1
        values = np.empty(length, dtype=np.int64)
        begin = 0
        for place in range(left, right + 1):
            end = length if place == right else -((first - knots[place + 1]) // stride)
            stretch = counts[begin:end] - knots[place]
            stretch *= self.slopes[place]
            stretch >>= SLOPE_BITS
            stretch += self.values[place]
            values[begin:end] = stretch
            begin = end
        return values


def context_knots(longest: int) -> list[int]:
    """Contexts at which attention is tabulated: four to every doubling from 16 tokens on."""
    knots = [1]
    value = 16
    while value < longest:
        knots += [value, value * 5 // 4, value * 3 // 2, value * 7 // 4]
        value *= 2
    return [*knots, value]


def finer(knots: list[int]) -> list[int]:
    """``knots`` with three more between any two where whole numbers allow it: [16, 20] gives [16, 17, 18, 19, 20]."""
    between = [low + (high - low) * part // 4 for low, high in pairwise(knots) for part in range(4)]
    return [*dict.fromkeys(between), knots[-1]]


def rising(times: Floats) -> Floats:
    """``times`` without their falls, which are noise: halfway between the greatest before and the least after each.
    [3, 5, 4, 6] gives [3, 4.5, 4.5, 6]."""
    least_after = np.minimum.accumulate(times[::-1])[::-1]
    halfway: Floats = (np.maximum.accumulate(times) + least_after) / 2.0
    return halfway


def whole_sqrt(values: IntColumn) -> IntColumn:
    """``math.isqrt`` of each of ``values`` (below 2**52): floating point, put right where it rounded up."""
    roots = np.sqrt(values.astype(np.float64)).astype(np.int64)
    result: IntColumn = roots - (roots * roots > values)
    return result
