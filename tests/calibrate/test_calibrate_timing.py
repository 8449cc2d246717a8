"""Timing on a device whose truth is known: medians, intervals, noise, drift, throttling, the impossible."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from itertools import pairwise

import pytest

from gpu_calibrate.commands.calibration import ANCHORS
from gpu_calibrate.device.base import DeviceState, PointError, Prepared
from gpu_calibrate.device.simulated import SimulatedDevice
from gpu_calibrate.plan.points import ANCHOR, Point, work_of
from gpu_calibrate.timing.replays import (
    Failure,
    Measurement,
    Settings,
    Watch,
    batches,
    interval_width,
    measure_batch,
    median_ranks,
    quantile,
    refusal,
    spoiled,
)

GEMMS = [Point("gemm", ("bfloat16", 4096, 4096), m) for m in (1, 64, 512, 4096)]


def measure(
    device: SimulatedDevice, points: Sequence[Point] = GEMMS, settings: Settings | None = None
) -> tuple[list[Measurement], list[Failure], Watch]:
    watch = Watch()
    anchors = [device.prepare(anchor) for anchor in ANCHORS]
    measured, failures = measure_batch(device, points, settings or Settings(), random.Random(0), watch, anchors)
    return measured, failures, watch


def test_ranks_of_the_median_are_the_binomial_ones() -> None:
    # Tables of order-statistic intervals: n = 10 -> 2nd and 9th, n = 20 -> 6th and 15th, n = 6 -> 1st and 6th.
    assert median_ranks(10) == (1, 8)
    assert median_ranks(20) == (5, 14)
    assert median_ranks(6) == (0, 5)
    assert median_ranks(5) is None
    for n in range(6, 60):
        ranks = median_ranks(n)
        assert ranks is not None
        low, high = ranks
        outside = 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n
        assert outside <= 0.05
        assert low + high == n - 1
        wider = 2 * sum(math.comb(n, k) for k in range(low + 2)) / 2**n
        assert wider > 0.05, "a narrower interval would do"


def test_the_interval_covers_the_true_median() -> None:
    rng = random.Random(3)
    hits = 0
    for _ in range(400):
        ordered = sorted(rng.gauss(1.0, 0.1) for _ in range(12))
        ranks = median_ranks(12)
        assert ranks is not None
        hits += ordered[ranks[0]] <= 1.0 <= ordered[ranks[1]]
    assert hits / 400 > 0.93


def test_quantiles_are_linear_between_neighbours() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert [quantile(values, share) for share in (0, 0.5, 1)] == [1.0, 3.0, 8.0]
    assert quantile(values, 0.25) == pytest.approx(statistics.quantiles(values, n=4, method="inclusive")[0])


def test_the_true_times_are_found() -> None:
    device = SimulatedDevice(noise=0.004)
    measured, failures, _ = measure(device)
    assert not failures
    for each in measured:
        assert each.median_ns == pytest.approx(device.true_ns(each.point), rel=0.005)
        assert each.p10_ns <= each.median_ns <= each.p90_ns
        assert each.interval < 0.01
        assert 10 <= each.n <= 40


def test_a_noisy_device_is_replayed_longer_and_says_how_sure_it_is() -> None:
    calm, _, _ = measure(SimulatedDevice(noise=0.001))
    noisy, _, _ = measure(SimulatedDevice(noise=0.05))
    assert all(each.n == 10 for each in calm)
    assert all(each.n == 40 for each in noisy)
    assert all(each.interval > 0.01 for each in noisy)


def test_order_is_shuffled_across_shapes_in_every_round() -> None:
    orders: list[list[int]] = []

    class Recording(SimulatedDevice):
        __slots__ = ()

        def replay(self, order: Sequence[Prepared]) -> list[float]:
            orders.append([prepared.point.at for prepared in order])
            return super().replay(order)

    measure(Recording(noise=0.02))
    warmups, first, second = orders[:2], orders[2], orders[3]
    assert all(len(each) == len(GEMMS) + len(ANCHORS) for each in warmups)
    assert sorted(first) != first
    assert first != second
    changes = sum(left != right for left, right in pairwise(first))
    assert changes > len(first) / 2, "shapes take turns"


def test_drift_shows_in_the_anchors() -> None:
    def strayed(drift: float) -> float:
        device, watch = SimulatedDevice(noise=0.001, drift=drift, drift_replays=2000), Watch()
        anchors = [device.prepare(anchor) for anchor in ANCHORS]
        for _ in range(20):
            measure_batch(device, GEMMS, Settings(), random.Random(0), watch, anchors)
        return max(watch.drift(name) for name in watch.anchors)

    assert strayed(0.0) < 0.005
    assert strayed(0.2) > 0.05


def test_throttling_is_seen_and_written_down() -> None:
    fine, _, watch = measure(SimulatedDevice())
    assert not any(spoiled(each) for each in fine)
    assert watch.throttle == ()
    hot, _, watch = measure(SimulatedDevice(throttle_from=0))
    assert all(spoiled(each) for each in hot)
    assert watch.throttle == ("hw_thermal_slowdown",)


def test_a_power_cap_is_normal_working() -> None:
    measured, _, _ = measure(SimulatedDevice())
    from dataclasses import replace

    assert not spoiled(replace(measured[0], throttle=("sw_power_cap", "gpu_idle")))
    assert spoiled(replace(measured[0], throttle=("sw_power_cap", "sw_thermal_slowdown")))
    assert DeviceState().throttle == ()


@pytest.mark.parametrize(
    ("point", "share", "refused"),
    [
        (Point("gemm", ("bfloat16", 8192, 8192), 8192), 1.02, False),
        (Point("gemm", ("bfloat16", 8192, 8192), 8192), 1.10, True),
        (Point("gemm", ("bfloat16", 8192, 8192), 1), 1.04, False),
        (Point("gemm", ("bfloat16", 8192, 8192), 1), 1.20, True),
        # 32 MB fit the L2 of 50 MB: faster than memory is no wonder.
        (Point("gemm", ("bfloat16", 4096, 4096), 1), 3.0, False),
    ],
)
def test_what_cannot_be_is_refused(point: Point, share: float, refused: bool) -> None:
    device = SimulatedDevice()
    work = work_of(point)
    gpu = device.facts.gpu
    limit = max(work.bytes / gpu.memory_bandwidth, work.flops / gpu.fp16_flops) * 1e9
    reason = refusal(point, limit / share, device)
    assert (reason is not None) == refused
    if reason is not None:
        assert f"{share:.0%}" in reason


def test_points_that_fail_leave_the_others() -> None:
    device = SimulatedDevice(failing=frozenset({"sampling"}))
    measured, failures, _ = measure(device, [*GEMMS, Point("sampling", (32000,), 4)])
    assert len(measured) == len(GEMMS)
    assert [each.point.operator for each in failures] == ["sampling"]


def test_an_interrupt_releases_what_was_prepared() -> None:
    released: list[int] = []

    class Interrupted(SimulatedDevice):
        __slots__ = ()

        def replay(self, order: Sequence[Prepared]) -> list[float]:
            raise KeyboardInterrupt

        def release(self, prepared: Sequence[Prepared]) -> None:
            released.append(len(prepared))

    with pytest.raises(KeyboardInterrupt):
        measure(Interrupted())
    assert released == [len(GEMMS)]


def test_batches_are_bounded_by_number_and_by_memory() -> None:
    settings = Settings(batch_points=3, batch_bytes=100)
    sizes = {1: 40, 2: 40, 3: 40, 4: 10, 5: 10, 6: 500}
    points = [Point("gemm", ("bfloat16", 8, 8), m) for m in sizes]
    found = [[point.at for point in batch] for batch in batches(points, settings, lambda point: sizes[point.at])]
    assert found == [[1, 2], [3, 4, 5], [6]]


def test_few_samples_have_no_interval() -> None:
    assert interval_width([1.0] * 5) == math.inf
    assert interval_width([1.0] * 6) == 0.0


def test_anchors_are_not_replayed_for_precision() -> None:
    measured, _, watch = measure(SimulatedDevice(noise=0.05))
    assert len(watch.anchors) == len(ANCHORS)
    assert all(anchor.role == ANCHOR for anchor in ANCHORS)
    assert all(len(medians) == 1 for medians in watch.anchors.values())
    assert len(measured) == len(GEMMS)


def test_a_device_may_refuse_all_points() -> None:
    device = SimulatedDevice()

    class Refusing(SimulatedDevice):
        __slots__ = ()

        def prepare(self, point: Point) -> Prepared:
            if point.role != ANCHOR:
                raise PointError("no")
            return device.prepare(point)

    measured, failures, watch = measure(Refusing())
    assert (len(measured), len(failures)) == (0, len(GEMMS))
    assert watch.anchors
