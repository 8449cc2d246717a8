"""Host time that shows: for which the accelerator stood still."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.results.metrics import exact_sum
from sim.results.record import ROWS_AT_ONCE, IntColumn, RunRecord

Rows = npt.NDArray[np.intp]


def exposed_host_ns(record: RunRecord, rows: Rows) -> IntColumn:
    """Host time of each row of steps (``rows``, in order of scheduling) for which the accelerator stood still.

    A step scheduled at 0 with 2 ms of host time while the accelerator computes until 5 ms has none; one that is
    scheduled when the accelerator is free has 2 ms. Within a run of equal steps it is what their span is longer than
    their computation.
    """
    names = ("replica", "scheduled_ns", "start_ns", "end_ns", "num_steps", "gpu_ns", "host_ns")
    replica, scheduled, start, end, num_steps, gpu, host = (record.steps[name][rows] for name in names)
    order = np.argsort(replica, kind="stable")
    is_next = np.append(False, replica[order][1:] == replica[order][:-1]) if len(order) else order.astype(bool)
    free = np.zeros_like(end)
    free[order[is_next]] = end[order[:-1][is_next[1:]]]
    exposed = start - np.maximum(scheduled, free)
    exposed += np.where(num_steps > 1, np.maximum(end - start - gpu, 0), 0)
    found: IntColumn = np.minimum(np.maximum(exposed, 0), host)
    return found


def total_exposed_host_ns(record: RunRecord, rows: Rows) -> int:
    """Of one replica's ``rows``, all of them; in chunks that keep a long run small."""
    total = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        first = max(start - 1, 0)  # the row before says when the accelerator is free
        found = exposed_host_ns(record, rows[first : start + ROWS_AT_ONCE])
        total += exact_sum(found[start - first :])
    return total
