"""How points are timed: shuffled replays until the median is known to 1 %, with an eye on drift, throttling and sense.

A batch of points is prepared at once and replayed in an order drawn anew for every round, so that what changes slowly
(clocks, temperature) spreads over all shapes instead of spoiling a few. An anchor, the same point in every batch, tells
how much did change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gpu_calibrate.device.base import Device, DeviceState, PointError, Prepared, harmful
from gpu_calibrate.plan.points import ANCHOR, Point, floor_ns

CONFIDENCE = 0.95
IMPOSSIBLE = 1.05
"""Faster than the datasheet's peaks by more than this is a mistake of the measurement."""


@dataclass(frozen=True, slots=True)
class Settings:
    """When a point is known well enough."""

    min_replays: int = 10
    max_replays: int = 40
    interval: float = 0.01
    """Width of the median's confidence interval over the median."""
    batch_points: int = 24
    batch_bytes: int = 8 << 30
    """Buffers prepared at once."""
    warmup: int = 2


@dataclass(frozen=True, slots=True)
class Measurement:
    """One point, timed. Times are nanoseconds per launch."""

    point: Point
    n: int
    median_ns: float
    p10_ns: float
    p90_ns: float
    interval: float
    """Width of the median's 95 % confidence interval over the median."""
    launches: int
    kernel: str
    kernel_hash: str | None = None
    eager_ns: float | None = None
    throttle: tuple[str, ...] = ()
    """Reasons for lowered clocks seen while it was timed."""
    refused: str | None = None
    """Why the time cannot be right; such a measurement never reaches a profile."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A point that could not be timed."""

    point: Point
    reason: str


@dataclass(slots=True)
class Watch:
    """What was seen besides the times: the anchor's medians and the card's state, batch by batch."""

    anchors: dict[str, list[float]] = field(default_factory=dict)
    states: list[DeviceState] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def throttle(self) -> tuple[str, ...]:
        """All reasons seen, in order of first sight."""
        return tuple(dict.fromkeys(reason for state in self.states for reason in state.throttle))

    def drift(self, name: str) -> float:
        """Largest distance of an anchor's medians from their median, relative."""
        values = sorted(self.anchors.get(name, []))
        if not values:
            return 0.0
        middle = quantile(values, 0.5)
        return max(abs(value / middle - 1.0) for value in values)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, linear between neighbours."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median_ranks(n: int, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Positions (from 0) in n sorted samples between which the true median lies with this confidence, whatever the
    distribution: the number of samples under it is binomial with one half. None where n is too small to say.
    """
    tail, total, term = 0.0, 2.0**n, 1.0
    rank = 0
    # Probability of at most `rank` samples under the median; both tails must stay within 1 - confidence.
    for k in range(n):
        tail += term / total
        if 2.0 * tail > 1.0 - confidence:
            break
        rank = k + 1
        term *= (n - k) / (k + 1)
    return None if rank == 0 else (rank - 1, n - rank)


def interval_width(samples: Sequence[float]) -> float:
    """Width of the median's confidence interval over the median; infinite with fewer than six samples."""
    ordered = sorted(samples)
    ranks = median_ranks(len(ordered))
    if ranks is None:
        return float("inf")
    return (ordered[ranks[1]] - ordered[ranks[0]]) / quantile(ordered, 0.5)


def refusal(point: Point, time_ns: float, device: Device) -> str | None:
    """Why a time cannot be right, or None."""
    facts = device.facts
    floor = floor_ns(point, facts.gpu, facts.l2_bytes)
    if time_ns * IMPOSSIBLE < floor:
        share = floor / time_ns
        return f"{time_ns:,.0f} ns is {share:.0%} of what {facts.gpu.name} can do by its datasheet"
    return None


def batches(points: Sequence[Point], settings: Settings, size_of: Callable[[Point], int]) -> Iterator[list[Point]]:
    """Consecutive points that are measured together, by number and by the memory of their buffers."""
    batch: list[Point] = []
    held = 0
    for point in points:
        size = size_of(point)
        if batch and (len(batch) >= settings.batch_points or held + size > settings.batch_bytes):
            yield batch
            batch, held = [], 0
        batch.append(point)
        held += size
    if batch:
        yield batch


def measure_batch(
    device: Device,
    points: Sequence[Point],
    settings: Settings,
    rng: random.Random,
    watch: Watch,
    anchors: Sequence[Prepared],
) -> tuple[list[Measurement], list[Failure]]:
    """Time these points together. Raises DeviceError."""
    prepared: list[Prepared] = []
    failures: list[Failure] = []
    before = device.state()
    for point in points:
        try:
            prepared.append(device.prepare(point))
        except PointError as error:
            failures.append(Failure(point, str(error)))
    try:
        watch.peak_bytes = max(watch.peak_bytes, device.memory_used_bytes())
        samples = _replays(device, [*prepared, *anchors], settings, rng)
        eager = [device.eager(each) for each in prepared]
    finally:
        device.release(prepared)
    after = device.state()
    watch.states += [before, after]
    for anchor, times in zip(anchors, samples[len(prepared) :], strict=True):
        watch.anchors.setdefault(str(anchor.point), []).append(quantile(sorted(times), 0.5))
    seen = tuple(dict.fromkeys((*before.throttle, *after.throttle)))
    measured = [
        summarise(each, times, device, eager_ns, seen)
        for each, times, eager_ns in zip(prepared, samples, eager, strict=False)
    ]
    return measured, failures


def _replays(device: Device, prepared: Sequence[Prepared], settings: Settings, rng: random.Random) -> list[list[float]]:
    """Samples of each, in rounds of a few replays in shuffled order; what is known well enough drops out."""
    for _ in range(settings.warmup if prepared else 0):
        device.replay(prepared)
    samples: list[list[float]] = [[] for _ in prepared]
    active = list(range(len(prepared)))
    wanted = settings.min_replays
    while active:
        order = [position for position in active for _ in range(wanted)]
        rng.shuffle(order)
        for position, time_ns in zip(order, device.replay([prepared[position] for position in order]), strict=True):
            samples[position].append(time_ns)
        wanted = max(1, settings.min_replays // 2)
        active = [
            position
            for position in active
            if len(samples[position]) < settings.max_replays
            and interval_width(samples[position]) >= settings.interval
            and prepared[position].point.role != ANCHOR
        ]
    return samples


def summarise(
    prepared: Prepared, samples: Sequence[float], device: Device, eager_ns: float | None, throttle: tuple[str, ...]
) -> Measurement:
    """A point's samples as what is written down."""
    ordered = sorted(samples)
    median = quantile(ordered, 0.5)
    return Measurement(
        point=prepared.point,
        n=len(ordered),
        median_ns=median,
        p10_ns=quantile(ordered, 0.1),
        p90_ns=quantile(ordered, 0.9),
        interval=interval_width(ordered),
        launches=prepared.launches,
        kernel=prepared.kernel,
        kernel_hash=prepared.kernel_hash,
        eager_ns=eager_ns,
        throttle=throttle,
        refused=refusal(prepared.point, median, device),
    )


def spoiled(measurement: Measurement) -> bool:
    """Whether it was taken while something slowed the card that does not belong to its normal working."""
    return bool(harmful(DeviceState(throttle=measurement.throttle)))
