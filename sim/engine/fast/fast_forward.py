"""A replica that jumps over steps in which nothing is decided, to the same instants as single steps.

``Replica`` in ``replica.py`` is the one to read first; this one follows the same order of events in a loop
over its own time, and takes steady decode steps many at a time: when they all start and end is known
beforehand, so it goes straight to the last one, or to where an arriving request cuts them short.
``docs/fast-forward.md`` has the argument.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from simpy import Event

from sim.engine.clock import At, Clock, Turn
from sim.engine.decisions import DecisionLog
from sim.engine.fast.ahead import AheadScheduler
from sim.engine.fast.decode_sums import DecodeSums
from sim.engine.fast.feed import Feed
from sim.engine.fast.steady import SteadyLoop, is_steady_kind
from sim.engine.reference.batch import Batch
from sim.engine.reference.replica import Replica
from sim.engine.request import Request, State
from sim.latency.base import StepCost, StepShape
from sim.results.record import Recorder, StepRow

MAX_STEPS_AHEAD = 4096
"""Longest jump: bounds the arrays, and what is planned in vain when an arrival cuts it."""

NOT_PLANNED = 1 << 62
"""Instant of a wake that is not wanted."""

IntArray = npt.NDArray[np.int64]


class Jump:
    """Steps planned ahead: when each is scheduled and ends, and how long the accelerator works on it.

    ``gap_ns[i]``: from the instant the tokens of step i - 1 are known to that of step i.
    """

    __slots__ = ("end_ns", "gap_ns", "gpu_ns", "host_ns", "num_taken", "scheduled_ns")

    def __init__(
        self, scheduled_ns: list[int], end_ns: list[int], gpu_ns: list[int], gap_ns: IntArray, host_ns: int
    ) -> None:
        self.scheduled_ns = scheduled_ns
        self.end_ns = end_ns
        self.gpu_ns = gpu_ns
        self.gap_ns = gap_ns
        self.host_ns = host_ns
        self.num_taken = 0
        """Steps that are history already."""


class FastReplica(Replica):
    """See the module."""

    scheduler: AheadScheduler

    def __init__(
        self,
        env: Clock,
        index: int,
        model: str,
        new_scheduler: Callable[[], AheadScheduler],
        cost: StepCost,
        depth: int,
        recorder: Recorder,
        static_batch_wait_ns: int = 0,
        decisions: DecisionLog | None = None,
        *,
        is_watched: bool = True,
    ) -> None:
        """``is_watched``: somebody acts on the ends of requests, so they must happen when they happen. A replica
        that nobody watches needs no events of its own: it catches up when a request arrives or is asked about."""
        self.is_watched = is_watched
        self._timer: At | None = None
        self._wake_ns = NOT_PLANNED
        self._wake_turn = 0
        self._jump: Jump | None = None
        self._reach = 16
        """Steps to plan at most: grows while jumps land, shrinks when arrivals cut them."""
        self._is_gathering = False
        """A static batch waits for more requests."""
        self._must_complete = False
        """A step scheduled nothing: the oldest batch in flight has to end before the next one."""
        self._shape = StepShape()
        self._nothing_more = (0,) * len(recorder.shape_columns)
        """What a jump drafts and swaps."""
        self._feed: Feed | None = None
        self._steady: SteadyLoop | None = None
        super().__init__(env, index, model, new_scheduler, cost, depth, recorder, static_batch_wait_ns, decisions)

    def _start(self) -> None:
        """Nothing to do before the first request."""

    # --- what a router sees ------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        self._catch_up()
        return super().num_running

    @property
    def num_waiting(self) -> int:
        self._catch_up()
        return super().num_waiting

    @property
    def free_blocks(self) -> int:
        self._catch_up()
        return super().free_blocks

    @property
    def outstanding_tokens(self) -> int:
        self._catch_up()
        return super().outstanding_tokens

    def _catch_up(self) -> None:
        """Be as of now: as seen by a request that arrives at this instant."""
        now_ns = self.env.now
        self.advance(now_ns, Turn.ARRIVAL)
        if self._jump is not None:
            self._take(bisect_left(self._jump.scheduled_ns, now_ns))

    # --- events ------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        self._take_in(request)
        self._accept(request, self.env.now)
        if self.is_watched:
            self._set_timer()

    def _accept(self, request: Request, now_ns: int) -> None:
        if self._wake_ns <= now_ns:
            self.advance(now_ns, Turn.ARRIVAL)
        if self._jump is not None:
            self._cut(now_ns)
        self.scheduler.add_request(request, now_ns)
        if self._wake_ns == NOT_PLANNED or self._is_gathering:
            self._wake_ns, self._wake_turn = now_ns, Turn.STEP_START

    def advance(self, until_ns: int, until_turn: int) -> None:
        """Everything that happens here before a turn of an instant."""
        scheduler, in_flight, depth = self.scheduler, self._in_flight, self.depth
        while True:
            now_ns, turn = self._wake_ns, self._wake_turn
            if now_ns > until_ns or (now_ns == until_ns and turn >= until_turn):
                return
            if self._jump is not None:
                self._take(len(self._jump.scheduled_ns))
                self._jump = None
                self._reach = min(2 * self._reach, MAX_STEPS_AHEAD)
            self._is_gathering = False
            while in_flight and (self._must_complete or len(in_flight) == depth or not scheduler.has_requests()):
                ready_ns = in_flight[0][1]
                if ready_ns < self._host_free_ns:
                    ready_ns = self._host_free_ns
                if ready_ns > now_ns:
                    self._wake_ns, self._wake_turn = ready_ns, 0
                    break
                self._must_complete = False
                self._complete_oldest(now_ns)
            else:
                if turn >= Turn.STEP_START:
                    self._form_step(now_ns, until_ns)
                elif scheduler.running or scheduler.waiting.entries:
                    # Whatever else happens at this instant happens before a step is formed.
                    self._wake_turn = Turn.STEP_START
                else:
                    self._wake_ns = NOT_PLANNED

    def _form_step(self, now_ns: int, until_ns: int) -> None:
        """What an engine does when it can form a step, and when to wake after it."""
        scheduler, in_flight = self.scheduler, self._in_flight
        if not (scheduler.running or scheduler.waiting.entries):
            self._wake_ns = NOT_PLANNED
            return
        if self.static_batch_wait_ns and (gathering_ns := self._gathering_ns(now_ns)) > 0:
            self._wake_ns, self._is_gathering = now_ns + gathering_ns, True
            return
        if len(in_flight) == self.depth - 1:
            steady = None if scheduler.waiting.entries else self._steady
            if steady is not None and in_flight and steady.start_busy(now_ns):
                return
            if self._try_jump(now_ns, until_ns):
                return
        batch = scheduler.schedule(now_ns)
        self._check_progress(batch, now_ns)
        if batch.is_empty:
            empty_ns = self._pass(batch, now_ns)
            self._must_complete = bool(in_flight)
            self._wake_ns, self._wake_turn = now_ns + empty_ns, 0
            return
        host_ns = self._dispatch(batch, now_ns)
        if len(in_flight) == self.depth:
            self._wake_ns, self._wake_turn = max(in_flight[0][1], self._host_free_ns), 0
        elif host_ns:
            self._wake_ns, self._wake_turn = now_ns + host_ns, 0

    # --- arrivals known beforehand -----------------------------------------------------------

    def take_feed(self, feed: Feed, sums: DecodeSums) -> None:
        """All requests that will ever come here: ``finish`` runs them. Nobody may ask the replica anything before."""
        self._feed = feed
        if feed.is_plain and self.depth == 2 and is_steady_kind(self.scheduler):
            self._steady = SteadyLoop(self, feed, sums)

    def finish(self) -> None:
        feed = self._feed
        while feed is not None and (position := feed.position) < len(feed.rows):
            arrival_ns = feed.arrival_ns[position]
            if self._steady is not None and self._wake_ns == NOT_PLANNED:
                self._steady.start_idle()
            else:
                self.advance(arrival_ns, Turn.ARRIVAL)
            if feed.position != position:
                continue
            feed.position += 1
            self._accept(feed.make(position), arrival_ns)
        self.advance(NOT_PLANNED, 0)

    def resume(self, now_ns: int, busy_ns: int) -> None:
        """The steady loop hands over: the next step is to be formed now; ``busy_ns`` ends the one in flight."""
        self._host_free_ns = now_ns
        self._stage_free_ns[0] = max(busy_ns, now_ns)
        self._num_fruitless_steps = 0
        self._wake_ns, self._wake_turn = now_ns, Turn.STEP_START

    def record_end_at(self, request: Request, first_token_ns: int, now_ns: int) -> None:
        """A request that the scheduler had begun ended in the steady loop."""
        request.state = State.FINISHED
        request.first_token_ns, request.last_token_ns = first_token_ns, now_ns
        request.num_output_tokens = request._stop_at_output_tokens
        self.scheduler.policy.on_finished(request)
        self._record_end(request)

    def _set_timer(self) -> None:
        """A SimPy event at the next instant at which something happens here."""
        if self._wake_ns != NOT_PLANNED:
            self._timer = At(self.env, self._wake_ns - self.env.now, self._wake_turn + self.index)
            self._timer.callbacks.append(self._on_timer)

    def _on_timer(self, event: Event) -> None:
        if event is self._timer:  # else a later one has taken its place
            self.advance(self.env.now, self._wake_turn + 1)
            self._set_timer()

    # --- jumping -----------------------------------------------------------------------------

    def _try_jump(self, now_ns: int, until_ns: int) -> bool:
        """Plan the steps ahead and sleep until the last of them is due; False where there is nothing to skip."""
        scheduler = self.scheduler
        num_steps = scheduler.steps_ahead()
        if num_steps < 2:
            return False
        jump = self._plan(now_ns, min(num_steps, self._reach), until_ns)
        scheduled = jump.scheduled_ns
        change_ns = scheduler.next_rank_change_ns()
        if change_ns is not None and scheduled[-1] >= change_ns:
            del scheduled[bisect_left(scheduled, change_ns) :]
            if len(scheduled) < 2:
                return False
        self._jump = jump
        # The last step stays in flight; what follows is decided when the oldest batch in flight has ended.
        oldest_ns = jump.end_ns[len(scheduled) - self.depth]
        self._wake_ns, self._wake_turn = max(oldest_ns, scheduled[-1] + jump.host_ns), 0
        return True

    def _plan(self, now_ns: int, num_steps: int, until_ns: int) -> Jump:
        """When each of the next steps is scheduled and ends, exactly as ``advance`` would have it.

        Not many more of them than are needed to get to ``until_ns``, where that is known.
        """
        cohort, shape = self.scheduler.cohort, self._shape
        size, context_tokens = cohort.size, cohort.context_tokens
        shape.num_decodes = shape.num_sampled = size
        shape.decode_context_tokens = context_tokens
        host_ns = self.cost.host_ns(shape)
        if not self.is_watched:
            num_steps = max(min(num_steps, (until_ns - now_ns) // self.cost.gpu_ns(shape) + 2), 2)
        gpu = self.cost.decode_run_ns(size, context_tokens, num_steps)
        if self.depth == 1:
            gap = gpu + host_ns
            end = gap.cumsum()
            end += now_ns
            ends = end.tolist()
            gap[0] += now_ns - self.scheduler.last_update_ns
            return Jump([now_ns, *ends[:-1]], ends, gpu.tolist(), gap, host_ns)
        before_ns = self._in_flight[0][1]
        gpu_ns = gpu.tolist()
        if now_ns + host_ns <= before_ns and host_ns <= gpu_ns[0]:
            # The accelerator is never idle (later steps only take longer): each starts when the one before ends,
            # and is formed when the one before that does.
            end = gpu.cumsum()
            end += before_ns
            ends = end.tolist()
            return Jump([now_ns, before_ns, *ends[:-2]], ends, gpu_ns, gpu, host_ns)
        scheduled: list[int] = []
        ends = []
        at_ns = now_ns
        for step_ns in gpu_ns:
            scheduled.append(at_ns)
            at_ns = max(at_ns + host_ns, before_ns)
            before_ns = at_ns + step_ns
            ends.append(before_ns)
        known = np.array([*scheduled[1:], at_ns], dtype=np.int64)  # tokens of the step before, from the second on
        gap = np.append(known[1:] - known[:-1], 0)
        return Jump(scheduled, ends, gpu_ns, gap, host_ns)

    def _cut(self, now_ns: int) -> None:
        """A request arrives: from now on step by step again."""
        jump = self._jump
        if jump is None:
            return
        self._take(bisect_left(jump.scheduled_ns, now_ns))
        self._jump = None
        self._reach = max(8, 2 * jump.num_taken)
        in_flight = self._in_flight
        if len(in_flight) == self.depth:
            self._wake_ns, self._wake_turn = max(in_flight[0][1], self._host_free_ns, now_ns), 0
        else:
            self._wake_ns, self._wake_turn = now_ns, Turn.STEP_START

    def _take(self, until: int) -> None:
        """The jump's steps before ``until`` have been scheduled; those but the last ``depth`` have ended too."""
        jump = self._jump
        if jump is None or until <= jump.num_taken:
            return
        first, jump.num_taken = jump.num_taken, until
        scheduler, cohort, depth = self.scheduler, self.scheduler.cohort, self.depth
        scheduled, end_ns, in_flight = jump.scheduled_ns, jump.end_ns, self._in_flight
        context_tokens, base, size = cohort.context_tokens, cohort.latest + 1 - first, cohort.size
        free_before = scheduler.kv.num_free_blocks
        if self.decisions is not None:
            self._log_steps(jump, first, until, base, free_before)
        else:
            scheduler.take_freed()
            self.num_steps += until - first
        free_block_ns = self._free_block_ns(scheduled, first, until, base, free_before)
        scheduler.take_steps(until - first)

        # A batch ends when the one ``depth`` later is formed: those of before first, then the jump's own.
        while in_flight and (position := in_flight[0][0].index - base) < until - depth:
            scheduler.update(in_flight.popleft()[0], scheduled[position + depth])
        if first + depth < until:
            self.recorder.itl_many(jump.gap_ns[first : until - depth], size)
            scheduler.finish_steps(base + until - depth - 1, scheduled[until - 1])
        for position in range(max(first, until - depth), until):
            batch = Batch(base + position, size, shape=self._shape)
            scheduler.in_flight.append(batch)
            in_flight.append((batch, end_ns[position]))
        self._host_free_ns = scheduled[until - 1] + jump.host_ns
        self._stage_free_ns[0] = end_ns[until - 1]
        self._record_steps(jump, first, until, context_tokens, free_block_ns)

    # --- what is written down ----------------------------------------------------------------

    def _keep(self, row: StepRow) -> None:
        """Rows of jumps are written when they are taken, so those of single steps are written at once too."""
        self.recorder.step(row)

    def _free_block_ns(self, scheduled: list[int], first: int, until: int, base: int, free_blocks: int) -> int:
        """Free blocks times nanoseconds from the first of these steps to the last."""
        last_ns = scheduled[until - 1]
        total = free_blocks * (last_ns - scheduled[first])
        if self.scheduler.grows:
            cohort = self.scheduler.cohort
            growth, block_size = cohort.growth, cohort.block_size
            phase = (base + first) % block_size
            for start in range(first, min(first + block_size, until - 1)):
                if need := growth[phase]:
                    for position in range(start, until - 1, block_size):
                        total -= need * (last_ns - scheduled[position])
                phase = phase + 1 if phase + 1 < block_size else 0
        return total

    def _record_steps(self, jump: Jump, first: int, until: int, context_tokens: int, free_block_ns: int) -> None:
        scheduler, num_steps = self.scheduler, until - first
        gpu_ns, end_ns, size = jump.gpu_ns, jump.end_ns, scheduler.cohort.size
        self.recorder.step(
            StepRow(
                replica=self.index,
                scheduled_ns=jump.scheduled_ns[first],
                start_ns=end_ns[first] - gpu_ns[first],
                end_ns=end_ns[until - 1],
                num_steps=num_steps,
                num_running=len(scheduler.running),
                num_waiting=len(scheduler.waiting.entries),
                num_prefills=0,
                num_prefill_tokens=0,
                num_decodes=size,
                decode_context_tokens=context_tokens,
                prefill_context_tokens=0,
                prefill_attention_pairs=0,
                num_sampled=size,
                gpu_ns=sum(gpu_ns[first:until]),
                host_ns=jump.host_ns * num_steps,
                free_blocks=scheduler.kv.num_free_blocks,
                num_preempted=0,
                num_seats=scheduler.num_seats,
                last_scheduled_ns=jump.scheduled_ns[until - 1],
                free_block_ns=free_block_ns,
                further=self._nothing_more,
            )
        )

    def _log_steps(self, jump: Jump, first: int, until: int, base: int, free_blocks: int) -> None:
        cohort = self.scheduler.cohort
        scheduled, finished = self.scheduler.member_tokens(), self.scheduler.take_freed()
        for position in range(first, until):
            if self.scheduler.grows:
                free_blocks -= cohort.growth[(base + position) % cohort.block_size]
            self._log_step(jump.scheduled_ns[position], scheduled, [], finished, free_blocks)
            self.num_steps += 1
            finished = []
