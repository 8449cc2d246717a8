"""How many requests may run together, and when those that end make room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sim.engine.request import Request


class Seats:
    """Continuous batching, as in vLLM: ``max_num_seqs`` seats, each free as soon as its request ends."""

    num_held = 0
    """Seats of requests that have ended and are not free yet."""

    def __init__(self, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs

    def most_running(self, num_running: int, num_waiting: int) -> int:
        """Return how many requests may run in the step being formed."""
        return self.max_num_seqs

    def take(self) -> None:
        """Take a seat for a request that is admitted."""

    def leave_queue(self, request: Request, waiting: Iterable[Request]) -> None:
        """Note that a waiting request is about to end."""

    def free(self, ended: Sequence[Request], num_running: int) -> Sequence[Request]:
        """Free the seats of ``ended`` requests, which do not run any more. Returns those whose blocks are free now."""
        return ended
