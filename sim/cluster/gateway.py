"""The way in: requests arrive, a router chooses a replica, ends release what waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from simpy import Event

from policies.base import Router
from sim.engine.clock import ARRIVAL_TURN, At, Clock
from sim.engine.replica import Replica, request_row
from sim.engine.request import Content, Request
from sim.results.record import Recorder, Status
from sim.workload.table import NO_DEADLINE, NO_GROUP, NO_HINT, NO_PARENT, RequestTable

ROWS_AT_ONCE = 4096
"""Rows turned into Python integers at a time, so that a long workload stays in its columns."""

PROGRESS_EVERY = 64
"""Ended requests between two looks at the wall clock."""

PROGRESS_INTERVAL_S = 0.05

Progress = Callable[[int, int, int], None]
"""Called with (ended, submitted so far or in all, now in ns)."""


class Gateway:
    """Feeds a workload to replicas. ``replicas`` is filled by who builds the cluster, before the run."""

    def __init__(
        self,
        env: Clock,
        workload: RequestTable,
        router: Router,
        max_model_len: int,
        recorder: Recorder,
        progress: Progress | None = None,
    ) -> None:
        self.env = env
        self.workload = workload
        self.router = router
        self.max_model_len = max_model_len
        self.recorder = recorder
        self.replicas: Sequence[Replica] = ()
        self.num_ended = 0
        self._progress = progress
        self._last_progress = time.perf_counter()
        self._first_own_id = 1 + int(workload.segment_content_id.max(initial=-1))
        self._child_of = {
            int(parent): row for row, parent in enumerate(workload.parent.tolist()) if parent != NO_PARENT
        }
        concurrency = workload.closed_loop_concurrency
        self._next_released = len(workload) if concurrency is None else min(concurrency, len(workload))
        self.acts_on_ends = concurrency is not None or bool(self._child_of)
        """Whether the end of a request makes another one arrive."""
        env.process(self._arrivals())

    def on_end(self, request: Request) -> None:
        """A request has ended, whatever way: release the one that waits for it."""
        self.num_ended += 1
        child = self._child_of.get(request.row)
        if child is not None:
            self._release(child)
        if self._next_released < len(self.workload):
            row, self._next_released = self._next_released, self._next_released + 1
            self._release(row)
        if self._progress is not None and self.num_ended % PROGRESS_EVERY == 0:
            now = time.perf_counter()
            if now - self._last_progress >= PROGRESS_INTERVAL_S:
                self._last_progress = now
                self._progress(self.num_ended, len(self.workload), self.env.now)

    # --- arrivals ----------------------------------------------------------------------------

    def _arrivals(self) -> Generator[Event, Any, None]:
        """Requests that arrive by themselves, in order of their rows."""
        workload, env = self.workload, self.env
        end = self._next_released if workload.closed_loop_concurrency is not None else len(workload)
        for first in range(0, end, ROWS_AT_ONCE):
            stop = min(first + ROWS_AT_ONCE, end)
            arrivals = workload.arrival_ns[first:stop].tolist()
            parents = workload.parent[first:stop].tolist()
            for row, arrival_ns, parent in zip(range(first, stop), arrivals, parents, strict=True):
                if parent != NO_PARENT:
                    continue
                if arrival_ns > env.now:
                    yield At(env, arrival_ns - env.now, ARRIVAL_TURN)
                self._arrive(row)

    def _release(self, row: int) -> None:
        """A request whose arrival follows another's end, after its think time."""
        think_ns = int(self.workload.arrival_ns[row])
        until_ns = self.workload.release_until_ns
        if until_ns is not None and self.env.now + think_ns >= until_ns:
            return
        arrival = At(self.env, think_ns, ARRIVAL_TURN + 1 + row)
        arrival.callbacks.append(lambda _: self._arrive(row))

    def _arrive(self, row: int) -> None:
        request = self._make_request(row)
        position = self.router.choose(request, self.replicas, request.arrival_ns)
        replica = self.replicas[position]
        objection = replica.scheduler.why_never(request)
        if objection is None:
            replica.submit(request)
            return
        self.recorder.reject(request_row(request, Status.REJECTED, replica.index), objection)
        self.on_end(request)

    def _make_request(self, row: int) -> Request:
        table = self.workload
        info = table.classes[table.class_index[row]]
        arrival_ns = self.env.now
        deadline_ns = int(table.deadline_ns[row])
        hint = int(table.expected_output_tokens[row])
        session = int(table.session[row])
        content = self._content(row, session)
        request_id = table.request_id(row)
        return Request(
            row=row,
            request_id=request_id,
            order=row if table.request_ids is None else request_id,
            arrival_ns=arrival_ns,
            num_prompt_tokens=int(table.input_tokens[row]),
            output_tokens=int(table.output_tokens[row]),
            max_tokens=int(table.max_tokens[row]),
            max_model_len=self.max_model_len,
            priority=int(table.priority[row]),
            content=content,
            tenant=info.tenant,
            tier=info.tier,
            class_name=info.name,
            class_index=int(table.class_index[row]),
            deadline_ns=None if deadline_ns == NO_DEADLINE else arrival_ns + deadline_ns,
            expected_output_tokens=None if hint == NO_HINT else hint,
            session=None if session == NO_GROUP else str(session),
            prefix_key=self._prefix_key(content, session),
        )

    def _content(self, row: int, session: int) -> Content:
        table = self.workload
        first, stop = int(table.segment_offsets[row]), int(table.segment_offsets[row + 1])
        segments = tuple(
            zip(
                table.segment_content_id[first:stop].tolist(),
                table.segment_end_tokens[first:stop].tolist(),
                strict=True,
            )
        )
        # Own content is numbered after all shared content: conversations first, then single requests.
        own_id = self._first_own_id + (session if session != NO_GROUP else len(table) + row)
        return Content(own_id, segments, own_is_shared=session != NO_GROUP)

    @staticmethod
    def _prefix_key(content: Content, session: int) -> str | None:
        if content.segments:
            return f"content-{content.segments[0][0]}"
        return None if session == NO_GROUP else f"session-{session}"
