"""A replica in its usual state, in one loop: whoever arrives is admitted at once, everybody decodes, somebody ends.

As long as that holds (``SteadyLoop`` says when) nothing has to be decided, and a request is a tuple of numbers.
Whatever else comes up, the loop hands everything back to scheduler and replica, between two steps, and they go on.
``docs/fast-forward.md`` has the argument; batches, instants and sums are those of ``fast_forward.py``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

from policies.base import Policy
from sim.engine.batch import Batch
from sim.engine.decode_sums import LENGTH, DecodeSums
from sim.engine.feed import NO_MORE, Feed
from sim.engine.kv_cache import ceil_div
from sim.engine.request import NEVER, Request, State
from sim.latency.base import StepShape

if TYPE_CHECKING:
    from sim.engine.fast_forward import FastReplica
    from sim.engine.fast_scheduler import FastScheduler

Member = tuple[int, int, int, int, int, int, int, int, Request | None]
"""A running request: the batch of its last token, its place in the order of admission, its row, its blocks at its
end, its context in the batch after its last, the phase at which it takes blocks, when it was first scheduled, when
its first token is known, and the request itself where it existed before the loop took over."""

MOST_REST = 4096
"""Steps at most between giving up and trying again."""
ENDS_AT_ONCE = 256
"""Ended requests that are reported together."""


def is_steady_kind(scheduler: FastScheduler) -> bool:
    """Whether this engine can be in the loop at all: asynchronous, first come first served, nothing unusual."""
    settings, policy = scheduler.settings, scheduler.policy
    hooks = ("on_arrival", "on_scheduled", "on_step", "on_finished", "step_limits", "share_budgets", "victim")
    return (
        settings.async_scheduling
        and not scheduler.ranked
        and not policy.pass_over
        and not policy.preempts
        and all(getattr(type(policy), name) is getattr(Policy, name) for name in hooks)
        and scheduler.grows
        and not settings.static_batching
        and not settings.long_prefill_token_threshold
        and not settings.num_swap_blocks
    )


class SteadyLoop:
    """See the module. It runs ahead of everything else in the simulation, so nobody may ask the replica meanwhile.

    It goes on while each arriving request can be scheduled as a whole in the first step after its arrival, the free
    blocks are enough, and the accelerator is never waiting for the host but where the replica stands idle.
    """

    def __init__(self, replica: FastReplica, feed: Feed, sums: DecodeSums) -> None:
        self._replica = replica
        self._scheduler = replica.scheduler
        self._feed = feed
        self._sums = sums
        self._rest = 0
        self._next_rest = 8
        self._members: list[Member] = []
        self._leaving: list[Member] = []
        self._freed: list[Request] = []
        """Ended since the last step, for its line in the decisions."""

    # --- taking over -------------------------------------------------------------------------

    def start_idle(self) -> None:
        """Nothing runs, waits or is in flight: go on with the next arrival."""
        if self._may_try() and self._scheduler.kv.forget_order():
            self._take_over([])
            self._run(0, NEVER, is_idle=True)

    def start_busy(self, now_ns: int) -> bool:
        """A step is to be formed now, with one batch in flight. False where the state is not that simple."""
        if not self._may_try():
            return False
        scheduler = self._scheduler
        batch, end_ns = self._replica._in_flight[0]
        known_at_once = scheduler.last_update_ns == now_ns or not batch.num_in_step
        if not known_at_once or not scheduler.is_all_steady() or any(r.first_token_ns >= 0 for r in batch.sampled):
            return False
        if not scheduler.kv.forget_order():
            return False
        self._take_over([self._member(request, end_ns) for request in scheduler.running])
        scheduler.recorder.itl(end_ns - now_ns, batch.num_in_step)
        self._run(now_ns, end_ns, is_idle=False)
        return True

    def _may_try(self) -> bool:
        """Not too soon after the loop had to give up."""
        if self._rest:
            self._rest -= 1
            return False
        return self._feed.position < len(self._feed.rows)

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

    # --- the loop ----------------------------------------------------------------------------

    def _run(self, now_ns: int, busy_ns: int, *, is_idle: bool) -> None:
        """``now_ns``: the next batch is formed; ``busy_ns``: the end of the one before it, in flight unless idle.

        In the state that this loop is for, a batch is formed when the one before it starts, starts when that one
        ends, and its tokens are known when it ends itself.
        """
        replica, scheduler, feed, shape = self._replica, self._scheduler, self._feed, StepShape()
        cost, settings, index, recorder = replica.cost, scheduler.settings, replica.index, replica.recorder
        add_row, add_end = recorder.steady_steps.append, recorder.steady_requests.append
        stretches, make_stretch, decode_host_ns = self._sums.stretches, self._sums.make, self._sums.host_ns
        arrivals, prompts, outputs, rows = feed.arrival_ns, feed.prompt_tokens, feed.output_tokens, feed.rows
        position = feed.position
        arrival_ns = arrivals[position]
        block_size, max_num_seqs = settings.block_size, settings.max_num_seqs
        token_budget, watermark = settings.max_num_batched_tokens, scheduler.watermark_blocks
        prompt_budget = min(token_budget, settings.max_prefill_tokens_per_step or token_budget)
        log = self._log if replica.decisions is not None else None

        members, leaving = self._members, self._leaving
        admissions, free = scheduler._num_admissions, scheduler.kv.num_free_blocks
        first_batch = batch = scheduler.cohort.latest + 1
        size, growth = len(members), [0] * block_size
        context = sum(member[4] - (member[0] + 1 - batch) for member in members)
        for member in members:
            growth[member[5]] += 1
        num_ended = 0

        while True:
            # Who got the last token with the batch before the last has ended; with the last, is left out from now on.
            if leaving:
                for member in leaving:
                    free += member[3]
                    if member[8] is None:
                        add_end((member[2], index, member[6], member[7], now_ns))
                    else:
                        replica.record_end_at(member[8], member[7], now_ns)
                num_ended += len(leaving)
                if num_ended >= ENDS_AT_ONCE:
                    feed.on_ends(num_ended)
                    num_ended = 0
                if log:
                    self._freed += [self._request(member) for member in leaving]
                leaving = []
            while members and members[0][0] < batch:
                member = heappop(members)
                size -= 1
                context -= member[4]
                growth[member[5]] -= 1
                leaving.append(member)

            if arrival_ns <= now_ns:
                # A step that admits all that wait.
                ahead, num_prompts, prompt_tokens, pairs = position, 0, 0, 0
                left = free - growth[batch % block_size]
                running = size + len(leaving)
                while arrival_ns <= now_ns:
                    tokens = prompts[ahead]
                    need = -(-tokens // block_size)
                    prompt_tokens += tokens
                    spare = left - watermark if running else left
                    if need > spare or prompt_tokens > prompt_budget or running >= max_num_seqs:
                        break
                    left -= need
                    running += 1
                    num_prompts += 1
                    pairs += tokens * tokens
                    ahead += 1
                    arrival_ns = arrivals[ahead]
                if arrival_ns <= now_ns or size + prompt_tokens > token_budget:
                    break
                shape.num_prefills, shape.num_prefill_tokens = num_prompts, prompt_tokens
                shape.prefill_context_tokens, shape.prefill_attention_pairs = prompt_tokens, pairs
                shape.num_decodes, shape.decode_context_tokens = size, context
                shape.num_sampled = size + num_prompts
                host_ns = cost.host_ns(shape)
                start_ns = now_ns + host_ns
                if start_ns <= busy_ns:
                    start_ns = busy_ns
                elif not is_idle:
                    break
                is_idle = False
                gpu_ns = cost.gpu_ns(shape)
                if log:
                    log([now_ns], [left], members, range(position, ahead))
                busy_ns = start_ns + gpu_ns
                if size:
                    recorder.itl(gpu_ns, size)
                counts = (running, num_prompts, prompt_tokens, pairs, size, context)
                add_row((index, now_ns, start_ns, gpu_ns, 1, *counts, host_ns, left, now_ns, 0))
                free = left
                context += size + prompt_tokens + num_prompts
                size += num_prompts
                while position < ahead:
                    admissions += 1
                    tokens, last = prompts[position], outputs[position] - 1
                    phase = (batch + 1 - tokens) % block_size
                    growth[phase] += 1
                    blocks = -(-(tokens + last) // block_size)
                    times = (now_ns, busy_ns)
                    entry = (batch + last, admissions, rows[position], blocks, tokens + last + 1, phase, *times, None)
                    heappush(members, entry)
                    position += 1
                now_ns = start_ns
                batch += 1
                continue

            if not size:
                # Nothing to schedule. With a batch in flight that is a step all the same, and its end is awaited.
                if leaving:
                    if log:
                        log([now_ns], [free], (), ())
                    add_row((index, now_ns, now_ns, 0, 1, len(leaving), 0, 0, 0, 0, 0, 0, free, now_ns, 0))
                    now_ns, is_idle = busy_ns, True
                elif arrival_ns == NO_MORE:
                    break
                else:
                    now_ns, is_idle = arrival_ns, True
                continue

            # Decodes alone: until somebody is left out or has ended, or the first step that sees the next arrival.
            place = context // size & LENGTH - 1
            first = context - place * size
            stretch = stretches.get((size, first)) or make_stretch(size, first)
            host_ns = decode_host_ns(size)
            if host_ns > stretch.least_ns or now_ns + host_ns > busy_ns:
                break
            sums = stretch.sums
            before_ns = busy_ns - sums[place]
            steps = 1
            if not leaving:
                most = members[0][0] + 1 - batch
                if most > LENGTH - place:
                    most = LENGTH - place
                if most > 1:
                    steps += bisect_left(sums, arrival_ns - before_ns, place, place + most - 1) - place
            phase = batch % block_size
            if steps == 1:
                need, last_ns, free_block_ns = growth[phase], now_ns, 0
            else:
                takes = growth[phase:] + growth[:phase]
                if steps > block_size:
                    takes *= -(-steps // block_size)
                need = sum(takes[:steps])
                # Step i > 0 is formed at before_ns + sums[place + i - 1].
                last_ns = before_ns + sums[place + steps - 2]
                free_block_ns = (free - takes[0]) * (last_ns - now_ns)
                if steps > 2:
                    inner = takes[1 : steps - 1]
                    free_block_ns += sum(map(mul, inner, sums[place : place + steps - 2]))
                    free_block_ns -= (last_ns - before_ns) * sum(inner)
            if need > free:
                break
            end = place + steps
            if log:
                instants = [now_ns, *(before_ns + sums[i] for i in range(place, end - 1))]
                taken = accumulate(growth[(batch + i) % block_size] for i in range(steps))
                log(instants, [free - blocks for blocks in taken], members, ())
            stretch.counts[place] += 1
            stretch.counts[end] -= 1
            free -= need
            end_ns = before_ns + sums[end]
            running = size + len(leaving)
            counts = (running, 0, 0, 0, size, context)
            rest = (host_ns * steps, free, last_ns, free_block_ns)
            add_row((index, now_ns, busy_ns, end_ns - busy_ns, steps, *counts, *rest))
            now_ns = before_ns + sums[end - 1]
            busy_ns = end_ns
            batch += steps
            context += steps * size

        feed.position = position
        feed.on_ends(num_ended)
        scheduler._num_admissions = admissions
        scheduler.kv.set_free(free)
        self._next_rest = 8 if batch - first_batch > 64 else min(2 * self._next_rest, MOST_REST)
        self._rest = self._next_rest
        self._members, self._leaving = members, leaving
        self._hand_back(batch, now_ns, NEVER if is_idle else busy_ns)

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
        if not is_idle:
            scheduler.in_flight.append(batch)
            replica._in_flight.append((batch, busy_ns))
            # What this batch brings is known when it ends, and is recorded then.
            scheduler.recorder.itl(busy_ns - now_ns, -batch.num_in_step)
        scheduler.resume(latest if is_idle else latest - 1, now_ns)
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

    # --- decisions ---------------------------------------------------------------------------

    def _log(
        self, instants: Sequence[int], free_blocks: Sequence[int], members: Sequence[Member], new: Sequence[int]
    ) -> None:
        """Lines for steps of ``members`` and, at these positions of the feed, new requests."""
        feed, replica = self._feed, self._replica
        scheduled = {feed.name(member[2]): 1 for member in sorted(members, key=_admission)}
        scheduled |= {feed.name(feed.rows[position]): feed.prompt_tokens[position] for position in new}
        for at_ns, num_free in zip(instants, free_blocks, strict=True):
            replica._log_step(at_ns, scheduled, [], self._freed, num_free)
            replica.num_steps += 1
            self._freed = []


def _admission(member: Member) -> int:
    return member[1]
