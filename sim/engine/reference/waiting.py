"""The waiting queue, in vLLM's two orders (``vllm/v1/core/sched/request_queue.py``)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, Protocol

from policies.base import Policy, PolicyError, RankChanges, declared
from policies.checks import check_instant, check_rank, label
from sim.engine.request import Request
from sim.errors import SimulationError


class WaitingQueue(Protocol):
    """What a scheduler asks of a waiting queue; ``FcfsQueue`` and ``RankedQueue`` say what each part does."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...
    @property
    def entries(self) -> Sequence[object]: ...
    def refresh(self, now_ns: int) -> None: ...
    def mark_stale(self, requests: Set[Request]) -> None: ...
    def add(self, request: Request, now_ns: int) -> None: ...
    def put_back(self, request: Request, now_ns: int) -> None: ...
    def peek(self) -> Request: ...
    def pop(self) -> Request: ...
    def remove(self, request: Request) -> None: ...


class FcfsQueue:
    """First come, first served; a preempted request goes back to the front."""

    def __init__(self) -> None:
        self.entries: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.entries)

    def refresh(self, now_ns: int) -> None:
        """Do nothing: the order never changes."""

    def mark_stale(self, requests: Set[Request]) -> None:
        """Do nothing: progress moves no request."""

    def add(self, request: Request, now_ns: int) -> None:
        """Append a request that arrives."""
        self.entries.append(request)

    def put_back(self, request: Request, now_ns: int) -> None:
        """Put a request in front that was preempted, or passed over (in the reverse order of being passed over)."""
        self.entries.appendleft(request)

    def peek(self) -> Request:
        """Return the next request to be admitted."""
        return self.entries[0]

    def pop(self) -> Request:
        """Take out the next request to be admitted."""
        return self.entries.popleft()

    def remove(self, request: Request) -> None:
        """Take out a request that ends while it waits."""
        self.entries.remove(request)


Entry = tuple[float, int, int | str, Request]


class RankedQueue:
    """Smallest (rank, arrival, request id) first; the rank is the policy's, refreshed when it can have moved."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.entries: list[Entry] = []
        """In order: kept sorted, since single entries are taken out of the middle too."""
        changes = declared(policy, "rank_changes", RankChanges.ALWAYS)
        self._moves_every_step = RankChanges.OTHERS in changes
        self._moves_with_time = RankChanges.TIME in changes
        self.next_change_ns: int | None = None
        """When the order can next change with the clock alone."""
        self._stale: Set[Request] = frozenset()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry[3] for entry in self.entries)

    def refresh(self, now_ns: int) -> None:
        """Rank everything anew if any rank can have moved since the last time."""
        due = self.next_change_ns is not None and now_ns >= self.next_change_ns
        if self._moves_every_step or due:
            self.next_change_ns = None
            self.entries = [self._entry(entry[3], now_ns) for entry in self.entries]
            self.entries.sort()
            self._stale = frozenset()
        elif self._stale:
            for request in self._stale:
                place = self._place_of(request)
                if place is not None:  # else it has ended meanwhile
                    del self.entries[place]
                    insort(self.entries, self._entry(request, now_ns))
            self._stale = frozenset()

    def _place_of(self, request: Request) -> int | None:
        """Find the place of ``request`` by the rank it was given last; None where it is not here."""
        place = bisect_left(self.entries, (request.rank, request.arrival_ns, request.order))
        return place if place < len(self.entries) and self.entries[place][3] is request else None

    def mark_stale(self, requests: Set[Request]) -> None:
        """Waiting requests that made progress (output that was in flight when they were preempted)."""
        self._stale = self._stale | requests

    def add(self, request: Request, now_ns: int) -> None:
        """Insert a request that arrives, was preempted, or was passed over."""
        insort(self.entries, self._entry(request, now_ns))

    put_back = add

    def peek(self) -> Request:
        """Return the next request to be admitted."""
        return self.entries[0][3]

    def pop(self) -> Request:
        """Take out the next request to be admitted."""
        return self.entries.pop(0)[3]

    def remove(self, request: Request) -> None:
        """Take out a request that ends while it waits."""
        place = self._place_of(request)
        if place is not None:
            del self.entries[place]

    def _entry(self, request: Request, now_ns: int) -> Entry:
        rank = self._policy.rank(request, now_ns)
        # Plain numbers go by quickly: ranks of a long queue are asked for at every step.
        if (type(rank) is not float and type(rank) is not int) or rank != rank:
            self._refuse(check_rank, request, rank)
        request.rank = rank
        if self._moves_with_time:
            change = self._policy.next_change_ns(request, now_ns)
            if change is not None and type(change) is not int:
                self._refuse(check_instant, request, change)
            if change is not None and (self.next_change_ns is None or change < self.next_change_ns):
                self.next_change_ns = change
        return (request.rank, request.arrival_ns, request.order, request)

    def _refuse(self, check: Callable[[str, str, object], None], request: Request, answer: object) -> None:
        """Raise SimulationError where ``check`` finds that the policy's ``answer`` about ``request`` has no order."""
        try:
            check(label(self._policy), request.request_id, answer)
        except PolicyError as error:
            raise SimulationError(str(error)) from None


class AdmissionOrder(Sequence[Request]):
    """A waiting queue as a sequence: the head is free, anything further sorts it once."""

    def __init__(self, queue: WaitingQueue) -> None:
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


class OnDemand(Sequence[Request]):
    """Requests whose counters are brought up to date when the first of them is looked at, not before."""

    def __init__(self, requests: list[Request], bring_up_to_date: Callable[[], None]) -> None:
        self._requests = requests
        self._bring_up_to_date: Callable[[], None] | None = bring_up_to_date

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: Any) -> Any:
        if self._bring_up_to_date is not None:
            self._bring_up_to_date()
            self._bring_up_to_date = None
        return self._requests[index]

    def __iter__(self) -> Iterator[Request]:
        return iter(self[:])
