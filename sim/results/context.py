"""What the outputs need to know beside the run itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sim.results.record import IntColumn


class Work(Protocol):
    """Arithmetic and memory traffic of steps, for MFU and bandwidth use (``sim.latency`` has one)."""

    peak_flops: float
    """FLOP/s of one replica, all its GPUs together."""
    peak_bandwidth: float
    """Bytes/s of one replica, all its GPUs together."""

    def flops(self, columns: Mapping[str, IntColumn]) -> npt.NDArray[np.float64]:
        """FLOPs of each row of ``RunRecord.steps``, all its steps together."""
        ...

    def bytes(self, columns: Mapping[str, IntColumn]) -> npt.NDArray[np.float64]:
        """Bytes moved from and to memory in each row of ``RunRecord.steps``, all its steps together."""
        ...


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one GPU hour, and whose price it is."""

    usd_per_gpu_hour: float
    source: str


@dataclass(frozen=True, slots=True)
class RunContext:
    """A scenario as the outputs see it."""

    name: str = "run"
    seed: int = 0
    slo: Mapping[str, float] | None = None
    """The scenario's own limits, by metric name (``ttft_p95_ms``)."""
    work: Work | None = None
    """None where the latency model knows no model or GPU (``constant``)."""
    price: Price | None = None
    scenario_yaml: str = ""
    """The resolved scenario, every default written out."""
    report: bool = True
    trace: bool = True
    requests: bool = True
    steps: bool = True
    wall_s: float | None = None
    """Wall-clock seconds of the simulation; a timing key."""
