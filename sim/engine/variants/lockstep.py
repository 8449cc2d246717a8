"""Engine cores of one MoE model that step together, as vLLM's data-parallel ranks do.

``DPEngineCoreProc.run_busy_loop`` (``vllm/v1/engine/core.py``, 0.32.0): while any rank has work, every rank computes a
batch in every step of the group, and one without work a dummy batch, because all of them take part in each MoE layer.
Only now and then do ranks ask each other whether any of them still has work; until then they go on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from simpy import Event, Interrupt

from sim.engine.clock import At, Bell, Clock, Turn
from sim.engine.decisions import DecisionLog
from sim.engine.reference.batch import Batch
from sim.engine.reference.replica import Replica
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import Request
from sim.latency.base import StepCost
from sim.latency.lockstep_cost import GroupCost, GroupStep
from sim.results.record import Recorder, Status

DP_SYNC_INTERVAL = 16
"""Steps between two times that ranks ask each other for work, the first step aside (``ParallelConfig``)."""


@dataclass(frozen=True, slots=True)
class Formed:
    """What one rank brings to a step of the group."""

    batch: Batch
    """Empty where it has no request, or can schedule none."""
    is_dummy: bool
    """It has no request: nothing was scheduled."""
    now_ns: int
    counts: tuple[int, int, int]
    """Requests that ran and waited, and seats held, then."""


class Rank(Replica):
    """One engine core of a group. A router sees it as a replica; its group says when it steps."""

    def __init__(
        self,
        env: Clock,
        index: int,
        model: str,
        new_scheduler: Callable[[], Scheduler],
        cost: GroupCost,
        depth: int,
        recorder: Recorder,
        decisions: DecisionLog | None = None,
    ) -> None:
        super().__init__(env, index, model, new_scheduler, cost, depth, recorder, 0, decisions)
        self._unseen: set[Request] = set()
        """Requests that have arrived since it last formed a batch: until the next it has not looked."""
        self._group: DataParallelGroup | None = None

    def _start(self) -> None:
        """Start nothing: a rank has no process of its own."""

    def join(self, group: DataParallelGroup) -> None:
        """Become one of the ranks of ``group``."""
        self._group = group

    @property
    def has_room(self) -> bool:
        """Whether it can form a batch before one of those in flight has ended."""
        return len(self._in_flight) < self.depth

    @property
    def has_batches(self) -> bool:
        """Whether any batch of its own is in flight."""
        return bool(self._in_flight)

    @property
    def knows_of_work(self) -> bool:
        """Whether it has requests that it has seen."""
        return self.num_running + self.num_waiting > len(self._unseen)

    def submit(self, request: Request) -> None:
        """A request arrives here, now."""
        self._unseen.add(request)
        super().submit(request)

    def cancel(self, request: Request, status: Status) -> None:
        """A request leaves, now."""
        self._unseen.discard(request)
        super().cancel(request, status)

    def crash(self) -> list[Request]:
        """Everything in the group is lost, now: an engine core that dies takes the others with it."""
        if self._group is None:
            return self.lose_all()
        return self._group.crash()

    def lose_all(self) -> list[Request]:
        """Start anew."""
        self._unseen.clear()
        return self._lose_all()

    def set_cost(self, cost: StepCost) -> None:
        """Steps of the whole group cost this from now on: all wait for the slowest."""
        if not isinstance(cost, GroupCost):
            raise TypeError(f"replica {self.index} steps with others, and {type(cost).__name__} is the cost of one")
        super().set_cost(cost)
        if self._group is not None:
            self._group.cost = cost

    def sleep_on(self, bell: Bell | None) -> None:
        """Ring ``bell`` when a request arrives here; None: ring nothing."""
        self._bell = bell

    def form(self, now_ns: int) -> Formed:
        """Form the rank's part of the group's next step."""
        self._unseen.clear()
        batch, is_dummy = Batch(), not self.scheduler.has_requests()
        if is_dummy:
            batch.num_free_blocks = self.free_blocks
        else:
            batch = self.scheduler.schedule(now_ns)
            self._check_progress(batch, now_ns)
            self._log(batch, now_ns)
        return Formed(batch, is_dummy, now_ns, self._counts())

    def launch(self, formed: Formed, start_ns: int, step: GroupStep, place: int) -> None:
        """Hand the batch to the accelerators, as number ``place`` of the group, and keep its row until it ends."""
        batch, end_ns = formed.batch, start_ns + step.gpu_ns
        if not batch.is_empty:
            self._in_flight.append((batch, end_ns))
        host_ns = self.cost.host_ns(batch.shape)
        further = (step.padded_tokens[place], step.group_tokens, step.own_ns[place])
        self._keep(self._step_row(batch, formed.now_ns, start_ns, end_ns, step.gpu_ns, host_ns, formed.counts, further))

    def settle(self, now_ns: int) -> None:
        """Take in the batches that have ended."""
        self._write_ended(now_ns)
        while self._in_flight and self._in_flight[0][1] <= now_ns:
            self._complete_oldest(now_ns)


class DataParallelGroup:
    """The ranks of one deployment as one SimPy process.

    A step of the group is formed rank by rank: one with room forms its batch as soon as the step before was launched,
    the others when their oldest batch has ended. So what a rank without work does in the next step is settled a step
    ahead, and a request that arrives there meanwhile is in the one after. The step is launched when all have formed
    theirs. At most ``depth`` steps are in flight, dummies included.
    """

    def __init__(self, env: Clock, ranks: Sequence[Rank], cost: GroupCost, depth: int) -> None:
        self.env = env
        self.ranks = ranks
        self.cost = cost
        self.depth = depth
        self._ends_ns: list[int] = [0] * depth
        """Ends of the last ``depth`` steps, the newest last."""
        self._num_steps = 0
        """Since the group last slept."""
        self._formed: dict[int, Formed] = {}
        """By position, what a rank brings to the coming step."""
        for rank in ranks:
            rank.join(self)
        self._process = env.process(self._run())

    def crash(self) -> list[Request]:
        """Everything in the group is lost, now; what ran or waited there, by row."""
        lost = [request for rank in self.ranks for request in rank.lose_all()]
        self._ends_ns = [self.env.now] * self.depth
        self._num_steps = 0
        self._formed = {}
        self._process.interrupt()
        return sorted(lost, key=lambda request: request.row)

    def _run(self) -> Generator[Event, Any, None]:
        while True:
            try:
                yield from self._serve()
            except Interrupt:
                continue  # a crash

    def _serve(self) -> Generator[Event, Any, None]:
        while True:
            yield from self._sleep()
            self._num_steps = 0
            while (yield from self._has_work()):
                yield from self._turn()
                self._form([rank.has_room for rank in self.ranks])
                yield from self._until(self._ends_ns[0])
                yield from self._turn()
                self._form([True] * len(self.ranks))
                if any(self._is_draining(place) for place in range(len(self.ranks))):
                    # vLLM takes in what is in flight before the dummy batch, so that nothing overlaps this once.
                    yield from self._until(self._ends_ns[-1])
                host_ns = self._launch()
                if host_ns:
                    yield At(self.env, host_ns, self.ranks[0].index)

    def _sleep(self) -> Generator[Event, Any, None]:
        """While no rank has work: wait for a request, and take in what is still in flight."""
        while not any(rank.scheduler.has_requests() for rank in self.ranks):
            bell = Bell(self.env, Turn.STEP_START + self.ranks[0].index)
            for rank in self.ranks:
                rank.sleep_on(bell)
            if any(rank.has_batches for rank in self.ranks):
                yield bell | At(self.env, self._ends_ns[-1] - self.env.now, self.ranks[0].index)
            else:
                yield bell
            for rank in self.ranks:
                rank.sleep_on(None)
                rank.settle(self.env.now)

    def _has_work(self) -> Generator[Event, Any, bool]:
        """Whether the group goes on: until ranks ask each other, and then if any of them knows of work. One with room
        is asked as soon as the last step is launched, the others when their oldest batch has ended."""
        if self._num_steps != 1 and (not self._num_steps or self._num_steps % DP_SYNC_INTERVAL):
            return True
        others = [rank for rank in self.ranks if not rank.has_room]
        any_work = any(rank.knows_of_work for rank in self.ranks if rank.has_room)
        if others:
            yield from self._until(self._ends_ns[0])
        return any_work or any(rank.knows_of_work for rank in others)

    def _turn(self) -> Generator[Event, Any, None]:
        """Let everything else of this instant happen before a batch is formed."""
        if self.env.peek() == self.env.now:
            yield At(self.env, 0, Turn.STEP_START + self.ranks[0].index)

    def _until(self, end_ns: int) -> Generator[Event, Any, None]:
        """Wait for the end of a step; all ranks take in what has ended by then."""
        if end_ns > self.env.now:
            yield At(self.env, end_ns - self.env.now, self.ranks[0].index)
        for rank in self.ranks:
            rank.settle(self.env.now)

    def _form(self, may: Sequence[bool]) -> None:
        for place, rank in enumerate(self.ranks):
            if may[place] and place not in self._formed:
                self._formed[place] = rank.form(self.env.now)

    def _is_draining(self, place: int) -> bool:
        """Whether a rank has batches in flight and nothing to add to them."""
        return self.ranks[place].has_batches and self._formed[place].batch.is_empty

    def _launch(self) -> int:
        """Hand the step to the accelerators, once the slowest host is done: in the nanoseconds returned."""
        formed = [self._formed[place] for place in range(len(self.ranks))]
        shapes = [each.batch.shape for each in formed]
        host_ns = max(self.cost.host_ns(shape) for shape in shapes)
        step = self.cost.group_step(shapes)
        start_ns = max(self.env.now + host_ns, self._ends_ns[-1])
        if not all(each.is_dummy for each in formed):  # steps of dummies alone take time, but are not written down
            for place, rank in enumerate(self.ranks):
                rank.launch(formed[place], start_ns, step, place)
        self._ends_ns = [*self._ends_ns[1:], start_ns + step.gpu_ns]
        self._num_steps += 1
        self._formed = {}
        return host_ns
