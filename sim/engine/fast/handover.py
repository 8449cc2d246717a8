"""Between scheduler and replica on one side and the steady loop on the other: the same state in two forms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapify
from typing import TYPE_CHECKING

from sim.engine.fast.feed import Feed
from sim.engine.fast.intake import Chunk, Intake
from sim.engine.reference.batch import Batch
from sim.engine.reference.kv_cache import ceil_div
from sim.engine.request import NEVER, Request, State

if TYPE_CHECKING:
    from sim.engine.fast.fast_forward import FastReplica

Member = tuple[int, int, int, int, int, int, int, int, Request | None]
"""A running request: the batch of its last token, its place in the order of admission, its row, its blocks at its
end, its context in the batch after its last, the phase at which it takes blocks, when it was first scheduled, when
its first token is known, and the request itself where it existed before the loop took over."""


class Handover:
    """Takes over from a replica whose requests all decode in step, and hands back."""

    def __init__(self, replica: FastReplica, feed: Feed) -> None:
        self._replica = replica
        self._scheduler = replica.scheduler
        self._feed = feed
        self._intake = Intake(self._scheduler, feed)
        self._members: list[Member] = []
        """Everybody with steps to come, as a heap."""
        self._leaving: list[Member] = []
        """Those whose last token is in flight."""
        self._freed: list[Request] = []
        """Ended since the last step, for its line in the decisions."""

    # --- taking over -------------------------------------------------------------------------

    def _take_over(self, members: list[Member]) -> None:
        scheduler, replica = self._scheduler, self._replica
        heapify(members)
        self._members, self._leaving = members, []
        freed = scheduler.take_freed()
        self._freed = freed if replica.decisions is not None else []
        scheduler.in_flight.clear()
        replica._in_flight.clear()
        scheduler.kv.holders.clear()
        scheduler.recorder.start_steady()

    def _member(self, request: Request, busy_ns: int) -> Member:
        block_size = self._scheduler.settings.block_size
        first_ns = request.first_token_ns if request.first_token_ns >= 0 else busy_ns
        at_end = request.num_prompt_tokens + request._stop_at_output_tokens - 1
        phase = (request.joined_at + 1 - request.base_computed) % block_size
        sizes = (ceil_div(at_end, block_size), at_end + 1, phase)
        return (request.ends_at, request.admission, request.row, *sizes, request.scheduled_ns, first_ns, request)

    # --- handing back ------------------------------------------------------------------------

    def _hand_back(self, next_batch: int, now_ns: int, busy_ns: int) -> None:
        """Scheduler and replica as they would be now, before ``next_batch`` is formed."""
        replica, scheduler = self._replica, self._scheduler
        latest = next_batch - 1
        is_idle = busy_ns == NEVER
        scheduler.cohort.restart(latest)
        scheduler.running, scheduler.outstanding_tokens = [], 0
        batch = Batch(latest)
        for member in sorted((*self._members, *self._leaving), key=_admission):
            request = self._request(member)
            is_in_flight = member[7] == busy_ns
            joined = member[0] - request._stop_at_output_tokens + 1
            if member[8] is not None:
                joined = request.joined_at
            self._restore(request, member, joined, is_in_flight=is_in_flight)
            if is_in_flight:
                batch.scheduled[request] = request.num_prompt_tokens
                batch.sampled.append(request)
            else:
                batch.num_in_step += 1
            computed = request.base_computed + latest - joined
            scheduler.outstanding_tokens += request.num_prompt_tokens + request.max_tokens - computed
        prefilling = []
        if (part := self._intake.part) is not None:
            prefilling = [request := self._restore_part(part)]
            batch.scheduled[request] = part.end - part.first
        if not is_idle:
            scheduler.in_flight.append(batch)
            replica._in_flight.append((batch, busy_ns))
            # What this batch brings is known when it ends, and is recorded then.
            scheduler.recorder.itl(busy_ns - now_ns, -batch.num_in_step)
        scheduler.resume(latest if is_idle else latest - 1, now_ns, prefilling)
        for position in self._intake.waiting:
            scheduler.add_request(self._feed.make(position), self._feed.arrival_ns[position])
        self._intake.clear()
        scheduler._freed, self._freed = self._freed, []
        replica.resume(now_ns, busy_ns)
        self._members, self._leaving = [], []

    def _request(self, member: Member) -> Request:
        if member[8] is not None:
            return member[8]
        return self._feed.make(bisect_left(self._feed.rows, member[2]))

    def _restore(self, request: Request, member: Member, joined: int, *, is_in_flight: bool) -> None:
        """A running request as the scheduler keeps it; its counters are those of a member of the cohort."""
        scheduler = self._scheduler
        if member[8] is None:
            prompt = request.num_prompt_tokens
            request.state, request.admission, request.scheduled_ns = State.RUNNING, member[1], member[6]
            request.num_computed_tokens = request.base_computed = prompt
            request.num_output_placeholders, request.num_known_tokens = 1, prompt + 1
            scheduler.kv.restore(request, prompt)
        else:
            scheduler.kv.holders[request.request_id] = request
        if not is_in_flight and request.first_token_ns == NEVER:
            request.first_token_ns = request.last_token_ns = member[7]
        scheduler.running.append(request)
        if request._stop_at_output_tokens > request.base_output + 1:
            scheduler.cohort.enter(request, joined, base_output=request.base_output, is_known_to_end=True)

    def _restore_part(self, part: Chunk) -> Request:
        """A request whose prompt is not done, with its last chunk in flight."""
        scheduler, request = self._scheduler, self._feed.make(part.position)
        request.state, request.admission, request.scheduled_ns = State.RUNNING, part.admission, part.scheduled_ns
        request.num_computed_tokens = part.end
        scheduler.kv.restore(request, part.end)
        scheduler.running.append(request)
        scheduler.outstanding_tokens += request.num_prompt_tokens + request.max_tokens - part.end
        return request

    # --- decisions ---------------------------------------------------------------------------

    def _log(
        self,
        instants: Sequence[int],
        free_blocks: Sequence[int],
        members: Sequence[Member],
        prompts: Sequence[tuple[int, int]],
    ) -> None:
        """Lines for steps of ``members`` and, as (position in the feed, tokens), of prompts."""
        feed, replica = self._feed, self._replica
        scheduled = {feed.name(member[2]): 1 for member in sorted(members, key=_admission)}
        scheduled |= {feed.name(feed.rows[position]): num_tokens for position, num_tokens in prompts}
        for at_ns, num_free in zip(instants, free_blocks, strict=True):
            replica._log_step(at_ns, scheduled, [], self._freed, num_free)
            replica.num_steps += 1
            self._freed = []


def _admission(member: Member) -> int:
    return member[1]
