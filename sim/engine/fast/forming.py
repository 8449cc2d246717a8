"""How a step is formed: the running requests first, then those that wait, as ``reference/scheduler.py`` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.base import EngineState
from policies.checks import label
from sim.engine.fast.cohort import NOT_A_MEMBER, Cohort, Member
from sim.engine.reference.recompute import note_resumed
from sim.engine.reference.steering import victims_in
from sim.engine.reference.waiting import AdmissionOrder, OnDemand
from sim.engine.request import NEVER, State
from sim.errors import SimulationError
from sim.latency.base import StepShape


class Former(Cohort):
    """Forms one batch at a time."""

    has_window = False
    """Whether requests give blocks back that are behind a window."""

    def _bind(self, policy: Any) -> None:
        super()._bind(policy)
        settings = self.settings
        self.shape = StepShape()
        self.scheduled: list[tuple[Member, int]] = []
        """Requests of the step that are not members, with their tokens, in the order of scheduling."""
        self.preempted: list[Member] = []
        self._served: set[Member] | None = None
        """Members that the running pass has come to, where it goes one by one; None = all of them."""
        self._prefill_budget = settings.max_prefill_tokens_per_step or settings.max_num_batched_tokens
        # Ranks that move with others, and running requests that one waiting may be evicted for, are asked in each step.
        self.can_wait = not self._preempts and not self._shows

    def form(self, now_ns: int) -> int:
        """Form the next batch and add up ``shape``; returns its number, or 0 where it computes nothing."""
        batch = self.latest + 1
        waiting = self.waiting
        self.preempted, self.scheduled = [], []
        ones: list[Member] = []
        shape = self.shape
        shape.clear()
        if waiting.entries:
            self.tell_policy()
            waiting.refresh(now_ns)
            if self._preempts and self.running:
                self._preempt_proactively(now_ns)
        num_evicted = len(self.preempted)
        if self._leaves and self._leaves[0][0] <= batch:
            self.leave_out(batch)
        self._served = None
        is_whole = self._serve(batch, now_ns)
        budget = self.settings.max_num_batched_tokens - self.size - len(self.skipped)
        prefill_budget = self._prefill_budget
        if self.part is not None and is_whole and budget > 0:
            tokens = self._go_on(self.part, min(budget, prefill_budget), batch, now_ns, ones)
            is_whole = tokens > 0
            budget -= tokens
            prefill_budget -= shape.num_prefill_tokens  # the last token of a resumed request is a decode
        if self.skipped:
            for request in self._served_alone():
                self.skipped.remove(request)
                if request.content.own_is_shared:
                    known = min(request.num_computed_tokens + 1, request.num_tokens)
                    self.kv.cache(request, known // self.block_size)
                self._compute(request, 1, batch, ones)
        if is_whole and len(self.preempted) == num_evicted and waiting.entries and self.part is None:
            self._admit(batch, now_ns, budget, prefill_budget, ones)
        if not (self.size or self.scheduled):
            return 0
        shape.num_decodes += self.size
        shape.decode_context_tokens += self.context
        shape.num_sampled = self.size + len(ones)
        num_tokens = shape.num_prefill_tokens + shape.num_decodes
        self.outstanding -= num_tokens
        self.latest = batch
        self.context += self.size
        self.older_units, self.older_ones = self.newer_units, self.newer_ones
        self.newer_units, self.newer_ones = self.units, ones
        for request in ones:
            self.join(request, batch)
        if self.talkers:
            self._write_keys_in_order()
        return batch

    # --- the running pass ----------------------------------------------------------------------

    def _serve(self, batch: int, now_ns: int) -> bool:
        """Blocks for the members and for those that lost a step: False where the running pass ended early."""
        need = self.growth[batch % self.period]
        if need > self.kv.num_free_blocks or self.skipped:
            return self._serve_one_by_one(batch, now_ns)
        if need:
            self.kv.take(need)
        return True

    def _go_on(self, part: Member, most: int, batch: int, now_ns: int, ones: list[Member]) -> int:
        """One more chunk of the prompt that is done in part; 0 where it had to give up its own blocks."""
        computed, block_size = part.num_computed_tokens, self.block_size
        tokens = min(part.num_tokens - computed, most)
        need = self.blocks_for(computed + tokens) - self.blocks_for(computed)
        while need > self.kv.num_free_blocks:
            if self._evict_for(part, now_ns) is part:
                return 0
        self.kv.take(need)
        self.kv.cache(part, (computed + tokens) // block_size)
        self._compute(part, tokens, batch, ones)
        return tokens

    def _compute(self, request: Member, tokens: int, batch: int, ones: list[Member]) -> None:
        """``batch`` computes ``tokens`` of a request that is no member."""
        shape = self.shape
        prior = request.num_computed_tokens
        computed = request.num_computed_tokens = prior + tokens
        is_last = computed == request.num_tokens
        if tokens == 1 and is_last and computed > request.num_prompt_tokens:
            shape.num_decodes += 1
            shape.decode_context_tokens += computed
        else:
            shape.num_prefills += 1
            shape.num_prefill_tokens += tokens
            shape.prefill_context_tokens += computed
            shape.prefill_attention_pairs += tokens * (prior + computed)
        self.scheduled.append((request, tokens))
        if is_last:
            ones.append(request)
            if request is self.part:
                self.part = None
        else:
            self.part, self.part_batch = request, batch
        if self._wants_scheduled:
            self.policy.on_scheduled(request, tokens)

    def _serve_one_by_one(self, batch: int, now_ns: int) -> bool:
        """The running pass where blocks are short, or where a request lost a step: False where it ended early."""
        kv = self.kv
        served = self._served = set()
        for request in tuple(self.running):
            if request.state is not State.RUNNING or request is self.part:
                continue
            if request.is_counted:
                computed = request.base_computed + batch - 1 - request.joined_at
            elif request.joined_at == NOT_A_MEMBER:
                computed = request.num_computed_tokens
            else:
                continue
            if self.has_window:
                self._drop_alone(request, batch, computed)
            if need := self.blocks_for_one(computed):
                while kv.num_free_blocks < need:
                    if self._evict_for(request, now_ns) is request:
                        self._skip_behind(request)
                        return False
                kv.take(need)
            served.add(request)
        return True

    def _drop_alone(self, request: Member, batch: int, num_processed: int) -> None:
        """Before ``request`` takes blocks in ``batch``, it gives back those behind its window."""
        raise NotImplementedError

    def _served_alone(self) -> list[Member]:
        """Requests that lost a step before, and got their token in this one."""
        served = self._served
        return [] if served is None else [request for request in self.skipped if request in served]

    def _evict_for(self, needy: Member, now_ns: int) -> Member:
        """Preempt the request that yields its blocks to ``needy``: the last one, or the largest (rank, arrival)."""
        victim = self._largest_rank(now_ns) if self.ranked else self.running[-1]
        num_new_blocks = num_new_tokens = 0
        if victim.is_counted if self._served is None else victim in self._served:
            computed = victim.num_computed_tokens
            if victim.is_counted:
                computed = victim.base_computed + self.latest - victim.joined_at
            num_new_blocks, num_new_tokens = self.blocks_for_one(computed), 1
        self.preempt(victim, now_ns, num_new_blocks, num_new_tokens)
        self.preempted.append(victim)
        self.is_stuck = False
        return victim

    def _largest_rank(self, now_ns: int) -> Member:
        self.tell_policy()
        if not self._shows:
            self.show_all()
        rank = self.policy.rank
        victim: Member = max(self.running, key=lambda request: (rank(request, now_ns), request.arrival_ns))
        return victim

    def _skip_behind(self, last: Member) -> None:
        """The running pass ended with ``last``: members behind it get no token in this step."""
        for request in self.running:
            if request.admission > last.admission and request.is_counted:
                self.skipped.append(request)
                if request.content.own_is_shared:
                    self._write_keys(request)
                self.withdraw(request)

    def _write_keys_in_order(self) -> None:
        """Two requests at once in one conversation make the same keys: in the order of the steps."""
        for turns in self.talkers.values():
            if len(turns) > 1:
                for turn in turns:
                    self._write_keys(turn)

    def _write_keys(self, turn: Member, num_more: int = 0) -> None:
        """Full blocks of a running request of a conversation can be found by its other turns; ``num_more`` = 1 where
        the batch being formed computes it."""
        joined = turn.joined_at
        if joined == NOT_A_MEMBER:
            return
        completed = self.completed
        computed = turn.base_computed + min(self.latest + num_more, turn.last_batch) - joined
        known = turn.num_prompt_tokens + turn.base_output
        if completed >= joined:
            known += min(completed, turn.ends_at) - joined + 1
        if not turn.is_counted:
            known = computed - int(self.latest > completed)
        self.kv.cache(turn, min(known, computed) // self.block_size)

    # --- proactive preemption ------------------------------------------------------------------

    def _preempt_proactively(self, now_ns: int) -> None:
        state = EngineState(now_ns, self.kv.num_free_blocks, len(self.running), len(self.waiting))
        running: Sequence[Any] = OnDemand(self.running, self.show_all)
        for victim in victims_in(self.policy, self.policy.preempt(running, AdmissionOrder(self.waiting), state)):
            if not isinstance(victim, Member) or victim.state is not State.RUNNING:
                raise SimulationError(f"policy {label(self.policy)} preempts {victim!r}, which does not run")
            self.preempt(victim, now_ns)
            self.preempted.append(victim)
            self.is_stuck = False

    # --- admission -----------------------------------------------------------------------------

    def blocks_to_reserve(self, num_tokens: int) -> int:
        """Blocks that must be free for a request of ``num_tokens`` to be computed whole, however it is cut."""
        return self.blocks_for(num_tokens)

    def _admit(self, batch: int, now_ns: int, budget: int, prefill_budget: int, ones: list[Member]) -> None:
        """Admit from the head of the queue; the first that does not fit ends it."""
        waiting, running, settings, kv = self.waiting, self.running, self.settings, self.kv
        block_size = self.block_size
        passed_over: list[Member] = []
        is_out_of_room = False
        budget = min(budget, prefill_budget) if settings.enable_chunked_prefill else budget
        while budget > 0 and prefill_budget > 0 and waiting.entries:
            if len(running) >= settings.max_num_seqs:
                is_out_of_room = True
                break
            request: Any = waiting.peek()
            if request.num_stale_batches:
                passed_over.append(request)
                waiting.pop()
                continue
            if self.talkers:
                for turn in self.talkers.get(request.content.own_id, ()):
                    self._write_keys(turn, int(turn.is_counted))
            num_tokens = request.num_tokens
            hits = kv.lookup(request, num_tokens)
            computed = hits.num_blocks * block_size
            tokens = num_tokens - computed
            if tokens > budget and not settings.enable_chunked_prefill:
                break
            tokens = min(tokens, budget, prefill_budget)
            free = kv.num_free_blocks - hits.num_evictable + hits.num_blocks
            if running:
                free -= self.watermark_blocks
            num_blocks = self.blocks_for(computed + tokens)
            whole = self.blocks_to_reserve(num_tokens) if settings.scheduler_reserve_full_isl else 0
            if whole > free or num_blocks > free:
                is_out_of_room = True
                break
            waiting.pop()
            kv.admit(request, hits, num_blocks)
            kv.cache(request, (computed + tokens) // block_size)
            running.append(request)
            self.num_admissions += 1
            request.admission = self.num_admissions
            request.state = State.RUNNING
            if request.scheduled_ns == NEVER:
                request.scheduled_ns = now_ns
                request.num_cached_tokens = computed
            if request.num_preemptions:
                note_resumed(request, computed)
                self.recorder.resumed(request, now_ns)
            if request.content.own_is_shared:
                self.talkers.setdefault(request.content.own_id, []).append(request)
            request.num_computed_tokens = computed
            self.outstanding -= computed
            self._compute(request, tokens, batch, ones)
            budget -= tokens
            prefill_budget -= tokens
        self.is_stuck = is_out_of_room and not passed_over and self.part is None and not self.stale and self.can_wait
        for request in reversed(passed_over):
            waiting.put_back(request, now_ns)
