"""A device with a known truth: what the tests hold timing, fit and gates against.

Its kernels follow a smooth law of bytes and FLOPs with steps where tiles wave. Noise, drift, throttling and the cost
of a launch are parameters, so that a test can switch each on and ask whether it was noticed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu_calibrate.device.base import DeviceFacts, DeviceState, PointError, Prepared
from gpu_calibrate.plan.grid import launches_per_graph
from gpu_calibrate.plan.points import Point, peak_flops, work_of
from sim.latency.gpus import GPUS, GpuSpec

GRAPH_START_NS = 1500.0
"""Once per replay, whatever is in it."""


@dataclass(slots=True)
class SimulatedDevice:
    """See the module. Shares are of the datasheet's peaks."""

    gpu: GpuSpec = field(default_factory=lambda: GPUS["h200-sxm"])
    noise: float = 0.003
    """Standard deviation of a replay, relative."""
    drift: float = 0.0
    """Relative slowdown over ``drift_replays`` replays."""
    drift_replays: int = 100_000
    throttle_from: int | None = None
    """Replay from which on the card is at half its clock for heat."""
    throttle_until: int | None = None
    bandwidth_share: float = 0.85
    flops_share: float = 0.7
    fixed_ns: float = 3000.0
    launch_ns: float = 6500.0
    """Host time of a launch without a graph."""
    failing: frozenset[str] = frozenset()
    """Operators that cannot be timed."""
    seed: int = 0
    replays: int = 0
    facts: DeviceFacts = field(init=False)
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        gpu = self.gpu
        software = {"driver": "simulated", "kernels": "simulated"}
        self.facts = DeviceFacts(
            f"simulated {gpu.name}", gpu, gpu.num_sms, gpu.memory_bytes, gpu.l2_bytes, "9.0", 1, software
        )
        self._rng = random.Random(self.seed)

    def true_ns(self, point: Point) -> float:
        """The time of one launch that the timing should find."""
        work = work_of(point)
        if work.link:
            return 8000.0 + work.bytes / 50e9 * 1e9
        compute = work.flops / (self.flops_share * peak_flops(self.gpu, work.dtype))
        if point.operator == "gemm":
            compute *= -(-point.at // 64) * 64 / point.at if point.at > 64 else 64 / point.at
        traffic = work.bytes / (self.bandwidth_share * self.gpu.memory_bandwidth)
        slowest = max(compute, traffic) if point.operator == "gemm" else compute + traffic
        skew = {"even": 1.0, "one_long": 1.15, "lognormal": 1.05}[point.skew]
        return float(slowest * 1e9 * skew + self.fixed_ns)

    def prepare(self, point: Point) -> Prepared:
        if point.operator in self.failing:
            raise PointError(f"{point.operator} is not simulated")
        launches = launches_per_graph(self.true_ns(point))
        return Prepared(point, launches, f"simulated_{point.operator}")

    def _throttled(self) -> bool:
        if self.throttle_from is None or self.replays < self.throttle_from:
            return False
        return self.throttle_until is None or self.replays < self.throttle_until

    def replay(self, order: Sequence[Prepared]) -> list[float]:
        times = []
        for prepared in order:
            self.replays += 1
            slow = (1.0 + self.drift * self.replays / self.drift_replays) * (2.0 if self._throttled() else 1.0)
            noisy = slow * max(0.5, self._rng.gauss(1.0, self.noise))
            times.append(self.true_ns(prepared.point) * noisy + GRAPH_START_NS / prepared.launches)
        return times

    def eager(self, prepared: Prepared) -> float | None:
        return max(self.launch_ns, self.true_ns(prepared.point))

    def release(self, prepared: Sequence[Prepared]) -> None:
        """Nothing is held."""

    def state(self) -> DeviceState:
        if self._throttled():
            return DeviceState(990, 3200, 88, 400.0, ("hw_thermal_slowdown",))
        return DeviceState(1980, 3200, 55, 500.0)

    def memory_used_bytes(self) -> int:
        return 4 << 30
