"""Replicas whose numbers of requests are kept beside them: a router of many replicas reads one list.

The counts of a replica change when a request is sent to it, or when something happens in it by itself. When that is
next, a fast replica knows (``next_ns``). So only the replicas that are due are looked at, not all 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from sim.engine.clock import Clock
from sim.engine.fast.fast_replica import FastReplica


class CountedReplicas(list[FastReplica]):
    """Fast replicas that nothing acts on but arrivals: neither watched nor acted on from outside."""

    def __init__(self, env: Clock, replicas: Sequence[FastReplica]) -> None:
        super().__init__(replicas)
        self._env = env
        self._counts = [0] * len(replicas)
        self._next_ns = [0] * len(replicas)
        """When something happens next, by place."""
        self._due: list[tuple[int, int]] = []
        """Heap of (that instant, place); one that is not in ``_next_ns`` has been overtaken."""
        for place in range(len(replicas)):
            self.note(place)

    def counts(self) -> Sequence[int]:
        """``num_requests`` of each, as of now."""
        due, now_ns = self._due, self._env.now
        while due[0][0] <= now_ns:
            at_ns, place = heappop(due)
            if at_ns == self._next_ns[place]:
                self.note(place)
        return self._counts

    def note(self, place: int) -> None:
        """Something has happened in the replica at ``place``."""
        replica = self[place]
        self._counts[place] = replica.num_requests
        # A step that is formed at this instant comes after all that arrives at it.
        next_ns = self._next_ns[place] = max(replica.next_ns, self._env.now + 1)
        heappush(self._due, (next_ns, place))
