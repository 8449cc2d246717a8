"""How fast replicas are: what acts and noise make of their step costs, together."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from simpy import Event

from sim.engine.clock import At, Clock, Turn
from sim.latency.base import StepCost
from sim.latency.slowed import slowed

if TYPE_CHECKING:
    from sim.cluster.gateway import Gateway
    from sim.latency.noise import StepNoise

AFTER_ACTS = 1 << 31
"""Spells come behind the acts of one instant; replicas in order of number."""


class Speeds:
    """Factors of accelerator times by replica; those of acts and of noise multiply."""

    def __init__(self, gateway: Gateway) -> None:
        self._replicas = gateway.replicas
        self._own = [replica.cost for replica in gateway.replicas]
        self._factors = [{"act": 1.0, "noise": 1.0} for _ in gateway.replicas]
        self._costs: dict[tuple[int, float], StepCost] = {}
        """Each is made once."""

    def set(self, index: int, source: str, factor: float) -> None:
        """From now on ``source`` makes steps of the replica take ``factor`` times as long."""
        factors = self._factors[index]
        factors[source] = factor
        product = factors["act"] * factors["noise"]
        own = self._own[index]
        key = (id(own), product)
        if key not in self._costs:
            self._costs[key] = slowed(own, product)
        self._replicas[index].set_cost(self._costs[key])


def start_spells(env: Clock, gateway: Gateway, speeds: Speeds, noise: StepNoise, seed: int, size: int) -> None:
    """Let spells of slow steps come to every ``size``-th replica, the first of those that step together."""
    for index in range(0, len(gateway.replicas), size):
        env.process(_spells(env, gateway, speeds, noise, seed, index))


def _spells(
    env: Clock, gateway: Gateway, speeds: Speeds, noise: StepNoise, seed: int, index: int
) -> Generator[Event, Any, None]:
    """One replica's, until nothing is left to come and nothing is here."""
    turn = Turn.FAULT + AFTER_ACTS + index
    for gap_ns, length_ns in noise.spells(seed, index):
        yield At(env, gap_ns, turn)
        speeds.set(index, "noise", noise.factor)
        yield At(env, length_ns, turn)
        speeds.set(index, "noise", 1.0)
        if gateway.is_done:
            return
