"""Columns of a trace file: what each cell must hold, parsed a chunk at a time into flat arrays.

A chunk is first parsed whole, by functions that run in C; only a chunk that fails is gone through
cell by cell, to say which line is wrong and what was expected there.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from sim.workload.table import IntColumn

Cell = Any
"""A CSV cell (str) or a JSON value; None and blank text mean not given."""

NOT_GIVEN = -(1 << 62)
"""Integer columns hold this where an optional cell is empty."""

MAX_INT = 1 << 40
NS_PER_S = 1_000_000_000

FLOAT_EXACT_S = 2e6
"""Below this, seconds as a double times 1e9 round to the nanosecond that the digits say."""


class CellError(ValueError):
    """A cell that does not hold what its column expects; the message says what was expected."""


def is_blank(cell: Cell) -> bool:
    """Whether an optional cell counts as not given."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


class Field:
    """One column: ``extend`` takes a chunk of cells or raises ValueError, ``append`` one cell."""

    expected = "a value"
    aliases: tuple[str, ...] = ()
    """Other names that the format has for it."""

    def __init__(self, name: str, required: bool = True) -> None:
        self.name = name
        """In the file."""
        self.required = required
        self.values = array("q")

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a file may have for it."""
        return (self.name, *self.aliases)

    def extend(self, cells: Sequence[Cell]) -> None:
        """Take a whole chunk (at least one cell), all of it or (ValueError, TypeError, OverflowError) none."""
        raise NotImplementedError

    def parse(self, cell: Cell) -> int:
        """One given cell; raises CellError."""
        raise NotImplementedError

    def append(self, cell: Cell) -> None:
        """Take one cell; raises CellError."""
        if not is_blank(cell):
            self.values.append(self.parse(cell))
        elif self.required:
            raise CellError(f"expected {self.expected}, found nothing")
        else:
            self.values.append(NOT_GIVEN)

    def size(self) -> int:
        """Rows taken so far."""
        return len(self.values)

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` rows."""
        del self.values[n:]

    def wrong(self, cell: Cell) -> CellError:
        """The error for a cell that is not what this column expects."""
        text = repr(cell)
        return CellError(f"expected {self.expected}, found {text if len(text) <= 40 else text[:37] + '...'}")

    def column(self) -> IntColumn:
        """All rows so far."""
        return np.frombuffer(self.values, dtype=np.int64) if self.values else np.empty(0, dtype=np.int64)


class IntField(Field):
    """Whole numbers of at least ``minimum``."""

    def __init__(self, name: str, required: bool = True, minimum: int | None = 1) -> None:
        super().__init__(name, required)
        self.minimum = -MAX_INT if minimum is None else minimum
        self.expected = "a whole number" if minimum is None else f"a whole number of at least {minimum}"

    def extend(self, cells: Sequence[Cell]) -> None:
        kinds = set(map(type, cells))
        if kinds == {str}:
            if self.required:
                chunk = array("q", map(int, cells))
            else:
                chunk = array("q", [int(cell) if cell else NOT_GIVEN for cell in cells])
        elif kinds == {int} or (not self.required and kinds <= {int, type(None)}):
            chunk = array("q", [NOT_GIVEN if cell is None else cell for cell in cells])
        else:
            raise ValueError
        numbers = np.frombuffer(chunk, dtype=np.int64)
        given = numbers[numbers != NOT_GIVEN]
        if given.min(initial=self.minimum) < self.minimum or given.max(initial=0) > MAX_INT:
            raise ValueError
        self.values.extend(chunk)

    def parse(self, cell: Cell) -> int:
        try:
            if isinstance(cell, bool):
                raise ValueError
            number = Decimal(cell.strip() if isinstance(cell, str) else cell)
            if not number.is_finite() or number != number.to_integral_value():
                raise ValueError
        except (ValueError, TypeError, InvalidOperation):
            raise self.wrong(cell) from None
        if not self.minimum <= number <= MAX_INT:
            raise self.wrong(cell)
        return int(number)


UNITS_NS = {"seconds": NS_PER_S, "ms": 1_000_000, "us": 1000, "ns": 1}


class TimeField(Field):
    """A time of at least 0 in a unit of ``UNITS_NS``, to integer ns."""

    def __init__(self, name: str, unit: str, required: bool = True) -> None:
        super().__init__(name, required)
        self.unit_ns = UNITS_NS[unit]
        self.expected = f"a time in {unit} of at least 0"

    def extend(self, cells: Sequence[Cell]) -> None:
        blank = np.array([is_blank(cell) for cell in cells]) if not self.required else None
        given = cells if blank is None else [cell for cell in cells if not is_blank(cell)]
        times = self._times(given)
        # Written so that NaN fails too.
        if len(times) and not (times.min() >= 0 and times.max() * self.unit_ns < FLOAT_EXACT_S * NS_PER_S):
            raise ValueError
        exact = np.rint(times * self.unit_ns).astype(np.int64)
        if blank is not None:
            column = np.full(len(cells), NOT_GIVEN, dtype=np.int64)
            column[~blank] = exact
            exact = column
        self.values.frombytes(exact.tobytes())

    def _times(self, cells: Sequence[Cell]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        kinds = set(map(type, cells))
        if kinds == {str}:
            return np.array(array("d", map(float, cells)))
        if kinds <= {int, float}:
            return np.array(cells, dtype=np.float64)
        raise ValueError

    def parse(self, cell: Cell) -> int:
        try:
            if isinstance(cell, bool):
                raise ValueError
            time = Decimal(cell.strip() if isinstance(cell, str) else str(cell))
        except (ValueError, TypeError, InvalidOperation):
            raise self.wrong(cell) from None
        if not time.is_finite() or time < 0:
            raise self.wrong(cell)
        if time * self.unit_ns > 1 << 62:
            raise CellError(f"expected {self.expected} within what 64-bit nanoseconds hold, found {cell!r}")
        return int((time * self.unit_ns).to_integral_value())


class TimestampField(Field):
    """Dates and times as in the Azure trace, ``2023-11-16 18:15:46.6805900`` (UTC), to ns since 1970."""

    expected = "a timestamp such as 2023-11-16 18:15:46.6805900"
    pattern = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)?", re.ASCII)

    def extend(self, cells: Sequence[Cell]) -> None:
        if not all(map(self.pattern.fullmatch, cells)):
            raise ValueError
        plain = [cell.removesuffix("Z").removesuffix("+00:00") for cell in cells]
        self.values.frombytes(np.array(plain, dtype="datetime64[ns]").astype(np.int64).tobytes())

    def parse(self, cell: Cell) -> int:
        text = cell.strip() if isinstance(cell, str) else ""
        try:
            if not self.pattern.fullmatch(text):
                raise ValueError
            return int(np.datetime64(text.removesuffix("Z").removesuffix("+00:00"), "ns").astype(np.int64))
        except ValueError:
            raise self.wrong(cell) from None


class NameField(Field):
    """Text by which rows belong together (a tenant, a session), as small whole numbers: see ``numbers``."""

    expected = "text"

    def __init__(self, name: str) -> None:
        super().__init__(name, required=False)
        self.numbers: dict[str, int] = {}

    def extend(self, cells: Sequence[Cell]) -> None:
        names = self.numbers
        if not all(type(cell) is str or cell is None for cell in cells):
            raise ValueError
        self.values.extend([names.setdefault(cell, len(names)) if cell else NOT_GIVEN for cell in cells])

    def parse(self, cell: Cell) -> int:
        if isinstance(cell, bool | dict | list) or (isinstance(cell, float) and not math.isfinite(cell)):
            raise self.wrong(cell)
        return self.numbers.setdefault(str(cell), len(self.numbers))


class IdField(Field):
    """Request ids: the one column that stays text. A row without one has an empty string."""

    expected = "text"

    def __init__(self, name: str) -> None:
        super().__init__(name, required=False)
        self.texts: list[str] = []

    def extend(self, cells: Sequence[Cell]) -> None:
        if not all(type(cell) is str or cell is None for cell in cells):
            raise ValueError
        self.texts.extend([cell or "" for cell in cells])

    def size(self) -> int:
        return len(self.texts)

    def truncate(self, n: int) -> None:
        del self.texts[n:]

    def append(self, cell: Cell) -> None:
        if isinstance(cell, bool | dict | list | float):
            raise self.wrong(cell)
        self.texts.append("" if cell is None else str(cell).strip())


class MediaField(Field):
    """How many images (or pieces of sound, of video) a request has: a number, or a list of one entry each."""

    expected = "a whole number of at least 0, or a list"

    def extend(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self.append(cell)

    def append(self, cell: Cell) -> None:
        if isinstance(cell, list):
            self.values.append(len(cell))
        elif isinstance(cell, str) and cell.strip().startswith("["):
            self.values.append(0 if not cell.strip()[1:].rstrip("]").strip() else cell.count(",") + 1)
        elif is_blank(cell):
            self.values.append(0)
        else:
            counted = IntField(self.name, minimum=0)
            counted.append(cell)
            self.values.append(counted.values[0])


class HashesField(Field):
    """Mooncake's ``hash_ids``: the names of a prompt's blocks, kept as two flat arrays. A row without has none."""

    expected = "a list of whole numbers of at least 0"

    def __init__(self, name: str) -> None:
        super().__init__(name, required=False)
        self.counts = array("q")

    def extend(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self.append(cell)

    def size(self) -> int:
        return len(self.counts)

    def truncate(self, n: int) -> None:
        del self.values[sum(self.counts[:n]) :]
        del self.counts[n:]

    def append(self, cell: Cell) -> None:
        if cell is None:
            cell = []
        if not isinstance(cell, list) or not set(map(type, cell)) <= {int}:
            raise self.wrong(cell)
        if cell and not 0 <= min(cell) <= max(cell) < 1 << 62:
            raise self.wrong(cell)
        self.values.extend(cell)
        self.counts.append(len(cell))


class WaitsField(NameField):
    """Names of rows that must have ended first: a list of one, or text; more than one are not modelled."""

    expected = "a list of at most one name (a request that waits for several others is not modelled)"

    def extend(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self.append(cell)

    def append(self, cell: Cell) -> None:
        if isinstance(cell, list):
            if len(cell) > 1:
                raise self.wrong(cell)
            cell = cell[0] if cell else None
        super().append(cell)
