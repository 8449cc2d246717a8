"""A replica that jumps over steps in which nothing is decided, to the same instants as single steps.

``Replica`` in ``replica.py`` is the one to read first; this one follows the same order of events with
callbacks in place of a process, and takes steady decode steps many at a time: when they all start and
end is known beforehand, so it sleeps until the last one, or until a request arrives and cuts them short.
``docs/fast-forward.md`` has the argument.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from simpy import Event

from sim.engine.clock import START_TURN, At, Clock
from sim.engine.decisions import DecisionLog
from sim.engine.fast_scheduler import FastScheduler
from sim.engine.replica import Replica
from sim.engine.request import Request
from sim.engine.scheduler import Batch
from sim.latency.base import StepCost, StepShape
from sim.results.record import Recorder

MAX_STEPS_AHEAD = 4096
"""Longest jump: bounds the arrays, and what is planned in vain when an arrival cuts it."""


@dataclass(slots=True)
class Jump:
    """Steps planned ahead: ``scheduled_ns[i]`` and ``end_ns[i]`` of the i-th; the first ``num_taken`` are history."""

    scheduled_ns: list[int]
    end_ns: list[int]
    gpu_ns: list[int]
    host_ns: int
    num_taken: int = 0


class FastReplica(Replica):
    """See the module."""

    scheduler: FastScheduler

    def __init__(
        self,
        env: Clock,
        index: int,
        model: str,
        scheduler: FastScheduler,
        cost: StepCost,
        depth: int,
        recorder: Recorder,
        on_end: Callable[[Request], None],
        static_batch_wait_ns: int = 0,
        decisions: DecisionLog | None = None,
    ) -> None:
        self._timer: At | None = None
        self._jump: Jump | None = None
        self._reach = 16
        """Steps to plan at most: grows while jumps land, shrinks when arrivals cut them."""
        self._is_in_turn = False
        """This instant's other events are over: a step may start."""
        self._is_gathering = False
        """A static batch waits for more requests."""
        self._must_complete = False
        """A step scheduled nothing: the oldest batch in flight has to end before the next one."""
        self._shape = StepShape()
        super().__init__(
            env, index, model, scheduler, cost, depth, recorder, on_end, static_batch_wait_ns, decisions
        )

    def _start(self) -> None:
        """Nothing to do before the first request."""

    # --- what a router sees ------------------------------------------------------------------

    @property
    def free_blocks(self) -> int:
        self._catch_up()
        return super().free_blocks

    @property
    def outstanding_tokens(self) -> int:
        self._catch_up()
        return super().outstanding_tokens

    # --- events ------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        if self._jump is not None:
            self._cut()
        self.scheduler.add_request(request, self.env.now)
        if self._timer is None or self._is_gathering:
            self._sleep(0, START_TURN + self.index)

    def _sleep(self, delay_ns: int, turn: int) -> None:
        self._timer = At(self.env, delay_ns, turn)
        self._timer.callbacks.append(self._wake)
        self._is_in_turn = turn >= START_TURN and delay_ns == 0
        self._is_gathering = False

    def _wake(self, event: Event) -> None:
        if event is not self._timer:
            return  # a later event has taken its place
        self._timer = None
        if self._jump is not None:
            self._take(len(self._jump.end_ns))
            self._jump = None
            self._reach = min(2 * self._reach, MAX_STEPS_AHEAD)
        self._go()

    def _go(self) -> None:
        """Everything that happens now, until something has to be waited for."""
        scheduler, env, in_flight = self.scheduler, self.env, self._in_flight
        while True:
            now_ns = env.now
            has_requests = scheduler.has_requests()
            if in_flight and (self._must_complete or len(in_flight) == self.depth or not has_requests):
                wait_ns = max(in_flight[0][1], self._host_free_ns) - now_ns
                if wait_ns > 0:
                    self._sleep(wait_ns, self.index)
                    return
                self._must_complete = False
                self._complete_oldest()
                continue
            if not has_requests:
                return
            if (gathering_ns := self._gathering_ns()) > 0:
                self._sleep(gathering_ns, START_TURN + self.index)
                self._is_gathering = True
                return
            if not self._is_in_turn and env.peek() == now_ns:
                self._sleep(0, START_TURN + self.index)
                return
            if self._try_jump(now_ns):
                return
            batch = scheduler.schedule(now_ns)
            self._check_progress(batch)
            if batch.is_empty:
                empty_ns = self._pass(batch)
                if in_flight:
                    self._must_complete = True
                    continue
                self._sleep(empty_ns, self.index)
                return
            host_ns = self._dispatch(batch)
            if host_ns and len(in_flight) < self.depth:
                self._sleep(host_ns, self.index)
                return

    # --- jumping -----------------------------------------------------------------------------

    def _try_jump(self, now_ns: int) -> bool:
        """Plan the steps ahead and sleep until the last of them is due; False where there is nothing to skip."""
        scheduler = self.scheduler
        if len(self._in_flight) != self.depth - 1:
            return False
        num_steps = min(scheduler.steps_ahead(), self._reach)
        if num_steps < 2:
            return False
        jump = self._plan(now_ns, num_steps)
        change_ns = scheduler.next_rank_change_ns()
        if change_ns is not None:
            keep = bisect_left(jump.scheduled_ns, change_ns)
            if keep < 2:
                return False
            del jump.scheduled_ns[keep:], jump.end_ns[keep:], jump.gpu_ns[keep:]
        self._jump = jump
        # The last step stays in flight; what follows is decided when the oldest batch in flight has ended.
        oldest_ns = jump.end_ns[-self.depth]
        self._sleep(max(oldest_ns, jump.scheduled_ns[-1] + jump.host_ns) - now_ns, self.index)
        return True

    def _plan(self, now_ns: int, num_steps: int) -> Jump:
        """When each of the next ``num_steps`` is scheduled and ends, exactly as ``_go`` would have it."""
        cohort = self.scheduler.cohort
        gpu_ns = self.cost.decode_run_ns(cohort.size, cohort.context_tokens, num_steps).tolist()
        shape = self._shape
        shape.num_decodes = shape.num_sampled = cohort.size
        shape.decode_context_tokens = cohort.context_tokens
        host_ns = self.cost.host_ns(shape)
        scheduled: list[int] = []
        ends: list[int] = []
        is_overlapped = self.depth == 2
        before_ns = self._in_flight[0][1] if is_overlapped else now_ns
        at_ns = now_ns
        for step_ns in gpu_ns:
            scheduled.append(at_ns)
            ready_ns = at_ns + host_ns
            if is_overlapped:
                # Formed when the host is free and the batch before the latest has ended.
                ends.append((ready_ns if ready_ns > before_ns else before_ns) + step_ns)
                at_ns = ready_ns if ready_ns > before_ns else before_ns
                before_ns = ends[-1]
            else:
                at_ns = ready_ns + step_ns
                ends.append(at_ns)
        return Jump(scheduled, ends, gpu_ns, host_ns)

    def _catch_up(self) -> None:
        """Make the part of the jump that lies behind us history; a step that starts at this instant does not."""
        if self._jump is not None:
            self._take(bisect_left(self._jump.scheduled_ns, self.env.now))

    def _cut(self) -> None:
        """A request arrives: from now on step by step again."""
        jump = self._jump
        if jump is None:
            return
        self._catch_up()
        self._jump = None
        self._reach = max(8, 2 * jump.num_taken)
        if len(self._in_flight) == self.depth:
            wait_ns = max(self._in_flight[0][1], self._host_free_ns) - self.env.now
            self._sleep(max(wait_ns, 0), self.index)
        else:
            self._sleep(0, START_TURN + self.index)

    def _take(self, until: int) -> None:
        """The jump's steps before ``until`` have been scheduled; those but the last ``depth`` have ended too."""
        jump = self._jump
        if jump is None or until <= jump.num_taken:
            return
        first, jump.num_taken = jump.num_taken, until
        scheduler, cohort, scheduled = self.scheduler, self.scheduler.cohort, jump.scheduled_ns
        context_tokens, first_batch = cohort.context_tokens, cohort.latest + 1
        free_before = scheduler.kv.num_free_blocks
        if self.decisions is not None:
            self._log_steps(jump, first, until, first_batch, free_before)
        else:
            scheduler.take_freed()
            self.num_steps += until - first
        free_block_ns = self._free_block_ns(jump, first, until, first_batch, free_before)
        scheduler.take_steps(until - first)

        # A batch ends when the one ``depth`` later is formed: those listed one by one first, then the jump's own.
        base = first_batch - first
        while self._in_flight and self._in_flight[0][0].index - base < until - self.depth:
            batch, _ = self._in_flight.popleft()
            scheduler.update(batch, scheduled[batch.index - base + self.depth])
        self._end_steps(scheduled[first + self.depth : until], base + until - self.depth - 1)
        for position in range(max(first, until - self.depth), until):
            batch = Batch(index=base + position, num_in_step=cohort.size)
            scheduler.in_flight.append(batch)
            self._in_flight.append((batch, jump.end_ns[position]))
        self._host_free_ns = scheduled[until - 1] + jump.host_ns
        self._stage_free_ns[0] = jump.end_ns[until - 1]
        self._record_steps(jump, first, until, context_tokens, free_block_ns)

    def _end_steps(self, update_ns: list[int], last_batch: int) -> None:
        """Every member got a token at each of these instants."""
        if not update_ns:
            return
        scheduler, recorder = self.scheduler, self.recorder
        previous_ns = scheduler.last_update_ns
        recorder.itl_ns.append(update_ns[0] - previous_ns)
        recorder.itl_ns.extend([after - before for before, after in pairwise(update_ns)])
        recorder.itl_weight.extend([scheduler.cohort.size] * len(update_ns))
        scheduler.finish_steps(last_batch, update_ns[-1])

    # --- what is written down ----------------------------------------------------------------

    def _free_block_ns(self, jump: Jump, first: int, until: int, first_batch: int, free_blocks: int) -> int:
        """Free blocks times nanoseconds from the first of these steps to the last."""
        scheduled = jump.scheduled_ns
        last_ns = scheduled[until - 1]
        total = free_blocks * (last_ns - scheduled[first])
        if self.scheduler.grows:
            cohort = self.scheduler.cohort
            growth, block_size = cohort.growth, cohort.block_size
            for position in range(first, until - 1):
                if need := growth[(first_batch + position - first) % block_size]:
                    total -= need * (last_ns - scheduled[position])
        return total

    def _record_steps(self, jump: Jump, first: int, until: int, context_tokens: int, free_block_ns: int) -> None:
        scheduler, size, num_steps = self.scheduler, self.scheduler.cohort.size, until - first
        gpu_ns, end_ns = jump.gpu_ns, jump.end_ns
        self.recorder.steps.append(
            (
                self.index,
                jump.scheduled_ns[first],
                end_ns[first] - gpu_ns[first],
                end_ns[until - 1],
                num_steps,
                len(scheduler.running),
                len(scheduler.waiting),
                0,
                0,
                size,
                context_tokens,
                0,
                0,
                size,
                sum(gpu_ns[first:until]),
                jump.host_ns * num_steps,
                scheduler.kv.num_free_blocks,
                0,
                scheduler.num_seats,
                jump.scheduled_ns[until - 1],
                free_block_ns,
            )
        )

    def _log_steps(self, jump: Jump, first: int, until: int, first_batch: int, free_blocks: int) -> None:
        cohort = self.scheduler.cohort
        scheduled, finished = self.scheduler.member_tokens(), self.scheduler.take_freed()
        for position in range(first, until):
            if self.scheduler.grows:
                free_blocks -= cohort.growth[(first_batch + position - first) % cohort.block_size]
            self._log_step(jump.scheduled_ns[position], scheduled, [], finished, free_blocks)
            self.num_steps += 1
            finished = []
