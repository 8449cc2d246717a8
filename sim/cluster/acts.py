"""What happens to replicas at instants known before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, cast

from simpy import Event

from sim.engine.clock import At, Clock, Turn

if TYPE_CHECKING:
    from sim.cluster.gateway import Gateway
    from sim.cluster.speeds import Speeds


class What(Enum):
    """Kinds of acts: one for each operation of a replica's door."""

    CANCEL = "cancel"
    """A client leaves. Nothing happens where its request has not arrived yet or has ended."""
    CRASH = "crash"
    """A replica loses everything and is back at once, empty."""
    DRAIN = "drain"
    UNDRAIN = "undrain"
    SLOW = "slow"
    """Steps take ``factor`` times the accelerator time of the engine's own cost from now on; 1 = as it was."""


@dataclass(frozen=True, slots=True)
class Act:
    """One act. Those of one instant and turn happen in the order in which they are given, cancellations by row."""

    at_ns: int
    what: What
    target: int
    """The row of a cancelled request, else the index of a replica."""
    factor: float = 1.0


def schedule_acts(env: Clock, gateway: Gateway, speeds: Speeds, acts: Sequence[Act]) -> None:
    """Put ``acts`` on the clock, which stands at 0."""

    def perform(event: Event) -> None:
        act = cast(Act, event.value)
        if act.what is What.CANCEL:
            gateway.cancel(act.target)
        elif act.what is What.CRASH:
            gateway.crash(act.target)
        elif act.what is What.DRAIN:
            gateway.drain(act.target)
        elif act.what is What.UNDRAIN:
            gateway.undrain(act.target)
        else:
            speeds.set(act.target, "act", act.factor)

    for position, act in enumerate(acts):
        happens = At(env, act.at_ns, _turn(act, position), act)
        happens.callbacks.append(perform)


def _turn(act: Act, position: int) -> int:
    if act.what is What.CANCEL:
        return Turn.TIMEOUT + act.target
    if act.what in (What.CRASH, What.SLOW):
        return Turn.FAULT + position
    return Turn.CONTROL + position
