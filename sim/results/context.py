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

    def total_flops(self, columns: Mapping[str, IntColumn]) -> float:
        """FLOPs of all rows of ``RunRecord.steps`` together, the same however steps are grouped into rows."""
        ...

    def total_bytes(self, columns: Mapping[str, IntColumn]) -> float:
        """Bytes moved from and to memory by all rows together, the same however steps are grouped into rows."""
        ...

    def is_compute_bound(self, columns: Mapping[str, IntColumn]) -> npt.NDArray[np.bool_]:
        """Rows whose steps' matrix products take longer for arithmetic than for reading weights."""
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
    max_num_seqs: int | None = None
    """Seats of one replica."""
    scenario_yaml: str = ""
    """The resolved scenario, every default written out."""
    report: bool = True
    trace: bool = True
    requests: bool = True
    steps: bool = True
    wall_s: float | None = None
    """Wall-clock seconds of the simulation; a timing key."""
