"""From a run's columns to numbers: latency statistics, goodput, time averages.

Statistics of instants and gaps are computed on integer nanoseconds with exact sums, so that they do
not depend on the order of additions or the width of a vector unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from sim.results.limits import latency_limits
from sim.results.record import RunRecord, Status

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

STATISTICS = ("mean", "median", "std", "p50", "p90", "p95", "p99")
"""The statistics of every latency metric, named as in the output of ``vllm bench serve``."""
METRICS = ("ttft", "tpot", "itl", "e2el")
NS_PER_MS = 1e6
NS_PER_S = 1e9

_LIMB_BITS = 21
_LIMB_MASK = (1 << _LIMB_BITS) - 1
_CHUNK_ROWS = 1 << 20


def exact_dot(a: IntColumn, b: IntColumn) -> int:
    """Sum of ``a * b`` as a Python integer, whatever its size.

    Where 64 bits could be too few, values are cut into three limbs of 21; a product of two has 42, so 2**20 rows fit.
    """
    if _largest(a) * _largest(b) * len(a) < 2**63:
        return int(np.dot(a, b))
    total = 0
    for start in range(0, len(a), _CHUNK_ROWS):
        limbs_a, limbs_b = (_limbs(column[start : start + _CHUNK_ROWS]) for column in (a, b))
        for i, limb_a in enumerate(limbs_a):
            for j, limb_b in enumerate(limbs_b):
                total += int(np.dot(limb_a, limb_b)) << (_LIMB_BITS * (i + j))
    return total


def exact_sum(values: IntColumn) -> int:
    """Sum of a column as a Python integer."""
    if _largest(values) * len(values) < 2**63:
        return int(np.sum(values))
    low, high = int(np.sum(values & 0xFFFFFFFF)), int(np.sum(values >> 32))
    return (high << 32) + low


def _largest(values: IntColumn) -> int:
    """The largest magnitude."""
    return max(-int(values.min(initial=0)), int(values.max(initial=0)))


def _exact_second_moment(values: IntColumn, weights: IntColumn) -> int:
    """Sum of ``weights * values**2``."""
    largest = int(np.abs(values).max(initial=0)) * int(weights.max(initial=0))
    if largest < 2**62:
        return exact_dot(values * weights, values)
    return sum(weight * value * value for value, weight in zip(values.tolist(), weights.tolist(), strict=True))


def _limbs(values: IntColumn) -> tuple[IntColumn, IntColumn, IntColumn]:
    return values & _LIMB_MASK, (values >> _LIMB_BITS) & _LIMB_MASK, values >> (2 * _LIMB_BITS)


class Samples:
    """A sorted sample, each value counted ``weights`` times.

    ``percentile`` is numpy's default (linear interpolation, Hyndman & Fan's type 7) on the sample written out
    in full, bit for bit. ``std`` is the population's, as numpy's and vLLM's.
    """

    def __init__(self, values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        column = np.asarray(values)
        self.values: IntColumn | FloatColumn
        self._last_rank: IntColumn | None = None
        self.weights: IntColumn | None = None
        self.count: int = len(column)
        """Samples, repetitions included."""
        self._total: int | float | None = None
        if weights is None:
            self.values = np.sort(column)
        else:
            order = np.argsort(column, kind="stable")
            self.values = column[order]
            self.weights = np.asarray(weights, dtype=np.int64)[order]
            self._last_rank = np.cumsum(self.weights)
            self.count = int(self._last_rank[-1]) if len(column) else 0

    def _at(self, rank: int) -> np.int64 | np.float64:
        index = rank if self._last_rank is None else int(np.searchsorted(self._last_rank, rank, side="right"))
        return cast("np.int64 | np.float64", self.values[index])

    def percentile(self, q: float) -> float | None:
        """The ``q``-th percentile (0 to 100), or None without samples."""
        if self.count == 0:
            return None
        virtual = (self.count - 1) * (q / 100)
        below = min(math.floor(virtual), self.count - 1)
        low, high = self._at(below), self._at(min(below + 1, self.count - 1))
        fraction = virtual - below
        # Both forms, as numpy: the second keeps the result monotonic near the upper neighbour.
        if fraction >= 0.5:
            return float(high - (high - low) * (1 - fraction))
        return float(low + (high - low) * fraction)

    def total(self) -> int | float:
        """Sum of the samples; exact for integers, correctly rounded for floats."""
        if self._total is None:
            column = cast(IntColumn, self.values)
            if self.values.dtype.kind == "f":
                self._total = math.fsum(self.values.tolist())
            else:
                self._total = exact_sum(column) if self.weights is None else exact_dot(column, self.weights)
        return self._total

    def mean(self) -> float | None:
        """Arithmetic mean, or None without samples."""
        return self.total() / self.count if self.count else None

    def std(self) -> float | None:
        """Standard deviation of the sample as a population, or None without samples."""
        if self.count == 0:
            return None
        if self.values.dtype.kind == "f":
            mean = self.total() / self.count
            return math.sqrt(math.fsum(((self.values - mean) ** 2).tolist()) / self.count)
        column = cast(IntColumn, self.values)
        centred: IntColumn = column - int(self.total()) // self.count
        if self.weights is None:
            first, second = exact_sum(centred), exact_dot(centred, centred)
        else:
            first, second = exact_dot(centred, self.weights), _exact_second_moment(centred, self.weights)
        return math.sqrt((second * self.count - first * first) / (self.count * self.count))

    def statistics(self, scale: float = NS_PER_MS) -> dict[str, float | None]:
        """Every one of ``STATISTICS``, divided by ``scale`` (nanoseconds to milliseconds by default)."""
        found = {
            "mean": self.mean(),
            "median": self.percentile(50),
            "std": self.std(),
            **{name: self.percentile(float(name[1:])) for name in STATISTICS if name[1:].isdigit()},
        }
        return {name: None if value is None else value / scale for name, value in found.items()}


@dataclass(slots=True)
class RequestTimes:
    """Latencies of the completed requests of a run, in nanoseconds, one element per request."""

    row: IntColumn
    """Position among ``RunRecord.requests``, not in the workload."""
    ttft_ns: IntColumn
    tpot_ns: FloatColumn
    """(E2E - TTFT) / (output_tokens - 1); NaN for a request of one token. Equal to the request's mean ITL."""
    e2el_ns: IntColumn
    queue_ns: IntColumn
    """From arrival to the first step, and waiting again after preemptions."""

    @classmethod
    def of(cls, record: RunRecord) -> RequestTimes:
        """Latencies of ``record``'s completed requests, in row order."""
        columns = record.requests
        row = np.flatnonzero(columns["status"] == Status.COMPLETED)
        arrival, first = columns["arrival_ns"][row], columns["first_token_ns"][row]
        ttft, e2el = first - arrival, columns["finish_ns"][row] - arrival
        gaps = columns["output_tokens"][row] - 1
        tpot = np.full(len(row), np.nan)
        np.divide(e2el - ttft, gaps, out=tpot, where=gaps > 0)
        queue = columns["scheduled_ns"][row] - arrival + columns["requeued_ns"][row]
        return cls(row, ttft, tpot, e2el, queue)

    def samples(self, chosen: Mask | None = None) -> dict[str, Samples]:
        """``ttft``, ``tpot``, ``e2el`` and ``queue`` of the ``chosen`` requests (all by default)."""
        keep = slice(None) if chosen is None else chosen
        tpot = self.tpot_ns[keep]
        return {
            "ttft": Samples(self.ttft_ns[keep]),
            "tpot": Samples(tpot[~np.isnan(tpot)]),
            "e2el": Samples(self.e2el_ns[keep]),
            "queue": Samples(self.queue_ns[keep]),
        }

    def good(self, limits: Mapping[str, float]) -> Mask:
        """Which requests stay within every one of ``limits`` (names as in a scenario's ``slo``, milliseconds).

        A request's own TTFT, TPOT, mean ITL and E2E count; where a metric has several limits, the tightest.
        A request of one token has no TPOT and no ITL, and those limits do not touch it.
        """
        own = {"ttft": self.ttft_ns, "tpot": self.tpot_ns, "itl": self.tpot_ns, "e2el": self.e2el_ns}
        result: Mask = np.ones(len(self.row), dtype=bool)
        for name, limit_ms in latency_limits(limits).items():
            result &= ~(own[name.split("_")[0]] / NS_PER_MS > limit_ms)
        return result


def good_requests(record: RunRecord, times: RequestTimes, limits: Mapping[str, float] | None) -> Mask | None:
    """Completed requests that meet their SLO: their class's own, else ``limits``. None without any SLO.

    Where only some classes have an SLO, completed requests of the others have nothing to miss and count as good.
    """
    class_limits = [info.slo if info.slo else limits for info in record.workload.classes]
    if not any(class_limits):
        return None
    class_index = record.requests["class_index"][times.row]
    result: Mask = np.ones(len(times.row), dtype=bool)
    for index, own in enumerate(class_limits):
        if own:
            result &= times.good(own) | (class_index != index)
    return result


def run_window(record: RunRecord) -> tuple[int, int]:
    """First arrival and last end of any request, in nanoseconds; (0, 0) if nothing arrived."""
    arrival, end = record.requests["arrival_ns"], record.requests["end_ns"]
    arrived = arrival >= 0
    if not arrived.any():
        return 0, 0
    first = int(arrival[arrived].min())
    return first, max(first, int(end.max()))


def busy_window(record: RunRecord) -> tuple[int, int]:
    """The time in which accelerators can work: as ``run_window``, up to the end of the last step. An engine that
    schedules ahead computes a step for requests that have ended."""
    first, last = run_window(record)
    return first, max(last, int(record.steps["end_ns"].max(initial=last)))


@dataclass(frozen=True, slots=True)
class Presence:
    """How many of something were present over a window, from their comings and goings."""

    mean: float | None
    maximum: int
    rate_per_s: float | None
    """Arrivals per second of the window (Little's lambda)."""
    mean_stay_s: float | None
    """Mean time between coming and going (Little's W)."""

    @classmethod
    def of(
        cls, start_ns: IntColumn, end_ns: IntColumn, window: tuple[int, int], num_requests: int | None = None
    ) -> Presence:
        """Sweep over the events of intervals ``[start_ns, end_ns)`` that lie within ``window``.

        ``mean`` is the integral of the number present over the window's length, ``rate_per_s * mean_stay_s``
        comes from the intervals' own lengths: that both agree is Little's law. ``num_requests`` have these intervals
        together (None = one each): a request that comes twice counts once, and stays for both.
        """
        length = window[1] - window[0]
        events = np.concatenate([start_ns, end_ns])
        change = np.concatenate([np.ones_like(start_ns), -np.ones_like(end_ns)])
        order = np.lexsort((change, events))  # goings before comings of one instant
        present = np.cumsum(change[order])
        durations = np.diff(events[order], append=window[1]) if len(events) else events
        count = len(start_ns) if num_requests is None else num_requests
        stay_ns = exact_sum(end_ns - start_ns)
        return cls(
            mean=exact_dot(present, durations) / length if length else None,
            maximum=int(present.max(initial=0)),
            rate_per_s=count / (length / NS_PER_S) if length else None,
            mean_stay_s=stay_ns / count / NS_PER_S if count else None,
        )


def arrival_rate(arrival_ns: IntColumn) -> float | None:
    """Arrivals per second between the first and the last of them; None for fewer than two instants.

    Arrivals at 0, 1, 2 and 3 s are 1 per second, however long the last one takes to be served.
    """
    length_ns = int(arrival_ns.max() - arrival_ns.min()) if len(arrival_ns) else 0
    return (len(arrival_ns) - 1) / (length_ns / NS_PER_S) if length_ns else None


class RowsByReplica:
    """The rows of each replica in a table's ``replica`` column, found by sorting once instead of by one search each."""

    def __init__(self, columns: Mapping[str, IntColumn], replicas: int) -> None:
        replica = columns["replica"]
        # Stable, so that rows of a replica keep their order; numpy sorts 16-bit integers in linear time.
        narrow = replica.astype(np.int16) if replicas <= np.iinfo(np.int16).max else replica
        self._order = np.argsort(narrow, kind="stable")
        self._first = np.searchsorted(narrow, np.arange(replicas + 1), sorter=self._order)

    def __getitem__(self, replica: int) -> npt.NDArray[np.intp]:
        """Positions of ``replica``'s rows, in the table's order."""
        return self._order[self._first[replica] : self._first[replica + 1]]


def step_segments(record: RunRecord, rows: npt.NDArray[np.intp]) -> tuple[IntColumn, IntColumn]:
    """The time that each of a replica's steps (``rows``, all of them) describes the replica: from its ``schedule()``
    to the next step's, or to its own end where the replica then stands idle."""
    start, end = record.steps["scheduled_ns"][rows], record.steps["end_ns"][rows]
    if len(rows):
        end = np.minimum(end, np.append(start[1:], np.iinfo(np.int64).max))
    return start, np.maximum(end, start)
