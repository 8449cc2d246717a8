"""Ranks that step together at the cost of what changes: the same instants and decisions as ``lockstep.py``.

A rank decides as a fast replica does (``sim.engine.fast.forming``) and has no time of its own. The group's time is
that of ``DataParallelGroup``, phase by phase, but without SimPy: it goes on when the outside looks at a rank or acts
on it. A phase is at an instant, in ``END``, before all that comes from outside then, or in ``START``, after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush, merge
from typing import Any

from simpy import Event

from policies.base import Policy
from sim.engine.clock import At, Clock, Turn
from sim.engine.fast.cohort import Member
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.fast.jumps import IDLE
from sim.engine.request import NEVER, State
from sim.engine.variants.lockstep import DP_SYNC_INTERVAL
from sim.latency.base import StepCost
from sim.latency.lockstep_cost import GroupCost
from sim.results.record import Recorder, Status

END, START = 0, 1


class FastRank(FastReplica):
    """One engine core of a group. Satisfies ``sim.engine.door.Door``."""

    group: FastGroup

    def _bind(self, policy: Policy) -> None:
        super()._bind(policy)
        self._next_ns = 0  # every look at its load asks the group to go on
        self.in_flight: deque[tuple[int, int]] = deque()
        """Batches that were launched, with their ends."""
        self.formed: tuple[int, ...] | None = None
        """What it brings to the coming step: the instant, requests that ran and waited, free blocks, preemptions."""
        self.is_dummy = False
        """It has no request in the coming step."""
        self.batch = 0
        """Its batch of the coming step; 0 = nothing is scheduled."""
        self.unseen: set[Member] = set()
        """Requests that have arrived since it last formed a batch."""

    @property
    def has_requests(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running or self.waiting.entries)

    @property
    def knows_of_work(self) -> bool:
        """Whether it has requests that it has seen."""
        return len(self.running) + len(self.waiting.entries) > len(self.unseen)

    # --- the door --------------------------------------------------------------------------------

    def advance(self, until_ns: int, *, is_fault: bool = False) -> None:
        """The group goes on, up to ``Turn.ARRIVAL`` of ``until_ns``, or to ``Turn.FAULT`` of it."""
        self.group.advance(until_ns, is_fault=is_fault)

    def _accept(self, request: Member, now_ns: int) -> None:
        request.unit = self._units[request.class_index]
        self.group.advance(now_ns)
        self.outstanding += request.num_prompt_tokens + request.max_tokens
        self.tell_policy()
        self.policy.on_arrival(request, now_ns)
        self.waiting.add(request, now_ns)
        self.unseen.add(request)
        self.group.wake(request, now_ns)

    def _cancel(self, request: Member, now_ns: int, status: Status) -> None:
        self.unseen.discard(request)
        super()._cancel(request, now_ns, status)

    def leave(self, request: Member, now_ns: int) -> None:
        """The client of ``request`` leaves, now."""
        self._cancel(request, now_ns, Status.CANCELLED)

    def crash(self) -> list[Member]:
        """Everything in the group is lost: an engine core that dies takes the others with it."""
        return self.group.crash()

    def lose_all(self) -> list[Member]:
        """Start anew; returns what ran or waited."""
        lost = [*self.running, *self.waiting]
        for request in lost:
            self.lose(request)
        self._bind(self._make_policy())
        return lost

    def set_cost(self, cost: StepCost) -> None:
        """Steps of the whole group cost this from now on."""
        if not isinstance(cost, GroupCost):
            raise TypeError(f"replica {self.index} steps with others, and {type(cost).__name__} is the cost of one")
        self.advance(self.env._now, is_fault=True)
        self.group.cost = cost
        self.cost = cost

    def finish(self) -> None:
        """Nothing comes from outside any more: the group runs to the end of what is there."""
        self.group.finish()
        self._tell_ends()

    def take_requests(self) -> Iterator[tuple[int, int, Member, FastRank]]:
        """All requests that it was given beforehand, once: by arrival."""
        feed, self._feed = self._feed, None
        if feed is not None:
            for request in feed():
                yield request.arrival_ns, request.row, request, self

    def _set_timer(self) -> None:
        self.group.set_timer()

    @property
    def is_watched(self) -> bool:
        """Whether its ends have to happen when they happen."""
        return self._on_end is not None

    # --- steps -----------------------------------------------------------------------------------

    def form_part(self, now_ns: int) -> None:
        """Form the rank's part of the group's next step."""
        if self.unseen:
            self.unseen.clear()
        if not (self.running or self.waiting.entries):
            self.is_dummy, self.batch = True, 0
            self.shape.clear()
            self.formed = (now_ns, 0, 0, self.kv.num_free_blocks, 0)
            return
        self.is_dummy = False
        self.batch = batch = self.form(now_ns)
        free = self.kv.num_free_blocks
        self._check_progress(now_ns, self.shape.num_sampled)
        if self.decisions is not None:
            self._log(now_ns, free)
        elif self.freed:
            self.freed = []
        self.num_steps += 1
        if batch:
            if self.is_async:
                self.has_newer = True
            else:
                self._shift()
        self.formed = (now_ns, len(self.running), len(self.waiting.entries), free, len(self.preempted))

    def _shift(self) -> None:
        """The newest batch is the next to end."""
        self.has_newer = False
        self.older_units, self.older_ones = self.newer_units, self.newer_ones
        self.newer_units, self.newer_ones = 0, ()

    def settle(self, now_ns: int) -> None:
        """Take in the batches that have ended."""
        in_flight = self.in_flight
        while in_flight and in_flight[0][1] <= now_ns:
            batch, _ = in_flight.popleft()
            if self.has_newer and batch == self.latest:
                self._shift()
            ended = self.complete(batch, now_ns)
            self.older_units, self.older_ones = 0, ()
            if ended:
                self.end_all(ended, now_ns)


class FastGroup:
    """The ranks of one deployment; see ``DataParallelGroup``, of which this is the time."""

    def __init__(self, env: Clock, ranks: Sequence[FastRank], cost: GroupCost, depth: int, recorder: Recorder) -> None:
        self.env = env
        self.ranks = ranks
        self.cost = cost
        self.depth = depth
        self.recorder = recorder
        self._ends_ns: list[int] = [0] * depth
        """Ends of the last ``depth`` steps, the newest last."""
        self._rows: deque[tuple[int, list[tuple[int, ...]]]] = deque()
        """Steps that have not ended: their end, and a row of each rank."""
        self._due: list[tuple[int, int, Member]] = []
        """Heap of the instants at which clients leave."""
        self._timer: At | None = None
        self._index = ranks[0].index
        for rank in ranks:
            rank.group = self
        self._restart()

    def _restart(self) -> None:
        self._now_ns = 0
        self._is_asleep = False
        self._phases = self._serve()
        self._at_ns, self._turn = next(self._phases)

    # --- from outside ----------------------------------------------------------------------------

    def advance(self, until_ns: int, *, is_fault: bool = False) -> None:
        """Everything that happens here before ``Turn.ARRIVAL`` of ``until_ns``, or before ``Turn.FAULT`` of it."""
        due = self._due
        while due and due[0][0] <= until_ns - is_fault:
            at_ns, _, request = heappop(due)
            if request.state is not State.FINISHED:
                self._run(at_ns)
                self.ranks[request.replica - self._index].leave(request, at_ns)
        if self._at_ns <= until_ns:
            self._run(until_ns)

    def _run(self, until_ns: int) -> None:
        while self._at_ns < until_ns or (self._at_ns == until_ns and self._turn == END):
            self._go_on()

    def _go_on(self) -> None:
        """Go on with the next phase."""
        self._now_ns = self._at_ns
        self._at_ns, self._turn = next(self._phases)

    def wake(self, request: Member, now_ns: int) -> None:
        """A request has arrived."""
        if request.cancel_ns != NEVER:
            heappush(self._due, (request.cancel_ns, request.row, request))
        if self._is_asleep:
            self._at_ns, self._turn = now_ns, START

    def crash(self) -> list[Member]:
        """Everything in the group is lost, now; what ran or waited there, by row."""
        now_ns = self.env._now
        self.advance(now_ns, is_fault=True)
        self._write_ended(now_ns)
        self._rows.clear()
        self._due.clear()
        lost = [request for rank in self.ranks for request in rank.lose_all()]
        self._ends_ns = [now_ns] * self.depth
        self._restart()
        self.set_timer()
        return sorted(lost, key=lambda request: request.row)

    def finish(self) -> None:
        """Run all requests that are known beforehand, then everything to its end."""
        for arrival_ns, _, request, rank in merge(*(rank.take_requests() for rank in self.ranks)):
            rank._accept(request, arrival_ns)
        self.advance(IDLE - 1)

    # --- time ------------------------------------------------------------------------------------

    def _serve(self) -> Iterator[tuple[int, int]]:
        """The phases, each with its instant and turn; ``_now_ns`` is the instant when it is gone on with."""
        ranks, depth = self.ranks, self.depth
        while True:
            while not any(rank.has_requests for rank in ranks):
                self._is_asleep = True
                yield self._ends_ns[-1] if any(rank.in_flight for rank in ranks) else IDLE, END
                self._is_asleep = False
                self._settle()
            num_steps = 0
            while True:
                if num_steps == 1 or (num_steps and num_steps % DP_SYNC_INTERVAL == 0):
                    others = [rank for rank in ranks if len(rank.in_flight) == depth]
                    any_work = any(rank.knows_of_work for rank in ranks if len(rank.in_flight) < depth)
                    if others:
                        yield from self._until(self._ends_ns[0])
                    if not (any_work or any(rank.knows_of_work for rank in others)):
                        break
                some = [rank for rank in ranks if len(rank.in_flight) < depth]
                if some or self._ends_ns[0] <= self._now_ns:
                    yield self._now_ns, START
                    for rank in some:
                        rank.form_part(self._now_ns)
                yield from self._until(self._ends_ns[0])
                yield self._now_ns, START
                for rank in ranks:
                    if rank.formed is None:
                        rank.form_part(self._now_ns)
                if any(rank.in_flight and not rank.batch for rank in ranks):
                    yield from self._until(self._ends_ns[-1])
                host_ns = self._launch()
                num_steps += 1
                if host_ns:
                    yield self._now_ns + host_ns, END

    def _until(self, end_ns: int) -> Iterator[tuple[int, int]]:
        """Wait for the end of a step; all ranks take in what has ended by then."""
        if end_ns > self._now_ns:
            yield end_ns, END
        self._settle()

    def _settle(self) -> None:
        now_ns = self._now_ns
        self._write_ended(now_ns)
        for rank in self.ranks:
            rank.settle(now_ns)

    def _launch(self) -> int:
        """Hand the step to the accelerators, once the slowest host is done: in the nanoseconds returned."""
        ranks, cost = self.ranks, self.cost
        shapes = [rank.shape for rank in ranks]
        hosts_ns = [cost.host_ns(shape) for shape in shapes]
        host_ns = max(hosts_ns)
        step = cost.group_step(shapes)
        gpu_ns, tokens = step.gpu_ns, step.group_tokens
        start_ns = max(self._now_ns + host_ns, self._ends_ns[-1])
        end_ns = start_ns + gpu_ns
        rows: list[tuple[int, ...]] = []
        is_written = not all(rank.is_dummy for rank in ranks)
        for rank, shape, own_ns, padded, its_ns in zip(
            ranks, shapes, step.own_ns, step.padded_tokens, hosts_ns, strict=True
        ):
            formed: Any = rank.formed
            rank.formed = None
            if not is_written:
                continue
            now_ns, num_running, num_waiting, free, num_preempted = formed
            if rank.batch:
                rank.in_flight.append((rank.batch, end_ns))
            row = (
                rank.index,
                now_ns,
                start_ns,
                end_ns,
                1,
                num_running,
                num_waiting,
                shape.num_prefills,
                shape.num_prefill_tokens,
                shape.num_decodes,
                shape.decode_context_tokens,
                shape.prefill_context_tokens,
                shape.prefill_attention_pairs,
                shape.num_sampled,
                gpu_ns,
                its_ns,
                free,
                num_preempted,
                num_running,
                now_ns,
                0,
                padded,
                tokens,
                own_ns,
            )
            rows.append(row)
        if is_written:
            self._rows.append((end_ns, rows))
        self._ends_ns = [*self._ends_ns[1:], end_ns]
        return host_ns

    def _write_ended(self, now_ns: int) -> None:
        rows, write = self._rows, self.recorder.steps.append
        while rows and rows[0][0] <= now_ns:
            for row in rows.popleft()[1]:
                write(row)

    # --- watched: ends happen when they happen ---------------------------------------------------

    def set_timer(self) -> None:
        """A SimPy event at the next phase or the next client that leaves, where ends are watched."""
        self._timer = None
        if not any(rank.is_watched for rank in self.ranks):
            return
        at_ns, turn = self._at_ns, (Turn.STEP_END if self._turn == END else Turn.STEP_START) + self._index
        self._on_time: Callable[[], None] = self._go_on
        if self._due and (self._due[0][0], Turn.TIMEOUT) < (at_ns, turn):
            at_ns, turn = self._due[0][0], Turn.TIMEOUT + self._due[0][1]
            self._on_time = partial(self.advance, at_ns)
        if at_ns < IDLE:
            self._timer = At(self.env, at_ns - self.env._now, turn)
            self._timer.callbacks.append(self._on_timer)

    def _on_timer(self, event: Event) -> None:
        if event is self._timer:  # no later one has taken its place
            self._on_time()
            self.set_timer()
