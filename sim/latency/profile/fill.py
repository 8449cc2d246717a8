"""Places that single curves lack, taken from curves of like shape.

A kernel's steps (tiles of a matrix, splits of a context) lie at the same places for shapes that are near each other.
Where a curve has no time at a place that others have, the straight line between its own neighbouring places is moved by
what the others are off theirs, in the median. Measured places stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NEAR = 12
"""Curves of nearest shape that are asked."""
ENOUGH = 3
"""Of them must have the place and the two beside it, else the straight line stays."""


def distinct(values: Floats) -> Floats:
    """Each of ``values`` once, ascending (``np.unique`` imports masked arrays, which takes 10 ms)."""
    ordered = np.sort(values)
    once: Floats = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return once


@dataclass(frozen=True, slots=True)
class Line:
    """One curve in logarithms: places, and multiples of the bound at them."""

    log_at: Floats
    log_multiple: Floats


class AnyLine(Protocol):
    """A ``Line``, or what reads one when it is asked for."""

    @property
    def log_at(self) -> Floats:
        """See ``Line``."""
        ...

    @property
    def log_multiple(self) -> Floats:
        """See ``Line``."""
        ...


class Lines:
    """Curves that may be compared with each other. Each is filled when it is first asked for."""

    def __init__(
        self, shapes: Sequence[Sequence[float]], lines: Sequence[AnyLine], places: Floats | None = None
    ) -> None:
        """``shapes``: the numbers of each line's key, as logarithms; near is a small sum of their differences.
        ``places``: those of all lines, each once and ascending, where they are known already."""
        self._shapes = np.array(shapes, dtype=np.float64)
        self._lines = lines
        self._places = distinct(np.concatenate([line.log_at for line in lines])) if places is None else places
        self._rows: dict[int, Floats] = {}
        self._filled: dict[int, Line] = {}

    def _row(self, i: int) -> Floats:
        """What is known of a line at the places of all of them; NaN where it has none."""
        row = self._rows.get(i)
        if row is None:
            line = self._lines[i]
            row = self._rows[i] = np.full(len(self._places), np.nan)
            row[np.searchsorted(self._places, line.log_at)] = line.log_multiple
        return row

    def line(self, i: int) -> Line:
        """The line with places added between its ends."""
        if i not in self._filled:
            self._filled[i] = self._fill(i)
        return self._filled[i]

    def _fill(self, i: int) -> Line:
        row = self._row(i).copy()
        own = np.flatnonzero(~np.isnan(row))
        missing = np.flatnonzero(np.isnan(row))
        missing = missing[(missing > own[0]) & (missing < own[-1])]
        if len(missing):
            distance = np.abs(self._shapes - self._shapes[i]).sum(axis=1)
            distance[i] = np.inf
            near = np.stack([self._row(j) for j in np.argsort(distance, kind="stable")[:NEAR].tolist()])
            right = np.searchsorted(own, missing)
            low, high = own[right - 1], own[right]
            share = (self._places[missing] - self._places[low]) / (self._places[high] - self._places[low])
            off = near[:, missing] - (near[:, low] * (1.0 - share) + near[:, high] * share)
            known = (~np.isnan(off)).sum(axis=0) >= ENOUGH
            straight = row[low] * (1.0 - share) + row[high] * share
            row[missing[known]] = straight[known] + _medians(off[:, known])
        have = np.flatnonzero(~np.isnan(row))
        return Line(self._places[have], row[have])


def _medians(values: Floats) -> Floats:
    """The median of each column without its NaN, of which no column consists (``np.nanmedian`` takes longer than all
    else that filling a line does)."""
    ordered = np.sort(values, axis=0)  # NaN last
    count = (~np.isnan(values)).sum(axis=0)
    column = np.arange(values.shape[1])
    medians: Floats = (ordered[(count - 1) // 2, column] + ordered[count // 2, column]) / 2.0
    return medians
