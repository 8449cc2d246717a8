"""Static batching, a baseline that vLLM does not have: a batch runs until its last request ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from sim.engine.reference.seats import Seats
from sim.engine.request import Request


class StaticSeats(Seats):
    """A batch is formed of what waits when nothing runs; its seats and blocks are free together, at its end."""

    def __init__(self, max_num_seqs: int) -> None:
        super().__init__(max_num_seqs)
        self._num_to_admit = 0
        """Requests of the batch that wait for their first tokens."""
        self._ended: list[Request] = []

    @property
    def num_held(self) -> int:  # type: ignore[override]
        """Seats of requests that have ended before others of their batch."""
        return len(self._ended)

    def most_running(self, num_running: int, num_waiting: int) -> int:
        if not num_running:
            self._num_to_admit = min(num_waiting, self.max_num_seqs)
        return num_running + self._num_to_admit

    def take(self) -> None:
        self._num_to_admit -= 1

    def leave_queue(self, request: Request, waiting: Iterable[Request]) -> None:
        if request in islice(waiting, self._num_to_admit):
            self._num_to_admit -= 1

    def free(self, ended: Sequence[Request], num_running: int) -> Sequence[Request]:
        self._ended.extend(ended)
        if num_running:
            return ()
        ended, self._ended = self._ended, []
        return ended
