"""Preemptions of requests: since when they wait again, until when, and when they have caught up."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.int64]

NOT_YET = -1
"""An instant that never came."""


class Interrupted(Protocol):
    """A request that can be preempted."""

    row: int
    is_catching_up: bool


class Turning(IntEnum):
    """What happens to a request that is preempted."""

    PREEMPTED = 0
    RESUMED = 1
    """It is admitted again."""
    CAUGHT_UP = 2
    """It has its next token: what the preemption took has been computed again."""


TURNING_COLUMNS = ("row", "at_ns", "turning")


INTERRUPTION_COLUMNS = (
    "row",
    "preempted_ns",
    "left_ns",  # when it no longer waited: admitted again, or its attempt ended
    "caught_up_ns",  # its next token; NOT_YET where there was none before the attempt ended or it was preempted again
)
"""Each time that a request was preempted."""


def no_interruptions() -> dict[str, IntColumn]:
    """``INTERRUPTION_COLUMNS`` of a run in which nothing was preempted."""
    return {name: np.empty(0, dtype=np.int64) for name in INTERRUPTION_COLUMNS}


def interruptions_of(turnings: Mapping[str, IntColumn], attempts: Mapping[str, IntColumn]) -> dict[str, IntColumn]:
    """``INTERRUPTION_COLUMNS`` from ``TURNING_COLUMNS`` in the order in which they were written, and all attempts."""
    if not len(turnings["row"]):
        return no_interruptions()
    # Those of one request and instant stay in the order in which they came.
    order = np.lexsort((turnings["at_ns"], turnings["row"]))
    row, at_ns, turning = (turnings[name][order] for name in TURNING_COLUMNS)
    place = np.flatnonzero(turning == Turning.PREEMPTED)

    def following(kind: Turning, after: IntColumn) -> IntColumn:
        """The instant of the event at ``after`` where it is of this kind and request; else NOT_YET."""
        inside = np.minimum(after, len(row) - 1)
        is_it = (after < len(row)) & (turning[inside] == kind) & (row[inside] == row[place])
        return np.where(is_it, at_ns[inside], NOT_YET)

    resumed = following(Turning.RESUMED, place + 1)
    caught_up = np.where(resumed >= 0, following(Turning.CAUGHT_UP, place + 2), NOT_YET)
    ends = _ends_of_attempts(attempts, row[place], at_ns[place])
    left = np.where(resumed >= 0, resumed, np.maximum(ends, at_ns[place]))
    return {"row": row[place], "preempted_ns": at_ns[place], "left_ns": left, "caught_up_ns": caught_up}


def _ends_of_attempts(attempts: Mapping[str, IntColumn], row: IntColumn, at_ns: IntColumn) -> IntColumn:
    """When the attempts of these requests ended that were under way at these instants."""
    known = attempts["row"]
    first, last = np.searchsorted(known, row), np.searchsorted(known, row, side="right") - 1
    ends = attempts["end_ns"][last]
    for i in np.flatnonzero(last > first).tolist():
        under_way = attempts["end_ns"][first[i] : last[i] + 1]
        ends[i] = under_way[np.argmax(under_way >= at_ns[i])]
    return ends


def requeued_ns(row: IntColumn, scheduled_ns: IntColumn, interruptions: Mapping[str, IntColumn]) -> IntColumn:
    """How long each request waited again after preemptions, since its last attempt was first scheduled. ``row``:
    all requests, ascending."""
    total = np.zeros_like(row)
    place = np.searchsorted(row, interruptions["row"])
    is_of_last = interruptions["preempted_ns"] >= scheduled_ns[place]
    np.add.at(total, place, np.where(is_of_last, interruptions["left_ns"] - interruptions["preempted_ns"], 0))
    return total
