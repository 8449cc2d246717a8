"""Requests that decode in step with each other, as a few sums instead of a list.

Every member gets exactly one token in every batch from the one after it joined. So what a member has
computed, how many blocks it holds and when it ends follow from the batch it joined at and the batches
since; only the sums over all members are kept up to date.
"""

from __future__ import annotations

import heapq

from sim.engine.request import Request

NOT_A_MEMBER = -1


class Cohort:
    """Members and their sums. Batches are numbered from 1; ``latest`` is the last one scheduled."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.latest = 0
        self.size = 0
        """Members that the next batch computes."""
        self.context_tokens = 0
        """Sum over them of the context they attend to in the next batch."""
        self.growth = [0] * block_size
        """``growth[j % block_size]``: how many need a new block for batch j."""
        self._takers: list[dict[Request, None]] = [{} for _ in range(block_size)]
        """Who they are."""
        self._ends: dict[int, list[tuple[Request, int]]] = {}
        self._leaves: dict[int, list[tuple[Request, int]]] = {}
        self._end_batches: list[int] = []

    def add(self, request: Request, *, base_output: int, is_known_to_end: bool) -> None:
        """``request`` has been given, by batch ``latest``, the computation of its next token.

        ``base_output``: its output tokens before that batch's. ``is_known_to_end``: the scheduler
        knows beforehand which token is the last one, and schedules no step beyond it; otherwise, one
        more step may be scheduled before the end is seen (an EOS under asynchronous scheduling).
        """
        request.base_computed = request.num_computed_tokens
        self.enter(request, self.latest, base_output=base_output, is_known_to_end=is_known_to_end)

    def enter(self, request: Request, joined: int, *, base_output: int, is_known_to_end: bool) -> None:
        """``add`` for a request that joined with an earlier batch and has been in all of them since.

        ``base_computed``: what it had computed with that batch (``num_computed_tokens`` then).
        """
        request.joined_at = joined
        request.base_output = base_output
        request.ends_at = joined + request._stop_at_output_tokens - base_output - 1
        request.last_batch = request.ends_at if is_known_to_end else request.ends_at + 1
        request.is_counted = True
        self._count(request, 1)
        self._ends.setdefault(request.ends_at, []).append((request, joined))
        heapq.heappush(self._end_batches, request.ends_at)
        if is_known_to_end:
            self._leaves.setdefault(request.last_batch + 1, []).append((request, joined))

    def restart(self, latest: int) -> None:
        """No members, and ``latest`` is the last batch scheduled."""
        self.latest = latest
        self.size = self.context_tokens = 0
        self.growth = [0] * self.block_size
        self._takers = [{} for _ in range(self.block_size)]
        self._ends, self._leaves, self._end_batches = {}, {}, []

    def remove(self, request: Request) -> None:
        """``request`` is no member any more; its counters must have been written back first."""
        if request.is_counted:
            request.is_counted = False
            self._count(request, -1)
        request.joined_at = NOT_A_MEMBER

    def _count(self, request: Request, sign: int) -> None:
        self.size += sign
        self.context_tokens += sign * (request.base_computed + self.latest - request.joined_at + 1)
        phase = (request.joined_at + 1 - request.base_computed) % self.block_size
        self.growth[phase] += sign
        if sign > 0:
            self._takers[phase][request] = None
        else:
            del self._takers[phase][request]

    def takers(self, batch: int) -> list[Request]:
        """Who needs a new block for ``batch``, in the order of ``running``."""
        return sorted(self._takers[batch % self.block_size], key=_admission)

    def leave_before(self, batch: int) -> None:
        """Those whose last token is in flight are not computed by ``batch``."""
        entries = self._leaves.pop(batch, None)
        if entries is None:
            return
        for request, joined in entries:
            if request.joined_at == joined and request.is_counted:
                request.is_counted = False
                self._count(request, -1)

    def advance(self, num_batches: int) -> None:
        """``num_batches`` more have been scheduled with all members."""
        self.latest += num_batches
        self.context_tokens += num_batches * self.size

    def has_end_at(self, batch: int) -> bool:
        """Whether ``ending_at`` may have somebody."""
        return batch in self._ends

    def ending_at(self, batch: int) -> list[Request]:
        """Members that get their last token from ``batch``."""
        entries = self._ends.pop(batch, None)
        return [request for request, joined in entries if request.joined_at == joined] if entries else []

    def first_end(self) -> int:
        """A batch before which no member ends (members that left early may make it too small)."""
        ends, entries_at = self._end_batches, self._ends
        while ends:
            for request, joined in entries_at.get(ends[0], ()):
                if request.joined_at == joined:
                    return ends[0]
            entries_at.pop(heapq.heappop(ends), None)
        return self.latest

    def blocks_for_batches(self, num_batches: int) -> int:
        """New blocks that the next ``num_batches`` need."""
        rounds, rest = divmod(num_batches, self.block_size)
        first = (self.latest + 1) % self.block_size
        growth = self.growth
        some = sum(growth[first : first + rest])
        if first + rest > self.block_size:
            some += sum(growth[: first + rest - self.block_size])
        return rounds * self.size + some


def _admission(request: Request) -> int:
    return request.admission
