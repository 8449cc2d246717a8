"""A replica of the fast engine, as the outside sees it: its load, its door, and the events of ends that are watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush

from simpy import Event

from policies.base import Policy
from sim.engine.clock import At, Clock, Turn
from sim.engine.decisions import DecisionLog
from sim.engine.door import OnEnd
from sim.engine.fast.cohort import NOT_A_MEMBER, Member
from sim.engine.fast.jumps import IDLE, Jumper
from sim.engine.fast.sums import DecodeSums
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.recompute import note_stopped
from sim.engine.request import NEVER, State
from sim.errors import SimulationError
from sim.latency.base import StepCost
from sim.results.record import Recorder, Status

ENDS_AT_ONCE = 64
"""Attempts that the gateway is told of together."""


class FastReplica(Jumper):
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
        self._is_draining = False
        self._make_policy = make_policy
        self._on_ends = on_ends
        self._num_ended = 0
        self._feed: Callable[[], Iterator[Member]] | None = None
        self._due: list[tuple[int, int, Member]] = []
        """Heap of the instants at which clients leave."""
        self._on_end: OnEnd | None = None
        self._timer: At | None = None
        super().__init__(index, settings, make_policy(), cost, sums, recorder, decisions)
        self.num_gpu_blocks = self.kv.num_usable_blocks

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
    def num_requests(self) -> int:
        """Requests that run or wait."""
        if self.env._now >= self._next_ns:
            self.advance(self.env._now)
        return len(self.running) + len(self.waiting.entries)

    @property
    def next_ns(self) -> int:
        """The next instant at which its load may change by itself."""
        return self._next_ns

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
        need = self.blocks_to_reserve(request.num_prompt_tokens + request._stop_at_output_tokens - 1)
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
        request.unit = self._units[request.class_index]
        if self._next_ns <= now_ns:
            if self._due:
                self.advance(now_ns)
            else:
                self._run(now_ns, is_cut=True)
        if self._plan is not None:
            self._cut(self._plan, now_ns)
        self.outstanding += request.num_prompt_tokens + request.max_tokens
        self.tell_policy()
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
        now_ns, due = self.env._now, self._due
        self.advance(now_ns, is_fault=True)
        while due and due[0][:2] < (now_ns, request.row):  # clients that leave at this instant do so by row
            self._leave_first()
        self._cancel(request, now_ns, status)
        if self._on_end is not None:
            self._set_timer()

    def _leave_first(self) -> None:
        """The client that leaves next does so."""
        at_ns, _, request = heappop(self._due)
        if request.state is not State.FINISHED:
            self._run(at_ns)
            self._cancel(request, at_ns, Status.CANCELLED)

    def _cancel(self, request: Member, now_ns: int, status: Status) -> None:
        if request.state is State.FINISHED:
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
            self.cost, self._sums = cost, DecodeSums(cost, self.recorder)
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
        times = (request.arrival_ns, request.scheduled_ns, request.first_token_ns, finish_ns, now_ns)
        recomputed = (request.num_preemptions, request.num_cached_tokens, request.num_recomputed_tokens)
        self.recorder.attempts.append(
            (request.row, 1, status, self.index, *times, request.num_output_tokens, *recomputed)
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

    # --- time ---------------------------------------------------------------------------------

    def advance(self, until_ns: int, *, is_fault: bool = False) -> None:
        """Everything that happens here before ``Turn.ARRIVAL`` of ``until_ns``, or before ``Turn.FAULT`` of it."""
        due = self._due
        while due and due[0][0] <= until_ns - is_fault:
            self._leave_first()
        self._run(until_ns)
        self._note_next(self._next_ns)

    def _note_next(self, next_ns: int) -> None:
        """``next_ns`` is the next instant at which something happens here, unless a client leaves before."""
        due = self._due
        self._next_ns = due[0][0] if due and due[0][0] < next_ns else next_ns

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
            self._run(self.env._now)
            self._leave_first()
            self._note_next(self._now_ns if self._plan is None else self._plan_end_ns)
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
