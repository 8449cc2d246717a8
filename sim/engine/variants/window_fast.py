"""Requests with KV behind a window: what a member gives back follows from its first batch, as what it takes does.

In each step a request gives back what is behind its windows before it takes new blocks. With a window of W, n tokens
computed and none of them in flight, the next token does not look at the first n - W + 1. So in each KV group with a
window a decoding member gives back a block in every ``block_size`` batches, as often as it takes one, at a phase of its
own. Only the first time is different: a chunk of its prompt goes behind the window at once, or it has just outgrown the
window. That is a *turn*, and no plan contains one; the end of a chunk of attention is one too. Groups that keep all KV
only take. Groups with blocks of several sizes take and give back at phases of one ``period``, their common multiple.

Blocks are only counted. That is exact as long as no request can find content of before: none that others have, and none
of its own. So where a request that may find its own blocks is preempted, the reference takes the run (``NotFollowed``).
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import lcm
from typing import Any

from sim.engine.fast.allowed import NotFollowed
from sim.engine.fast.cohort import NOT_A_MEMBER, Member
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.fast.jumps import IDLE
from sim.engine.fast.plan import Plan
from sim.engine.fast.segments import SegmentKVCache
from sim.engine.variants.kept_fast import Keeps, kept_by

ALL = -1
"""In place of a group: the turn at which a chunk of a prompt falls behind the windows of all of them."""


class WindowMember(Member):
    """A request of an engine with windows."""

    __slots__ = ("newest_tokens", "num_seen", "phases", "turns")

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.num_seen = 0
        """Tokens that were computed when it last gave blocks back."""
        self.newest_tokens = 0
        """Tokens that its newest batch computes, unless it is a member."""
        self.turns: dict[int, int] = {}
        """Place of a group -> the batch of its turn there, while that is to come."""
        self.phases: dict[int, int] = {}
        """Place of a group -> where it is counted in ``drops``."""


class WindowReplica(FastReplica):
    """``FastReplica`` for ``variants/window.py``, and for ``variants/groups.py`` unless states are cached."""

    has_window = True

    def _bind(self, policy: Any) -> None:
        self._keeps = kept_by(self.settings)
        super()._bind(policy)
        self._may_cruise = False
        self._finds_own = self.settings.enable_prefix_caching and all(each.window != 1 for each in self._keeps)
        self.kv = SegmentKVCache(self.settings.num_gpu_blocks, self.block_size, caches=False)
        self._growing = [each for each in self._keeps if not each.is_state]
        """What members take blocks of."""
        self.period = lcm(*(each.block_size for each in self._growing))
        self.growth = [0] * self.period
        self.drops = [0] * self.period
        """``drops[j % period]``: blocks that are given back in batch j, before any are taken."""
        self._behind_of = [each for each in self._keeps if each.window]
        """What gives blocks back."""
        self._lag = int(self.is_async)
        """Batches in flight when one is formed, of which a member has a token each."""
        self._turns: list[tuple[int, int, int, WindowMember]] = []
        """Heap of (batch, admission, place in ``_behind_of``, member)."""
        self._given_back = 0
        """The last batch for which all members gave back together, ..."""
        self._given_alone: dict[Member, int] = {}
        """... and for which they did one by one."""
        self._least_free = self.kv.num_usable_blocks
        """The fewest free blocks at the end of a plan."""

    # --- what is taken -------------------------------------------------------------------------

    def blocks_for(self, num_tokens: int) -> int:
        return sum(each.taken(num_tokens) for each in self._keeps)

    def blocks_for_one(self, computed: int) -> int:
        return self.blocks_for(computed + 1) - self.blocks_for(computed)

    def blocks_to_reserve(self, num_tokens: int) -> int:
        return sum(each.reserved(num_tokens) for each in self._keeps)

    def count_growth(self, batch: int, num_members: int) -> None:
        for each in self._growing:
            for phase in range(batch % each.block_size, self.period, each.block_size):
                self.growth[phase] += each.num_groups * num_members

    def most_taken(self, steps: int) -> int:
        return self.size * sum(each.num_groups * (steps // each.block_size + 1) for each in self._growing)

    # --- what is behind the windows ------------------------------------------------------------

    def _behind(self, num_seen: int) -> int:
        """Blocks that no token after the first ``num_seen`` looks at."""
        return sum(each.behind(num_seen) for each in self._behind_of)

    def _num_seen(self, request: WindowMember, batch: int) -> int:
        """Tokens of a member that were computed when it last gave blocks back, by ``batch``."""
        batch = min(batch, request.last_batch)
        more = batch - request.joined_at
        if more <= 0:
            return request.num_seen
        if more <= self._lag:
            return max(request.num_seen, request.base_computed - request.newest_tokens)
        return max(request.num_seen, request.base_computed + more - 1 - self._lag)

    def _compute(self, request: Any, tokens: int, batch: int, ones: list[Member]) -> None:
        request.newest_tokens = tokens
        super()._compute(request, tokens, batch, ones)

    def join(self, request: Any, batch: int) -> None:
        super().join(request, batch)
        if self._lag and self._behind(request.base_computed - request.newest_tokens) > self._behind(request.num_seen):
            self._set_turn(request, batch + 1, ALL)
        for place, each in enumerate(self._behind_of):
            left = each.first_seen - request.base_computed
            self._set_turn(request, batch + 1 + self._lag + max(left, 0), place)

    def _set_turn(self, request: WindowMember, batch: int, place: int) -> None:
        if request.is_counted and batch <= request.last_batch:
            request.turns[place] = batch
            heappush(self._turns, (batch, request.admission, place, request))

    def _next_turn(self) -> int:
        turns = self._turns
        while turns and turns[0][3].turns.get(turns[0][2]) != turns[0][0]:
            heappop(turns)
        return turns[0][0] if turns else IDLE

    def _take_turns(self, batch: int) -> int:
        """Blocks that members give back whose turn is at ``batch``."""
        num_blocks = 0
        while self._next_turn() <= batch:
            _, _, place, request = heappop(self._turns)
            del request.turns[place]
            after, before = self._num_seen(request, batch), self._num_seen(request, batch - 1)
            if place == ALL:
                num_blocks += self._behind(after) - self._behind(before)
                continue
            each = self._behind_of[place]
            num_blocks += each.behind(after) - each.behind(before)
            if each.is_chunk:  # all at once, at the end of a chunk
                self._set_turn(request, batch + each.window - after % each.window, place)
            else:
                at = request.joined_at + self._lag + each.window - request.base_computed
                request.phases[place] = phase = at % each.block_size
                self._count_drops(each, phase, 1)
        return num_blocks

    def _count_drops(self, keeps: Keeps, phase: int, num_members: int) -> None:
        for at in range(phase, self.period, keeps.block_size):
            self.drops[at] += keeps.num_groups * num_members

    def _uncount(self, request: Any) -> None:
        super()._uncount(request)
        request.turns.clear()
        for place, phase in request.phases.items():
            self._count_drops(self._behind_of[place], phase, -1)
        request.phases.clear()

    def write(self, request: Any) -> None:
        until = max(self.latest, self._given_back, self._given_alone.get(request, 0))
        request.num_seen = self._num_seen(request, until)
        super().write(request)

    def give_back(self, request: Any, num_blocks: int, *, ended: bool) -> None:
        super().give_back(request, num_blocks - self._behind(request.num_seen), ended=ended)
        request.num_seen = 0

    def preempt(self, victim: Member, now_ns: int, num_new_blocks: int = 0, num_new_tokens: int = 0) -> None:
        if self._finds_own:
            raise NotFollowed("a request is preempted that may find its own blocks again")
        super().preempt(victim, now_ns, num_new_blocks, num_new_tokens)

    # --- forming a step --------------------------------------------------------------------------

    def _serve(self, batch: int, now_ns: int) -> bool:
        self._given_alone.clear()
        is_whole = super()._serve(batch, now_ns)
        num_blocks = self.drops[batch % self.period]
        num_blocks += self._take_turns(batch)
        if self._served is None:
            self.kv.take(-num_blocks)
            self._given_back = batch
        return is_whole

    def _drop_alone(self, request: Any, batch: int, num_processed: int) -> None:
        if request.joined_at == NOT_A_MEMBER:
            before = request.num_seen
            request.num_seen = max(before, num_processed)
            num_blocks = self._behind(request.num_seen) - self._behind(before)
        else:
            after, before = self._num_seen(request, batch), self._num_seen(request, batch - 1)
            num_blocks = self._behind(after) - self._behind(before)
            self._given_alone[request] = batch
        self.kv.take(-num_blocks)

    def _go_on(self, part: Any, most: int, batch: int, now_ns: int, ones: list[Member]) -> int:
        is_in_flight = self.completed < self.latest == self.part_batch
        self._drop_alone(part, batch, part.num_computed_tokens - is_in_flight * part.newest_tokens)
        return super()._go_on(part, most, batch, now_ns, ones)

    def _admit(self, batch: int, now_ns: int, budget: int, prefill_budget: int, ones: list[Member]) -> None:
        super()._admit(batch, now_ns, budget, prefill_budget, ones)
        # Blocks come back without an end, seats do not.
        self.is_stuck = self.is_stuck and len(self.running) >= self.settings.max_num_seqs

    # --- many steps ----------------------------------------------------------------------------

    def _make_plan(self, now_ns: int) -> bool:
        return self._next_turn() > self.latest + 1 and super()._make_plan(now_ns)

    def first_leave(self) -> int:
        """The first batch that leaves a member out, or in which one has its turn."""
        return min(super().first_leave(), self._next_turn())

    def _most_by_blocks(self, most: int, free: int) -> int:
        batch = self.latest
        for steps in range(most):
            batch += 1
            need = self.growth[batch % self.period]
            if need > free:
                return steps
            free += self.drops[batch % self.period] - need
        return most

    def _takes(self, steps: int) -> list[int]:
        """Blocks that each of the next ``steps`` steps takes, less what it gives back."""
        net = [taken - given for taken, given in zip(self.growth, self.drops, strict=True)]
        phase = (self.latest + 1) % self.period
        takes = net[phase:] + net[:phase]
        if steps > self.period:
            takes *= -(-steps // self.period)
        return takes[:steps]

    def _cut(self, plan: Plan, now_ns: int) -> None:
        super()._cut(plan, now_ns)
        if self._now_ns < now_ns:  # it ended before
            self._run(now_ns)
            if self._plan is not None:
                self._cut(self._plan, now_ns)

    def _commit(self, plan: Plan, steps: int) -> None:
        """A plan ends where fewer blocks are free than ever before: only those of its last step are written down."""
        free = self.kv.num_free_blocks
        if free - self.most_taken(steps) < self._least_free:
            before = free
            for step, taken in enumerate(self._takes(steps)):
                free -= taken
                if step and free > before < self._least_free:
                    steps, free = step, before
                    break
                before = free
            self._least_free = min(self._least_free, free)
        super()._commit(plan, steps)
