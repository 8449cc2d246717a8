"""One engine as a SimPy process: schedule, run, update, as vLLM's engine core does.

``vllm/v1/engine/core.py`` (0.32.0): ``step`` keeps one batch in flight, ``step_with_batch_queue``
up to ``depth``: 2 where scheduling is asynchronous, the number of stages under pipeline parallelism.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from simpy import Event

from sim.engine.clock import At, Bell, Clock, Turn
from sim.engine.decisions import DecisionLog
from sim.engine.reference.batch import Batch
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import NEVER, Request
from sim.errors import SimulationError
from sim.latency.base import StepCost
from sim.results.record import Recorder, Status

MAX_FRUITLESS_STEPS = 50_000
"""Steps in a row in which no request gets a token before the engine counts as stuck. vLLM itself can get
there: with ``scheduler_reserve_full_isl`` off, requests of equal priority can preempt each other for ever."""


class Replica:
    """One model copy. Satisfies ``policies.base.ReplicaView``."""

    def __init__(
        self,
        env: Clock,
        index: int,
        model: str,
        scheduler: Scheduler,
        cost: StepCost,
        depth: int,
        recorder: Recorder,
        on_end: Callable[[Request], None],
        static_batch_wait_ns: int = 0,
        decisions: DecisionLog | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.model = model
        self.scheduler = scheduler
        self.cost = cost
        self.depth = depth
        self.recorder = recorder
        self.on_end = on_end
        self.static_batch_wait_ns = static_batch_wait_ns
        self.decisions = decisions
        self.num_gpu_blocks = scheduler.kv.num_usable_blocks
        self.num_steps = 0
        self._in_flight: deque[tuple[Batch, int]] = deque()
        self._stage_free_ns = [0] * cost.pipeline_stages
        self._host_free_ns = 0
        self._num_fruitless_steps = 0
        self._bell: Bell | None = None
        self._further_columns: tuple[int, ...] = ()
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
    def free_blocks(self) -> int:
        """KV blocks that can be allocated now."""
        return self.scheduler.kv.num_free_blocks

    @property
    def outstanding_tokens(self) -> int:
        """Tokens still to compute, over all its requests."""
        return self.scheduler.outstanding_tokens

    # --- the process -------------------------------------------------------------------------

    def _start(self) -> None:
        self.env.process(self._run())

    def submit(self, request: Request) -> None:
        """A request arrives here, now."""
        self.scheduler.add_request(request, self.env.now)
        if self._bell is not None:
            self._bell.ring()

    def finish(self) -> None:
        """No more requests arrive: run to the end of what is here (where no events of SimPy do)."""

    def _run(self) -> Generator[Event, Any, None]:
        env, scheduler = self.env, self.scheduler
        while True:
            has_requests = scheduler.has_requests()
            if self._in_flight and (len(self._in_flight) == self.depth or not has_requests):
                yield self._wait_for_oldest()
                self._complete_oldest(env.now)
                continue
            if not has_requests:
                self._bell = Bell(env, Turn.STEP_START + self.index)
                yield self._bell
                self._bell = None
                continue
            if self.static_batch_wait_ns and (gathering_ns := self._gathering_ns(env.now)) > 0:
                self._bell = Bell(env, Turn.STEP_START + self.index)
                yield self._bell | At(env, gathering_ns, Turn.STEP_START + self.index)
                self._bell = None
                continue
            if env.peek() == env.now:
                # Whatever else happens at this instant happens before the step is formed.
                yield At(env, 0, Turn.STEP_START + self.index)
            batch = scheduler.schedule(env.now)
            self._check_progress(batch, env.now)
            if not batch.is_empty:
                host_ns = self._dispatch(batch, env.now)
                if host_ns and len(self._in_flight) < self.depth:
                    yield At(env, host_ns, self.index)
                continue
            empty_ns = self._pass(batch, env.now)
            if self._in_flight:
                yield self._wait_for_oldest()
                self._complete_oldest(env.now)
            else:
                yield At(env, empty_ns, self.index)

    def _dispatch(self, batch: Batch, now_ns: int) -> int:
        """Hand a batch to the accelerator; the host is busy with it for the nanoseconds that are returned."""
        host_ns = self.cost.host_ns(batch.shape)
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
        self._record(batch, now_ns, start_ns, end_ns, gpu_ns, host_ns)
        return host_ns

    def _pass(self, batch: Batch, now_ns: int) -> int:
        """A step that schedules nothing: it waits for the batch in flight, or takes the nanoseconds returned."""
        empty_ns = 0 if self._in_flight else self.cost.empty_step_ns()
        self._log(batch, now_ns)
        self._record(batch, now_ns, now_ns, now_ns + empty_ns, 0, 0)
        return empty_ns

    def _wait_for_oldest(self) -> At:
        ready_ns = max(self._in_flight[0][1], self._host_free_ns)
        return At(self.env, ready_ns - self.env.now, self.index)

    def _complete_oldest(self, now_ns: int) -> None:
        batch, _ = self._in_flight.popleft()
        for request in self.scheduler.update(batch, now_ns):
            self._record_end(request)
            self.on_end(request)

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
            raise SimulationError(
                f"replica {self.index} is stuck at {now_ns / 1e9:.6f} s: no request got a token in "
                f"{MAX_FRUITLESS_STEPS} steps; next in line is request {head.request_id} ({head.num_tokens} tokens), "
                f"{self.free_blocks} of {self.num_gpu_blocks} KV blocks are free"
            )

    # --- what is written down ----------------------------------------------------------------

    def _counts(self) -> tuple[int, int, int]:
        """Requests that run, requests that wait, seats held."""
        scheduler = self.scheduler
        return len(scheduler.running), len(scheduler.waiting), scheduler.num_seats

    def _record(
        self,
        batch: Batch,
        now_ns: int,
        start_ns: int,
        end_ns: int,
        gpu_ns: int,
        host_ns: int,
        counts: tuple[int, int, int] | None = None,
    ) -> None:
        shape, further = batch.shape, self._further_columns
        num_running, num_waiting, num_seats = counts or self._counts()
        if names := self.recorder.shape_columns:
            further = (*(getattr(shape, name) for name in names), *further)
        self.recorder.steps.append(
            (
                self.index,
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
                host_ns,
                batch.num_free_blocks,
                len(batch.preempted),
                num_seats,
                now_ns,
                0,
                *further,
            )
        )

    def _record_end(self, request: Request) -> None:
        self.recorder.requests.append(request_row(request, Status.COMPLETED, self.index))

    def _log(self, batch: Batch, now_ns: int) -> None:
        if self.decisions is not None:
            scheduled = self.scheduler.scheduled_tokens(batch)
            self._log_step(now_ns, scheduled, batch.preempted, batch.finished, batch.num_free_blocks)
        self.num_steps += 1

    def _log_step(
        self,
        now_ns: int,
        scheduled: dict[str, int],
        preempted: list[Request],
        finished: list[Request],
        num_free_blocks: int,
    ) -> None:
        if self.decisions is None:
            return
        line = {
            "step": self.num_steps,
            "time_s": now_ns / 1e9,
            "replica": self.index,
            "scheduled": scheduled,
            "preempted": [request.request_id for request in preempted],
            "finished": [request.request_id for request in finished],
            "free_blocks": num_free_blocks,
        }
        self.decisions.write(now_ns, self.index, json.dumps(line))


def request_row(request: Request, status: Status, replica: int) -> tuple[int, ...]:
    """A request that ends, as a row of ``REQUEST_COLUMNS``."""
    return (
        request.row,
        status,
        replica,
        request.arrival_ns,
        request.scheduled_ns,
        request.first_token_ns,
        request.last_token_ns if status is Status.COMPLETED else NEVER,
        request.num_output_tokens,
        request.num_preemptions,
        request.num_cached_tokens,
        request.num_recomputed_tokens,
        request.priority,
        request.class_index,
        request.num_prompt_tokens,
    )
