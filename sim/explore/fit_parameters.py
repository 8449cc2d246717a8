"""Which parameters are fitted to some runs, around which defaults and within which bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.explore.fit_case import LATE_FIGURES
from sim.latency.fitted import PARAMETERS
from sim.latency.kind import client_overhead_ns, latency_kind
from sim.latency.noise import noise_of
from sim.latency.pipelining import is_asynchronous

if TYPE_CHECKING:
    from sim.latency.base import StepCost
    from sim.latency.model_spec import ModelSpec
    from sim.scenario.schema import EngineConfig, LatencyConfig

FACTOR_SPREAD, FACTOR_MOST = 0.2, 2.5
"""How far a factor is expected from 1 (in logarithms), and the largest; 1 over it is the smallest."""
EXPOSED_STEP_MS, EXPOSED_REQUEST_US = 0.5, 10.0
"""How much host time is expected to show of an engine that schedules ahead."""
MOST_TIMES = 10.0
"""Spreads that a time may be from its default."""
CLIENT_SPREAD_MS, CLIENT_MOST_MS = 5.0, 200.0
LATE_SPREAD_MS = 10.0
STEP_SPREAD, STEP_MOST = 0.3, 1000.0
"""Of a constant step time, in logarithms and as a factor: the scenario's is a guess."""
TOKENS_PER_STEP = 200
"""Tokens that are expected to take as long as a constant step."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number to fit. The solver sees it in spreads from its default, as a logarithm where it is a factor."""

    name: str
    default: float
    least: float
    most: float
    spread: float
    is_logarithmic: bool = False

    def value(self, place: float) -> float:
        """Of ``place`` spreads from the default."""
        if self.is_logarithmic:
            return self.default * math.exp(place * self.spread)
        return self.default + place * self.spread

    def place(self, value: float) -> float:
        """How many spreads ``value`` is from the default."""
        if self.is_logarithmic:
            return math.log(value / self.default) / self.spread
        return (value - self.default) / self.spread

    @property
    def bounds(self) -> tuple[float, float]:
        """In spreads."""
        return self.place(self.least), self.place(self.most)


def _factor(name: str) -> Parameter:
    return Parameter(name, 1.0, 1.0 / FACTOR_MOST, FACTOR_MOST, FACTOR_SPREAD, is_logarithmic=True)


def _time(name: str, default: float, spread: float) -> Parameter:
    return Parameter(name, default, 0.0, default + MOST_TIMES * spread, spread)


def choose_parameters(
    engines: Sequence[tuple[EngineConfig, ModelSpec]], latency: LatencyConfig, cost: StepCost
) -> list[Parameter]:
    """What runs of ``engines`` can say something of; ``cost`` is that of the first, without a fit."""
    kind = latency_kind(engines[0][0].gpu, latency)
    client_ms = client_overhead_ns(engines[0][0].gpu, latency) / 1e6
    client = Parameter("client_ms", client_ms, 0.0, max(CLIENT_MOST_MS, 2 * client_ms), CLIENT_SPREAD_MS)
    if kind == "constant":
        step_ms = (latency.step_s or 0.01) * 1e3
        token_us = step_ms * 1e3 / TOKENS_PER_STEP
        step = Parameter("step_ms", step_ms, step_ms / STEP_MOST, step_ms * STEP_MOST, STEP_SPREAD, is_logarithmic=True)
        return [step, Parameter("token_us", 0.0, 0.0, token_us * STEP_MOST, token_us), client]
    names = ["matrices", "attention"]
    if kind == "profile" and any(model.num_experts for _, model in engines):
        names.append("experts")
    sizes = [
        max(each.tensor_parallel_size, each.pipeline_parallel_size, each.data_parallel_size) for each, _ in engines
    ]
    if kind == "profile" and max(sizes) > 1:
        names.append("all_reduce")
    found = [_factor(name) for name in names]
    if any(is_asynchronous(engine) for engine, _ in engines):
        found += [
            _time("exposed_step_ms", 0.0, EXPOSED_STEP_MS),
            _time("exposed_request_us", 0.0, EXPOSED_REQUEST_US),
        ]
    if not all(is_asynchronous(engine) for engine, _ in engines):
        step_ms, request_us = _host_ns(cost, "host_step_ns") / 1e6, _host_ns(cost, "host_request_ns") / 1e3
        found += [
            _time("host_step_ms", step_ms, max(step_ms, EXPOSED_STEP_MS)),
            _time("host_request_us", request_us, max(request_us, EXPOSED_REQUEST_US)),
        ]
    return [*found, client]


def choose_late(engine: EngineConfig, latency: LatencyConfig, figures: Set[str]) -> Parameter | None:
    """How late a few requests are: where the tail of TTFT was measured, and the scenario does not say it itself."""
    is_stated = latency.noise is not None and (isinstance(latency.noise, str) or latency.noise.client is not None)
    if is_stated or not figures & set(LATE_FIGURES):
        return None
    late = noise_of(engine.gpu, latency).client
    return _time("late_ms", 0.0 if late is None else late.mean_ns / 1e6, LATE_SPREAD_MS)


def fits_spells(latencies: Iterable[LatencyConfig]) -> bool:
    """Whether spells of slow steps are looked for: where no scenario states them itself."""
    return not any(isinstance(each.noise, str) or (each.noise is not None and each.noise.step) for each in latencies)


def _host_ns(cost: StepCost, name: str) -> int:
    """Of the model's own cost, where others are around it (drafts, ranks that step together)."""
    for inner in ("target", "own"):
        cost = getattr(cost, inner, cost)
    return int(getattr(cost, name, 0))


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """As a file has them: six digits, within what the parameters can be."""
    return {
        name: min(max(float(f"{value:.6g}"), PARAMETERS[name].least), PARAMETERS[name].most)
        for name, value in values.items()
    }
