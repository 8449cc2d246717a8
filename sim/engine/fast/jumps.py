"""How the time of a replica goes on: over many steps at once where nothing is decided in them.

``reference/replica.py`` is to be read first. ``docs/fast-forward.md`` has the argument why both are equal.

Time is a row of *rounds*. A round is at ``_now_ns``, where the next batch can be formed: the older batch in flight has
ended (``_settle``), then one step is formed (``_step``) or many are planned (``_make_plan``). A plan is the steps up to
the first that leaves a member out. It becomes history (``_commit``) as far as it is when anything comes from outside.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from itertools import accumulate
from typing import Any

from policies.base import Policy
from sim.engine.decisions import DecisionLog
from sim.engine.fast.cohort import admission_of
from sim.engine.fast.forming import Former
from sim.engine.fast.plan import Plan, block_ns
from sim.engine.fast.sums import LENGTH, DecodeSums
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.replica import MAX_FRUITLESS_STEPS, stuck
from sim.latency.base import StepCost
from sim.results.record import Recorder

IDLE = 1 << 62
"""Instant of the next round of a replica that has nothing to do."""

NO_SHAPE = (0,) * 7


class Jumper(Former):
    """A ``Former`` with a time of its own."""

    def __init__(
        self,
        index: int,
        settings: SchedulerSettings,
        policy: Policy,
        cost: StepCost,
        sums: DecodeSums,
        recorder: Recorder,
        decisions: DecisionLog | None,
    ) -> None:
        self.cost, self._sums = cost, sums
        self.decisions = decisions
        self.num_steps = 0
        super().__init__(settings, policy, recorder, index)

    def _bind(self, policy: Policy) -> None:
        super()._bind(policy)
        self._now_ns = IDLE
        self._busy_ns = 0
        """End of the newer batch in flight."""
        self._is_settled = True
        """What ends at ``_now_ns`` has ended."""
        self._older = 0
        """Number of the older batch in flight, which ends at ``_now_ns``; 0 = none."""
        self._plan: Plan | None = None
        self._next_ns = IDLE
        """The next instant at which anything but a step of the plan happens here."""
        self._plan_end_ns = 0
        """The instant at which the step after the plan can be formed."""
        self._rows: deque[tuple[int, tuple[int, ...], Any]] = deque()
        """Steps that have not ended: their last batch, their row, and the plan they are of (or what makes it)."""
        self._num_fruitless_steps = 0
        self._may_cruise = self.is_async and self.decisions is None

    # --- time ----------------------------------------------------------------------------------

    def _run(self, until_ns: int, *, is_cut: bool = False) -> None:
        while True:
            plan = self._plan
            if plan is not None:
                if self._plan_end_ns > until_ns:
                    self._next_ns = self._plan_end_ns
                    return
                self._commit(plan, plan.steps)
            now_ns = self._now_ns
            if now_ns > until_ns or (now_ns == until_ns and self._is_settled):
                self._next_ns = now_ns
                return
            if not self._is_settled:
                self._settle(now_ns)
                continue
            if (
                self._may_cruise
                and self.has_newer
                and not (self.waiting.entries or self.part or self.talkers or self.skipped)
            ):
                self._cruise(until_ns, is_cut=is_cut)
                now_ns = self._now_ns
                if now_ns >= until_ns or not self._is_settled:
                    continue
            self._next_step(now_ns)

    def _cruise(self, until_ns: int, *, is_cut: bool) -> None:
        """The usual rounds before ``until_ns``, while all that runs decodes and nothing waits.

        It is ``_make_plan``, ``_commit`` and ``_settle`` in turn as one loop over local variables, and stops before a
        round of any other kind. ``is_cut``: something comes from outside at ``until_ns``, so steps are taken up to it.
        """
        rows, running, growth, block_size = self._rows, self.running, self.growth, self.block_size
        stretches, leaves, leaving, kv = self._sums.stretches, self._leaves, self.leaving, self.kv
        add_gap, index, first = self.add_gap, self.index, self.latest
        now_ns, busy_ns, latest, size, context = self._now_ns, self._busy_ns, self.latest, self.size, self.context
        units = self.units
        is_settled = True
        while size and now_ns < until_ns:
            most = 1 if leaving else leaves[0][0] - latest - 1
            place = context // size & LENGTH - 1
            stretch = stretches.get((size, context - place * size))
            if stretch is None:
                place, stretch = self._sums.get(size, context, most)
            sums, host_ns = stretch.sums, self._sums.host_ns(size)
            if most <= 0 or host_ns > stretch.least_ns or now_ns + host_ns > busy_ns:
                break
            steps = min(most, len(sums) - 1 - place)
            before_ns = busy_ns - sums[place]
            if before_ns + sums[place + steps - 1] > until_ns:
                if not is_cut:
                    break
                steps = 1 + bisect_left(sums, until_ns - before_ns, place, place + steps - 1) - place
            phase = (latest + 1) % block_size
            takes = (growth[phase:] + growth[:phase]) * (steps // block_size + 1)
            del takes[steps:]
            need, free, start_ns = sum(takes), kv.num_free_blocks, busy_ns
            if need > free:
                break
            if need:
                kv.take(need)
            next_ns, last_ns = before_ns + sums[place + steps - 1], now_ns
            busy_ns = before_ns + sums[place + steps]
            is_settled = next_ns <= until_ns
            used_ns = 0
            if steps > 1:
                last_ns = before_ns + sums[place + steps - 2]
                used_ns = block_ns(takes[:-1], now_ns, last_ns, sums, place, before_ns)
            if is_settled or steps > 1:
                # The batch in flight ends when the first of these steps starts, the others one after the other.
                if self.newer_units:
                    add_gap((start_ns - self.known_ns, self.newer_units))
                if self.newer_ones:
                    self.older_ones = self.newer_ones
                    self._complete_ones(start_ns)
                    self.newer_ones = ()
                num_gaps = steps - 2 + is_settled
                if num_gaps and stretch.counts is not None:
                    counts, end = stretch.counts, place + num_gaps
                    counts[place] = counts.get(place, 0) + units
                    counts[end] = counts.get(end, 0) - units
                else:
                    for i in range(place, place + num_gaps):
                        add_gap((sums[i + 1] - sums[i], units))
                self.known_ns = next_ns if is_settled else last_ns
                self.older_units, self.older_ones = units, ()
            else:
                self.older_units, self.older_ones = self.newer_units, self.newer_ones
            self.newer_units, self.newer_ones = units, ()
            times = (index, now_ns, start_ns, busy_ns, steps, len(running), 0, size, context, busy_ns - start_ns)
            row = (*times, host_ns * steps, free - need, last_ns, free * (last_ns - now_ns) - used_ns)
            latest += steps
            context += steps * size
            self.outstanding -= steps * size
            self.completed = completed = latest - 2 + is_settled
            while rows and rows[0][0] <= completed:
                self._write_first_row()
            rows.append((latest, row, (now_ns, start_ns, host_ns, stretch, place, steps, takes)))
            now_ns = next_ns
            if not is_settled:
                break
            self.older_units = 0
            if leaves[0][0] <= latest + 1:
                self.latest, self.context = latest, context
                self.leave_out(latest + 1)
                size, units, context = self.size, self.units, self.context
            if leaving and (ended := [request for request in leaving if request.ends_at <= completed]):
                self.latest = latest
                self.end_all(sorted(ended, key=admission_of), now_ns)
        if latest > first:
            self.num_steps += latest - first
            self._num_fruitless_steps = 0
            self.freed = []
            self._now_ns, self._busy_ns, self.latest, self.context = now_ns, busy_ns, latest, context
            self._is_settled, self._older = is_settled, 0 if is_settled else latest - 1
            if not running:
                self._rest()

    def _next_step(self, now_ns: int) -> None:
        """The turn at which a batch is formed."""
        if not (self.running or self.waiting.entries):
            self._rest()
        elif not self._make_plan(now_ns):
            self._step(now_ns)

    def _settle(self, now_ns: int) -> None:
        """The older batch in flight has ended; then a batch can be formed, unless there is no request."""
        self._is_settled = True
        if self._older:
            batch, self._older = self._older, 0
            ended = self.complete(batch, now_ns)
            self.older_units, self.older_ones = 0, ()
            if ended:
                self.is_stuck = False
                self.end_all(ended, now_ns)
            while self._rows and self._rows[0][0] <= batch:
                self._write_first_row()
        if not (self.running or self.waiting.entries):
            self._rest()

    def _rest(self) -> None:
        """There is no request: take in the batch in flight, if any, then sleep."""
        if self.has_newer:
            self._wait_for_newer()
        else:
            self._now_ns = IDLE

    def _wait_for_newer(self) -> None:
        """The batch in flight ends before another one is formed."""
        self._older, self.has_newer = self.latest, False
        self.older_units, self.older_ones = self.newer_units, self.newer_ones
        self.newer_units, self.newer_ones = 0, ()
        self._now_ns, self._is_settled = self._busy_ns, False

    # --- one step ------------------------------------------------------------------------------

    def _step(self, now_ns: int) -> None:
        """Form one batch."""
        older, had_newer = self.latest, self.has_newer
        batch = self.form(now_ns)
        shape, cost = self.shape, self.cost
        num_running = len(self.running)
        counts = (num_running, len(self.waiting.entries))
        free, num_preempted = self.kv.num_free_blocks, len(self.preempted)
        if self.decisions is not None:
            self._log(now_ns, free)
        else:
            self.freed = []
        self.num_steps += 1
        if not batch:
            self._check_progress(now_ns, 0)
            empty_ns = 0 if had_newer else cost.empty_step_ns()
            times = (self.index, now_ns, now_ns, now_ns + empty_ns, 1)
            rest = (0, 0, free, num_preempted, num_running, now_ns, 0)
            further = (0,) * len(self.recorder.shape_columns)
            self._rows.append((older, (*times, *counts, *NO_SHAPE, *rest, *further), None))
            if had_newer:
                self._wait_for_newer()
            else:
                self._now_ns, self._is_settled = now_ns + empty_ns, False
                self._write_rows(older)
            return
        if not shape.num_sampled or self._num_fruitless_steps:
            self._check_progress(now_ns, shape.num_sampled)
        host_ns, gpu_ns = cost.host_ns(shape), cost.gpu_ns(shape)
        start_ns = now_ns + host_ns
        if start_ns < self._busy_ns:
            start_ns = self._busy_ns
        end_ns = self._busy_ns = start_ns + gpu_ns
        times = (self.index, now_ns, start_ns, end_ns, 1)
        tokens = (shape.num_prefills, shape.num_prefill_tokens, shape.num_decodes, shape.decode_context_tokens)
        prompts = (shape.prefill_context_tokens, shape.prefill_attention_pairs, shape.num_sampled)
        rest = (gpu_ns, host_ns, free, num_preempted, num_running, now_ns, 0)
        row: tuple[int, ...] = (*times, *counts, *tokens, *prompts, *rest)
        if names := self.recorder.shape_columns:
            row += tuple(getattr(shape, name) for name in names)
        self._rows.append((batch, row, None))
        self._is_settled = False
        if self.is_async:
            self._now_ns = start_ns
            self._older = older if had_newer else 0
            self.has_newer = True
        else:
            self._now_ns = end_ns
            self._older = batch
            self.older_units, self.older_ones = self.newer_units, self.newer_ones
            self.newer_units, self.newer_ones = 0, ()

    def _check_progress(self, now_ns: int, num_sampled: int) -> None:
        if num_sampled:
            self._num_fruitless_steps = 0
            return
        self._num_fruitless_steps += 1
        if self._num_fruitless_steps > MAX_FRUITLESS_STEPS:
            head = self.waiting.peek() if len(self.waiting) else self.running[0]
            raise stuck(self.index, now_ns, head, self.kv.num_free_blocks, self.kv.num_usable_blocks)

    # --- many steps ----------------------------------------------------------------------------

    def _make_plan(self, now_ns: int) -> bool:
        """Plan the steps in which all members decode and nothing else happens; False where the next one is another."""
        waiting = self.waiting.entries
        if self.part is not None or self.skipped or (waiting and not self.is_stuck):
            return False
        batch = self.latest + 1
        if self._leaves and self._leaves[0][0] <= batch:
            self.leave_out(batch)
        size = self.size
        if not size or (self.is_async and not self.has_newer):
            return False
        most = 1 if self.leaving else self.first_leave() - batch
        free = self.kv.num_free_blocks
        if self.most_taken(most) > free:
            most = self._most_by_blocks(most, free)
            if not most:
                return False
        if self.talkers and (waiting or any(len(turns) > 1 for turns in self.talkers.values())):
            return False
        sums = self._sums
        place, stretch = sums.get(size, self.context, most)
        plan = Plan(now_ns, self._busy_ns, sums.host_ns(size), stretch, place, most, is_async=self.is_async)
        if waiting:
            change_ns = getattr(self.waiting, "next_change_ns", None)
            if change_ns is not None:
                if change_ns <= now_ns:
                    return False
                plan.steps = plan.num_formed(change_ns)
        plan.size, plan.context, plan.free, plan.index = size, self.context, free, self.index
        plan.units = self.units
        plan.num_running, plan.num_waiting = len(self.running), len(waiting)
        self._plan = plan
        self._plan_end_ns = plan.before_ns + plan.instants[plan.place + plan.steps - 1]
        return True

    def _most_by_blocks(self, most: int, free: int) -> int:
        """Steps, ``most`` at most, whose new blocks are free."""
        growth, batch = self.growth, self.latest
        for steps in range(most):
            batch += 1
            free -= growth[batch % self.period]
            if free < 0:
                return steps
        return most

    def most_taken(self, steps: int) -> int:
        """So many steps take no more blocks than that."""
        return (steps // self.block_size + 1) * self.size

    def _takes(self, steps: int) -> list[int]:
        """Blocks that each of the next ``steps`` steps takes."""
        phase = (self.latest + 1) % self.period
        if phase + steps <= self.period:
            return self.growth[phase : phase + steps]
        takes = self.growth[phase:] + self.growth[:phase]
        if steps > self.period:
            takes *= -(-steps // self.period)
        return takes[:steps]

    def _cut(self, plan: Plan, now_ns: int) -> None:
        """Something comes from outside: the steps formed before are history, the others are not planned any more."""
        self._commit(plan, plan.num_formed(now_ns))
        if self._now_ns <= now_ns:
            self._settle(self._now_ns)
        self._note_next(self._now_ns)

    def _note_next(self, next_ns: int) -> None:
        """``next_ns`` is the next instant at which something happens here."""
        self._next_ns = next_ns

    def _commit(self, plan: Plan, steps: int) -> None:
        """The first ``steps`` of the plan have been formed, and the next one can be."""
        size, units, is_async, batch = plan.size, plan.units, self.is_async, self.latest
        self._plan = None
        plan.takes = takes = self._takes(steps)
        if self.decisions is not None:
            self._log_plan(plan, steps)
        elif self.freed:
            self.freed = []
        if need := sum(takes):
            self.kv.take(need)
        self.latest = latest = batch + steps
        self.num_steps += steps
        self._num_fruitless_steps = 0
        self.context += steps * size
        self.outstanding -= steps * size
        instants, place, before_ns = plan.instants, plan.place, plan.before_ns
        self._busy_ns = plan.end_ns(steps)
        self._older = older = latest - is_async
        if is_async:
            self.older_units, self.older_ones = self.newer_units, self.newer_ones
            self.newer_units, self.newer_ones = units, ()
        else:
            self.older_units, self.older_ones = units, ()
        if steps > 1:
            # Batches end before the last of these steps is formed: the first one alone, then members only.
            self.complete(batch + 1 - is_async, before_ns + instants[place])
            if steps > 2:
                plan.count_gaps(steps - 2, self.add_gap)
                self.completed, self.known_ns = older - 1, before_ns + instants[place + steps - 2]
            self.older_units, self.older_ones = units, ()
        self._now_ns, self._is_settled = before_ns + instants[place + steps - 1], False
        rows = self._rows
        while rows and rows[0][0] <= self.completed:
            self._write_first_row()
        rows.append((latest, plan.row(steps), plan))

    # --- what is written down --------------------------------------------------------------------

    def _write_first_row(self) -> None:
        """The first steps that are not written have ended."""
        _, row, plan = self._rows.popleft()
        (self.recorder.steps if plan is None else self.recorder.decodes).append(row)

    def _write_rows(self, until: int) -> None:
        """Write the steps up to batch ``until``, which have ended."""
        while self._rows and self._rows[0][0] <= until:
            self._write_first_row()

    def _write_ended(self, now_ns: int) -> None:
        """Write the steps that have ended by ``now_ns``; the others never end, nor do those behind them."""
        for _, row, plan in self._rows:
            if row[3] <= now_ns:
                (self.recorder.steps if plan is None else self.recorder.decodes).append(row)
                continue
            if plan is not None:
                if not isinstance(plan, Plan):
                    *args, takes = plan
                    plan = Plan(*args, is_async=True)
                    plan.describe(row, takes)
                if steps := plan.num_ended(now_ns, row[4]):
                    self.recorder.decodes.append(plan.row(steps))
            break
        self._rows.clear()

    def _log(self, now_ns: int, free: int) -> None:
        """The line of the step just formed."""
        tokens = {request: 1 for request in self.running if request.is_counted and request.joined_at < self.latest}
        tokens.update(self.scheduled)
        scheduled = {request.request_id: tokens[request] for request in sorted(tokens, key=admission_of)}
        self._write_line(now_ns, scheduled, free, self.num_steps)

    def _write_line(self, now_ns: int, scheduled: dict[str, int], free: int, step: int) -> None:
        if self.decisions is not None:
            self.decisions.step(now_ns, self.index, step, scheduled, self.preempted, self.freed, free)
        self.freed = []

    def _log_plan(self, plan: Plan, steps: int) -> None:
        """Lines for the first ``steps`` of the plan."""
        scheduled = {request.request_id: 1 for request in self.running if request.is_counted}
        self.preempted = []
        for step, taken in enumerate(accumulate(plan.takes)):
            self._write_line(plan.formed_ns(step), scheduled, plan.free - taken, self.num_steps + step)
