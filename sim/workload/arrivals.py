"""When requests arrive: every process of the scenario's ``arrival`` as sorted integer nanoseconds.

All draws of a process come in order from one generator, so the first ``n`` arrivals do not depend
on how many are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sim.errors import InputError
from sim.scenario.schema import (
    Arrival,
    BurstArrival,
    ClosedLoopArrival,
    ConstantArrival,
    DiurnalArrival,
    GammaArrival,
    PoissonArrival,
    StagesArrival,
    WeibullArrival,
)
from sim.workload.table import IntColumn

NS_PER_S = 1_000_000_000

MAX_REQUESTS = 50_000_000
"""More than this is taken for a slip (a rate in the wrong unit) rather than simulated until memory runs out."""

MAX_SPAN_S = 1e9
"""About 31 years: the same kind of slip, and well inside what 64-bit nanoseconds hold."""

CHUNK = 1 << 16

CLOSED_LOOP_MIN_SERVICE_S = 0.01
"""A closed loop bounded by time alone prepares one request per client and this time (plus think time) ..."""
CLOSED_LOOP_MAX_ROWS = 1_000_000
"""... but not more than this many."""

WEIBULL_SHAPES = (0.05, 1e4)


def arrival_times(
    arrival: Arrival, gen: np.random.Generator, requests: int | None, duration_s: float | None, where: str = "workload"
) -> IntColumn:
    """Sorted instants of arrival in ns: the first ``requests`` of them, and only those before ``duration_s``.

    Exact in distribution for each process. ``constant`` has its first arrival at 0, the random
    processes have theirs after the first gap. A closed loop gives the think time for every row
    beyond the first ``concurrency``, which are at 0: those are not instants but delays.

    Raises InputError if nothing bounds the number of requests, or if it would exceed MAX_REQUESTS.
    """
    check_bounded(arrival, requests, duration_s, where)
    if isinstance(arrival, ClosedLoopArrival):
        return _closed_loop(arrival, requests, duration_s)
    if isinstance(arrival, BurstArrival):
        times = np.full(requests or 0, _to_ns(arrival.at_s), dtype=np.int64)
        return _before(times, duration_s)
    if isinstance(arrival, ConstantArrival):
        return _constant(arrival.rate, requests, duration_s)
    if isinstance(arrival, StagesArrival):
        return _stages(arrival, gen, requests, duration_s)
    if isinstance(arrival, DiurnalArrival):
        return _thinned(arrival, gen, requests, duration_s)
    return _renewal(_gap_sampler(arrival, gen), arrival.rate, requests, duration_s)


def check_bounded(arrival: Arrival, requests: int | None, duration_s: float | None, where: str) -> None:
    """Raise InputError unless ``requests`` or ``duration_s`` ends this process at a sensible size."""
    if isinstance(arrival, BurstArrival) and requests is None:
        raise InputError(f"{where}.arrival: a burst needs `requests`, the number of requests that arrive at once")
    if isinstance(arrival, StagesArrival):
        expected = sum(stage.rate * stage.duration_s for stage in arrival.stages)
    elif requests is None and duration_s is None:
        raise InputError(
            f"{where}: the {arrival.process} arrival process never ends by itself; "
            "give `requests` (how many) and/or `duration_s` (seconds of arrivals)"
        )
    elif isinstance(arrival, ClosedLoopArrival) and requests is None:
        expected = float(arrival.concurrency)  # each client sends at least one
    elif isinstance(arrival, BurstArrival | ClosedLoopArrival) or duration_s is None:
        expected = float(requests or 0)
    else:
        expected = arrival.rate * duration_s
    longest_s = duration_s
    if duration_s is None and not isinstance(arrival, StagesArrival | BurstArrival | ClosedLoopArrival):
        longest_s = (requests or 0) / arrival.rate
    if longest_s is not None and longest_s > MAX_SPAN_S:
        raise InputError(
            f"{where}: arrivals would go on for {longest_s:.3g} s; the limit is {MAX_SPAN_S:.0e} s. "
            "Rates are requests per second, durations seconds"
        )
    if min(expected, requests or math.inf) > MAX_REQUESTS:
        raise InputError(
            f"{where}: this arrival process would create about {expected:.3g} requests; the limit is "
            f"{MAX_REQUESTS:,}. "
            + (
                "A closed loop has one request per client at least: lower `concurrency`"
                if isinstance(arrival, ClosedLoopArrival) and requests is None
                else "Rates are requests per second: lower `rate` or give a smaller `requests`"
            )
        )


def _to_ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)


def _before(times: IntColumn, duration_s: float | None) -> IntColumn:
    """The sorted ``times`` that lie before the end."""
    if duration_s is None:
        return times
    return times[: int(np.searchsorted(times, _to_ns(duration_s), side="left"))]


def _constant(rate: float, requests: int | None, duration_s: float | None) -> IntColumn:
    count = requests
    if duration_s is not None:
        fits = math.ceil(duration_s * rate) + 1
        count = fits if count is None else min(count, fits)
    times = np.rint(np.arange(count or 0, dtype=np.float64) * (NS_PER_S / rate)).astype(np.int64)
    return _before(times, duration_s)


def _gap_sampler(
    arrival: PoissonArrival | GammaArrival | WeibullArrival, gen: np.random.Generator
) -> Callable[[int], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Gaps in seconds with mean ``1 / rate``."""
    mean = 1.0 / arrival.rate
    if isinstance(arrival, PoissonArrival):
        return lambda n: gen.exponential(mean, n)
    if isinstance(arrival, GammaArrival):
        shape = arrival.cv**-2
        return lambda n: gen.gamma(shape, mean / shape, n)
    shape = weibull_shape(arrival.cv)
    scale = mean / math.gamma(1.0 + 1.0 / shape)
    return lambda n: scale * gen.weibull(shape, n)


def weibull_shape(cv: float) -> float:
    """Shape of the Weibull distribution with this coefficient of variation.

    Solves ln(1 + cv**2) = ln G(1 + 2/k) - 2 ln G(1 + 1/k), whose right side falls with k, by
    bisection on ln k. Raises InputError outside the shapes 0.05..10,000 (cv about 1.3e-4..3.7e5).
    """
    target = math.log1p(cv * cv)

    def excess(log_k: float) -> float:
        k = math.exp(log_k)
        return math.lgamma(1.0 + 2.0 / k) - 2.0 * math.lgamma(1.0 + 1.0 / k) - target

    low, high = (math.log(k) for k in WEIBULL_SHAPES)
    if not excess(low) > 0.0 > excess(high):
        raise InputError(f"workload.arrival.cv: no usable Weibull distribution has cv {cv:g}; give 0.001..100000")
    for _ in range(80):
        middle = 0.5 * (low + high)
        if excess(middle) > 0.0:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))


def _renewal(
    gaps: Callable[[int], np.ndarray[tuple[int], np.dtype[np.float64]]],
    rate: float,
    requests: int | None,
    duration_s: float | None,
) -> IntColumn:
    """Independent gaps, each rounded to whole ns before they are summed: sums are then exact."""
    if requests is not None and (duration_s is None or requests <= CHUNK):
        return _before(np.cumsum(np.rint(gaps(requests) * NS_PER_S).astype(np.int64)), duration_s)
    end_ns = _to_ns(duration_s or 0.0)
    chunks: list[IntColumn] = []
    count, last = 0, 0
    while last < end_ns and (requests is None or count < requests):
        size = CHUNK if requests is None else min(CHUNK, requests - count)
        times = last + np.cumsum(np.rint(gaps(size) * NS_PER_S).astype(np.int64))
        chunks.append(times)
        count += size
        last = int(times[-1])
        if count > 2 * MAX_REQUESTS:
            raise InputError(f"workload: more than {MAX_REQUESTS:,} requests within {duration_s:g} s at rate {rate:g}")
    return _before(np.concatenate(chunks), duration_s)


def _stages(
    arrival: StagesArrival, gen: np.random.Generator, requests: int | None, duration_s: float | None
) -> IntColumn:
    """A unit-rate Poisson process read on the clock of the cumulative rate (time change)."""
    rates = np.array([stage.rate for stage in arrival.stages])
    lengths = np.array([stage.duration_s for stage in arrival.stages])
    mass_end = np.cumsum(rates * lengths)
    starts = np.cumsum(lengths) - lengths
    total = float(mass_end[-1])
    chunks: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
    last, count = 0.0, 0
    while last < total and (requests is None or count < requests):
        mass = last + np.cumsum(gen.exponential(1.0, CHUNK))
        chunks.append(mass)
        count += CHUNK
        last = float(mass[-1])
    mass = np.concatenate(chunks) if chunks else np.empty(0)
    mass = mass[mass < total][:requests]
    stage = np.searchsorted(mass_end, mass, side="right")  # "right" steps over stages of rate 0
    within = (mass - (mass_end - rates * lengths)[stage]) / rates[stage]
    return _before(np.rint((starts[stage] + within) * NS_PER_S).astype(np.int64), duration_s)


def _thinned(
    arrival: DiurnalArrival, gen: np.random.Generator, requests: int | None, duration_s: float | None
) -> IntColumn:
    """Lewis and Shedler's thinning: candidates at the peak rate, each kept with probability rate(t) / peak."""
    peak = arrival.rate * (1.0 + arrival.amplitude)
    kept: list[IntColumn] = []
    count, last = 0, 0
    end_ns = None if duration_s is None else _to_ns(duration_s)
    while (requests is None or count < requests) and (end_ns is None or last < end_ns):
        draws = gen.random((CHUNK, 2))
        times = last + np.cumsum(np.rint(-np.log1p(-draws[:, 0]) * (NS_PER_S / peak)).astype(np.int64))
        phase = (times / NS_PER_S - arrival.peak_s) * (2.0 * math.pi / arrival.period_s)
        rate = arrival.rate * (1.0 + arrival.amplitude * np.cos(phase))
        kept.append(times[draws[:, 1] * peak < rate])
        count += len(kept[-1])
        last = int(times[-1])
    return _before(np.concatenate(kept)[:requests], duration_s)


def _closed_loop(arrival: ClosedLoopArrival, requests: int | None, duration_s: float | None) -> IntColumn:
    rows = requests
    if rows is None:
        per_client = math.ceil((duration_s or 0.0) / (arrival.think_time_s + CLOSED_LOOP_MIN_SERVICE_S)) + 1
        rows = max(arrival.concurrency, min(arrival.concurrency * per_client, CLOSED_LOOP_MAX_ROWS))
    delays = np.full(rows, _to_ns(arrival.think_time_s), dtype=np.int64)
    delays[: arrival.concurrency] = 0
    return delays
