"""A calibration from start to file: plan, time in batches, keep every result, fit, write.

What is measured is in the partial file at once. Ctrl-C, the end of the time or a GPU that stops working end the timing,
not the data: the same command goes on where it was.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_calibrate.device.base import Device, DeviceError, Prepared
from gpu_calibrate.fit.build_profile import COPY_BYTES, build_profile
from gpu_calibrate.fit.run_results import Results
from gpu_calibrate.plan.grid import Plan
from gpu_calibrate.plan.points import ANCHOR, ON_GPU, Point, work_of
from gpu_calibrate.timing.replays import (
    Failure,
    Measurement,
    Settings,
    Watch,
    batches,
    measure_batch,
    quantile,
    spoiled,
)
from gpu_calibrate.timing.store import MAX_CRASHES, Store
from sim.latency.profile.file import Profile

ANCHORS = (
    Point("gemm", ("bfloat16", 4096, 4096), 2048, ANCHOR),
    Point("host_copy", (ON_GPU,), COPY_BYTES, ANCHOR),
)
"""Timed in every batch: one is bound by arithmetic, one by memory."""

RETRIES = 2
"""Times that what was taken on a throttled card is taken again at the end."""

Progress = Callable[[int, int, str], None]
"""(points done, points in all, what is being done)"""
Extra = tuple[str, Callable[[], Any]]
"""A measurement that is no point, by name."""


@dataclass(slots=True)
class Calibration:
    """One process's part of a calibration."""

    device: Device
    plan: Plan
    store: Store
    limit_s: float
    """Of this process, for points; what is not timed by then is left out, and said."""
    extras: Sequence[Extra] = ()
    settings: Settings = field(default_factory=Settings)
    progress: Progress = lambda done, total, what: None
    clock: Callable[[], float] = time.monotonic
    watch: Watch = field(default_factory=Watch)
    interrupted: bool = False
    _started_s: float = 0.0

    def measure(self) -> None:
        """Time what is not yet in the store. Raises DeviceError; an interrupt is remembered in ``interrupted``."""
        self._started_s = self.clock()
        self._recall()
        try:
            self._time_points()
            self._time_extras()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.store.extra("watch", self._remember())
            self.store.spent(self.clock() - self._started_s)

    def _todo(self) -> tuple[list[Point], list[Point]]:
        """Points to be timed together, and suspects to be timed alone."""
        kept = self.store.kept
        together, alone = [], []
        for point in self.plan.points:
            if point.id in kept.measurements or point.id in kept.failures or point.operator == "all_reduce":
                continue
            crashes = kept.crashes[point.id]
            if crashes >= MAX_CRASHES:
                self.store.failed(Failure(point, "the GPU stopped working twice while it was timed"))
            elif crashes:
                alone.append(point)
            else:
                together.append(point)
        return together, alone

    def _time_points(self) -> None:
        rng = random.Random(0)
        together, alone = self._todo()
        if not together and not alone:
            return
        anchors = [self.device.prepare(anchor) for anchor in ANCHORS]
        try:
            groups = [*batches(together, self.settings, self._buffer_bytes), *([point] for point in alone)]
            finished = self._time_batches(groups, rng, anchors)
            for _ in range(RETRIES):
                again = [m.point for m in self.store.kept.measurements.values() if spoiled(m)]
                if finished and again:
                    groups = list(batches(again, self.settings, self._buffer_bytes))
                    finished = self._time_batches(groups, rng, anchors)
        finally:
            self.device.release(anchors)

    def _time_batches(self, groups: Sequence[Sequence[Point]], rng: random.Random, anchors: Sequence[Prepared]) -> bool:
        """Whether there was time for all."""
        for group in groups:
            if self.clock() - self._started_s > self.limit_s:
                return False
            self._tell(f"{group[0].operator}")
            self.store.begin(group)
            try:
                measured, failures = measure_batch(self.device, group, self.settings, rng, self.watch, anchors)
            except KeyboardInterrupt:
                self.store.stopped(group)
                raise
            for measurement in measured:
                self.store.measured(measurement)
            for failure in failures:
                self.store.failed(failure)
        self._tell("done")
        return True

    def _time_extras(self) -> None:
        for name, extra in self.extras:
            if name in self.store.kept.extras:
                continue
            self._tell(name)
            try:
                self.store.extra(name, extra())
            except DeviceError:
                raise
            except Exception as error:
                # One of several; the profile does without and says so.
                self.store.extra(f"{name} failed", f"{type(error).__name__}: {error}")

    def _buffer_bytes(self, point: Point) -> int:
        """Memory that a point will hold: enough buffers for three times the L2, or one of its own size."""
        return max(work_of(point).bytes, 3 * self.device.facts.l2_bytes)

    def _tell(self, what: str) -> None:
        kept = self.store.kept
        planned = {point.id for point in self.plan.points}
        done = len(planned & (kept.measurements.keys() | kept.failures.keys()))
        self.progress(done, len(planned), what)

    def _recall(self) -> None:
        """Take over what earlier processes of this calibration have seen."""
        seen = self.store.kept.extras.get("watch")
        if seen:
            self.watch.anchors = {name: list(values) for name, values in seen["anchors"].items()}
            self.watch.peak_bytes = int(seen["peak_bytes"])

    def _remember(self) -> dict[str, Any]:
        return {"anchors": self.watch.anchors, "peak_bytes": self.watch.peak_bytes}

    def results(self, command: str) -> Results:
        """What there is, whether complete or not."""
        kept = self.store.kept
        planned = [point.id for point in self.plan.points]
        measured = [*kept.measurements.values(), *_all_reduces(kept.extras)]
        known = {each.point.id for each in measured} | kept.failures.keys()
        return Results(
            facts=self.device.facts,
            measurements=measured,
            failures=list(kept.failures.values()),
            extras={name: value for name, value in kept.extras.items() if name != "watch"},
            watch=self.watch,
            command=command,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=kept.seconds,
            left_out=self.plan.left_out + sum(identity not in known for identity in planned),
        )

    @property
    def num_untimed(self) -> int:
        """Points of the plan for which there was no time."""
        kept = self.store.kept
        return sum(
            point.id not in kept.measurements and point.id not in kept.failures and point.operator != "all_reduce"
            for point in self.plan.points
        )


def _all_reduces(extras: dict[str, Any]) -> Iterable[Measurement]:
    """Measurements from the samples of the processes that time all-reduce."""
    for record in extras.get("all_reduce") or ():
        samples = sorted(float(value) for value in record["ns"])
        point = Point("all_reduce", ("nccl", int(record["num_gpus"])), int(record["bytes"]))
        yield Measurement(
            point=point,
            n=len(samples),
            median_ns=quantile(samples, 0.5),
            p10_ns=quantile(samples, 0.1),
            p90_ns=quantile(samples, 0.9),
            interval=(quantile(samples, 0.75) - quantile(samples, 0.25)) / quantile(samples, 0.5),
            launches=int(record["launches"]),
            kernel="NCCL through torch.distributed",
        )


def profile_of(calibration: Calibration, name: str, command: str) -> Profile:
    """The profile of what was measured so far."""
    return build_profile(calibration.results(command), name)


def default_name(out: Path) -> str:
    """``h200.json.gz`` -> ``h200``."""
    return out.name.split(".")[0] or "profile"


def cuda_extras(device: Any, plan: Plan, scratch: Path, quick: bool) -> list[Extra]:
    """What a GPU is asked besides points: host time; mixed steps and all-reduce in a full run."""
    from gpu_calibrate.timing.host import time_host
    from gpu_calibrate.timing.mixed_steps import time_mixes

    extras: list[Extra] = [("host", lambda: time_host(device))]
    if not quick:
        extras.append(("mixed", lambda: time_mixes(device)))
    reduces = [point for point in plan.points if point.operator == "all_reduce"]
    if reduces:
        extras.append(("all_reduce", lambda: _time_all_reduces(reduces, scratch)))
    return extras


def _time_all_reduces(points: Sequence[Point], scratch: Path) -> list[dict[str, Any]]:
    from gpu_calibrate.timing.collectives import CALLS, time_all_reduce

    records = []
    for num_gpus in sorted({int(point.fields["num_gpus"]) for point in points}):
        sizes = [point.at for point in points if point.fields["num_gpus"] == num_gpus]
        for size, samples in time_all_reduce(num_gpus, sizes, scratch).items():
            records.append({"num_gpus": num_gpus, "bytes": size, "ns": samples, "launches": CALLS})
    return records


def limited(plan: Plan, operators: Sequence[str]) -> Plan:
    """The plan's points of these operators only."""
    if not operators:
        return plan
    points = tuple(point for point in plan.points if point.operator in operators)
    return replace(plan, points=points, left_out=plan.left_out + len(plan.points) - len(points))
