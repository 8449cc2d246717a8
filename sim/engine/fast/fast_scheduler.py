"""The same decisions as ``Scheduler``, at a cost that depends on what changes in a step, not on the batch.

Requests in steady decode form a cohort (``MemberScheduler``); prefills, admissions and everything unusual go through
the code of ``Scheduler`` itself. When blocks run short or a step's budget binds, the cohort is written back
into its requests and the reference forms the step. ``docs/fast-forward.md`` explains why this is exact.
"""

from __future__ import annotations

from bisect import bisect_left

from policies.base import Policy, RankChanges, declared
from sim.engine.fast.cohort import NOT_A_MEMBER
from sim.engine.fast.members import MemberScheduler, admission_of, conversation_of
from sim.engine.fast.victims import plan_evictions
from sim.engine.reference.batch import Batch, SchedulerSettings, Step
from sim.engine.request import Request
from sim.results.record import Recorder


class FastScheduler(MemberScheduler):
    """See the module."""

    def __init__(
        self,
        settings: SchedulerSettings,
        policy: Policy,
        recorder: Recorder | None = None,
        *,
        is_pipelined: bool = False,
    ) -> None:
        """``is_pipelined``: pipeline parallelism, where a request is in every n-th batch only; there is then no
        common step to count in, and every step is the reference's."""
        super().__init__(settings, policy, recorder)
        self.is_pipelined = is_pipelined
        self._is_blocked = False
        """The last step was all decodes and admitted nobody: nor will the next, until something changes."""
        changes = declared(policy, "rank_changes", RankChanges.ALWAYS)
        self._ranks_move_with_others = RankChanges.OTHERS in changes and self.ranked
        self._is_plain = not (settings.contiguous_kv or settings.num_swap_blocks or settings.num_speculative_tokens)
        """Blocks follow from tokens alone."""
        self._only_head_decides = settings.scheduler_reserve_full_isl and not (
            self._has_step_limits or self._has_shares or self._preempts or policy.pass_over or settings.static_batching
        )
        """While the head of the queue has no seat or no blocks, nobody is admitted."""

    def add_request(self, request: Request, now_ns: int) -> None:
        if self._wants_scheduled:
            self._feed_policy()
        self._is_blocked = False
        super().add_request(request, now_ns)

    # --- forming a step --------------------------------------------------------------------

    def schedule(self, now_ns: int) -> Batch:
        if self.waiting.entries:
            if self._wants_scheduled:
                self._feed_policy()
            if self._only_head_decides and self.is_fast and not self._prefilling:
                self.waiting.refresh(now_ns)
                if self._is_head_out() and (batch := self._schedule_members()) is not None:
                    self._is_blocked = not any(b.stale for b in self.in_flight)
                    return batch
        elif self.is_fast and not self._prefilling and not self._has_step_limits:
            batch = self._schedule_members()
            if batch is not None:
                return batch
        return super().schedule(now_ns)

    def _schedule_members(self) -> Batch | None:
        """The next batch where it is the cohort and nothing else; None where that takes the long way."""
        cohort, budget = self.cohort, self.settings.max_num_batched_tokens
        number = cohort.latest + 1
        cohort.leave_before(number)
        size = cohort.size
        need = cohort.growth[number % cohort.block_size] if self.grows else 0
        if not 0 < size <= budget or need > self.kv.num_free_blocks:
            return None
        if need:
            self.kv.take_unnamed(need)
        batch = Batch(number, size, self._freed)
        if self._freed:
            self._freed = []
        shape = batch.shape
        shape.num_decodes = shape.num_sampled = size
        shape.decode_context_tokens = cohort.context_tokens
        shape.swap_bytes, self._swapped_bytes = self._swapped_bytes, 0
        batch.token_budget = budget
        batch.num_free_blocks = self.kv.num_free_blocks
        self.outstanding_tokens -= size
        self.in_flight.append(batch)
        if self._wants_steps:
            self.policy.on_step(size, budget, 1)
        cohort.advance(1)
        return batch

    def _is_head_out(self) -> bool:
        """Whether the next of the queue surely finds no seat or no blocks in the step that is to be formed."""
        if len(self.running) >= self.settings.max_num_seqs:
            return True
        head = self.waiting.peek()
        content = head.content
        if head.num_stale_batches or head.num_swapped_tokens or self._talkers:
            return False
        if content is not None and (content.segments or content.own_is_shared):
            return False  # blocks that others hold are not counted
        cohort, kv = self.cohort, self.kv
        number = cohort.latest + 1
        cohort.leave_before(number)
        free = kv.num_free_blocks
        if self.grows:
            free -= cohort.growth[number % cohort.block_size]
        if self.running:
            free -= self.watermark_blocks
        return kv.blocks_for(head.num_tokens) > free

    def _form(self, batch: Batch, step: Step) -> None:
        cohort = self.cohort
        number = cohort.latest + 1
        is_short = False
        if self.is_fast:
            cohort.leave_before(number)
            if not self._fits(step, number):
                is_short = self._evict(batch, step, number)
                if not is_short:
                    self._write_back()
        if not self.is_fast:
            super()._form(batch, step)
            if batch.scheduled:
                batch.index = number
                cohort.latest = number
                self._enter(batch)
            return
        size, shape = cohort.size, batch.shape
        batch.num_in_step = size
        shape.num_decodes = shape.num_sampled = size
        shape.decode_context_tokens = cohort.context_tokens
        step.token_budget -= size
        if not is_short:
            if self.grows and (num_blocks := cohort.growth[number % cohort.block_size]):
                self.kv.take_unnamed(num_blocks)
            if self._prefilling:
                self._schedule_running(batch, step, self._prefilling)
            if self.waiting.entries:
                self._admit_waiting(batch, step)
        self._advance(batch)
        if not (batch.scheduled or size):
            return
        batch.index = number
        cohort.advance(1)
        if batch.scheduled:
            self._sort_in(batch)
        if batch.scheduled or is_short:
            self._is_blocked = False
        else:
            self._is_blocked = not any(b.stale for b in self.in_flight)

    def _fits(self, step: Step, number: int) -> bool:
        """Whether every decode gets its token and its block in this step, and prefills the rest, in any order."""
        cohort = self.cohort
        if cohort.size > step.token_budget:
            return False
        need = cohort.growth[number % cohort.block_size] if self.grows else 0
        prefilling = self._prefilling
        if prefilling:
            left = step.token_budget - cohort.size
            wanted = sum(r.num_known_tokens - r.num_computed_tokens for r in prefilling)
            if wanted > left and self.running[-len(prefilling) :] != prefilling:
                return False
            need += sum(
                max(self.kv.blocks_for(min(r.num_known_tokens, r.num_computed_tokens + left)) - r.num_blocks, 0)
                for r in prefilling
            )
        return need <= self.kv.num_free_blocks

    def _try_admit(self, request: Request, step: Step) -> int:
        """The reference's, in short where nothing of the request can be found and all of it fits into the step."""
        content, kv = request.content, self.kv
        num_new = request.num_tokens
        if (
            (content is not None and (content.segments or content.own_is_shared))
            or request.num_preemptions
            or step.chunk_cap
            or step.shares is not None
            or num_new > step.token_budget
            or num_new > step.prefill_budget
            or not self._is_plain
        ):
            return super()._try_admit(request, step)
        free_blocks = kv.num_free_blocks
        if self.running:
            free_blocks -= self.watermark_blocks
        if -(-num_new // self._block_size) > free_blocks:
            return 0
        kv.admit(request, (), num_new)
        if num_new >= request.next_cacheable_tokens:
            kv.cache_blocks(request, num_new)
        request.num_computed_tokens = 0
        return num_new

    # --- short of blocks -------------------------------------------------------------------

    def _evict(self, batch: Batch, step: Step, number: int) -> bool:
        """Blocks for the cohort's next tokens from victims. False, and nothing changed, where the step is not that
        simple."""
        if self._has_own_victims or self._prefilling or self.cohort.size > step.token_budget:
            return False
        if self.ranked:
            return self._evict_by_rank(batch, step, number)
        self._evict_last(batch, step, number)
        return True

    def _evict_last(self, batch: Batch, step: Step, number: int) -> None:
        """Blocks for the cohort's next tokens, from the last of ``running`` where the pool has too few (vLLM's rule
        without ranks). Taken in the order in which the reference takes them: what is free first, then what each
        victim gives."""
        cohort, kv = self.cohort, self.kv
        num_taken = 0
        while (need := cohort.growth[number % cohort.block_size] - num_taken) > 0:
            some = min(need, kv.num_free_blocks)
            kv.take_unnamed(some)
            num_taken += some
            if some < need:
                # The last one is never among those served so far: they come before it.
                victim = self.running[-1]
                self._preempt(victim, step.now_ns)
                batch.preempted.append(victim)

    def _evict_by_rank(self, batch: Batch, step: Step, number: int) -> bool:
        """The same by (rank, arrival). A victim may have had its token of this step already: then it has also made
        the keys of that step, and gives its new block back with the others."""
        cohort, kv, victims, now_ns = self.cohort, self.kv, self._victims, step.now_ns
        if victims is None:
            return False
        latest = number - 1

        def num_blocks_of(request: Request) -> int:
            if request.joined_at == NOT_A_MEMBER:
                return request.num_blocks
            return kv.blocks_for(request.base_computed + min(latest, request.last_batch) - request.joined_at)

        def next_victim() -> Request | None:
            return victims.pop(now_ns, self.num_updated)

        planned = plan_evictions(cohort.takers(number), kv.num_free_blocks, next_victim, num_blocks_of)
        if planned is None:
            return False
        plan, num_taken = planned
        for eviction in plan:
            kv.take_unnamed(eviction.num_taken_before)
            victim = eviction.victim
            if eviction.is_served:
                self._list_in_flight(victim)
                self._leave(victim)
                victim.num_blocks += eviction.has_new_block
                cacheable = min(victim.num_computed_tokens + 1, victim.num_tokens)
                if cacheable >= victim.next_cacheable_tokens:
                    kv.cache_blocks(victim, cacheable)
            self._preempt(victim, now_ns)
            batch.preempted.append(victim)
        kv.take_unnamed(num_taken)
        return True

    # --- after a step: who decodes in step from now on -------------------------------------

    def _sort_in(self, batch: Batch) -> None:
        """Those that the batch listed: into the cohort if they decode from now on, else to be listed again."""
        if self._talkers:
            self._part_talkers(batch)
        if self._prefilling or len(batch.sampled) < len(batch.scheduled):
            sampled = set(batch.sampled)
            listed = [r for r in self._prefilling if r not in sampled]
            known = set(listed)
            self._prefilling = listed + [r for r in batch.scheduled if r not in sampled and r not in known]
        for request in tuple(batch.sampled):
            self._join(request)

    def _part_talkers(self, batch: Batch) -> None:
        """A member whose conversation has just been joined by another request is listed from now on."""
        for request in tuple(batch.scheduled):
            talker = self._talkers.get(conversation_of(request))
            if talker is not None and talker is not request:
                self._list_in_flight(talker)
                self._leave(talker)

    def _enter(self, batch: Batch) -> None:
        """After a step that the reference formed: who got a token decodes in step from now on."""
        if self._has_shares or self.is_pipelined:
            return
        self.is_fast = True
        self._is_blocked = False
        sampled = set(batch.sampled)
        self._prefilling = [
            r for r in self.running if r not in sampled and not (r.num_output_placeholders and self._ends_in_flight(r))
        ]
        if self._victims is not None:
            listed = set(self._prefilling)
            self._victims.start(r for r in self.running if r not in sampled and r not in listed)
        for request in tuple(batch.sampled):
            self._join(request)

    # --- a step has been computed ----------------------------------------------------------

    def update(self, batch: Batch, now_ns: int) -> list[Request]:
        self.num_updated = max(self.num_updated, batch.index)
        if not batch.sampled and not batch.stale and not self.cohort.has_end_at(batch.index):
            if batch.index:
                self.in_flight.popleft()
            if batch.num_in_step:
                self.recorder.itl(now_ns - self.last_update_ns, batch.num_in_step)
            self.last_update_ns = now_ns
            return []
        finished = super().update(batch, now_ns)
        if finished:
            self._is_blocked = False
        return finished

    def _release(self, finished: list[Request]) -> None:
        if not self.settings.static_batching and len(finished) == 1:
            request = finished[0]
            # ``running`` is in the order of admission.
            place = bisect_left(self.running, request.admission, key=admission_of)
            if place < len(self.running) and self.running[place] is request:
                del self.running[place]
            self.kv.free(request)
            self._freed.append(request)
            return
        super()._release(finished)
