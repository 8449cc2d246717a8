"""Turns within one instant, so that simultaneous events have one order on every machine and stepper.

So a router sees every step that has ended, a request that is cancelled at the instant of its last token is complete,
and a step sees every request that has arrived.
"""

from __future__ import annotations

from enum import IntEnum

from simpy import Environment, Event
from simpy.events import EventPriority


class Turn(IntEnum):
    """What happens first at one instant. A position (of a replica, of a request) is added to order equals."""

    STEP_END = 0
    FAULT = 1 << 32
    TRANSFER = 2 << 32
    TIMEOUT = 3 << 32
    ARRIVAL = 4 << 32
    CONTROL = 5 << 32
    STEP_START = 6 << 32


class Clock(Environment):
    """SimPy's environment in integer nanoseconds from 0."""

    _now: int

    def __init__(self) -> None:
        super().__init__(initial_time=0)

    @property
    def now(self) -> int:
        """Nanoseconds since the start of the run."""
        return self._now


class At(Event):
    """Happens ``delay_ns`` from now, in its ``turn`` of that instant, with a ``value`` for its callbacks."""

    def __init__(self, env: Clock, delay_ns: int, turn: int, value: object = None) -> None:
        # What simpy.Timeout does, with a turn of our own in place of NORMAL.
        self.env = env
        self.callbacks = []
        self._value = value
        self._ok = True
        env.schedule(self, EventPriority(turn), delay_ns)


class Bell(Event):
    """A process sleeps on it; ``ring`` wakes the process in its turn of the current instant."""

    def __init__(self, env: Clock, turn: int) -> None:
        super().__init__(env)
        self._turn = turn

    def ring(self) -> None:
        """Wake the sleeper; ringing twice is ringing once."""
        if not self.triggered:
            self._ok = True
            self._value = None
            self.env.schedule(self, EventPriority(self._turn))
