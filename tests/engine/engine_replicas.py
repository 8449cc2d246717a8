"""A replica by itself, acted on at chosen instants: a step takes one second."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from engine_driver import make_request
from simpy import Event

from policies.base import Policy
from policies.fcfs import Fcfs
from sim.engine.clock import At, Clock, Turn
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.replica import Replica
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import Request
from sim.latency.constant import ConstantCost
from sim.results.record import IntColumn, Recorder, Status

SECOND = 1_000_000_000


class Bench:
    """One replica on a clock."""

    def __init__(self, *, depth: int = 1, policy: type[Policy] = Fcfs, wait_s: float = 0.0, **settings: Any) -> None:
        """``depth`` 2 is asynchronous scheduling."""
        settings.setdefault("num_gpu_blocks", 1001)
        settings.setdefault("max_model_len", 1 << 20)
        settings["async_scheduling"] = depth == 2
        self.env = Clock()
        self.recorder = Recorder()
        self.schedulers: list[Scheduler] = []
        self.ends: list[tuple[float, int, str]] = []
        """(instant in s, row, status) of the ends that a watcher heard of."""
        chosen = SchedulerSettings(**settings)

        def new_scheduler() -> Scheduler:
            self.schedulers.append(Scheduler(chosen, policy(), self.recorder))
            return self.schedulers[-1]

        cost = ConstantCost(SECOND)
        wait_ns = round(wait_s * SECOND)
        self.replica = Replica(self.env, 0, "model", new_scheduler, cost, depth, self.recorder, wait_ns)
        self.replica.watch(self.on_end)
        self.requests: dict[int, Request] = {}

    def on_end(self, request: Request, status: Status) -> None:
        """What the watcher does."""
        self.ends.append((self.env.now / SECOND, request.row, status.name.lower()))

    def at(self, at_s: float, turn: Turn, action: Callable[[], object]) -> None:
        """``action`` happens at an instant, in its turn."""

        def perform(_: Event) -> None:
            action()

        At(self.env, round(at_s * SECOND) - self.env.now, turn).callbacks.append(perform)

    def arrive(self, at_s: float, prompt: int = 16, output: int = 3, **more: Any) -> int:
        """A request arrives; its row is returned."""
        row = len(self.requests)
        request = make_request(row, prompt, output, arrival_ns=round(at_s * SECOND), **more)
        self.requests[row] = request
        self.at(at_s, Turn.ARRIVAL, lambda: self.replica.submit(request))
        return row

    def cancel(self, at_s: float, row: int, status: Status = Status.CANCELLED) -> None:
        """A request's client leaves."""
        self.at(at_s, Turn.TIMEOUT, lambda: self.replica.cancel(self.requests[row], status))

    def crash(self, at_s: float) -> list[Request]:
        """The replica crashes; the list is filled then."""
        lost: list[Request] = []
        self.at(at_s, Turn.FAULT, lambda: lost.extend(self.replica.crash()))
        return lost

    def run(self) -> Bench:
        """To the end of what is planned; nothing may be left."""
        self.env.run()
        self.replica.finish()
        self.replica.check_empty()
        return self

    @cached_property
    def steps(self) -> list[tuple[float, float, int]]:
        """(formed, ended, tokens) of every step that was written, in seconds."""
        columns = self.recorder.step_columns()
        tokens = columns["num_prefill_tokens"] + columns["num_decodes"]
        instants = (columns[name] / SECOND for name in ("scheduled_ns", "end_ns"))
        return list(zip(*(column.tolist() for column in (*instants, tokens)), strict=True))

    @cached_property
    def attempts(self) -> dict[str, IntColumn]:
        """Columns of the attempts, by row."""
        columns = self.recorder.attempts.take_columns()
        order = columns["row"].argsort(kind="stable")
        return {name: column[order] for name, column in columns.items()}
