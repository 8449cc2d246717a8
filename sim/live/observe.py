"""Replaying a workload against a running server.

Open loop: every request goes at its instant, whatever became of those before it. Requests that the workload
releases by the end of another one (conversations, closed loops) follow the real end.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim.errors import InputError
from sim.live.client import Clock, Target, clock, request_body, send
from sim.live.observation_file import Observation, RecordFile
from sim.live.prompts import shared_segments
from sim.workload.senders import Senders
from sim.workload.table import NO_DEADLINE, NO_HINT, NO_LORA, NO_PARENT, RequestTable

if TYPE_CHECKING:
    import aiohttp
    import numpy.typing as npt

HEAD_START_NS = 50_000_000
"""Between the start of the clock and the first request."""
PREPARED = 256
"""Bodies made before the first request is sent, and kept ready after that."""
BEAT_S = 0.02
"""How often the client looks at how late it is itself."""

Progress = Callable[[int, int, int], None]
"""Called with (ended, all, now in ns)."""


@dataclass(slots=True)
class Outcome:
    """What became of a run."""

    observations: list[Observation] = field(default_factory=list)
    """In the order in which they ended."""
    late_ns: list[int] = field(default_factory=list)
    """How long after its instant each request was sent."""
    lag_ns: list[int] = field(default_factory=list)
    """How late the client's event loop was at its beats: so late it may have noticed tokens."""
    interrupted: signal.Signals | None = None

    @property
    def reasons(self) -> Counter[str]:
        """How many requests did not complete, by reason."""
        return Counter(each.reason or "no reason" for each in self.observations if each.status != "completed")


def plan(table: RequestTable) -> list[Observation]:
    """Every row as a request to be sent. ``due_ns`` counts from the first arrival; of rows that another's end releases
    it is the think time until then.

    ``max_tokens`` is the row's true output length: nothing else makes a server stop there.
    """
    if table.images is not None:
        raise InputError(
            "workload.images: requests with images are not sent: the client makes prompts of text alone; remove "
            "`images`, or measure with `vllm bench serve --dataset-name random-mm`"
        )
    segments = shared_segments(table)
    own = table.parent == NO_PARENT
    first_ns = int(table.arrival_ns[own].min(initial=2**62))
    columns: tuple[npt.NDArray[Any], ...] = (
        *(table.arrival_ns, own, table.input_tokens, table.output_tokens, table.priority, table.class_index),
        *(table.deadline_ns, table.expected_output_tokens),
        table.session * 0 if table.lora is None else table.lora,
    )
    found = []
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for row, (arrival, is_root, inputs, outputs, priority, class_index, deadline, hint, lora) in enumerate(rows):
        info = table.classes[class_index]
        found.append(
            Observation(
                row=row,
                request_id=table.request_id(row),
                due_ns=arrival - first_ns if is_root else arrival,
                input_tokens=inputs,
                max_tokens=outputs,
                priority=priority,
                class_name=info.name,
                tenant=info.tenant,
                tier=info.tier,
                lora=None if lora == NO_LORA else table.loras[lora - 1],
                deadline_ns=None if deadline == NO_DEADLINE else deadline,
                expected_output_tokens=None if hint == NO_HINT else hint,
                segments=segments[row],
            )
        )
    return found


def fail_all(table: RequestTable, record: RecordFile, reason: str) -> Outcome:
    """The record of a run in which nothing could be sent: every request failed, for one reason."""
    outcome = Outcome()
    for seen in plan(table):
        seen.reason = reason
        record.add(seen)
        outcome.observations.append(seen)
    return outcome


async def replay(
    session: aiohttp.ClientSession,
    table: RequestTable,
    target: Target,
    record: RecordFile,
    progress: Progress | None = None,
) -> Outcome:
    """Send all requests and return when the last has ended, or when SIGINT or SIGTERM breaks the run off.

    Each goes into ``record`` when it ends; those in flight at an interruption as cancelled.

    Raises OutputError where the record takes no more.
    """
    run = _Run(session, table, target, record, progress)
    loop = asyncio.get_running_loop()
    main = asyncio.ensure_future(run.to_the_end())

    def stop(received: signal.Signals) -> None:
        run.outcome.interrupted = received
        main.cancel()

    handled = (signal.SIGINT, signal.SIGTERM)
    for each in handled:
        with contextlib.suppress(NotImplementedError, ValueError):  # not in this system, not outside the main thread
            loop.add_signal_handler(each, stop, each)
    try:
        await main
    except asyncio.CancelledError:
        if run.outcome.interrupted is None:
            raise
    finally:
        for each in handled:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(each)
    return run.outcome


class _Run:
    """One replay: which requests are to be sent when, are under way, have ended."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        table: RequestTable,
        target: Target,
        record: RecordFile,
        progress: Progress | None,
    ) -> None:
        self.outcome = Outcome()
        self._session, self._target, self._record, self._progress = session, target, record, progress
        self._rows = plan(table)
        self._children = table.children()
        concurrency = table.closed_loop_concurrency
        self._next_released = len(table) if concurrency is None else min(concurrency, len(table))
        self._until_ns = table.release_until_ns
        self._senders = None if table.sender is None else Senders(table.sender, table.sender_caps)
        roots = [row for row in self._rows[: self._next_released] if table.parent[row.row] == NO_PARENT]
        self._queue = sorted(roots, key=lambda seen: (seen.due_ns, seen.row))
        self._bodies: dict[int, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._now: Clock = clock()

    async def to_the_end(self) -> None:
        upcoming = iter(self._queue)
        self._prepare(upcoming, PREPARED)
        started = clock()
        self._now = lambda: started() - HEAD_START_NS
        beat = asyncio.ensure_future(self._beat())
        try:
            for seen in self._queue:
                await self._until(seen.due_ns, upcoming)
                self._start(seen, seen.due_ns)
            while self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                self._check()
        finally:
            beat.cancel()
            await self._end_all()

    async def _end_all(self) -> None:
        """Cancel what is under way; each task then writes its own end."""
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _prepare(self, upcoming: Iterator[Observation], count: int) -> None:
        for _ in range(count):
            seen = next(upcoming, None)
            if seen is None:
                return
            self._bodies[seen.row] = request_body(self._target, seen)

    async def _until(self, due_ns: int, upcoming: Iterator[Observation]) -> None:
        """Sleep until an instant, and use the time to make bodies for later ones."""
        while (left_ns := due_ns - self._now()) > 0:
            if left_ns > 5_000_000 and len(self._bodies) < PREPARED:
                before = len(self._bodies)
                self._prepare(upcoming, 1)
                if len(self._bodies) > before:
                    await asyncio.sleep(0)
                    continue
            await asyncio.sleep(left_ns / 1e9)

    def _start(self, seen: Observation, due_ns: int) -> None:
        """Send a request, now or when its sender has a seat for it, which is when it is due then."""
        self._check()
        seen.due_ns = due_ns
        if self._senders is None or self._senders.take_seat(seen.row, due_ns):
            self._spawn(self._one(seen))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    def _check(self) -> None:
        """Stop where a record could not be written: nothing that is sent now would be kept."""
        if self._failure is not None:
            raise self._failure

    async def _one(self, seen: Observation) -> None:
        body = self._bodies.pop(seen.row, None) or request_body(self._target, seen)
        try:
            await send(self._session, self._target, body, seen, self._now)
        finally:
            if seen.sent_ns is not None:
                self.outcome.late_ns.append(seen.sent_ns - seen.due_ns)
            self.outcome.observations.append(seen)
            self._record.add(seen)
            if self._progress is not None:
                self._progress(len(self.outcome.observations), len(self._rows), self._now())
        self._release(seen)

    def _release(self, ended: Observation) -> None:
        """Start those that waited for the end of this one, or for its seat."""
        rows = [*self._children.get(ended.row, ())]
        if self._next_released < len(self._rows):
            rows.append(self._next_released)
            self._next_released += 1
        for row in rows:
            seen = self._rows[row]
            due_ns = self._now() + seen.due_ns
            if self._until_ns is None or due_ns < self._until_ns:
                self._spawn(self._later(seen, due_ns))
        if self._senders is not None and self._senders.has_cap(ended.row):
            now_ns = self._now()
            following = self._senders.give_seat_back(ended.row, now_ns)
            if following is not None:
                self._rows[following].due_ns = now_ns
                self._spawn(self._one(self._rows[following]))

    async def _later(self, seen: Observation, due_ns: int) -> None:
        while (left_ns := due_ns - self._now()) > 0:
            await asyncio.sleep(left_ns / 1e9)
        self._start(seen, due_ns)

    async def _beat(self) -> None:
        while True:
            before_ns = self._now()
            await asyncio.sleep(BEAT_S)
            self.outcome.lag_ns.append(max(0, self._now() - before_ns - round(BEAT_S * 1e9)))


def num_unsent(table: RequestTable, outcome: Outcome) -> int:
    """Requests that were part of the run and were not sent. What a closed loop had no time left for never was."""
    if table.release_until_ns is not None and outcome.interrupted is None:
        return 0
    return len(table) - len(outcome.observations)


def lateness(outcome: Outcome) -> dict[str, Any]:
    """How late the client was, in ms: in sending, and in looking at what came."""
    from sim.results.metrics import Samples

    found: dict[str, Any] = {}
    for name, values in (("sending", outcome.late_ns), ("event_loop", outcome.lag_ns)):
        samples = Samples(values)
        found[name] = {
            f"{key}_ms": None if value is None else value / 1e6
            for key, value in (
                ("p50", samples.percentile(50)),
                ("p99", samples.percentile(99)),
                ("max", samples.percentile(100)),
            )
        }
    return found
