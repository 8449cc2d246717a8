"""Drives a scheduler by steps, without SimPy: one step is one second."""

from __future__ import annotations

from collections import deque
from typing import Any

from policies.base import Policy
from policies.fcfs import Fcfs
from sim.engine.reference.batch import Batch, SchedulerSettings
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import Content, Request

STEP_NS = 1_000_000_000


def make_request(row: int, prompt: int, output: int, **more: Any) -> Request:
    """A request with content of its own."""
    more.setdefault("max_model_len", 1 << 20)
    more.setdefault("max_tokens", output)
    more.setdefault("content", Content(row))
    more.setdefault("arrival_ns", 0)
    return Request(row=row, request_id=f"r{row}", num_prompt_tokens=prompt, output_tokens=output, order=row, **more)


class Driver:
    """One scheduler and the batches in flight."""

    def __init__(self, policy: Policy | None = None, **settings: Any) -> None:
        settings.setdefault("num_gpu_blocks", 100_000)
        settings.setdefault("max_model_len", 1 << 20)
        self.scheduler = Scheduler(SchedulerSettings(**settings), policy or Fcfs())
        self.depth = 2 if self.scheduler.settings.async_scheduling else 1
        self.step = 0
        self.batches: list[Batch] = []
        self.finished: list[Request] = []
        self._in_flight: deque[Batch] = deque()

    @property
    def now_ns(self) -> int:
        """The instant of the current step."""
        return self.step * STEP_NS

    def add(self, *requests: Request) -> None:
        """Requests arrive now."""
        for request in requests:
            self.scheduler.add_request(request, self.now_ns)

    def one_step(self) -> dict[str, int]:
        """Schedule once, complete what is due; returns the scheduled tokens by request id."""
        batch = self.scheduler.schedule(self.now_ns)
        self.batches.append(batch)
        self.step += 1
        self._in_flight.append(batch)
        while self._in_flight and (not batch.scheduled or len(self._in_flight) >= self.depth):
            self.finished += self.scheduler.update(self._in_flight.popleft(), self.now_ns)
        return {request.request_id: tokens for request, tokens in batch.scheduled.items()}

    def run(self, max_steps: int = 100_000) -> list[dict[str, int]]:
        """Step until nothing is left."""
        steps = []
        while self.scheduler.has_requests() or self._in_flight:
            steps.append(self.one_step())
            if len(steps) > max_steps:
                raise RuntimeError(f"not finished after {max_steps} steps")
        return steps
