"""The waiting queue, in vLLM's two orders (``vllm/v1/core/sched/request_queue.py``)."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from policies.base import Policy, RankChanges
from sim.engine.request import Request


class FcfsQueue:
    """First come, first served; a preempted request goes back to the front."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    def refresh(self, now_ns: int) -> None:
        """Nothing: the order never changes."""

    def add(self, request: Request, now_ns: int) -> None:
        """A request that arrives."""
        self._queue.append(request)

    def put_back(self, request: Request, now_ns: int) -> None:
        """A request that was preempted, or passed over (in the reverse order of being passed over)."""
        self._queue.appendleft(request)

    def peek(self) -> Request:
        """The next to be admitted."""
        return self._queue[0]

    def pop(self) -> Request:
        """Take the next to be admitted."""
        return self._queue.popleft()

    def remove(self, request: Request) -> None:
        """Take one that ends while it waits."""
        self._queue.remove(request)


Entry = tuple[float, int, int | str, Request]


class RankedQueue:
    """Smallest (rank, arrival, request id) first; the rank is the policy's, refreshed when it can have moved."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[Entry] = []
        changes = policy.rank_changes
        self._moves_every_step = RankChanges.OTHERS in changes
        self._moves_with_time = RankChanges.TIME in changes
        self.next_change_ns: int | None = None
        """When the order can next change with the clock alone."""
        self._stale = False

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return (entry[3] for entry in sorted(self._heap))

    def refresh(self, now_ns: int) -> None:
        """Rank everything anew if any rank can have moved since the last time."""
        due = self.next_change_ns is not None and now_ns >= self.next_change_ns
        if not (self._stale or self._moves_every_step or due):
            return
        requests = [entry[3] for entry in self._heap]
        self.next_change_ns = None
        self._stale = False
        self._heap = [self._entry(request, now_ns) for request in requests]
        heapq.heapify(self._heap)

    def mark_stale(self) -> None:
        """A waiting request made progress (output that was in flight when it was preempted)."""
        self._stale = True

    def add(self, request: Request, now_ns: int) -> None:
        """A request that arrives, was preempted, or was passed over."""
        heapq.heappush(self._heap, self._entry(request, now_ns))

    put_back = add

    def peek(self) -> Request:
        """The next to be admitted."""
        return self._heap[0][3]

    def pop(self) -> Request:
        """Take the next to be admitted."""
        return heapq.heappop(self._heap)[3]

    def remove(self, request: Request) -> None:
        """Take one that ends while it waits."""
        self._heap = [entry for entry in self._heap if entry[3] is not request]
        heapq.heapify(self._heap)

    def _entry(self, request: Request, now_ns: int) -> Entry:
        request.rank = self._policy.rank(request, now_ns)
        if self._moves_with_time:
            change = self._policy.next_change_ns(request, now_ns)
            if change is not None and (self.next_change_ns is None or change < self.next_change_ns):
                self.next_change_ns = change
        return (request.rank, request.arrival_ns, request.order, request)


class AdmissionOrder(Sequence[Request]):
    """A waiting queue as a sequence: the head is free, anything further sorts it once."""

    def __init__(self, queue: FcfsQueue | RankedQueue) -> None:
        self._queue = queue
        self._sorted: list[Request] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def __getitem__(self, index: Any) -> Any:
        if index == 0 and self._sorted is None:
            return self._queue.peek()
        if self._sorted is None:
            self._sorted = list(self._queue)
        return self._sorted[index]

    def __iter__(self) -> Iterator[Request]:
        if len(self._queue):
            yield self._queue.peek()
            for position in range(1, len(self._queue)):
                yield self[position]
