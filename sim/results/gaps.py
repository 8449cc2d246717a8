"""Gaps between tokens, by class of request: distinct values and how often each came.

Those that write them add up requests, many at a time. So that the classes need no additions of their own, a request
counts as its class's *unit*, and a sum of units tells all classes' counts apart: with two classes, 1 and 2**40, the sum
3 * 2**40 + 5 is 5 requests of the first and 3 of the second. With one class the unit is 1.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.int64]
Weighted = tuple[IntColumn, IntColumn]
"""Distinct values, ascending, and the weight of each."""

UNIT_BITS = 40
"""Of each class: more gaps than any run has."""
UNIT_MASK = (1 << UNIT_BITS) - 1
FLUSH_GAPS = 1 << 18
"""Gaps and weights kept before equal gaps are merged."""
MERGE_VALUES = 1 << 20
"""Distinct gaps kept in parts before the parts are merged."""


def merge_weights(values: IntColumn, weights: IntColumn) -> Weighted:
    """Distinct ``values``, ascending, each with the sum of its ``weights``; none where that is 0."""
    if not len(values):
        return values, weights
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    values, weights = values[starts], np.add.reduceat(weights, starts)
    return (values, weights) if weights.all() else (values[weights != 0], weights[weights != 0])


class Gaps:
    """All gaps of a run."""

    def __init__(self, num_classes: int = 1) -> None:
        self.num_classes = num_classes
        self.units = [1 << UNIT_BITS * index for index in range(num_classes)]
        """What a request of each class counts as."""
        self._pairs: list[int] = []
        """Gaps that are not merged yet, each followed by its sum of units."""
        self.add = self._pairs.extend
        """For a pair of a gap in nanoseconds and a sum of units."""
        self._merged: list[list[Weighted]] = [[] for _ in range(num_classes)]

    def trim(self) -> None:
        """To be called now and then: keeps a long run small."""
        if len(self._pairs) >= FLUSH_GAPS:
            self._flush()

    def add_steps(self, gaps_ns: IntColumn, changes: dict[int, int]) -> None:
        """``gaps_ns[i]`` came as often as the units of ``changes`` at 0 to i add up to. The array is kept."""
        length = len(gaps_ns)
        if self.num_classes == 1:
            taken = np.zeros(length + 1, dtype=np.int64)
            taken[list(changes)] = list(changes.values())
            self._keep(0, gaps_ns, taken.cumsum()[:length])
            return
        dense = [0] * (length + 1)
        for place, units in changes.items():
            dense[place] = units
        sums = list(accumulate(dense))[:length]
        for index, weights in enumerate(self._by_class(sums)):
            self._keep(index, gaps_ns, weights)

    def _keep(self, index: int, gaps_ns: IntColumn, weights: IntColumn) -> None:
        chosen = np.flatnonzero(weights)
        if len(chosen):
            self._merged[index].append((gaps_ns[chosen], weights[chosen]))

    def _by_class(self, sums: list[int]) -> list[IntColumn]:
        """Counts of each class from sums of units."""
        shifts = range(0, UNIT_BITS * self.num_classes, UNIT_BITS)
        return [np.array([each >> shift & UNIT_MASK for each in sums], dtype=np.int64) for shift in shifts]

    def _flush(self) -> None:
        """Equal gaps become one: the same batch takes the same time wherever and whenever it runs."""
        if not self._pairs:
            return
        if self.num_classes == 1:
            pairs = np.array(self._pairs, dtype=np.int64).reshape(-1, 2)
            self._merged[0].append(merge_weights(pairs[:, 0], pairs[:, 1]))
        else:
            totals: dict[int, int] = {}
            for gap, units in zip(self._pairs[::2], self._pairs[1::2], strict=True):
                totals[gap] = totals.get(gap, 0) + units
            values = np.array(sorted(totals), dtype=np.int64)
            for index, weights in enumerate(self._by_class([totals[gap] for gap in sorted(totals)])):
                self._keep(index, values, weights)
        self._pairs.clear()
        for index, parts in enumerate(self._merged):
            if sum(len(values) for values, _ in parts) > MERGE_VALUES:
                self._merged[index] = [_merge(parts)]

    def of_classes(self) -> list[Weighted]:
        """Every distinct gap so far and how often it came, of each class."""
        self._flush()
        return [_merge(parts) for parts in self._merged]

    def of_all(self) -> Weighted:
        """The same of all classes together."""
        self._flush()
        return _merge([part for parts in self._merged for part in parts])


def _merge(parts: list[Weighted]) -> Weighted:
    if not parts:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    values, weights = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return merge_weights(values, weights)
