"""The requests of one replica, known before the run: nothing that happens changes who arrives there, or when."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.engine.request import Request

NO_MORE = 1 << 62
"""Instant of the arrival after the last one."""


@dataclass(slots=True)
class Feed:
    """Columns with one element per request, in order of arrival; ``position`` is the next one to arrive."""

    rows: Sequence[int]
    """Position in the workload."""
    arrival_ns: Sequence[int]
    """... and ``NO_MORE`` at the end."""
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    """Where the engine stops: the true length within ``max_tokens`` and the model's length."""
    make: Callable[[int], Request]
    """The request at a position."""
    name: Callable[[int], str]
    """The id of a row."""
    on_ends: Callable[[int, int], None]
    """So many requests have ended, the last of them at this instant or a little before."""
    is_plain: bool
    """No request shares content with another, and of each the scheduler knows beforehand which token is its last."""
    position: int = 0


def machine_integers(column: npt.NDArray[np.int64]) -> Sequence[int]:
    """A column that is read one by one: Python integers made on the way, 8 bytes each."""
    values = array("q")
    values.frombytes(np.ascontiguousarray(column).tobytes())
    return values
