"""The steady part of a run: its figures, how sure they are, and how many independent pieces the run is worth.

A queue remembers. Near saturation a busy spell lasts for hundreds of requests, so that a run of a thousand of them has
seen a few spells only: it is short, its p99 most of all. ``relaxations`` counts such spells; intervals are given where
there are enough of them. ``docs/load.md`` has how often the intervals cover the long-run value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.results.metrics import NS_PER_MS, FloatColumn, IntColumn, RequestTimes, Samples
from sim.results.record import RunRecord
from sim.workload.table import NO_PARENT

CONFIDENCE = 0.95
STEADY_BATCHES = 10
T_OF_BATCHES = 2.262
"""Two-sided 95 % quantile of Student's t with ``STEADY_BATCHES - 1`` degrees of freedom."""
LEAST_PER_BATCH = 10
LEAST_BEYOND = 20
"""A percentile needs as many requests beyond it, over the whole run: p99 needs 2,000."""
MOST_CORRELATION = 0.8
STEADY_STATISTICS = ("mean", "p50", "p90", "p95", "p99")
TAILS = {"mean": 0.1, "p50": 0.5, "p90": 0.1, "p95": 0.05, "p99": 0.01}
"""Share of the requests that lie beyond a statistic. A mean is as hard to know as a p90: long waits make most of it."""
BEYOND_BATCHES = 5.0
"""Relaxations beyond a statistic that intervals by batch means need: p99 500 in the run, a mean 50."""
WAITS_MATTER = 2.0
"""The queue is what decides tails where its p99 exceeds this times the p99 of the time from first step to first token;
an engine with room lets a request wait for the end of the running step, which is less."""


def relaxations(record: RunRecord, times: RequestTimes, headroom: float | None) -> float | None:
    """How many independent observations of its queue a run is worth.

    Requests where hardly any wait. Else ``requests * (1 - load)**2 / (ca2 + cs2)``: a queue in heavy traffic takes
    ``(ca2 + cs2) / (1 - load)**2`` requests to forget, ``ca2`` and ``cs2`` being the squared coefficients of variation
    of the gaps between arrivals and of the stays in the engine. 3,000 requests at 95 % load with Poisson arrivals and
    equal lengths are worth 7.5. None without a rate of arrivals.
    """
    if headroom is None or not len(times.row):
        return None
    requests = len(times.row)
    own_ns = times.ttft_ns - times.queue_ns
    if np.percentile(times.queue_ns, 99) <= WAITS_MATTER * np.percentile(own_ns, 99):
        return float(requests)
    arrival = record.requests["arrival_ns"]
    opens = (arrival >= 0) & (record.workload.parent[record.requests["row"]] == NO_PARENT)
    spread = _squared_variation(np.diff(np.sort(arrival[opens]))) + _squared_variation(times.e2el_ns - times.queue_ns)
    idle = max(0.0, 1.0 - 1.0 / headroom) if headroom > 0 else 0.0
    return min(float(requests), requests * idle**2 / spread) if spread > 0 else float(requests)


def _squared_variation(column: IntColumn | FloatColumn) -> float:
    """Variance over the squared mean; 0 where the mean is."""
    mean = float(column.mean()) if len(column) else 0.0
    return float(column.var()) / mean**2 if mean else 0.0


def steady_section(
    record: RunRecord, times: RequestTimes, window: tuple[int, int], saturated: bool, worth: float | None
) -> dict[str, Any]:
    """Figures of the requests that arrive within ``window``, and the half widths of their confidence intervals.

    ``worth``: the run's relaxations; None = its requests count as independent.
    """
    arrival = record.requests["arrival_ns"][times.row]
    mine = (arrival >= window[0]) & (arrival <= window[1])
    in_order = np.flatnonzero(mine)[np.argsort(arrival[mine], kind="stable")]
    columns: Mapping[str, IntColumn | FloatColumn] = {
        "ttft": times.ttft_ns[in_order],
        "tpot": times.tpot_ns[in_order],
        "e2el": times.e2el_ns[in_order],
        "queue": times.queue_ns[in_order],
    }
    section: dict[str, Any] = {"requests": len(in_order)}
    widths: dict[str, float | None] = {}
    for metric, column in columns.items():
        kept = column[~np.isnan(column)]
        whole = Samples(kept)
        for name in STEADY_STATISTICS:
            key = f"{name}_{metric}_ms"
            section[key] = _in_ms(_statistic(whole, name))
            is_short = worth is not None and worth * TAILS[name] < BEYOND_BATCHES
            widths[key] = None if saturated or is_short else half_width_ms(kept, name)
    section["confidence"] = {"level": CONFIDENCE, "batches": STEADY_BATCHES, "half_width": widths}
    return section


def half_width_ms(column: IntColumn | FloatColumn, name: str) -> float | None:
    """Half width of the interval of a statistic of ``column``, in order of arrival, by batch means.

    Of a mean: from the spread of the means of 10 batches. Of a percentile: from the spread of the shares of requests
    beyond it, read off the whole run's distribution; percentiles of short batches would be too low, and too much alike.
    Batches that follow each other are alike where the queue is slow: their correlation widens both. None where too few
    requests lie beyond a percentile, or where the interval would end beyond the longest one seen.
    """
    tail = 0.0 if name == "mean" else 1.0 - float(name[1:]) / 100
    if len(column) < STEADY_BATCHES * LEAST_PER_BATCH or (tail and round(len(column) * tail) < LEAST_BEYOND):
        return None
    if name == "mean":
        mean = float(column.mean())
        half = _half_width([float(part.mean()) for part in np.array_split(column, STEADY_BATCHES)])
        return mean * math.expm1(half / mean) / NS_PER_MS if mean > 0 else 0.0
    samples = Samples(column)
    value = samples.percentile(100 * (1 - tail))
    if value is None:
        return None
    half = _half_width([float((part > value).mean()) for part in np.array_split(column, STEADY_BATCHES)])
    if half >= tail:
        return None
    low = samples.percentile(100 * max(0.0, 1 - tail - half))
    high = samples.percentile(100 * (1 - tail + half))
    return None if low is None or high is None else max(value - low, high - value) / NS_PER_MS


def _half_width(batches: list[float]) -> float:
    """Half width of the t-interval of the mean of batches, wider by their correlation with their neighbours.

    The correlation that is found in 10 independent batches is some 1 / 10 below 0, which is added.
    """
    off = np.array(batches) - np.mean(batches)
    squares = float((off**2).sum())
    if not squares:
        return 0.0
    correlation = float((off[1:] * off[:-1]).sum()) / squares + 1 / STEADY_BATCHES
    correlation = min(max(correlation, 0.0), MOST_CORRELATION)
    error = math.sqrt(squares / (STEADY_BATCHES - 1) / STEADY_BATCHES)
    return T_OF_BATCHES * error * math.sqrt((1 + correlation) / (1 - correlation))


def _statistic(samples: Samples, name: str) -> float | None:
    return samples.mean() if name == "mean" else samples.percentile(float(name[1:]))


def _in_ms(value: float | None) -> float | None:
    return None if value is None else value / NS_PER_MS
