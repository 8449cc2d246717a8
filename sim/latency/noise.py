"""Noise of clients and of steps: what is drawn, from which streams.

Late requests are seen by clients alone: the engine's run is the same without them. Their default is in the TTFT p99 of
the runs of vLLM 0.15.1 at low load (``e2e/vllm0151_lite_runs.csv``): the 90th percentile lies where a run without noise
has it, the 99th some milliseconds above. A share of 2 % and a mean of 10 ms take the mean error of the p99 of eight
runs, each scaled to its measured mean, from 9.5 to 4.0 %, and leave that of the p90 at 3.3 %; the two runs of vLLM
0.23.0, which were not looked at for it, stay at 4.4 and 4.7 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.latency.kind import latency_kind
from sim.seeds import rng

if TYPE_CHECKING:
    from sim.latency.fitted import Fitted
    from sim.scenario.schema import GpuConfig, LatencyConfig

LATE_SHARE, LATE_MEAN_MS = 0.02, 10.0
"""Requests that are late, and by how much in the mean."""


@dataclass(frozen=True, slots=True)
class ClientNoise:
    """Some requests are late by an exponentially distributed time."""

    share: float
    mean_ns: int
    """Of those that are late."""

    @property
    def added_ns(self) -> int:
        """Mean over all requests: a share of 0.02 and 10 ms give 200,000."""
        return round(self.share * self.mean_ns)

    def draw(self, seed: int, count: int) -> npt.NDArray[np.int64]:
        """How late each of ``count`` requests is; 0 for most."""
        stream = rng(seed, "noise", "client")
        is_late = stream.random(count) < self.share
        late_ns = np.rint(stream.exponential(self.mean_ns, count)).astype(np.int64)
        return np.where(is_late, late_ns, 0)


@dataclass(frozen=True, slots=True)
class StepNoise:
    """Spells in which the accelerator takes ``factor`` times as long."""

    every_ns: int
    for_ns: int
    factor: float

    def spells(self, seed: int, replica: int) -> Iterator[tuple[int, int]]:
        """(from the end of the spell before to this one, its length) of one spell after the other, without an end."""
        stream = rng(seed, "noise", "step", str(replica))
        while True:
            gap_ns, length_ns = stream.exponential(self.every_ns), stream.exponential(self.for_ns)
            yield max(round(gap_ns), 1), max(round(length_ns), 1)


@dataclass(frozen=True, slots=True)
class Noise:
    """What a deployment is disturbed by."""

    client: ClientNoise | None = None
    step: StepNoise | None = None

    def describe(self) -> dict[str, object]:
        """For the summary, in the scenario's units."""
        client, step = self.client, self.step
        return {
            "client": None if client is None else {"share": client.share, "mean_ms": client.mean_ns / 1e6},
            "step": None
            if step is None
            else {"every_s": step.every_ns / 1e9, "for_s": step.for_ns / 1e9, "factor": step.factor},
        }


NO_NOISE = Noise()


def noise_of(gpu: str | GpuConfig, latency: LatencyConfig, fitted: Fitted | None = None) -> Noise:
    """The noise of a scenario: as said, else as fitted, else the default (``NoiseConfig``)."""
    if isinstance(latency.noise, str):
        return NO_NOISE
    stated = latency.noise
    client = None if stated is None else stated.client
    step = None if stated is None else stated.step
    late = _default_client(gpu, latency, fitted)
    if client is not None:
        late = ClientNoise(client.share, round(client.mean_ms * 1e6))
    spells = _fitted_spells(fitted)
    if step is not None:
        spells = StepNoise(round(step.every_s * 1e9), round(step.for_s * 1e9), step.factor)
    return Noise(client=late if late is not None and late.added_ns else None, step=spells)


def _fitted_spells(fitted: Fitted | None) -> StepNoise | None:
    """Spells as a fit has them: of a share of 0.1 and 0.5 s each, 4.5 s from the end of one to the next."""
    values = {} if fitted is None else fitted.values
    share = values.get("spell_share", 0.0)
    if not share:
        return None
    length_s = values["spell_s"]
    return StepNoise(round(length_s * (1.0 / share - 1.0) * 1e9), round(length_s * 1e9), values["spell_factor"])


def _default_client(gpu: str | GpuConfig, latency: LatencyConfig, fitted: Fitted | None) -> ClientNoise | None:
    values = {} if fitted is None else fitted.values
    if "late_ms" in values:
        return ClientNoise(LATE_SHARE, round(values["late_ms"] * 1e6))
    is_real = latency_kind(gpu, latency) == "profile"
    if is_real and (latency.client_overhead_ms is None or "client_ms" in values):
        return ClientNoise(LATE_SHARE, round(LATE_MEAN_MS * 1e6))
    return None
