"""Requests with KV behind a window: what a member gives back follows from its first batch, as what it takes does.

In each step a request gives back what is behind its windows before it takes new blocks. With a window of W, n tokens
computed and none of them in flight, the next token does not look at the first n - W + 1. So in each KV group with a
window a decoding member gives back a block in every ``block_size`` batches, as often as it takes one, at a phase of its
own. Only the first time is different: a chunk of its prompt goes behind the window at once, or it has just outgrown the
window. That is a *turn*, and no plan contains one. Groups that keep all KV only take.

Blocks are only counted. That is exact as long as no request can find content of before: none that others have, and none
of its own. So where a request that may find its own blocks is preempted, the reference takes the run (``NotFollowed``).
"""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush
from typing import Any

from sim.engine.fast.allowed import NotFollowed
from sim.engine.fast.cohort import NOT_A_MEMBER, Member
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.fast.jumps import IDLE
from sim.engine.fast.plan import Plan
from sim.engine.fast.segments import SegmentKVCache
from sim.latency.sliding_window import max_blocks_per_request

ALL = 0
"""In place of a window: the turn at which a chunk of a prompt falls behind all of them."""


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
        """Window -> the batch of its turn, while that is to come."""
        self.phases: dict[int, int] = {}
        """Window -> where it is counted in ``drops``."""


class WindowReplica(FastReplica):
    """``FastReplica`` for ``variants/window.py``, and for ``variants/groups.py`` where each group keeps all KV or a
    window, in blocks of one size."""

    has_window = True

    def _bind(self, policy: Any) -> None:
        super()._bind(policy)
        self._may_cruise = False
        settings, block_size = self.settings, self.block_size
        windows = [group.sliding_window for group in settings.kv_groups] or [settings.sliding_window]
        self._windows = Counter(window for window in windows if window is not None)
        """Window -> how many groups have it."""
        self._num_full = len(windows) - self._windows.total()
        """Groups that keep all KV."""
        in_flight, longest = settings.max_in_flight_tokens, settings.max_model_len
        self._kept = [
            (count, max_blocks_per_request(window, in_flight, longest, block_size))
            for window, count in self._windows.items()
        ]
        """Groups with a window, and the blocks that a request of any length holds in one of them at most."""
        self._finds_own = settings.enable_prefix_caching and min(self._windows, default=2) > 1
        self.kv = SegmentKVCache(settings.num_gpu_blocks, block_size, caches=False)
        self._lag = int(self.is_async)
        """Batches in flight when one is formed, of which a member has a token each."""
        self.drops = [0] * block_size
        """``drops[j % block_size]``: blocks that are given back in batch j, before any are taken."""
        self._turns: list[tuple[int, int, int, WindowMember]] = []
        """Heap of (batch, admission, window, member)."""
        self._given_back = 0
        """The last batch for which all members gave back together, ..."""
        self._given_alone: dict[Member, int] = {}
        """... and for which they did one by one."""
        self._least_free = self.kv.num_usable_blocks
        """The fewest free blocks at the end of a plan."""

    def blocks_to_reserve(self, num_tokens: int) -> int:
        each = -(-num_tokens // self.block_size)
        return self._num_full * each + sum(count * min(each, most) for count, most in self._kept)

    # --- what is behind the windows ------------------------------------------------------------

    def _behind(self, num_seen: int, window: int = ALL) -> int:
        """Blocks, of the groups with ``window``, that no token after the first ``num_seen`` looks at."""
        if window:
            return self._windows[window] * (max(num_seen - window + 1, 0) // self.block_size)
        return sum(self._behind(num_seen, each) for each in self._windows)

    def _num_seen(self, request: WindowMember, batch: int) -> int:
        """Tokens of a member that were computed when it last gave blocks back, by ``batch``."""
        batch = min(batch, request.last_batch)
        more = batch - request.joined_at
        if more <= 0:
            return request.num_seen
        if more <= self._lag:
            return max(request.num_seen, request.base_computed - request.newest_tokens)
        return max(request.num_seen, request.base_computed + more - 1 - self._lag)

    def _given_in(self, request: WindowMember, batch: int, window: int = ALL) -> int:
        """Blocks that a member gives back in ``batch``."""
        after, before = self._num_seen(request, batch), self._num_seen(request, batch - 1)
        return self._behind(after, window) - self._behind(before, window)

    def _compute(self, request: Any, tokens: int, batch: int, ones: list[Member]) -> None:
        request.newest_tokens = tokens
        super()._compute(request, tokens, batch, ones)

    def join(self, request: Any, batch: int) -> None:
        super().join(request, batch)
        if self._lag and self._behind(request.base_computed - request.newest_tokens) > self._behind(request.num_seen):
            self._set_turn(request, batch + 1, ALL)
        for window in self._windows:
            self._set_turn(request, self._outgrows_at(request, window), window)

    def _outgrows_at(self, request: Member, window: int) -> int:
        """The batch from which on a member gives back a block of ``window`` in every ``block_size``."""
        left = window - 1 + self.block_size - request.base_computed
        return request.joined_at + 1 + self._lag + max(left, 0)

    def _set_turn(self, request: WindowMember, batch: int, window: int) -> None:
        if request.is_counted and batch <= request.last_batch:
            request.turns[window] = batch
            heappush(self._turns, (batch, request.admission, window, request))

    def _next_turn(self) -> int:
        turns = self._turns
        while turns and turns[0][3].turns.get(turns[0][2]) != turns[0][0]:
            heappop(turns)
        return turns[0][0] if turns else IDLE

    def _take_turns(self, batch: int) -> int:
        """Blocks that members give back whose turn is at ``batch``."""
        num_blocks = 0
        while self._next_turn() <= batch:
            _, _, window, request = heappop(self._turns)
            del request.turns[window]
            num_blocks += self._given_in(request, batch, window)
            if window:
                at = request.joined_at + self._lag + window - request.base_computed
                request.phases[window] = phase = at % self.block_size
                self.drops[phase] += self._windows[window]
        return num_blocks

    def _uncount(self, request: Any) -> None:
        super()._uncount(request)
        request.turns.clear()
        for window, phase in request.phases.items():
            self.drops[phase] -= self._windows[window]
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
        num_blocks = self.drops[batch % self.block_size]
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
            num_blocks = self._given_in(request, batch)
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
            need = self.growth[batch % self.block_size]
            if need > free:
                return steps
            free += self.drops[batch % self.block_size] - need
        return most

    def _takes(self, steps: int) -> list[int]:
        """Blocks that each of the next ``steps`` steps takes, less what it gives back."""
        net = [taken - given for taken, given in zip(self.growth, self.drops, strict=True)]
        phase = (self.latest + 1) % self.block_size
        takes = net[phase:] + net[:phase]
        if steps > self.block_size:
            takes *= -(-steps // self.block_size)
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
        if free - (steps // self.block_size + 1) * self.size * self.num_groups < self._least_free:
            before = free
            for step, taken in enumerate(self._takes(steps)):
                free -= taken
                if step and free > before < self._least_free:
                    steps, free = step, before
                    break
                before = free
            self._least_free = min(self._least_free, free)
        super()._commit(plan, steps)
