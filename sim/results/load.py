"""Whether the offered load is more than the engine serves, how much more it could serve, and the steady part of a run.

A run is called saturated by two witnesses. One is the queue: how fast the number of waiting requests grows over the
time of arrivals, by a one-sided t-test of level ``TEST_LEVEL`` on the slope of batch means. The other is headroom: the
rate at which the run's mix could be served (``sim/capacity.py``) over the offered rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sim.results.metrics import NS_PER_S, FloatColumn, IntColumn, RequestTimes
from sim.results.record import RunRecord, Status
from sim.results.steady import relaxations, steady_section
from sim.workload.table import NO_PARENT

TEST_LEVEL = 0.01
"""How often a queue of independent batch means that does not grow would be taken for one that does."""
TREND_BATCHES = 12
T_99 = 2.764
"""One-sided 99 % quantile of Student's t with ``TREND_BATCHES - 2`` degrees of freedom."""
LEAST_GROWTH = 0.02
"""Share of the arrivals by which the queue has to grow where headroom is about 1 or unknown."""
LEAST_GROWTH_ALONE = 0.10
"""The same where headroom says that the load could be served: part of the run, or of the replicas, is overloaded."""
OVERLOAD_BELOW = 0.97
"""Headroom from which on the load is called too much even if the run is too short for its queue to show it; below 1 by
about what the estimate is off."""
FITS_ABOVE = 1.05
WARMUP_STAYS = 3.0
"""The default warm-up, in mean times between a request's first step and its end."""
MOST_WARMUP = 0.25
"""The longest default warm-up, as a share of the time of arrivals."""


@dataclass(frozen=True, slots=True)
class Measure:
    """The scenario's ``measure``."""

    warmup_s: float | None = None
    """Seconds after the first arrival that steady figures leave out; None = ``default_warmup_ns``."""
    until: Literal["last_arrival", "end"] = "last_arrival"


@dataclass(frozen=True, slots=True)
class Trend:
    """How the number of waiting requests moves while requests arrive."""

    per_s: float
    """Slope, in requests per second."""
    t: float
    """The slope over its standard error."""


def load_section(
    record: RunRecord,
    times: RequestTimes,
    capacity: Callable[[RunRecord], float | None] | None,
    measure: Measure,
) -> dict[str, Any]:
    """``load`` of the summary. Without arrivals at a rate of their own (closed loops, requests that their sender held
    back, everything at one instant) there is no offered rate, no headroom, and nothing is saturated."""
    span = arrival_span(record)
    offered = offered_rate(record, span)
    can_serve = None if offered is None or capacity is None else capacity(record)
    headroom = None if offered is None or can_serve is None else can_serve / offered
    window = steady_window(record, times, span, measure)
    growth = None
    saturated = False
    if offered is not None:
        trend = queue_trend(record, span)
        growth = trend.per_s / offered
        saturated = is_saturated(growth, trend.t, headroom)
    worth = relaxations(record, times, headroom)
    return {
        "offered_rate": offered,
        "served_rate": _served_rate(record, window),
        "saturated": saturated,
        "headroom": headroom,
        "capacity": can_serve,
        "queue_growth": growth,
        "test_level": TEST_LEVEL,
        "relaxations": worth,
        "warmup_s": max(0, window[0] - span[0]) / NS_PER_S,
        "until": measure.until,
        "from_s": window[0] / NS_PER_S,
        "to_s": window[1] / NS_PER_S,
        "steady": steady_section(record, times, window, saturated, worth),
    }


def is_saturated(growth: float, t: float, headroom: float | None) -> bool:
    """Whether the load is more than the engine serves, by the queue's ``growth`` (share of the arrivals), its t
    statistic, and ``headroom``."""
    if headroom is not None and headroom < OVERLOAD_BELOW:
        return True
    alone = headroom is not None and headroom > FITS_ABOVE
    return t > T_99 and growth > (LEAST_GROWTH_ALONE if alone else LEAST_GROWTH)


def arrival_span(record: RunRecord) -> tuple[int, int]:
    """First and last instant at which a request arrived by itself, not released by the end of another one."""
    requests, workload = record.requests, record.workload
    arrival = requests["arrival_ns"]
    is_open = (arrival >= 0) & (workload.parent[requests["row"]] == NO_PARENT)
    if not is_open.any():
        return 0, 0
    first = int(arrival[is_open].min())
    waits_for_ends = workload.closed_loop_concurrency is not None or _held_back(record)
    return first, first if waits_for_ends else int(arrival[is_open].max())


def _held_back(record: RunRecord) -> bool:
    """Whether a sender's ``max_concurrency`` kept a request: ends of others then decide when requests are sent."""
    requests, workload = record.requests, record.workload
    if workload.sender is None:
        return False
    row, arrival = requests["row"], requests["arrival_ns"]
    is_open = (arrival >= 0) & (workload.parent[row] == NO_PARENT)
    return bool((arrival[is_open] > workload.arrival_ns[row[is_open]]).any())


def offered_rate(record: RunRecord, span: tuple[int, int]) -> float | None:
    """Requests per second that the workload sends, later turns of conversations with the rate of the first ones.

    11 conversations of 3 turns that start 1 s apart offer 3 requests per second, however long the last one takes.
    """
    if span[1] <= span[0]:
        return None
    arrival = record.requests["arrival_ns"]
    opens = (arrival >= 0) & (record.workload.parent[record.requests["row"]] == NO_PARENT)
    num_open, submitted = int(opens.sum()), int((arrival >= 0).sum())
    return submitted * (num_open - 1) / num_open / ((span[1] - span[0]) / NS_PER_S)


def queue_trend(record: RunRecord, span: tuple[int, int]) -> Trend:
    """The slope of the number of waiting requests over ``span``, by least squares on ``TREND_BATCHES`` batch means.
    A request waits from its arrival to its first step, or to its end where it had none."""
    requests = record.requests
    arrival, end = requests["arrival_ns"], requests["end_ns"]
    left = np.where(requests["scheduled_ns"] >= 0, requests["scheduled_ns"], end)
    waited = (arrival >= 0) & (left > arrival)
    edges = np.linspace(*span, TREND_BATCHES + 1)
    width_ns = (span[1] - span[0]) / TREND_BATCHES
    waiting = np.diff(_waited_until(arrival[waited], left[waited], edges)) / width_ns
    x = (np.arange(TREND_BATCHES) - (TREND_BATCHES - 1) / 2) * (width_ns / NS_PER_S)
    slope = float((x * waiting).sum() / (x * x).sum())
    residual = waiting - waiting.mean() - slope * x
    error = math.sqrt(float((residual**2).sum()) / (TREND_BATCHES - 2) / float((x * x).sum()))
    return Trend(slope, slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0)


def _waited_until(start: IntColumn, end: IntColumn, edges: FloatColumn) -> FloatColumn:
    """Nanoseconds waited by all intervals together before each edge."""
    total = np.zeros(len(edges))
    for sign, instants in ((1.0, np.sort(start)), (-1.0, np.sort(end))):
        passed = np.append(0.0, np.cumsum(instants.astype(np.float64)))
        count = np.searchsorted(instants, edges, side="right")
        total += sign * (count * edges - passed[count])
    return total


def steady_window(record: RunRecord, times: RequestTimes, span: tuple[int, int], measure: Measure) -> tuple[int, int]:
    """From the end of the warm-up to the last arrival, or to the end of the run."""
    end = max(span[1], int(record.requests["end_ns"].max(initial=0)))
    last = end if measure.until == "end" or span[1] <= span[0] else span[1]
    warmup_ns = default_warmup_ns(times, last - span[0]) if measure.warmup_s is None else measure.warmup_s * NS_PER_S
    return span[0] + round(warmup_ns), last


def default_warmup_ns(times: RequestTimes, length_ns: int) -> int:
    """Three mean stays in the engine (without waiting), after which it is about as full as it will be; at most a
    quarter of the time."""
    if not len(times.row):
        return 0
    stay_ns = float((times.e2el_ns - times.queue_ns).mean())
    return round(min(WARMUP_STAYS * stay_ns, MOST_WARMUP * length_ns))


def _served_rate(record: RunRecord, window: tuple[int, int]) -> float | None:
    """Requests completed per second of ``window``."""
    if window[1] <= window[0]:
        return None
    done = record.requests["status"] == Status.COMPLETED
    finish = record.requests["finish_ns"][done]
    return int(((finish > window[0]) & (finish <= window[1])).sum()) / ((window[1] - window[0]) / NS_PER_S)
