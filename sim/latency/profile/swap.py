"""What moving KV between GPU and host takes (``preemption: swap``), from a profile's copies or the link's bandwidth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.latency.gpus import GpuSpec
from sim.latency.profile.file import Key
from sim.latency.profile.integers import IntColumn, Segments
from sim.latency.tables import Rate

if TYPE_CHECKING:
    from sim.latency.profile.profiled_operators import ProfiledOperators

SWAP_EFFICIENCY = 0.7
"""Share of the PCIe bandwidth that copies of KV blocks reach, where copies were not measured."""
DIRECTIONS: tuple[Key, ...] = (("to_host",), ("to_gpu",))
KNOTS = [*range(0, 4096, 1024), *(size * part // 4 for size in (1 << k for k in range(12, 36)) for part in range(4, 8))]
"""Bytes of one GPU at which copies are tabulated."""


class SwapTime:
    """Nanoseconds by the bytes of a step's swaps, all GPUs together; each GPU copies its share at the same time.

    What is swapped out comes in again, so a byte costs the mean of the two directions. All bytes of a step count as one
    copy; an engine that starts one for every block and layer takes longer.
    """

    def __init__(self, operators: ProfiledOperators, gpu: GpuSpec, scale: float) -> None:
        self._gpus = operators.tp * operators.pp
        self._rate = Rate(scale * 1e9 / (gpu.pcie_bandwidth * SWAP_EFFICIENCY * self._gpus))
        self._segments: Segments | None = None
        if all(operators.predictor.has("host_copy", key) for key in DIRECTIONS):
            sizes = np.maximum(np.array(KNOTS, dtype=np.float64), 1.0)
            both = [operators.predictor.times_ns("host_copy", key, sizes) for key in DIRECTIONS]
            self._segments = Segments(KNOTS, np.maximum.accumulate((both[0] + both[1]) / 2.0) * scale)

    @property
    def stand_in(self) -> str | None:
        """What is used in place of measured copies; None where there are some."""
        return None if self._segments is not None else f"{SWAP_EFFICIENCY:.0%} of the datasheet's PCIe bandwidth"

    def ns(self, num_bytes: int) -> int:
        """Of one step; 0 for none."""
        if self._segments is None:
            return self._rate.ns(num_bytes)
        return self._segments.at(-(-num_bytes // self._gpus)) if num_bytes else 0

    def many_ns(self, num_bytes: IntColumn) -> IntColumn:
        """``ns`` of each of ``num_bytes``."""
        if self._segments is None:
            return self._rate.many_ns(num_bytes)
        return np.where(num_bytes > 0, self._segments.many(-(-num_bytes // self._gpus)), 0)
