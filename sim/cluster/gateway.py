"""The way in: requests arrive, a router chooses a replica, ends release what waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
from simpy import Event

from policies.base import Router
from sim.engine.clock import At, Clock, Turn
from sim.engine.fast.decode_sums import DecodeSums
from sim.engine.fast.fast_forward import FastReplica
from sim.engine.fast.feed import NO_MORE, Feed, machine_integers
from sim.engine.reference.replica import Replica, request_row
from sim.engine.request import Content, Request
from sim.errors import SimulationError
from sim.results.record import Recorder, Status
from sim.workload.table import NO_DEADLINE, NO_GROUP, NO_HINT, NO_PARENT, IntColumn, RequestTable

ROWS_AT_ONCE = 4096
"""Rows turned into Python integers at a time, so that a long workload stays in its columns."""

REQUESTS_AT_ONCE = 32
"""Requests made together where a replica makes its own."""

ROW_FIELDS = (
    "arrival_ns",
    "parent",
    "input_tokens",
    "output_tokens",
    "max_tokens",
    "priority",
    "class_index",
    "deadline_ns",
    "expected_output_tokens",
    "session",
)
"""Columns that make a request, in the order in which ``Gateway`` unpacks them."""

PROGRESS_EVERY = 64
"""Ended requests between two looks at the wall clock."""

PROGRESS_INTERVAL_S = 0.05

Progress = Callable[[int, int, int], None]
"""Called with (ended, submitted so far or in all, now in ns)."""


class RequestMaker:
    """Requests by position among ``rows``, made a few at a time: mostly they are asked for in order."""

    def __init__(self, make: Callable[[IntColumn], Iterator[Request]], rows: IntColumn) -> None:
        self._make = make
        self._rows = rows
        self._made: dict[int, Request] = {}

    def __call__(self, position: int) -> Request:
        """The request at ``position``, a new one each time."""
        if position not in self._made:
            some = self._make(self._rows[position : position + REQUESTS_AT_ONCE])
            self._made = dict(enumerate(some, position))
        return self._made.pop(position)


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
        client_overhead_ns: int = 0,
    ) -> None:
        """``client_overhead_ns``: how long an end takes to the client and the next request from there to the engine."""
        self.env = env
        self.workload = workload
        self.router = router
        self.max_model_len = max_model_len
        self.recorder = recorder
        self.client_overhead_ns = client_overhead_ns
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
        self._is_dealt_out = False
        self._chosen = (-1, 0)
        """The prompt routed last, and its replica."""
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
        if self.num_ended % PROGRESS_EVERY == 0:
            self._look_up()

    def on_ends(self, count: int) -> None:
        """``count`` requests have ended that nothing waits for."""
        before, self.num_ended = self.num_ended, self.num_ended + count
        if before // PROGRESS_EVERY != self.num_ended // PROGRESS_EVERY:
            self._look_up()

    def _look_up(self) -> None:
        self.recorder.trim()
        if self._progress is not None:
            now = time.perf_counter()
            if now - self._last_progress >= PROGRESS_INTERVAL_S:
                self._last_progress = now
                self._progress(self.num_ended, len(self.workload), self.env.now)

    # --- dealing out -------------------------------------------------------------------------

    def deal_out(self, sums: DecodeSums) -> None:
        """Give each replica all its requests before the run, where nothing that happens can change who gets which."""
        replicas = [replica for replica in self.replicas if isinstance(replica, FastReplica)]
        takes_turns = getattr(self.router, "takes_turns", False) and len(replicas) == len(self.replicas)
        if self.acts_on_ends or not takes_turns:
            return
        self._is_dealt_out = True
        table = self.workload
        arrival_ns = np.maximum.accumulate(table.arrival_ns)
        most = np.minimum(table.max_tokens, self.max_model_len - table.input_tokens)
        output_tokens = np.minimum(table.output_tokens, most)
        is_plain = not len(table.segment_content_id) and bool((output_tokens == most).all())
        at_end = table.input_tokens + output_tokens - 1
        for index, replica in enumerate(replicas):
            rows = np.flatnonzero(table.prompt_numbers() % len(replicas) == index)
            longest = replica.scheduler.kv.longest_request_tokens
            never = (table.input_tokens[rows] >= self.max_model_len) | (at_end[rows] > longest)
            for request in self._requests(rows[never], arrival_ns):
                self._reject(request, replica, replica.scheduler.why_never(request) or "it can never run here")
            rows = rows[~never]
            feed = Feed(
                rows=machine_integers(rows),
                arrival_ns=machine_integers(np.append(arrival_ns[rows], NO_MORE)),
                prompt_tokens=machine_integers(table.input_tokens[rows]),
                output_tokens=machine_integers(output_tokens[rows]),
                make=RequestMaker(lambda rows: self._requests(rows, arrival_ns), rows),
                name=table.request_id,
                on_ends=self.on_ends,
                is_plain=is_plain,
            )
            replica.take_feed(feed, sums)

    def _requests(self, rows: IntColumn, arrival_ns: IntColumn) -> Iterator[Request]:
        for fields, at_ns in zip(self._rows(rows), arrival_ns[rows].tolist(), strict=True):
            yield self._make_request(fields, at_ns)

    # --- arrivals ----------------------------------------------------------------------------

    def _arrivals(self) -> Generator[Event, Any, None]:
        """Requests that arrive by themselves, in order of their rows."""
        if self._is_dealt_out:
            return
        env = self.env
        end = self._next_released if self.workload.closed_loop_concurrency is not None else len(self.workload)
        for first in range(0, end, ROWS_AT_ONCE):
            for fields in self._rows(np.arange(first, min(first + ROWS_AT_ONCE, end))):
                if fields[2] != NO_PARENT:
                    continue
                arrival_ns = fields[1]
                if arrival_ns > env.now:
                    yield At(env, arrival_ns - env.now, Turn.ARRIVAL)
                self._arrive(fields)

    def _rows(self, rows: IntColumn) -> Iterator[tuple[int, ...]]:
        """Rows of the workload as Python integers: the row itself, then ``ROW_FIELDS``, then its segments' range."""
        table = self.workload
        columns = [getattr(table, name)[rows].tolist() for name in ROW_FIELDS]
        offsets = table.segment_offsets
        return zip(rows.tolist(), *columns, offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)

    def _release(self, row: int) -> None:
        """A request whose arrival follows another's end, after its think time."""
        think_ns = self.client_overhead_ns + int(self.workload.arrival_ns[row])
        until_ns = self.workload.release_until_ns
        if until_ns is not None and self.env.now + think_ns >= until_ns:
            return
        if self.env.now + think_ns >= NO_MORE:
            raise SimulationError(
                f"request {row} would arrive after {(self.env.now + think_ns) / 1e9:.2g} s, and the clock ends at "
                f"{NO_MORE / 1e9:.2g} s, 146 years; lower think_time_s, or give a duration_s"
            )
        arrival = At(self.env, think_ns, Turn.ARRIVAL + 1 + row)
        arrival.callbacks.append(lambda _: self._arrive(next(self._rows(np.array([row])))))

    def _arrive(self, fields: tuple[int, ...]) -> None:
        request = self._make_request(fields, self.env.now)
        position = self._choose(request)
        if not 0 <= position < len(self.replicas):
            raise SimulationError(
                f"router {self.router.name} chose replica {position!r} of {len(self.replicas)} for request "
                f"{request.request_id}; it must answer with a position from 0 on"
            )
        replica = self.replicas[position]
        objection = replica.scheduler.why_never(request)
        if objection is None:
            replica.submit(request)
            return
        self._reject(request, replica, objection)

    def _choose(self, request: Request) -> int:
        """The router's choice, made once for all outputs of a prompt."""
        prompts = self.workload.prompt
        if prompts is None:
            return self.router.choose(request, self.replicas, request.arrival_ns)
        prompt = int(prompts[request.row])
        if prompt != self._chosen[0]:
            self._chosen = prompt, self.router.choose(request, self.replicas, request.arrival_ns)
        return self._chosen[1]

    def _reject(self, request: Request, replica: Replica, objection: str) -> None:
        self.recorder.reject(request_row(request, Status.REJECTED, replica.index), objection)
        self.on_end(request)

    def _make_request(self, fields: tuple[int, ...], arrival_ns: int) -> Request:
        (
            row,
            _,
            _,
            input_tokens,
            output_tokens,
            max_tokens,
            priority,
            class_index,
            deadline_ns,
            hint,
            session,
            first_segment,
            stop_segment,
        ) = fields
        table = self.workload
        info = table.classes[class_index]
        request_id = str(row) if table.request_ids is None else table.request_ids[row]
        in_session = session != NO_GROUP
        # Own content is numbered after all shared content: conversations first, then single requests.
        own_id = self._first_own_id + (session if in_session else len(table) + row)
        segments: tuple[tuple[int, int], ...] = ()
        if first_segment < stop_segment:
            ids = table.segment_content_id[first_segment:stop_segment].tolist()
            ends = table.segment_end_tokens[first_segment:stop_segment].tolist()
            segments = tuple(zip(ids, ends, strict=True))
        prefix_key = None
        if segments:
            prefix_key = f"content-{segments[0][0]}"
        elif in_session:
            prefix_key = f"session-{session}"
        return Request(
            row=row,
            request_id=request_id,
            order=row if table.request_ids is None else request_id,
            arrival_ns=arrival_ns,
            num_prompt_tokens=input_tokens,
            output_tokens=output_tokens,
            max_tokens=max_tokens,
            max_model_len=self.max_model_len,
            priority=priority,
            content=Content(own_id, segments, own_is_shared=in_session),
            tenant=info.tenant,
            tier=info.tier,
            class_name=info.name,
            class_index=class_index,
            deadline_ns=None if deadline_ns == NO_DEADLINE else arrival_ns + deadline_ns,
            expected_output_tokens=None if hint == NO_HINT else hint,
            session=str(session) if in_session else None,
            prefix_key=prefix_key,
        )
