"""vLLM's V1 scheduler, decision for decision: which requests are computed in a step, and how many tokens of each.

A step in five lines:

1. Each running request, in the order of admission, is given its next token, or the next chunk of its prompt.
2. Where blocks run out, the request that may wait longest is preempted: its blocks are free, it waits again.
3. If none was preempted, waiting requests are admitted from the head of the queue while seats, tokens and blocks last.
4. Scheduled tokens count as computed at once; a request that is computed up to its last known token gets a new one.
5. When the step has run (``update``), the new tokens are known, and requests that have their last one are done.

A running request gets no tokens because its last token is in flight (``_ends_in_flight``), the step's tokens, its
prefill tokens or its group's share are used up, ``max_model_len`` is reached, its next image cannot be encoded in this
step (``Images``), or it is the one to be preempted.
A waiting request gets none because a running one was preempted in this step, no seat is free, the step's tokens are
used up, output of before its preemption is in flight, the step has as many LoRA adapters as it may and not its
(``Adapters``), a whole prompt does not fit (``whole_prompts_only``), its blocks do not (``_fits``), its first image
cannot be encoded in this step, its group's share is used up, or one before it in the queue was not admitted.

Follows ``vllm/v1/core/sched/scheduler.py`` and ``async_scheduler.py`` (vLLM 0.32.0), without connectors. It has no
clock and no SimPy: the caller says what time it is. Variants and baselines are other seats, other KV caches
(``sim.engine.variants.choice``: windows, several kinds of layers) or a subclass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from policies.base import Policy
from sim.engine.reference.adapters import Adapters
from sim.engine.reference.batch import Batch, SchedulerSettings, Step
from sim.engine.reference.images import Images
from sim.engine.reference.kv_cache import NO_HIT, Hit
from sim.engine.reference.recompute import note_resumed, note_stopped
from sim.engine.reference.steering import Steering
from sim.engine.reference.waiting import FcfsQueue, RankedQueue
from sim.engine.request import NEVER, Request, State
from sim.engine.variants.choice import build_kv_cache, build_seats
from sim.results.record import Recorder

LARGEST = 1 << 62
FEW = 4
"""Requests that are faster taken out of ``running`` one by one."""


class Scheduler:
    """The queue, the running list and the KV cache of one engine."""

    def __init__(self, settings: SchedulerSettings, policy: Policy, recorder: Recorder | None = None) -> None:
        self.settings = settings
        self.policy = policy
        self.recorder = recorder if recorder is not None else Recorder()
        self.kv = build_kv_cache(settings)
        self.seats = build_seats(settings)
        self.adapters = Adapters(settings)
        self.images = Images(settings)
        self.steering = Steering(settings, policy, self.kv.num_usable_blocks)
        self.waiting: FcfsQueue | RankedQueue = RankedQueue(policy) if self.steering.is_ranked else FcfsQueue()
        self.running: list[Request] = []
        self.in_flight: deque[Batch] = deque()
        self.watermark_blocks = int(settings.watermark * settings.num_gpu_blocks)
        self._lookahead = settings.num_lookahead_tokens
        self.outstanding_tokens = 0
        """Tokens still to compute, over all requests, if each used all of its ``max_tokens``."""
        self._freed: list[Request] = []
        """Requests freed since the last step, for the next one's ``finished``."""
        self._num_admissions = 0
        self.last_update_ns = NEVER

    # --- what an engine asks ---------------------------------------------------------------

    def add_request(self, request: Request, now_ns: int) -> None:
        """A request arrives. ``why_never`` must have had no objection."""
        self.outstanding_tokens += request.num_prompt_tokens + request.max_tokens
        self.policy.on_arrival(request, now_ns)
        self.waiting.add(request, now_ns)

    @property
    def num_seats(self) -> int:
        """Seats taken: running requests, and ended ones whose seats are not free yet."""
        return len(self.running) + self.seats.num_held

    def has_requests(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running or self.waiting.entries)

    def why_never(self, request: Request) -> str | None:
        """Why ``request`` can never run to its end here (vLLM would refuse it or wait for ever), or None."""
        limit = self.settings.max_model_len
        if request.num_prompt_tokens >= limit:
            return f"prompt of {request.num_prompt_tokens} tokens does not leave room under max_model_len {limit}"
        most_tokens = request.num_prompt_tokens + request._stop_at_output_tokens - 1
        if self.settings.num_speculative_tokens:
            most_tokens = min(most_tokens + self.settings.num_speculative_tokens + self._lookahead, limit)
        need = self.kv.blocks_to_reserve(most_tokens)
        if need > self.kv.num_usable_blocks:
            return f"needs {need} KV blocks at its longest, the pool has {self.kv.num_usable_blocks}"
        return None

    def schedule(self, now_ns: int) -> Batch:
        """Form the next batch. Running requests first, in the order they were admitted, then waiting ones."""
        batch = Batch(finished=self._freed)
        if self._freed:
            self._freed = []
        running, waiting, steering = self.running, self.waiting, self.steering
        if waiting.entries:
            waiting.refresh(now_ns)
            for victim in steering.preempted_first(running, waiting, now_ns, self.kv.num_free_blocks):
                self._preempt(victim, now_ns)
                batch.preempted.append(victim)
        step = steering.begin_step(now_ns, len(running) + len(waiting))
        self.kv.begin_step()
        self.images.begin_step()
        batch.token_budget = step.token_budget
        order = running if step.shares is None else steering.by_rank(running, now_ns)
        if self._schedule_running(batch, step, order) and waiting.entries:
            self._admit_waiting(batch, step)
        self._advance(batch)
        batch.num_free_blocks = self.kv.num_free_blocks
        return batch

    def update(self, batch: Batch, now_ns: int) -> list[Request]:
        """The batch has been computed: its tokens are known. Returns the requests that ended with it."""
        if self.in_flight and self.in_flight[0] is batch:
            self.in_flight.popleft()
        self.images.has_run(batch)
        finished: list[Request] = []
        usual_gap_ns = now_ns - self.last_update_ns
        usual_units, units = 0, self.recorder.gaps.units
        is_async = self.settings.async_scheduling
        for request in batch.sampled:
            if request.state is State.FINISHED:
                continue  # it ended one step earlier than the scheduler could know
            is_stale = request in batch.stale
            request.num_output_tokens += 1
            request.num_tokens += 1
            if not is_async or is_stale:
                request.num_known_tokens += 1
            else:
                request.num_output_placeholders -= 1
                computed = request.num_computed_tokens - request.num_output_placeholders
                if computed >= request.next_cacheable_tokens:
                    self.kv.cache_blocks(request, computed)
            if request.first_token_ns == NEVER:
                request.first_token_ns = now_ns
            elif request.last_token_ns == self.last_update_ns:
                usual_units += units[request.class_index]
            else:
                self.recorder.gaps.add((now_ns - request.last_token_ns, units[request.class_index]))
            request.last_token_ns = now_ns
            if request.is_catching_up:
                self.recorder.caught_up(request, now_ns)
            if request.num_output_tokens >= request._stop_at_output_tokens:
                finished.append(request)
        if usual_units:
            self.recorder.gaps.add((usual_gap_ns, usual_units))
        return self._end_update(batch, finished, now_ns)

    def _end_update(self, batch: Batch, finished: list[Request], now_ns: int) -> list[Request]:
        """What follows once the tokens of ``batch`` are counted; ``finished`` got their last one."""
        if batch.stale:
            for request in batch.stale:
                request.num_stale_batches -= 1
            if isinstance(self.waiting, RankedQueue):
                self.waiting.mark_stale(batch.stale)
        for request in finished:
            self._finish(request)
        if finished:
            self._release(finished)
        self.last_update_ns = now_ns
        return finished

    def abort(self, request: Request, now_ns: int) -> None:
        """End a request from outside, as vLLM's ``finish_requests`` does. One that has ended already stays as it is.

        Its blocks are free at once, even with output in flight: that output is dropped when its batch completes. The
        next batch lists the request in ``finished``.
        """
        if request.state is State.FINISHED:
            return
        if request.state is State.RUNNING:
            note_stopped(request, self._num_computed_for_good(request))
            self._finish(request)
            self._release([request])
            return
        self.seats.leave_queue(request, self.waiting)
        self._finish(request)
        self.kv.free(request)
        self._freed.append(request)

    def lose_all(self) -> list[Request]:
        """The engine fails, and every request here is lost; nothing else is asked of this scheduler.

        Raises SimulationError where a KV block is held by none of them, or twice.
        """
        lost = [*self.running, *self.waiting]
        for request in lost:
            if request.state is State.RUNNING:
                note_stopped(request, self._num_computed_for_good(request))
            request.state = State.FINISHED
        for request in (*lost, *self.seats.free((), 0)):
            self.kv.free(request)
        self.kv.check_empty()
        return lost

    # --- forming a step --------------------------------------------------------------------

    def _schedule_running(self, batch: Batch, step: Step, order: list[Request]) -> bool:
        """One token for every decode, a chunk for every unfinished prefill. False if a request was preempted."""
        kv, scheduled = self.kv, batch.scheduled
        longest = self.settings.max_model_len - 1
        chunk_cap = step.chunk_cap
        none_preempted = True
        index = 0
        while index < len(order) and step.token_budget > 0:
            request = order[index]
            computed = request.num_computed_tokens
            num_new = request.num_known_tokens - computed
            if request.num_output_placeholders and self._ends_in_flight(request):
                index += 1
                continue
            is_prefill = num_new > 1 or request.num_known_tokens == request.num_prompt_tokens
            if is_prefill:
                if 0 < chunk_cap < num_new:
                    num_new = chunk_cap
                num_new = min(num_new, step.prefill_budget, step.token_budget, longest - computed)
            elif request.num_draft_tokens:
                num_new = min(1 + request.num_draft_tokens, chunk_cap or LARGEST, step.token_budget, longest - computed)
            elif computed >= longest:
                num_new = 0
            if step.shares is not None:
                num_new = min(num_new, step.shares.left(request))
            if kv.cuts_chunks:
                num_new = kv.cut(request, NO_HIT, computed, num_new)
            has_images = computed < request.images_end
            if has_images and num_new > 0:
                num_new = self.images.cut(request, computed, num_new)
            if num_new <= 0:
                index += 1
                continue
            slots = computed + num_new
            if self._lookahead:
                slots = min(slots + self._lookahead, longest + 1)
            if kv.has_window:
                kv.drop_behind(request, computed - self._in_flight_tokens(request))
            while request.num_slots < slots and not kv.grow(request, slots):
                none_preempted = False
                victim = self.steering.pick_victim(self.running, request, step.now_ns)
                if victim is not request and victim in scheduled:
                    num_given = scheduled.pop(victim)
                    step.take_back(victim, num_given, is_prefill=self._is_prefill(victim, num_given))
                victim_index = order.index(victim)
                if order is not self.running:
                    del order[victim_index]
                if victim_index < index:
                    index -= 1
                self._preempt(victim, step.now_ns)
                batch.preempted.append(victim)
                if victim is request:
                    return False
            cacheable = min(computed + num_new, request.num_tokens)
            if cacheable >= request.next_cacheable_tokens:
                kv.cache_blocks(request, cacheable)
            scheduled[request] = num_new
            if has_images:
                self.images.take(request)
            step.give(request, num_new, is_prefill=is_prefill)
            index += 1
        return none_preempted

    def _admit_waiting(self, batch: Batch, step: Step) -> None:
        """Admit from the head of the queue; the first that does not fit ends it (unless the policy passes over)."""
        waiting = self.waiting
        passed_over: list[Request] = []
        most_running = self.seats.most_running(len(self.running), len(waiting))
        self.adapters.begin_step(batch.scheduled)
        while waiting.entries and len(self.running) < most_running:
            if step.token_budget <= 0 or step.prefill_budget <= 0:
                break
            request = waiting.peek()
            if request.num_stale_batches or not self.adapters.admit(request):
                # Output of before its preemption is still in flight (it must not be computed twice), or no adapter's
                # place is left in this step.
                passed_over.append(waiting.pop())
                continue
            num_new = self._try_admit(request, step)
            if num_new == 0:
                is_share_used_up = step.shares is not None and step.shares.left(request) == 0
                if not (self.policy.pass_over or is_share_used_up):
                    break
                passed_over.append(waiting.pop())
                continue
            waiting.pop()
            self.running.append(request)
            self._num_admissions += 1
            request.admission = self._num_admissions
            request.state = State.RUNNING
            if request.scheduled_ns == NEVER:
                request.scheduled_ns = step.now_ns
                request.num_cached_tokens = request.num_computed_tokens
            batch.scheduled[request] = num_new
            step.give(request, num_new, is_prefill=True)
            self.seats.take()
            self.adapters.take(request)
        for request in reversed(passed_over):
            waiting.put_back(request, step.now_ns)

    def _try_admit(self, request: Request, step: Step) -> int:
        """Blocks for the first chunk of a waiting request. Returns the chunk's tokens; 0 = it cannot come in now."""
        settings = self.settings
        hit = self.kv.lookup(request)
        computed = hit.num_tokens
        num_new = request.num_tokens - computed
        if num_new == 1 and settings.num_speculative_tokens:
            num_new = self._padded(computed, step)
        if 0 < step.chunk_cap < num_new:
            num_new = step.chunk_cap
        if step.whole_prompts_only and step.token_budget < num_new <= step.largest_whole_prompt:
            return 0
        num_new = min(num_new, step.token_budget, step.prefill_budget)
        if step.shares is not None:
            num_new = min(num_new, step.shares.left(request))
        if self.kv.cuts_chunks:
            num_new = self.kv.cut(request, hit, computed, num_new)
        if request.images and num_new > 0:
            num_new = self.images.cut(request, computed, num_new)
        slots = min(computed + num_new + self._lookahead, settings.max_model_len)
        if num_new <= 0:
            return 0
        if not self._fits(request, hit, slots):
            self.images.release_all(request)
            return 0
        self.kv.admit(request, hit, slots)
        self.kv.cache_blocks(request, min(computed + num_new, request.num_tokens))
        if request.images:
            self.images.take(request)
        if request.num_preemptions:
            note_resumed(request, computed)
            self.recorder.resumed(request, step.now_ns)
        request.num_computed_tokens = computed
        self.outstanding_tokens -= computed
        return num_new

    def _fits(self, request: Request, hit: Hit, slots: int) -> bool:
        """Whether ``slots`` tokens fit the free blocks, and the whole request where that is asked for. The watermark
        is kept free, unless nothing runs."""
        kv = self.kv
        free_blocks = kv.num_free_blocks - (self.watermark_blocks if self.running else 0)
        if self.settings.scheduler_reserve_full_isl and (
            kv.blocks_to_admit(request, hit, request.num_tokens, is_whole=True) > free_blocks
        ):
            return False
        return kv.blocks_to_admit(request, hit, slots) <= free_blocks

    def _padded(self, computed: int, step: Step) -> int:
        """Tokens of a waiting request that needs one, where drafts are verified; 0 = not in this step."""
        return 1

    def _advance(self, batch: Batch) -> None:
        """Count the scheduled tokens as computed, and tell the policy of them."""
        batch.count_as_computed(is_async=self.settings.async_scheduling)
        if self.steering.wants_scheduled:
            for request, num_new in batch.scheduled.items():
                self.policy.on_scheduled(request, num_new)
        self._dispatch(batch)

    def _dispatch(self, batch: Batch) -> None:
        """The batch is in flight, unless it is empty."""
        num_tokens = batch.shape.num_tokens
        if not num_tokens:
            return
        self.outstanding_tokens -= num_tokens
        batch.shape.swap_bytes = self.kv.take_moved_bytes()
        self.adapters.use(batch)
        self.images.use(batch.shape)
        self.in_flight.append(batch)
        if self.steering.wants_steps:
            self.policy.on_step(num_tokens, batch.token_budget, 1)

    # --- of one request --------------------------------------------------------------------

    def _ends_in_flight(self, request: Request) -> bool:
        """Whether the output in flight reaches ``max_tokens`` for sure, so that another step would be for nothing."""
        computed_for_sure = request.num_computed_tokens + 2 - request.num_output_placeholders
        return computed_for_sure >= request.num_prompt_tokens + request.max_tokens

    def _in_flight_tokens(self, request: Request) -> int:
        """Tokens that are scheduled but not computed yet: their attention still reads what they look back on."""
        return sum(batch.scheduled.get(request, 0) for batch in self.in_flight)

    def _is_prefill(self, request: Request, num_tokens: int) -> bool:
        """Whether ``num_tokens``, scheduled in this step, are a chunk of its prompt or of what it computes again."""
        return num_tokens > 1 or request.num_known_tokens == request.num_prompt_tokens

    def _preempt(self, victim: Request, now_ns: int) -> None:
        """Take the blocks of a running request; it waits again, keeping the tokens it has generated."""
        self.running.remove(victim)
        for batch in self.in_flight:
            if victim in batch.scheduled:
                batch.stale = batch.stale | {victim}
                victim.num_stale_batches += 1
        note_stopped(victim, self._num_computed_for_good(victim))
        self.kv.preempt(victim)
        self.images.give_back(victim)
        self.outstanding_tokens += victim.num_computed_tokens
        victim.state = State.PREEMPTED
        victim.num_computed_tokens = 0
        victim.num_output_placeholders = 0
        victim.num_known_tokens = victim.num_tokens
        victim.num_preemptions += 1
        self.recorder.preempted(victim, now_ns)
        self.waiting.put_back(victim, now_ns)
        self._free(())

    def _num_computed_for_good(self, request: Request) -> int:
        """Leading tokens of a running request that are computed and stay so, those in flight included."""
        return request.num_computed_tokens

    # --- ending ----------------------------------------------------------------------------

    def _finish(self, request: Request) -> None:
        if request.state is not State.RUNNING:
            self.waiting.remove(request)
        request.state = State.FINISHED
        self.images.release_all(request)
        self.policy.on_finished(request)
        self.outstanding_tokens -= request.num_prompt_tokens + request.max_tokens - request.num_computed_tokens

    def _release(self, finished: list[Request]) -> None:
        """Take ``finished`` out of ``running``, and free their seats and blocks."""
        if len(finished) <= FEW:
            for request in finished:
                if request in self.running:
                    self.running.remove(request)
        else:
            self.running = [request for request in self.running if request.state is not State.FINISHED]
        self._free(finished)

    def _free(self, ended: Sequence[Request]) -> None:
        for request in self.seats.free(ended, len(self.running)):
            self.kv.free(request)
            self._freed.append(request)
