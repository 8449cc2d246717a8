"""A ``FastScheduler`` whose steps can be taken many at a time, while nothing is decided in them."""

from __future__ import annotations

from sim.engine.fast.cohort import NOT_A_MEMBER
from sim.engine.fast.fast_scheduler import FastScheduler
from sim.engine.reference.waiting import RankedQueue
from sim.engine.request import Request


class AheadScheduler(FastScheduler):
    """Says how far nothing is decided, and is told how far one went."""

    # --- jumps -------------------------------------------------------------------------------

    def steps_ahead(self) -> int:
        """Steps from now on in which nothing is decided: the cohort decodes, nobody comes, goes or grows beyond
        the free blocks. An arrival or the clock may still cut them short. 0 or 1: go step by step."""
        cohort = self.cohort
        if not self.is_fast or not cohort.size or self._prefilling or self._has_step_limits or self._swapped_bytes:
            return 0
        if cohort.size > self.settings.max_num_batched_tokens:
            return 0
        if self.waiting.entries and not self._is_head_stuck():
            return 0
        steps = cohort.first_end() - cohort.latest
        if steps <= 1:
            return 0
        for batch in self.in_flight:
            if batch.stale:
                return 0
            for request in batch.sampled:
                if request.joined_at == NOT_A_MEMBER:
                    return 0
        if self.grows:
            free = self.kv.num_free_blocks
            # A block per member and round is more than enough; near the end of the pool, count exactly.
            if (steps // cohort.block_size + 1) * cohort.size > free:
                while steps > 1 and cohort.blocks_for_batches(steps) > free:
                    steps //= 2
        return steps

    def _is_head_stuck(self) -> bool:
        """Whether nobody waiting can be admitted, or evict anybody, before something changes."""
        return self._is_blocked and not self.policy.preempts and not self._ranks_move_with_others and not self._talkers

    def next_rank_change_ns(self) -> int | None:
        """When the order of the waiting requests can change by itself, or None."""
        if self.waiting.entries and isinstance(self.waiting, RankedQueue):
            return self.waiting.next_change_ns
        return None

    def take_freed(self) -> list[Request]:
        """Who was freed since the last step, for the first line of the steps ahead."""
        freed, self._freed = self._freed, []
        return freed

    def member_tokens(self) -> dict[str, int]:
        """What each of the steps ahead schedules, in order."""
        return {r.request_id: 1 for r in self.running if r.joined_at != NOT_A_MEMBER and r.is_counted}

    def take_steps(self, num_steps: int) -> None:
        """``num_steps`` more batches have been scheduled with all of the cohort and nothing else."""
        cohort = self.cohort
        if self.grows:
            self.kv.take_unnamed(cohort.blocks_for_batches(num_steps))
        cohort.advance(num_steps)
        num_tokens = num_steps * cohort.size
        self.outstanding_tokens -= num_tokens
        if self._wants_steps:
            self.policy.on_step(cohort.size, self.settings.max_num_batched_tokens, num_steps)

    def finish_steps(self, last_batch: int, now_ns: int) -> None:
        """All batches up to ``last_batch`` ended, the last one at ``now_ns``; nobody ended with them."""
        self.num_updated = last_batch
        self.last_update_ns = now_ns

    # --- the steady loop ---------------------------------------------------------------------

    def is_all_steady(self) -> bool:
        """Whether all that is here decodes in step, with one batch in flight and nobody waiting."""
        if not self.is_fast or self.waiting.entries or self._prefilling or self._talkers or len(self.in_flight) != 1:
            return False
        return not self.in_flight[0].stale and all(r.joined_at != NOT_A_MEMBER for r in self.running)

    def resume(self, num_updated: int, now_ns: int, prefilling: list[Request]) -> None:
        """``running``, cohort and batches in flight have been set from outside; the tokens of ``num_updated``
        batches are known, the last ones since now. ``prefilling`` are those whose prompt is not done."""
        self.num_updated = num_updated
        self.last_update_ns = now_ns
        self._prefilling = prefilling
        self.is_fast = True
        self._is_blocked = False
        if self._victims is not None:
            listed = set(prefilling)
            self._victims.start(request for request in self.running if request not in listed)
