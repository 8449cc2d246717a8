"""What the outputs need to know beside the run itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sim.results.load import Measure
from sim.results.record import IntColumn, RunRecord


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
    max_loras: int | None = None
    """Seats of one replica."""
    setup: Mapping[str, str | int] = field(default_factory=dict)
    """What ran: model, GPU, parallelism, policy and the like, by name."""
    capacity: Callable[[RunRecord], float | None] | None = None
    """Requests per second that the replicas could serve of a run's mix; asked for only where there is a rate."""
    whole_runs: Mapping[str, Any] = field(default_factory=dict)
    """What measured runs of this kind say of predictions: ``validated``, ``text``, ``sets``."""
    measure: Measure = field(default_factory=Measure)
    scenario_yaml: str = ""
    """The resolved scenario, every default written out."""
    report: bool = True
    trace: bool = True
    requests: bool = True
    steps: bool = True
    wall_s: float | None = None
    """Wall-clock seconds of the simulation; a timing key."""
