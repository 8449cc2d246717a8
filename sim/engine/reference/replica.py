"""One engine as a SimPy process: schedule, run, update, as vLLM's engine core does.

``vllm/v1/engine/core.py`` (0.32.0): ``step`` keeps one batch in flight, ``step_with_batch_queue``
up to ``depth``: 2 where scheduling is asynchronous, the number of stages under pipeline parallelism.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from simpy import Event, Interrupt

from sim.engine.clock import At, Bell, Clock, Turn
from sim.engine.decisions import DecisionLog
from sim.engine.door import OnEnd
from sim.engine.reference.batch import Batch
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import NEVER, Request, State
from sim.errors import SimulationError
from sim.latency.base import StepCost
from sim.results.record import AttemptRow, Recorder, Status, StepRow

MAX_FRUITLESS_STEPS = 50_000
"""Steps in a row in which no request gets a token before the engine counts as stuck. vLLM itself can get
there: with ``scheduler_reserve_full_isl`` off, requests of equal priority can preempt each other for ever."""


class Replica:
    """One model copy. Satisfies ``sim.engine.door.Door``, where its operations are described."""

    def __init__(
        self,
        env: Clock,
        index: int,
        model: str,
        new_scheduler: Callable[[], Scheduler],
        cost: StepCost,
        depth: int,
        recorder: Recorder,
        static_batch_wait_ns: int = 0,
        decisions: DecisionLog | None = None,
    ) -> None:
        """``new_scheduler`` makes the scheduler, with a cache and a policy of its own: now and after each crash."""
        self.env = env
        self.index = index
        self.model = model
        self.scheduler = new_scheduler()
        self.cost = cost
        self.depth = depth
        self.recorder = recorder
        self.static_batch_wait_ns = static_batch_wait_ns
        self.decisions = decisions
        self.num_gpu_blocks = self.scheduler.kv.num_usable_blocks
        self.num_steps = 0
        self._new_scheduler = new_scheduler
        self._on_end: OnEnd | None = None
        self._is_draining = False
        self._in_flight: deque[tuple[Batch, int]] = deque()
        self._unended: deque[StepRow] = deque()
        """Steps that have been formed and have not ended, in order."""
        self._stage_free_ns = [0] * cost.pipeline_stages
        self._host_free_ns = 0
        self._num_fruitless_steps = 0
        self._bell: Bell | None = None
        self._start()

    # --- what a router sees ------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        """Requests that run."""
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self.scheduler.waiting)

    @property
    def num_requests(self) -> int:
        """Requests that run or wait."""
        return len(self.scheduler.running) + len(self.scheduler.waiting)

    @property
    def free_blocks(self) -> int:
        """KV blocks that can be allocated now."""
        return self.scheduler.kv.num_free_blocks

    @property
    def outstanding_tokens(self) -> int:
        """Tokens still to compute, over all its requests."""
        return self.scheduler.outstanding_tokens

    @property
    def is_draining(self) -> bool:
        """Whether it takes no new requests."""
        return self._is_draining

    def why_never(self, request: Request) -> str | None:
        """Why ``request`` can never run to its end here, or None."""
        return self.scheduler.why_never(request)

    # --- what the outside does ---------------------------------------------------------------

    def watch(self, on_end: OnEnd | None) -> None:
        """Call ``on_end`` for every attempt that ends from now on."""
        self._on_end = on_end

    def submit(self, request: Request) -> None:
        """A request arrives here, now."""
        self._take_in(request)
        self.scheduler.add_request(request, self.env.now)
        if request.cancel_ns != NEVER:
            leaves = At(self.env, request.cancel_ns - self.env.now, Turn.TIMEOUT + request.row)
            leaves.callbacks.append(lambda _: self.cancel(request, Status.CANCELLED))
        self._ring()

    def _take_in(self, request: Request) -> None:
        if self._is_draining:
            raise SimulationError(f"replica {self.index} drains, and request {request.request_id} was sent to it")
        request.replica = self.index

    def cancel(self, request: Request, status: Status) -> None:
        """A request leaves, now."""
        if request.state is State.FINISHED:
            return
        self.scheduler.abort(request, self.env.now)
        self._end(request, status)
        self._ring()

    def crash(self) -> list[Request]:
        """Everything here is lost, now."""
        lost = self._lose_all()
        self._process.interrupt()
        return lost

    def _lose_all(self) -> list[Request]:
        """Start anew, but for the process."""
        now_ns, scheduler = self.env.now, self.scheduler
        lost = sorted(scheduler.lose_all(), key=lambda request: request.row)
        self._write_ended(now_ns)
        self._unended.clear()
        self._in_flight.clear()
        self._stage_free_ns = [now_ns] * len(self._stage_free_ns)
        self._host_free_ns = now_ns
        self._num_fruitless_steps = 0
        self._bell = None
        self.scheduler = self._new_scheduler()
        return lost

    def drain(self) -> None:
        """No new requests from now on."""
        self._is_draining = True

    def undrain(self) -> None:
        """New requests again."""
        self._is_draining = False

    def set_cost(self, cost: StepCost) -> None:
        """Steps formed from now on cost this."""
        if cost.pipeline_stages != self.cost.pipeline_stages:
            raise ValueError(f"{cost.pipeline_stages} stages in place of {self.cost.pipeline_stages}")
        self.cost = cost

    def finish(self) -> None:
        """Nothing comes any more: all that is here has happened by SimPy's events."""

    def check_empty(self) -> None:
        """Raise SimulationError where a request or a KV block is left."""
        scheduler = self.scheduler
        if scheduler.has_requests():
            left = [request.request_id for request in (*scheduler.running, *scheduler.waiting)]
            raise SimulationError(f"replica {self.index} stopped with {len(left)} requests unfinished: {left[:5]}")
        scheduler.kv.check_empty()

    # --- the process -------------------------------------------------------------------------

    def _start(self) -> None:
        self._process = self.env.process(self._run())

    def _ring(self) -> None:
        """Wake the process: what it waits for may be different now."""
        if self._bell is not None:
            self._bell.ring()

    def _run(self) -> Generator[Event, Any, None]:
        while True:
            try:
                yield from self._serve()
            except Interrupt:
                continue  # a crash

    def _serve(self) -> Generator[Event, Any, None]:
        env = self.env
        is_last_at_instant = False
        while True:
            scheduler = self.scheduler
            has_requests = scheduler.has_requests()
            if self._in_flight and (len(self._in_flight) == self.depth or not has_requests):
                yield self._wait_for_oldest()
                self._complete_oldest(env.now)
            elif not has_requests:
                yield from self._sleep(None)
            elif self.static_batch_wait_ns and (gathering_ns := self._gathering_ns(env.now)) > 0:
                yield from self._sleep(gathering_ns)
            elif env.peek() == env.now and not is_last_at_instant:
                # Whatever else happens at this instant happens before the step is formed.
                yield At(env, 0, Turn.STEP_START + self.index)
                is_last_at_instant = True
                continue
            else:
                yield from self._step(scheduler.schedule(env.now))
            is_last_at_instant = False

    def _sleep(self, longest_ns: int | None) -> Generator[Event, Any, None]:
        """Sleep until something comes from outside, ``longest_ns`` at most."""
        bell = self._bell = Bell(self.env, Turn.STEP_START + self.index)
        if longest_ns is None:
            yield bell
        else:
            yield bell | At(self.env, longest_ns, Turn.STEP_START + self.index)
        self._bell = None

    def _step(self, batch: Batch) -> Generator[Event, Any, None]:
        """Carry out a batch that has been formed, up to the instant at which the next can be."""
        env = self.env
        self._check_progress(batch, env.now)
        if not batch.is_empty:
            host_ns = self._dispatch(batch, env.now)
            if host_ns and len(self._in_flight) < self.depth:
                yield At(env, host_ns, self.index)
            return
        empty_ns = self._pass(batch, env.now)
        if self._in_flight:
            yield self._wait_for_oldest()
            self._complete_oldest(env.now)
        else:
            yield At(env, empty_ns, self.index)
            self._write_ended(env.now)

    def _dispatch(self, batch: Batch, now_ns: int, blocked_ns: int = 0) -> int:
        """Hand a batch to the accelerator; returns for how many nanoseconds the host is busy with it, ``blocked_ns`` of
        waiting included."""
        host_ns = blocked_ns + self.cost.host_ns(batch.shape)
        gpu_ns = self.cost.gpu_ns(batch.shape)
        self._host_free_ns = now_ns + host_ns
        start_ns = max(self._host_free_ns, self._stage_free_ns[0])
        end_ns = start_ns + gpu_ns
        self._stage_free_ns[0] = end_ns
        for stage in range(1, len(self._stage_free_ns)):
            end_ns = max(end_ns, self._stage_free_ns[stage]) + gpu_ns
            self._stage_free_ns[stage] = end_ns
        self._in_flight.append((batch, end_ns))
        self._log(batch, now_ns)
        self._keep(self._step_row(batch, now_ns, start_ns, end_ns, gpu_ns, host_ns))
        return host_ns

    def _pass(self, batch: Batch, now_ns: int) -> int:
        """Note a step that schedules nothing; returns its nanoseconds, 0 where it waits for the batch in flight."""
        empty_ns = 0 if self._in_flight else self.cost.empty_step_ns()
        self._log(batch, now_ns)
        self._keep(self._step_row(batch, now_ns, now_ns, now_ns + empty_ns, 0, 0))
        return empty_ns

    def _wait_for_oldest(self) -> At:
        ready_ns = max(self._in_flight[0][1], self._host_free_ns)
        return At(self.env, ready_ns - self.env.now, self.index)

    def _complete_oldest(self, now_ns: int) -> None:
        batch, _ = self._in_flight.popleft()
        self._write_ended(now_ns)
        for request in self.scheduler.update(batch, now_ns):
            self._end(request, Status.COMPLETED)

    def _end(self, request: Request, status: Status) -> None:
        """Write the row of an attempt that ends now, and tell the watcher."""
        self._record_end(request, status)
        if self._on_end is not None:
            self._on_end(request, status)

    def _gathering_ns(self, now_ns: int) -> int:
        """How long a static batch that is not full still waits for more requests."""
        scheduler = self.scheduler
        if scheduler.num_seats:
            return 0
        if len(scheduler.waiting) >= scheduler.settings.max_num_seqs:
            return 0
        oldest_ns = min(request.arrival_ns for request in scheduler.waiting)
        return oldest_ns + self.static_batch_wait_ns - now_ns

    def _check_progress(self, batch: Batch, now_ns: int) -> None:
        if batch.shape.num_sampled:
            self._num_fruitless_steps = 0
            return
        self._num_fruitless_steps += 1
        if self._num_fruitless_steps > MAX_FRUITLESS_STEPS:
            head = self.scheduler.waiting.peek() if len(self.scheduler.waiting) else self.scheduler.running[0]
            raise stuck(self.index, now_ns, head, self.free_blocks, self.num_gpu_blocks)

    # --- what is written down ----------------------------------------------------------------

    def _counts(self) -> tuple[int, int, int]:
        """Requests that run, requests that wait, seats held."""
        scheduler = self.scheduler
        return len(scheduler.running), len(scheduler.waiting), scheduler.num_seats

    def _step_row(
        self,
        batch: Batch,
        now_ns: int,
        start_ns: int,
        end_ns: int,
        gpu_ns: int,
        host_ns: int,
        counts: tuple[int, int, int] | None = None,
        further: tuple[int, ...] = (),
    ) -> StepRow:
        shape = batch.shape
        num_running, num_waiting, num_seats = counts or self._counts()
        if names := self.recorder.shape_columns:
            further = (*(getattr(shape, name) for name in names), *further)
        return StepRow(
            replica=self.index,
            scheduled_ns=now_ns,
            start_ns=start_ns,
            end_ns=end_ns,
            num_steps=1,
            num_running=num_running,
            num_waiting=num_waiting,
            num_prefills=shape.num_prefills,
            num_prefill_tokens=shape.num_prefill_tokens,
            num_decodes=shape.num_decodes,
            decode_context_tokens=shape.decode_context_tokens,
            prefill_context_tokens=shape.prefill_context_tokens,
            prefill_attention_pairs=shape.prefill_attention_pairs,
            num_sampled=shape.num_sampled,
            gpu_ns=gpu_ns,
            host_ns=host_ns,
            free_blocks=batch.num_free_blocks,
            num_preempted=len(batch.preempted),
            num_seats=num_seats,
            last_scheduled_ns=now_ns,
            free_block_ns=0,
            further=further,
        )

    def _keep(self, row: StepRow) -> None:
        """Keep the row of a step that has been formed; it is written when the step has ended."""
        self._unended.append(row)

    def _write_ended(self, now_ns: int) -> None:
        unended = self._unended
        while unended and unended[0].end_ns <= now_ns:
            self.recorder.step(unended.popleft())

    def _record_end(self, request: Request, status: Status = Status.COMPLETED) -> None:
        self.recorder.end(attempt_row(request, status, self.env.now))

    def _log(self, batch: Batch, now_ns: int) -> None:
        if self.decisions is not None:
            kinds = (batch.tokens_by_id, batch.preempted, batch.finished)
            self.decisions.step(now_ns, self.index, self.num_steps, *kinds, batch.num_free_blocks)
        self.num_steps += 1


def stuck(replica: int, now_ns: int, head: Request, free_blocks: int, num_gpu_blocks: int) -> SimulationError:
    """Say that no request gets on; ``head`` is the next in line."""
    return SimulationError(
        f"replica {replica} is stuck at {now_ns / 1e9:.6f} s: no request got a token in {MAX_FRUITLESS_STEPS} steps; "
        f"next in line is request {head.request_id} ({head.num_tokens} tokens), {free_blocks} of {num_gpu_blocks} KV "
        "blocks are free"
    )


def attempt_row(request: Request, status: Status, end_ns: int) -> AttemptRow:
    """Return the row of a request's attempt that ended at ``end_ns``."""
    finish_ns = request.last_token_ns if status is Status.COMPLETED else NEVER
    return AttemptRow(
        row=request.row,
        attempt=1,
        status=status,
        replica=request.replica,
        arrival_ns=request.arrival_ns,
        scheduled_ns=request.scheduled_ns,
        first_token_ns=request.first_token_ns,
        finish_ns=finish_ns,
        end_ns=end_ns if finish_ns == NEVER else finish_ns,
        output_tokens=request.num_output_tokens,
        num_preemptions=request.num_preemptions,
        num_cached_tokens=request.num_cached_tokens,
        num_recomputed_tokens=request.num_recomputed_tokens,
    )
