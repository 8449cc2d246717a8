"""The waiting queue of a live engine: smallest (rank, arrival_time, request id) first, ranked anew when it must be.

No vLLM here: a request is anything with ``request_id``, ``arrival_time`` and, in ``view``, what policies see of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from policies.base import Policy, RankChanges, RequestView, declared
from policies.checks import check_rank, label

Rank = Callable[[RequestView, int], float]
Entry = tuple[float, float, str, int, Any]
"""(rank, arrival time, request id, order of entry, request); in the heap of a group the rank is 0 for all."""


class RankedHeap:
    """Waiting requests by rank. Entries that hold no longer stay in the heaps until they come up.

    A rank is asked for when a request enters and when it can have moved: by the clock (``next_change_ns``), by
    tokens that were in flight when it was preempted (``touch``), or with others. For the last, groups of equal rank
    have a heap each, so that a step asks for one rank per group.
    """

    def __init__(self, policy: Policy, rank: Rank, view: Callable[[Any], RequestView]) -> None:
        self._policy = policy
        self.rank = rank
        self._view = view
        changes = declared(policy, "rank_changes", RankChanges.ALWAYS)
        self._moves_with_others = RankChanges.OTHERS in changes
        self._moves_with_time = RankChanges.TIME in changes
        self._now_ns = 0
        self._entries: dict[str, Entry] = {}
        """By request id: the entry that holds."""
        self._alone: list[Entry] = []
        self._groups: dict[Hashable, list[Entry]] = {}
        self._group_of: dict[str, Hashable] = {}
        self._changes: list[tuple[int, int, Entry]] = []
        """(instant, order, entry): when the clock can next move an entry."""
        self._num_entered = 0
        self._head: Entry | None = None
        """The first of all; None = not known."""

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __iter__(self) -> Iterator[Any]:
        keys = ((self._rank_of(entry), *entry[1:]) for entry in self._entries.values())
        return (entry[4] for entry in sorted(keys))

    def refresh(self, now_ns: int) -> None:
        """The ranks are those of ``now_ns`` from here on."""
        self._now_ns = now_ns
        changes = self._changes
        while changes and changes[0][0] <= now_ns:
            entry = heapq.heappop(changes)[2]
            if self._entries.get(entry[2]) is entry:
                self.add(entry[4])
        if self._moves_with_others:
            self._head = None
            if self._alone:
                self._rank_alone_anew()

    def add(self, request: Any) -> None:
        """Enter ``request``, or rank it anew where it waits already."""
        view, now_ns = self._view(request), self._now_ns
        group = self._policy.rank_group(view) if self._moves_with_others else None
        self._num_entered += 1
        rank = self.ask(view) if group is None else 0
        entry = (rank, request.arrival_time, request.request_id, self._num_entered, request)
        self._entries[request.request_id] = entry
        if group is None:
            self._group_of.pop(request.request_id, None)
            heapq.heappush(self._alone, entry)
        else:
            self._group_of[request.request_id] = group
            heapq.heappush(self._groups.setdefault(group, []), entry)
        if self._moves_with_time and not (self._moves_with_others and group is None):
            change = self._policy.next_change_ns(view, now_ns)
            if change is not None:
                heapq.heappush(self._changes, (change, self._num_entered, entry))
        self._head = None
        self._compact()

    def touch(self, request: Any) -> None:
        """``request`` made progress while it waits."""
        if request.request_id in self._entries:
            self.add(request)

    def peek(self) -> Any:
        """The first of all.

        Raises:
            IndexError: no request waits.
        """
        return self._first()[4]

    def pop(self) -> Any:
        """Take the first of all out. Raises IndexError where no request waits."""
        entry = self._first()
        self.discard(entry[4])
        return entry[4]

    def discard(self, request: Any) -> None:
        """Take ``request`` out if it waits."""
        if self._entries.pop(request.request_id, None) is not None:
            self._group_of.pop(request.request_id, None)
            self._head = None

    def discard_all(self, requests: Iterable[Any]) -> None:
        """Take out those of ``requests`` that wait."""
        for request in requests:
            self.discard(request)

    def ask(self, view: RequestView) -> float:
        """The rank of ``view`` at the instant of the last ``refresh``.

        Raises:
            PolicyError: the policy's answer is no number, or NaN: there is no order with it.
        """
        rank = self.rank(view, self._now_ns)
        check_rank(label(self._policy), view.request_id, rank)
        return rank

    def _first(self) -> Entry:
        if self._head is None:
            heads = []
            if (alone := self._first_of(self._alone)) is not None:
                heads.append(alone)
            for group, heap in list(self._groups.items()):
                head = self._first_of(heap)
                if head is None:
                    del self._groups[group]
                else:
                    heads.append((self.ask(self._view(head[4])), *head[1:]))
            if not heads:
                raise IndexError("no request waits")
            self._head = min(heads)
        return self._head

    def _first_of(self, heap: list[Entry]) -> Entry | None:
        entries = self._entries
        while heap and entries.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def _rank_alone_anew(self) -> None:
        entries, alone = self._entries, []
        for entry in self._alone:
            if entries.get(entry[2]) is entry:
                entry = (self.ask(self._view(entry[4])), *entry[1:])
                entries[entry[2]] = entry
                alone.append(entry)
        heapq.heapify(alone)
        self._alone = alone

    def _rank_of(self, entry: Entry) -> float:
        return self.ask(self._view(entry[4])) if entry[2] in self._group_of else entry[0]

    def _compact(self) -> None:
        """Keep what no longer holds from piling up."""
        most = 2 * len(self._entries) + 64
        if len(self._changes) > most:
            self._changes = [item for item in self._changes if self._entries.get(item[2][2]) is item[2]]
            heapq.heapify(self._changes)
        if len(self._alone) > most:
            self._alone = [entry for entry in self._alone if self._entries.get(entry[2]) is entry]
            heapq.heapify(self._alone)
