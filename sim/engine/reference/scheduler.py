"""One scheduling step, decision for decision as vLLM's V1 scheduler takes it.

``schedule`` and ``update`` follow ``vllm/v1/core/sched/scheduler.py`` and ``async_scheduler.py``
(vLLM 0.32.0), for one KV group (full attention or a sliding window) without LoRA, multimodal input or
connectors. No clock of its own and no SimPy: who calls it decides what time it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from policies.base import EngineLimits, EngineState, Policy
from sim.engine.reference.batch import Batch, SchedulerSettings, Step
from sim.engine.reference.kv_cache import KVCache, PrefixKVCache
from sim.engine.reference.shares import StepShares
from sim.engine.reference.waiting import AdmissionOrder, FcfsQueue, RankedQueue
from sim.engine.request import NEVER, Request, State
from sim.engine.variants.window import WindowKVCache
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
        self.ranked = policy.stock_mode != "fcfs"
        self.waiting: FcfsQueue | RankedQueue = RankedQueue(policy) if self.ranked else FcfsQueue()
        self.running: list[Request] = []
        self.in_flight: deque[Batch] = deque()
        self.watermark_blocks = int(settings.watermark * settings.num_gpu_blocks)
        self.free_swap_blocks = settings.num_swap_blocks
        self._draft_slots = settings.draft_slots
        self._lookahead = settings.num_lookahead_tokens
        self.outstanding_tokens = 0
        """Tokens still to compute, over all requests, if each used all of its ``max_tokens``."""
        self._freed: list[Request] = []
        self._swapped_bytes = 0
        self._held: list[Request] = []
        """Static batching: ended, but still on their seats until the whole batch has ended."""
        self._num_to_admit = 0
        self._num_admissions = 0
        self.last_update_ns = NEVER
        self._wants_scheduled = type(policy).on_scheduled is not Policy.on_scheduled
        self._wants_steps = type(policy).on_step is not Policy.on_step
        self._preempts = policy.preempts
        self._has_step_limits = type(policy).step_limits is not Policy.step_limits
        self._has_shares = type(policy).share_budgets is not Policy.share_budgets
        self._has_own_victims = type(policy).victim is not Policy.victim
        policy.bind(
            EngineLimits(
                max_num_batched_tokens=settings.max_num_batched_tokens,
                max_num_seqs=settings.max_num_seqs,
                block_size=settings.block_size,
                num_gpu_blocks=self.kv.num_usable_blocks,
                enable_chunked_prefill=settings.enable_chunked_prefill,
                prompt_tokens_per_output_token=settings.prompt_tokens_per_output_token,
            )
        )

    # --- what an engine asks ---------------------------------------------------------------

    def add_request(self, request: Request, now_ns: int) -> None:
        """A request arrives. ``why_never`` must have had no objection."""
        self.outstanding_tokens += request.num_prompt_tokens + request.max_tokens
        self.policy.on_arrival(request, now_ns)
        self.waiting.add(request, now_ns)

    @property
    def num_seats(self) -> int:
        """Seats taken: running requests, and the ended ones of a static batch."""
        return len(self.running) + len(self._held)

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
        if self.waiting.entries:
            self.waiting.refresh(now_ns)
            if self._preempts and self.running:
                self._preempt_proactively(batch, now_ns)
        step = self._begin_step(now_ns)
        batch.token_budget = step.token_budget
        self._form(batch, step)
        batch.num_free_blocks = self.kv.num_free_blocks
        return batch

    def update(self, batch: Batch, now_ns: int) -> list[Request]:
        """The batch has been computed: its tokens are known. Returns the requests that ended with it."""
        if self.in_flight and self.in_flight[0] is batch:
            self.in_flight.popleft()
        finished: list[Request] = []
        usual_gap_ns = now_ns - self.last_update_ns
        num_usual_gaps = batch.num_in_step
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
                num_usual_gaps += 1
            else:
                self.recorder.itl(now_ns - request.last_token_ns, 1)
            request.last_token_ns = now_ns
            if request.num_output_tokens >= request._stop_at_output_tokens:
                finished.append(request)
        if num_usual_gaps:
            self.recorder.itl(usual_gap_ns, num_usual_gaps)
        return self._end_update(batch, finished, now_ns)

    def _end_update(self, batch: Batch, finished: list[Request], now_ns: int) -> list[Request]:
        """What follows once the tokens of ``batch`` are counted; ``finished`` got their last one."""
        if batch.stale:
            for request in batch.stale:
                request.num_stale_batches -= 1
            if isinstance(self.waiting, RankedQueue):
                self.waiting.mark_stale(batch.stale)
        finished = self._collect_ended(batch, finished, now_ns)
        for request in finished:
            self._finish(request)
        if finished:
            self._release(finished)
        self.last_update_ns = now_ns
        return finished

    def _collect_ended(self, batch: Batch, finished: list[Request], now_ns: int) -> list[Request]:
        return finished

    def scheduled_tokens(self, batch: Batch) -> dict[str, int]:
        """Tokens by request id, in the order of scheduling, of the batch just formed."""
        return {request.request_id: num_tokens for request, num_tokens in batch.scheduled.items()}

    # --- forming a step --------------------------------------------------------------------

    def _form(self, batch: Batch, step: Step) -> None:
        order = self.running if step.shares is None else self._by_rank(step.now_ns)
        if self._schedule_running(batch, step, order) and self.waiting.entries:
            self._admit_waiting(batch, step)
        self._advance(batch)

    def _begin_step(self, now_ns: int) -> Step:
        settings = self.settings
        budget = settings.max_num_batched_tokens - self._draft_slots
        whole_prompts_only = not settings.enable_chunked_prefill
        largest_whole_prompt = settings.max_model_len
        if self._has_step_limits and (limits := self.policy.step_limits(now_ns)) is not None:
            budget = largest_whole_prompt = min(budget, limits.max_num_batched_tokens)
            whole_prompts_only = not limits.enable_chunked_prefill
        # A threshold keeps a long prompt from starving others: alone, it starves nobody.
        chunk_cap = settings.long_prefill_token_threshold
        if chunk_cap:
            num_requests = len(self.running) + len(self.waiting)
            if num_requests <= 1:
                chunk_cap = 0
            elif settings.long_prefill_token_threshold_adaptive:
                chunk_cap = max(chunk_cap, settings.max_num_batched_tokens // num_requests)
        return Step(
            now_ns,
            budget,
            settings.max_prefill_tokens_per_step or budget,
            chunk_cap,
            whole_prompts_only,
            largest_whole_prompt,
            StepShares.of(self.policy, budget) if self._has_shares else None,
        )

    def _schedule_running(self, batch: Batch, step: Step, order: list[Request]) -> bool:
        """One token for every decode, a chunk for every unfinished prefill. False if somebody was preempted."""
        kv, scheduled = self.kv, batch.scheduled
        longest = self.settings.max_model_len - 1
        chunk_cap = step.chunk_cap
        nobody_preempted = True
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
            if num_new <= 0:
                index += 1
                continue
            slots = computed + num_new
            if self._lookahead:
                slots = min(slots + self._lookahead, longest + 1)
            if kv.has_window:
                kv.drop_behind(request, computed - self._in_flight_tokens(request))
            while request.num_slots < slots and not kv.grow(request, slots):
                nobody_preempted = False
                victim = self._pick_victim(request, step.now_ns)
                if victim is not request and victim in scheduled:
                    self._give_back(victim, scheduled.pop(victim), step)
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
            step.token_budget -= num_new + self._draft_slots
            if is_prefill:
                step.prefill_budget -= num_new
            if step.shares is not None:
                step.shares.use(request, num_new)
            index += 1
        return nobody_preempted

    def _admit_waiting(self, batch: Batch, step: Step) -> None:
        """Admit from the head of the queue; the first that does not fit ends it (unless the policy passes over)."""
        waiting, settings = self.waiting, self.settings
        passed_over: list[Request] = []
        seats = self._seats(step)
        while step.token_budget > 0 and step.prefill_budget > 0 and waiting.entries and len(self.running) < seats:
            request = waiting.peek()
            if request.num_stale_batches:
                # Output of before its preemption is still in flight: it must not be computed twice.
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
            step.token_budget -= num_new + self._draft_slots
            step.prefill_budget -= num_new
            if step.shares is not None:
                step.shares.use(request, num_new)
            if settings.static_batching:
                self._num_to_admit -= 1
        for request in reversed(passed_over):
            waiting.put_back(request, step.now_ns)

    def _try_admit(self, request: Request, step: Step) -> int:
        """Blocks for the first chunk of a waiting request and the chunk's tokens; 0 where it does not fit now."""
        kv, settings = self.kv, self.settings
        swapped = request.num_swapped_tokens
        hits = self._lookup(request) if not swapped else kv.skipped(swapped)
        computed = swapped or len(hits) * settings.block_size
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
        if num_new <= 0:
            return 0
        free_blocks = kv.num_free_blocks - kv.num_evictable(hits) + len(hits)
        if self.running:
            free_blocks -= self.watermark_blocks
        if settings.scheduler_reserve_full_isl and kv.blocks_to_reserve(request.num_tokens) > free_blocks:
            return 0
        slots = min(computed + num_new + self._lookahead, settings.max_model_len)
        if kv.blocks_for(slots) > free_blocks:
            return 0
        kv.admit(request, hits, slots)
        kv.cache_blocks(request, min(computed + num_new, request.num_tokens))
        if swapped:
            self._swap_in(request)
        if request.num_lost_tokens:
            # What the prefix cache gives back is not computed again.
            request.num_recomputed_tokens += max(request.num_lost_tokens - computed, 0)
            request.num_lost_tokens = 0
        request.num_computed_tokens = computed
        self.outstanding_tokens -= computed
        return num_new

    def _padded(self, computed: int, step: Step) -> int:
        """Tokens of a waiting request that needs one, where drafts are verified; 0 = not in this step."""
        return 1

    def _lookup(self, request: Request) -> list[Any]:
        return self.kv.lookup(request)

    def _advance(self, batch: Batch) -> None:
        """Count the scheduled tokens as computed, note who gets a token, and add up the step's shape."""
        shape = batch.shape
        is_async = self.settings.async_scheduling
        wants_scheduled = self._wants_scheduled
        for request, num_new in batch.scheduled.items():
            prior = request.num_computed_tokens
            computed = prior + num_new
            request.num_computed_tokens = computed
            known = request.num_known_tokens
            if num_new == 1 and computed == known and known > request.num_prompt_tokens:
                shape.num_decodes += 1
                shape.decode_context_tokens += computed
            else:
                shape.num_prefills += 1
                shape.num_prefill_tokens += num_new
                shape.prefill_context_tokens += computed
                shape.prefill_attention_pairs += num_new * (prior + computed)
            if computed == known:
                batch.sampled.append(request)
                if is_async:
                    request.num_output_placeholders += 1
                    request.num_known_tokens += 1
            if wants_scheduled:
                self.policy.on_scheduled(request, num_new)
        num_tokens = shape.num_tokens
        self.outstanding_tokens -= num_tokens
        shape.num_sampled += len(batch.sampled)
        if num_tokens:
            shape.swap_bytes, self._swapped_bytes = self._swapped_bytes, 0
            self.in_flight.append(batch)
            if self._wants_steps:
                self.policy.on_step(num_tokens, batch.token_budget, 1)

    # --- preemption ------------------------------------------------------------------------

    def _preempt_proactively(self, batch: Batch, now_ns: int) -> None:
        state = EngineState(now_ns, self.kv.num_free_blocks, len(self.running), len(self.waiting))
        for victim in list(self.policy.preempt(self._running_as_of_now(), AdmissionOrder(self.waiting), state)):
            if not isinstance(victim, Request) or victim.state is not State.RUNNING:
                raise TypeError(f"policy {self.policy.name} preempts {victim!r}, which does not run")
            self._preempt(victim, now_ns)
            batch.preempted.append(victim)

    def _running_as_of_now(self) -> Sequence[Request]:
        return self.running

    def _pick_victim(self, needy: Request, now_ns: int) -> Request:
        """Who loses its blocks so that ``needy`` can grow: the last admitted, or the largest (rank, arrival)."""
        if self._has_own_victims:
            chosen = self.policy.victim(self.running, needy)
            if isinstance(chosen, Request):
                return chosen
        if not self.ranked:
            return self.running[-1]
        rank = self.policy.rank
        return max(self.running, key=lambda request: (rank(request, now_ns), request.arrival_ns))

    def _ends_in_flight(self, request: Request) -> bool:
        """Whether the output in flight reaches ``max_tokens`` for sure, so that another step would be for nothing."""
        computed_for_sure = request.num_computed_tokens + 2 - request.num_output_placeholders
        return computed_for_sure >= request.num_prompt_tokens + request.max_tokens

    def _in_flight_tokens(self, request: Request) -> int:
        """Tokens that are scheduled but not computed yet: their attention still reads what they look back on."""
        return sum(batch.scheduled.get(request, 0) for batch in self.in_flight)

    def _give_back(self, victim: Request, num_tokens: int, step: Step) -> None:
        """Undo the scheduling, in this step, of a request that is now preempted."""
        step.token_budget += num_tokens
        if num_tokens > 1 or victim.num_known_tokens == victim.num_prompt_tokens:
            step.prefill_budget += num_tokens
        if step.shares is not None:
            step.shares.use(victim, -num_tokens)

    def _preempt(self, victim: Request, now_ns: int) -> None:
        """Take the blocks of a running request; it waits again, keeping the tokens it has generated."""
        self.running.remove(victim)
        for batch in self.in_flight:
            if victim in batch.scheduled:
                batch.stale = batch.stale | {victim}
                victim.num_stale_batches += 1
        computed = victim.num_computed_tokens
        self.outstanding_tokens += computed
        num_blocks = self.kv.blocks_in_use(computed)
        if 0 < num_blocks <= self.free_swap_blocks and computed:
            self.free_swap_blocks -= num_blocks
            victim.num_swapped_tokens = computed
            self._swapped_bytes += num_blocks * self.settings.block_bytes
        else:
            victim.num_lost_tokens = computed
        self.kv.free(victim)
        victim.state = State.PREEMPTED
        victim.num_computed_tokens = 0
        victim.num_output_placeholders = 0
        victim.num_known_tokens = victim.num_tokens
        victim.num_preemptions += 1
        self.waiting.put_back(victim, now_ns)
        self._end_static_batch()

    def _swap_in(self, request: Request) -> None:
        num_blocks = self.kv.blocks_in_use(request.num_swapped_tokens)
        self.free_swap_blocks += num_blocks
        self._swapped_bytes += num_blocks * self.settings.block_bytes
        request.num_swapped_tokens = 0

    # --- ending ----------------------------------------------------------------------------

    def _finish(self, request: Request) -> None:
        if request.state is State.PREEMPTED:
            self.waiting.remove(request)
        request.state = State.FINISHED
        self.policy.on_finished(request)
        self.outstanding_tokens -= request.num_prompt_tokens + request.max_tokens - request.num_computed_tokens

    def _release(self, finished: list[Request]) -> None:
        """Seats and blocks of what ended, at once; a static batch gives them back when all of it has ended."""
        if len(finished) <= FEW:
            for request in finished:
                if request in self.running:
                    self.running.remove(request)
        else:
            self.running = [request for request in self.running if request.state is not State.FINISHED]
        if self.settings.static_batching:
            self._held.extend(finished)
            self._end_static_batch()
            return
        for request in finished:
            self.kv.free(request)
        self._freed.extend(finished)

    def _end_static_batch(self) -> None:
        """Once nobody of a static batch runs any more, its seats and blocks are free."""
        if self.running:
            return
        for request in self._held:
            self.kv.free(request)
        self._freed.extend(self._held)
        self._held = []

    # --- baselines and extensions ----------------------------------------------------------

    def _seats(self, step: Step) -> int:
        """Requests that may run together; a static batch takes no one in once it has formed."""
        if not self.settings.static_batching:
            return self.settings.max_num_seqs
        if not self.running:
            self._num_to_admit = min(len(self.waiting), self.settings.max_num_seqs)
        return len(self.running) + self._num_to_admit

    def _by_rank(self, now_ns: int) -> list[Request]:
        rank = self.policy.rank
        return sorted(self.running, key=lambda request: (rank(request, now_ns), request.arrival_ns, request.order))


def build_kv_cache(settings: SchedulerSettings) -> KVCache:
    """The cache that ``settings`` ask for."""
    if settings.contiguous_kv:
        return KVCache(settings.num_gpu_blocks, settings.block_size, reserved_tokens=settings.max_model_len)
    if settings.sliding_window is not None and settings.sliding_window < settings.max_model_len:
        return WindowKVCache(settings)
    if settings.enable_prefix_caching:
        return PrefixKVCache(settings.num_gpu_blocks, settings.block_size)
    return KVCache(settings.num_gpu_blocks, settings.block_size)
