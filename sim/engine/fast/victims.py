"""Who yields KV blocks next among requests that decode in step, without ranking all of them in each step."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from policies.base import DecodeRanks, Policy, declared
from sim.engine.request import Request, State

Entry = tuple[float, int, int, int, Request, int]
"""(number, arrival, minus the position in ``running``, order of entry, request, the batch it joined at): the
number orders as the ranks do, at least weakly; equal numbers mean equal ranks."""

MIN_ENTRIES_TO_COMPACT = 256


class VictimOrder:
    """Running requests that decode, in the order in which they would be evicted (the last one first).

    Every one of them gets one output token with each batch, so a number that falls by one with each token,
    plus the number of batches, stays what it was when the request joined.
    """

    def __init__(self, policy: Policy, write_view: Callable[[Request], None]) -> None:
        """``write_view`` brings what a policy can see of a member of the cohort up to date."""
        self._policy = policy
        self._write_view = write_view
        self._counts_down = declared(policy, "decode_ranks", DecodeRanks.MOVE) is DecodeRanks.COUNT_DOWN
        self._newcomers: dict[Request, None] = {}
        self._entries: list[Entry] = []
        self._num_entered = 0

    def start(self, requests: Iterable[Request]) -> None:
        """Forget everybody but ``requests``."""
        self._entries.clear()
        self._newcomers = dict.fromkeys(requests)

    def add(self, request: Request) -> None:
        """``request`` decodes in step from now on. Who leaves is noticed by itself."""
        self._newcomers[request] = None
        if len(self._newcomers) >= MIN_ENTRIES_TO_COMPACT:
            self._newcomers = {r: None for r in self._newcomers if r.state is State.RUNNING}

    def pop(self, now_ns: int, num_updated: int) -> Request | None:
        """Take the largest (rank, arrival) out, of equals the first in ``running``; None where nobody is left.

        ``num_updated``: the last batch whose tokens are known.
        """
        if self._newcomers:
            self._enter_newcomers(now_ns, num_updated)
        entries = self._entries
        while entries and not _is_current(entries[-1]):
            entries.pop()
        if not entries:
            return None
        place = self._last_of_equals(now_ns) if self._counts_down else len(entries) - 1
        return entries.pop(place)[4]

    def _enter_newcomers(self, now_ns: int, num_updated: int) -> None:
        policy = self._policy
        for request in self._newcomers:
            if request.state is not State.RUNNING:
                continue
            joined = request.joined_at
            if joined >= 0:
                self._write_view(request)
            number = policy.tokens_left(request) + num_updated if self._counts_down else policy.rank(request, now_ns)
            self._num_entered += 1
            insort(self._entries, (number, request.arrival_ns, -request.admission, self._num_entered, request, joined))
        self._newcomers = {}
        if len(self._entries) >= MIN_ENTRIES_TO_COMPACT:
            self._entries = [entry for entry in self._entries if _is_current(entry)]

    def _last_of_equals(self, now_ns: int) -> int:
        """Where the victim is: numbers that differ can mean equal ranks (beyond the prediction, all have 1 left)."""
        entries = self._entries
        best = place = len(entries) - 1
        number, rank = entries[place][0], self._rank(entries[place], now_ns)
        while place > 0:
            place -= 1
            entry = entries[place]
            if entry[0] == number or not _is_current(entry):
                continue
            if self._rank(entry, now_ns) != rank:
                break
            number = entry[0]
            if entry[1:3] > entries[best][1:3]:
                best = place
        return best

    def _rank(self, entry: Entry, now_ns: int) -> float:
        if entry[5] >= 0:
            self._write_view(entry[4])
        return self._policy.rank(entry[4], now_ns)


def _is_current(entry: Entry) -> bool:
    return entry[4].joined_at == entry[5] and entry[4].state is State.RUNNING


@dataclass(slots=True)
class Eviction:
    """One victim of a step that is short of blocks."""

    num_taken_before: int
    """Blocks that others took off the free list since the victim before."""
    victim: Request
    is_served: bool
    """It came before the request that needs its blocks, and had its token of this step already."""
    has_new_block: bool
    """... and a new block for it."""


def plan_evictions(
    needy: Sequence[Request],
    num_free: int,
    next_victim: Callable[[], Request | None],
    num_blocks_of: Callable[[Request], int],
) -> tuple[list[Eviction], int] | None:
    """The running pass over ``needy``, the requests (in order) that need a new block each, changing nothing.

    Returns:
        the victims in order, and the blocks taken after the last one; None where a request would have to give
        up its own blocks, which ends the pass for all behind it.
    """
    plan: list[Eviction] = []
    gone: set[Request] = set()
    dropped: dict[object, int] = {}
    needs = set(needy)
    num_taken = 0
    for request in needy:
        if request in gone:
            continue
        while not num_free:
            victim = next_victim()
            if victim is None or victim is request:
                return None
            gone.add(victim)
            is_served = victim.is_counted and victim.admission < request.admission
            has_new_block = is_served and victim in needs
            plan.append(Eviction(num_taken, victim, is_served, has_new_block))
            num_taken = 0
            num_free += num_blocks_of(victim) + has_new_block
            for block in victim.shared_blocks:
                dropped[block] = dropped.get(block, 0) + 1
                if dropped[block] < block.references:
                    num_free -= 1
        num_free -= 1
        num_taken += 1
    return plan, num_taken
