"""A replica in its usual state, in one loop: whoever arrives is admitted at once, everybody decodes, somebody ends.

As long as that holds (``SteadyLoop`` says when) nothing has to be decided, and a request is a tuple of numbers.
Whatever else comes up, the loop hands everything back to scheduler and replica, between two steps, and they go on.
``docs/fast-forward.md`` has the argument; batches, instants and sums are those of ``fast_forward.py``.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop, heappush
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

from policies.base import Policy
from sim.engine.fast.decode_sums import LENGTH, MOST_SIZE, SHORT, DecodeSums
from sim.engine.fast.feed import NO_MORE, Feed
from sim.engine.fast.handover import Handover
from sim.engine.fast.intake import Plan
from sim.engine.request import NEVER
from sim.latency.base import StepShape
from sim.results.record import StepRow

if TYPE_CHECKING:
    from sim.engine.fast.ahead import AheadScheduler
    from sim.engine.fast.fast_forward import FastReplica

LEAST_REST = 8
MOST_REST = 4096
"""Steps between giving up and trying again: more each time that little came of it."""
WORTH_WHILE = 64
"""Steps that are not little."""
ENDS_AT_ONCE = 256
"""Ended requests that are reported together."""


def is_steady_kind(scheduler: AheadScheduler) -> bool:
    """Whether this engine can be in the loop at all: asynchronous, first come first served, nothing unusual."""
    settings, policy = scheduler.settings, scheduler.policy
    hooks = ("on_arrival", "on_scheduled", "on_step", "step_limits", "share_budgets", "victim")
    return (
        settings.async_scheduling
        and not policy.pass_over
        and (not scheduler.ranked or _is_calm(policy))
        and (scheduler.ranked or not policy.preempts)
        and (scheduler.ranked or type(policy).on_finished is Policy.on_finished)
        and all(getattr(type(policy), name) is getattr(Policy, name) for name in hooks)
        and scheduler.grows
        and not settings.static_batching
        and not settings.long_prefill_token_threshold
        and not settings.num_swap_blocks
    )


def _is_calm(policy: Policy) -> bool:
    """What ``policy`` says of itself (``Policy.is_calm``), and its predictor if it asks one."""
    if vars(type(policy)).get("is_calm") is not True:
        return False
    return not policy.uses_predictor or vars(type(policy.predictor)).get("is_pure") is True


class SteadyLoop(Handover):
    """See the module. It runs ahead of everything else in the simulation, so nobody may ask the replica meanwhile.

    It goes on while nobody waits but for the budget of a step, the free blocks are enough, and the accelerator is
    never waiting for the host but where the replica stands idle.
    """

    def __init__(self, replica: FastReplica, feed: Feed, sums: DecodeSums) -> None:
        super().__init__(replica, feed)
        self._sums = sums
        self._rest = 0
        self._next_rest = LEAST_REST

    # --- when to try -------------------------------------------------------------------------

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

    # --- the loop ----------------------------------------------------------------------------

    def _run(self, now_ns: int, busy_ns: int, *, is_idle: bool) -> None:
        """``now_ns``: the next batch is formed; ``busy_ns``: the end of the one before it, in flight unless idle.

        In the state that this loop is for, a batch is formed when the one before it starts, starts when that one
        ends, and its tokens are known when it ends itself.
        """
        replica, scheduler, feed, shape = self._replica, self._scheduler, self._feed, StepShape()
        cost, settings, index, recorder = replica.cost, scheduler.settings, replica.index, replica.recorder
        add_row, add_end = recorder.steady_steps.append, recorder.steady_requests.append
        stretches, make_stretch, make_short = self._sums.stretches, self._sums.make, self._sums.make_short
        decode_host_ns = self._sums.host_ns
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
        intake, is_ranked, is_held = self._intake, scheduler.ranked, False

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
                    feed.on_ends(num_ended, now_ns)
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

            if arrival_ns <= now_ns or is_held:
                # A step that admits all that wait, mostly one and as a whole.
                need = growth[batch % block_size]
                plan = None
                is_whole = not (is_held or (is_ranked and arrivals[position + 1] <= now_ns))
                if is_whole:
                    ahead, num_prompts, prompt_tokens, pairs = position, 0, 0, 0
                    left = free - need
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
                    is_whole = arrival_ns > now_ns and size + prompt_tokens <= token_budget
                    shape.prefill_context_tokens = prompt_tokens
                    shape.num_sampled = size + num_prompts
                if not is_whole:
                    while arrivals[position] <= now_ns:
                        intake.waiting.append(position)
                        position += 1
                    arrival_ns = arrivals[position]
                    plan = intake.plan(now_ns, free, growth[batch % block_size], size, size + len(leaving), admissions)
                    if plan is None:
                        break
                    num_prompts, prompt_tokens, pairs = len(plan.chunks), plan.tokens, plan.pairs
                    shape.prefill_context_tokens = plan.context_tokens
                    shape.num_sampled = size + num_prompts - intake.is_cut(plan)
                shape.num_prefills, shape.num_prefill_tokens = num_prompts, prompt_tokens
                shape.prefill_attention_pairs = pairs
                shape.num_decodes, shape.decode_context_tokens = size, context
                host_ns = cost.host_ns(shape)
                start_ns = now_ns + host_ns
                if start_ns <= busy_ns:
                    start_ns = busy_ns
                elif not is_idle:
                    break
                is_idle = False
                gpu_ns = cost.gpu_ns(shape)
                busy_ns = start_ns + gpu_ns
                if size:
                    recorder.itl(gpu_ns, size)
                if plan is not None:
                    running = size + len(leaving) + num_prompts
                    chunks = intake.carry_out(plan)
                    free, admissions = plan.free, admissions + plan.num_new
                    if log:
                        log([now_ns], [free], members, [(c.position, c.end - c.first) for c in plan.chunks])
                    self._record_chunks(plan, (now_ns, start_ns, gpu_ns, host_ns), running, size, context, len(chunks))
                    context += size
                    size += len(chunks)
                    for chunk in chunks:
                        at = chunk.position
                        tokens, last = prompts[at], outputs[at] - 1
                        phase = (batch + 1 - tokens) % block_size
                        growth[phase] += 1
                        context += tokens + 1
                        blocks = -(-(tokens + last) // block_size)
                        ends = (batch + last, chunk.admission, rows[at], blocks, tokens + last + 1, phase)
                        heappush(members, (*ends, chunk.scheduled_ns, busy_ns, None))
                    is_held = not intake.is_empty
                    now_ns = start_ns
                    batch += 1
                    continue
                if log:
                    log([now_ns], [left], members, [(at, prompts[at]) for at in range(position, ahead)])
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
            most = 1 if leaving else members[0][0] + 1 - batch
            place = context // size & LENGTH - 1
            first = context - place * size
            stretch = stretches.get((size, first))
            if stretch is None:
                if size > MOST_SIZE and most <= SHORT:
                    place, stretch = 0, make_short(size, context, most)
                else:
                    stretch = make_stretch(size, first)
            host_ns = decode_host_ns(size)
            if host_ns > stretch.least_ns or now_ns + host_ns > busy_ns:
                break
            sums, taken = stretch.sums, stretch.counts
            before_ns = busy_ns - sums[place]
            steps = 1
            if most > 1:
                last = min(place + most - 1, LENGTH - 1)
                steps += bisect_left(sums, arrival_ns - before_ns, place, last) - place
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
                needs = accumulate(growth[(batch + i) % block_size] for i in range(steps))
                log(instants, [free - blocks for blocks in needs], members, ())
            if taken is None:
                for i in range(steps):
                    recorder.itl(sums[i + 1] - sums[i], size)
            else:
                taken[place] += 1
                taken[end] -= 1
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
        feed.on_ends(num_ended, now_ns)
        scheduler._num_admissions = admissions
        scheduler.kv.set_free(free)
        self._next_rest = LEAST_REST if batch - first_batch > WORTH_WHILE else min(2 * self._next_rest, MOST_REST)
        self._rest = self._next_rest
        self._members, self._leaving = members, leaving
        self._hand_back(batch, now_ns, NEVER if is_idle else busy_ns)

    def _record_chunks(
        self, plan: Plan, times: tuple[int, int, int, int], running: int, size: int, context: int, num_done: int
    ) -> None:
        """The row of a step with prompts that are not whole or others waiting behind them."""
        now_ns, start_ns, gpu_ns, host_ns = times
        recorder, waiting = self._replica.recorder, len(self._intake.waiting)
        row = StepRow(
            replica=self._replica.index,
            scheduled_ns=now_ns,
            start_ns=start_ns,
            end_ns=start_ns + gpu_ns,
            num_steps=1,
            num_running=running,
            num_waiting=waiting,
            num_prefills=len(plan.chunks),
            num_prefill_tokens=plan.tokens,
            num_decodes=size,
            decode_context_tokens=context,
            prefill_context_tokens=plan.context_tokens,
            prefill_attention_pairs=plan.pairs,
            num_sampled=size + num_done,
            gpu_ns=gpu_ns,
            host_ns=host_ns,
            free_blocks=plan.free,
            num_preempted=0,
            num_seats=running,
            last_scheduled_ns=now_ns,
            free_block_ns=0,
        )
        recorder.step(row)
        recorder.start_steady()
