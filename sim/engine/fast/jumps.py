"""A replica that jumps over the steps in which nothing is decided, to the same instants as single steps.

``reference/replica.py`` is to be read first. ``docs/fast-forward.md`` has the argument why both are equal.

Its time is a row of *rounds*. A round is at ``_now_ns``, where the next batch can be formed: the older batch in flight has
ended (``_settle``), then one step is formed (``_step``) or many are planned (``_make_plan``). A plan is the steps up to the first
that leaves a member out; it becomes history (``_commit``) as far as it is when anything comes from outside.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import accumulate

from simpy import Event

from policies.base import Policy
from sim.engine.clock import At, Clock, Turn
from sim.engine.decisions import DecisionLog
from sim.engine.door import OnEnd
from sim.engine.fast.cohort import NOT_A_MEMBER, Member, admission_of
from sim.engine.fast.forming import Former
from sim.engine.fast.plan import Plan
from sim.engine.fast.sums import DecodeSums
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.recompute import note_stopped
from sim.engine.request import NEVER, State
from sim.errors import SimulationError
from sim.latency.base import StepCost
from sim.results.record import Recorder, Status

IDLE = 1 << 62
"""Instant of the next round of a replica that has nothing to do."""

MAX_FRUITLESS_STEPS = 50_000
"""As in the reference replica."""

ENDS_AT_ONCE = 64
"""Attempts that the gateway is told of together."""


class FastReplica(Former):
    """One model copy. Satisfies ``sim.engine.door.Door``."""

    def __init__(
        self,
        env: Clock,
        index: int,
        model: str,
        settings: SchedulerSettings,
        make_policy: Callable[[], Policy],
        cost: StepCost,
        sums: DecodeSums,
        recorder: Recorder,
        on_ends: Callable[[int, int], None],
        decisions: DecisionLog | None = None,
    ) -> None:
        """``make_policy``: now and after each crash. ``on_ends`` is told now and then how many attempts have ended that
        are not watched, and when it is."""
        self.env = env
        self.model = model
        self.num_steps = 0
        self._is_draining = False
        self.decisions = decisions
        self._make_policy = make_policy
        self._on_ends = on_ends
        self._num_ended = 0
        self._feed: Callable[[], Iterator[Member]] | None = None
        self._due: list[tuple[int, int, Member]] = []
        """Heap of the instants at which clients leave."""
        self._on_end: OnEnd | None = None
        self._timer: At | None = None
        self._use(cost, sums)
        super().__init__(settings, make_policy(), recorder, index)
        self.num_gpu_blocks = self.kv.num_usable_blocks

    def _use(self, cost: StepCost, sums: DecodeSums) -> None:
        self.cost, self._sums = cost, sums

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
        self._rows: deque[tuple[int, tuple[int, ...], Plan | None, int]] = deque()
        """Steps that have not ended: their last batch, and their row, or the plan and how many of its steps they are."""
        self._num_fruitless_steps = 0

    # --- load, as of now -----------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        """Requests that run."""
        if self.env._now >= self._next_ns:
            self.advance(self.env._now)
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        if self.env._now >= self._next_ns:
            self.advance(self.env._now)
        return len(self.waiting.entries)

    @property
    def outstanding_tokens(self) -> int:
        """Tokens still to compute, over all requests, if each used all of its ``max_tokens``."""
        now_ns = self.env._now
        if now_ns >= self._next_ns:
            self.advance(now_ns)
        if self._plan is not None:
            return self.outstanding - self.size * self._plan.num_formed(now_ns)
        return self.outstanding

    @property
    def free_blocks(self) -> int:
        """KV blocks that can be allocated."""
        now_ns = self.env._now
        if now_ns >= self._next_ns:
            self.advance(now_ns)
        if self._plan is not None:
            return self.kv.num_free_blocks - sum(self._takes(self._plan.num_formed(now_ns)))
        return self.kv.num_free_blocks

    # --- operations ----------------------------------------------------------------------------

    def watch(self, on_end: OnEnd | None) -> None:
        """Call ``on_end`` for every attempt that ends from now on."""
        self._on_end = on_end
        self._set_timer()

    def why_never(self, request: Member) -> str | None:
        """Why ``request`` can never run to its end here, or None."""
        limit = self.settings.max_model_len
        if request.num_prompt_tokens >= limit:
            return f"prompt of {request.num_prompt_tokens} tokens does not leave room under max_model_len {limit}"
        need = -(-(request.num_prompt_tokens + request._stop_at_output_tokens - 1) // self.block_size)
        if need > self.num_gpu_blocks:
            return f"needs {need} KV blocks at its longest, the pool has {self.num_gpu_blocks}"
        return None

    def submit(self, request: Member) -> None:
        """A request arrives."""
        if self._is_draining:
            raise SimulationError(f"replica {self.index} drains, and request {request.request_id} was sent to it")
        request.replica = self.index
        self._accept(request, self.env._now)
        if self._on_end is not None:
            self._set_timer()

    def _accept(self, request: Member, now_ns: int) -> None:
        if self._next_ns <= now_ns:
            self.advance(now_ns)
        if self._plan is not None:
            self._cut(self._plan, now_ns)
        self.outstanding += request.num_prompt_tokens + request.max_tokens
        if self._feeds_members:
            self.feed_all()
        self.policy.on_arrival(request, now_ns)
        self.waiting.add(request, now_ns)
        self.is_stuck = False
        if request.cancel_ns != NEVER:
            heappush(self._due, (request.cancel_ns, request.row, request))
        if self._now_ns == IDLE:
            self._now_ns, self._is_settled = now_ns, False
        self._note_next(self._now_ns)

    def cancel(self, request: Member, status: Status) -> None:
        """``request`` leaves: its seat and its blocks are free at once."""
        self.advance(self.env._now)
        self._cancel(request, self.env._now, status)
        if self._on_end is not None:
            self._set_timer()

    def _cancel(self, request: Member, now_ns: int, status: Status) -> None:
        if request.state is State.FINISHED or (request not in self.running and request not in self.waiting):
            return
        if self._plan is not None:
            self._cut(self._plan, now_ns)
        self.abort(request)
        self.record_end(request, status, now_ns)

    def crash(self) -> list[Member]:
        """Everything here is lost."""
        now_ns = self.env._now
        self.advance(now_ns, is_fault=True)
        if self._plan is not None:
            self._cut(self._plan, now_ns)
        self._write_ended(now_ns)
        lost = sorted((*self.running, *self.waiting), key=lambda request: request.row)
        self._due.clear()
        for request in lost:
            self.lose(request)
        self._bind(self._make_policy())
        self._set_timer()
        return lost

    def lose(self, request: Member) -> None:
        """``request`` is lost: its counters count."""
        if request.state is State.RUNNING:
            if request.joined_at != NOT_A_MEMBER:
                self.write(request)
            note_stopped(request, request.num_computed_tokens)
        request.state = State.FINISHED

    @property
    def is_draining(self) -> bool:
        """Whether it takes no new requests."""
        return self._is_draining

    def drain(self) -> None:
        """No new requests from now on."""
        self._is_draining = True

    def undrain(self) -> None:
        """New requests again."""
        self._is_draining = False

    def set_cost(self, cost: StepCost) -> None:
        """Steps formed from now on cost this."""
        self.advance(self.env._now, is_fault=True)
        if self._plan is not None:
            self._cut(self._plan, self.env._now)
        if cost is not self.cost:
            self._sums.record_gaps()
            self._use(cost, DecodeSums(cost, self.recorder))
        self._set_timer()

    # --- ends ----------------------------------------------------------------------------------

    def take_feed(self, requests: Callable[[], Iterator[Member]]) -> None:
        """All requests that will ever come here, in order of arrival: ``finish`` runs them."""
        self._feed = requests

    def finish(self) -> None:
        """Nothing comes from outside any more: run to the end of what is here."""
        if self._feed is not None:
            for request in self._feed():
                self._accept(request, request.arrival_ns)
        self.advance(IDLE - 1)
        self._write_rows(self.latest)
        self._sums.record_gaps()
        self._tell_ends()

    def check_empty(self) -> None:
        """Raise SimulationError where a request or a KV block is left."""
        left = [request.request_id for request in (*self.running, *self.waiting)]
        if left:
            raise SimulationError(f"replica {self.index} stopped with {len(left)} requests unfinished: {left[:5]}")
        self.kv.check_empty()

    def record_end(self, request: Member, status: Status, now_ns: int) -> None:
        finish_ns = request.last_token_ns if status is Status.COMPLETED else NEVER
        self.recorder.attempts.append(
            (
                request.row,
                1,
                status,
                self.index,
                request.arrival_ns,
                request.scheduled_ns,
                request.first_token_ns,
                finish_ns,
                now_ns,
                request.num_output_tokens,
                request.num_preemptions,
                request.num_cached_tokens,
                request.num_recomputed_tokens,
            )
        )
        if self._on_end is not None:
            self._on_end(request, status)
        else:
            self._num_ended += 1
            if self._num_ended >= ENDS_AT_ONCE:
                self._tell_ends(now_ns)

    def _tell_ends(self, now_ns: int | None = None) -> None:
        self._on_ends(self._num_ended, max(self.known_ns, 0) if now_ns is None else now_ns)
        self._num_ended = 0

    # --- time ----------------------------------------------------------------------------------

    def advance(self, until_ns: int, *, is_fault: bool = False) -> None:
        """Everything that happens here before ``Turn.ARRIVAL`` of ``until_ns``, or before ``Turn.FAULT`` of it."""
        due = self._due
        while due and due[0][0] <= until_ns - is_fault:
            at_ns, _, request = heappop(due)
            if request.state is not State.FINISHED:
                self._run(at_ns)
                self._cancel(request, at_ns, Status.CANCELLED)
        self._run(until_ns)
        self._note_next(self._next_ns)

    def _run(self, until_ns: int) -> None:
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
            else:
                self._next_step(now_ns)

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
            self.older_size, self.older_ones = 0, ()
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
        self.older_size, self.older_ones = self.newer_size, self.newer_ones
        self.newer_size, self.newer_ones = 0, ()
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
            self._rows.append((older, (*times, *counts, *NO_SHAPE, *rest, *further), None, 1))
            if had_newer:
                self._wait_for_newer()
            else:
                self._now_ns, self._is_settled = now_ns + empty_ns, False
                self._write_rows(older)
            return
        self._check_progress(now_ns, shape.num_sampled)
        host_ns, gpu_ns = cost.host_ns(shape), cost.gpu_ns(shape)
        start_ns = now_ns + host_ns
        if start_ns < self._busy_ns:
            start_ns = self._busy_ns
        end_ns = self._busy_ns = start_ns + gpu_ns
        row = (
            self.index,
            now_ns,
            start_ns,
            end_ns,
            1,
            *counts,
            shape.num_prefills,
            shape.num_prefill_tokens,
            shape.num_decodes,
            shape.decode_context_tokens,
            shape.prefill_context_tokens,
            shape.prefill_attention_pairs,
            shape.num_sampled,
            gpu_ns,
            host_ns,
            free,
            num_preempted,
            num_running,
            now_ns,
            0,
        )
        if names := self.recorder.shape_columns:
            row += tuple(getattr(shape, name) for name in names)
        self._rows.append((batch, row, None, 1))
        self._is_settled = False
        if self.is_async:
            self._now_ns = start_ns
            self._older = older if had_newer else 0
            self.has_newer = True
        else:
            self._now_ns = end_ns
            self._older = batch
            self.older_size, self.older_ones = self.newer_size, self.newer_ones
            self.newer_size, self.newer_ones = 0, ()

    def _check_progress(self, now_ns: int, num_sampled: int) -> None:
        if num_sampled:
            self._num_fruitless_steps = 0
            return
        self._num_fruitless_steps += 1
        if self._num_fruitless_steps > MAX_FRUITLESS_STEPS:
            head = self.waiting.peek() if len(self.waiting) else self.running[0]
            raise SimulationError(
                f"replica {self.index} is stuck at {now_ns / 1e9:.6f} s: no request got a token in "
                f"{MAX_FRUITLESS_STEPS} steps; next in line is request {head.request_id} ({head.num_tokens} tokens), "
                f"{self.kv.num_free_blocks} of {self.num_gpu_blocks} KV blocks are free"
            )

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
        if (most // self.block_size + 1) * size > free:
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
        plan.num_running, plan.num_waiting = len(self.running), len(waiting)
        self._plan = plan
        self._plan_end_ns = plan.before_ns + plan.instants[plan.place + plan.steps - 1]
        return True

    def _most_by_blocks(self, most: int, free: int) -> int:
        """Steps, ``most`` at most, whose new blocks are free."""
        growth, batch = self.growth, self.latest
        for steps in range(most):
            batch += 1
            free -= growth[batch % self.block_size]
            if free < 0:
                return steps
        return most

    def _takes(self, steps: int) -> list[int]:
        """Blocks that each of the next ``steps`` steps takes."""
        phase = (self.latest + 1) % self.block_size
        if phase + steps <= self.block_size:
            return self.growth[phase : phase + steps]
        takes = self.growth[phase:] + self.growth[:phase]
        if steps > self.block_size:
            takes *= -(-steps // self.block_size)
        return takes[:steps]

    def _cut(self, plan: Plan, now_ns: int) -> None:
        """Something comes from outside: the steps formed before are history, the others are not planned any more."""
        self._commit(plan, plan.num_formed(now_ns))
        if self._now_ns <= now_ns:
            self._settle(self._now_ns)
        self._note_next(self._now_ns)

    def _note_next(self, next_ns: int) -> None:
        """The next instant at which something happens: ``next_ns``, or a client leaves before."""
        due = self._due
        self._next_ns = due[0][0] if due and due[0][0] < next_ns else next_ns

    def _commit(self, plan: Plan, steps: int) -> None:
        """The first ``steps`` of the plan have been formed, and the next one can be."""
        size, is_async, batch = plan.size, self.is_async, self.latest
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
            self.older_size, self.older_ones = self.newer_size, self.newer_ones
            self.newer_size, self.newer_ones = size, ()
        else:
            self.older_size, self.older_ones = size, ()
        if steps > 1:
            # Batches end before the last of these steps is formed: the first one alone, then members only.
            self.complete(batch + 1 - is_async, before_ns + instants[place])
            if steps > 2:
                plan.count_gaps(steps - 2, self.add_gap)
                self.completed, self.known_ns = older - 1, before_ns + instants[place + steps - 2]
            self.older_size, self.older_ones = size, ()
        self._now_ns, self._is_settled = before_ns + instants[place + steps - 1], False
        rows = self._rows
        while rows and rows[0][0] <= self.completed:
            self._write_first_row()
        rows.append((latest, None, plan, steps))

    # --- what is written down --------------------------------------------------------------------

    def _write_first_row(self) -> None:
        """The first steps that are not written have ended."""
        _, row, plan, steps = self._rows.popleft()
        if plan is None:
            self.recorder.steps.append(row)
        else:
            self.recorder.decodes.append(plan.row(steps))

    def _write_rows(self, until: int) -> None:
        """Write the steps up to batch ``until``, which have ended."""
        while self._rows and self._rows[0][0] <= until:
            self._write_first_row()

    def _write_ended(self, now_ns: int) -> None:
        """Write the steps that have ended by ``now_ns``; the others never end."""
        for _, row, plan, steps in self._rows:
            if plan is None:
                if row[3] <= now_ns:
                    self.recorder.steps.append(row)
            elif steps := plan.num_ended(now_ns, steps):
                self.recorder.decodes.append(plan.row(steps))
        self._rows.clear()

    def _log(self, now_ns: int, free: int) -> None:
        """The line of the step just formed."""
        tokens = {request: 1 for request in self.running if request.is_counted and request.joined_at < self.latest}
        tokens.update(self.scheduled)
        scheduled = {request.request_id: tokens[request] for request in sorted(tokens, key=admission_of)}
        self._write_line(now_ns, scheduled, free, self.num_steps)

    def _log_plan(self, plan: Plan, steps: int) -> None:
        """Lines for the first ``steps`` of the plan."""
        scheduled = {request.request_id: 1 for request in self.running if request.is_counted}
        self.preempted = []
        for step, taken in enumerate(accumulate(plan.takes)):
            self._write_line(plan.formed_ns(step), scheduled, plan.free - taken, self.num_steps + step)

    def _write_line(self, now_ns: int, scheduled: dict[str, int], free: int, step: int) -> None:
        if self.decisions is None:
            return
        line = {
            "step": step,
            "time_s": now_ns / 1e9,
            "replica": self.index,
            "scheduled": scheduled,
            "preempted": [request.request_id for request in self.preempted],
            "finished": [request.request_id for request in self.freed],
            "free_blocks": free,
        }
        self.freed = []
        self.decisions.write(now_ns, self.index, json.dumps(line))

    # --- watched: ends happen when they happen ---------------------------------------------------

    def _set_timer(self) -> None:
        """A SimPy event at the next instant at which something happens here, where ends are watched."""
        self._timer = None
        if self._on_end is None or self._next_ns >= IDLE:
            return
        now_ns, next_ns = self.env._now, self._next_ns
        step_ends = next_ns == (self._now_ns if self._plan is None else self._plan_end_ns)
        if step_ends and not (self._plan is None and self._is_settled):
            turn, callback = Turn.STEP_END + self.index, self._on_step_end
        elif self._due and self._due[0][0] == next_ns:
            turn, callback = Turn.TIMEOUT + self._due[0][1], self._on_timeout
        else:
            turn, callback = Turn.STEP_START + self.index, self._on_start
        self._timer = At(self.env, next_ns - now_ns, turn)
        self._timer.callbacks.append(callback)

    def _on_step_end(self, event: Event) -> None:
        if event is self._timer:  # else a later one has taken its place
            self.advance(self.env._now, is_fault=True)
            self._set_timer()

    def _on_timeout(self, event: Event) -> None:
        if event is self._timer:
            self.advance(self.env._now)
            self._set_timer()

    def _on_start(self, event: Event) -> None:
        if event is not self._timer:
            return
        now_ns = self.env._now
        while self._plan is None and self._now_ns <= now_ns:
            if self._is_settled:
                self._next_step(now_ns)
            else:
                self._settle(now_ns)
        self._note_next(self._now_ns if self._plan is None else self._plan_end_ns)
        self._set_timer()


NO_SHAPE = (0,) * 7
