"""Requests that are due, and wait at their sender until it may have one more under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sim.workload.table import NO_GROUP, IntColumn


class Senders:
    """The seats of each sender. The request that is due first is sent first, as by a semaphore that serves in order.

    Example: with a cap of 2 and requests due at 0, 0, 0 and 5 s, each under way for 10 s, two are sent at 0 and two at
    10 s.
    """

    def __init__(self, sender: IntColumn, caps: Sequence[int]) -> None:
        self._sender = sender
        self._free = list(caps)
        self._waiting: list[deque[tuple[int, int]]] = [deque() for _ in caps]
        self.waits_ns: list[int] = []
        """How long each request waited that was not sent when it was due."""

    def has_cap(self, row: int) -> bool:
        """Whether this row takes a seat."""
        return int(self._sender[row]) != NO_GROUP

    def take_seat(self, row: int, now_ns: int) -> bool:
        """Take a seat for ``row``, which is due now; False, and it waits behind the others, where none is free."""
        sender = int(self._sender[row])
        if sender == NO_GROUP:
            return True
        if self._free[sender]:
            self._free[sender] -= 1
            return True
        self._waiting[sender].append((row, now_ns))
        return False

    def give_seat_back(self, row: int, now_ns: int) -> int | None:
        """Free the seat of ``row``; returns the row that takes it and is to be sent now."""
        sender = int(self._sender[row])
        if not self._waiting[sender]:
            self._free[sender] += 1
            return None
        following, due_ns = self._waiting[sender].popleft()
        if now_ns > due_ns:
            self.waits_ns.append(now_ns - due_ns)
        return following

    def notes(self) -> list[str]:
        """Say how many requests waited, and how long."""
        if not self.waits_ns:
            return []
        count = len(self.waits_ns)
        mean_s, most_s = sum(self.waits_ns) / count / 1e9, max(self.waits_ns) / 1e9
        return [
            f"max_concurrency held {count:,} requests back at their client, {mean_s:.3g} s in the mean and "
            f"{most_s:.3g} s at most; TTFT and E2E count from when they were sent, as in vllm bench serve"
        ]
