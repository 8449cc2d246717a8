"""Turns within one instant, so that simultaneous events have one order on every machine and stepper.

At one instant: steps end (by replica), then requests arrive, then steps start (by replica). So a
router sees every step that has ended, and a step sees every request that has arrived.
"""

from __future__ import annotations

from simpy import Environment, Event
from simpy.events import EventPriority

ARRIVAL_TURN = 1 << 30
START_TURN = 1 << 31


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
    """Happens ``delay_ns`` from now, in its ``turn`` of that instant."""

    def __init__(self, env: Clock, delay_ns: int, turn: int) -> None:
        # What simpy.Timeout does, with a turn of our own in place of NORMAL.
        self.env = env
        self.callbacks = []
        self._value = None
        self._ok = True
        env.schedule(self, EventPriority(turn), delay_ns)


class Bell(Event):
    """Somebody sleeps on it; ``ring`` wakes them in their turn of the current instant."""

    def __init__(self, env: Clock, turn: int) -> None:
        super().__init__(env)
        self._turn = turn

    def ring(self) -> None:
        """Wake the sleeper; ringing twice is ringing once."""
        if not self.triggered:
            self._ok = True
            self._value = None
            self.env.schedule(self, EventPriority(self._turn))
