"""The way in: requests arrive, a router chooses a replica, ends release what waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from functools import partial
from typing import Any

import numpy as np
from simpy import Event

from policies.base import Router
from sim.cluster.counted import CountedReplicas
from sim.engine.clock import At, Clock, Turn
from sim.engine.door import Door
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.fast.jumps import IDLE
from sim.engine.reference.replica import attempt_row
from sim.engine.request import NEVER, Content, Image, Request
from sim.errors import SimulationError
from sim.results.record import Recorder, Status
from sim.workload.senders import Senders
from sim.workload.table import NO_DEADLINE, NO_GROUP, NO_HINT, NO_PARENT, IntColumn, RequestTable

ROWS_AT_ONCE = 4096
"""Rows turned into Python integers at a time, so that a long workload stays in its columns."""

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


class Gateway:
    """Feeds a workload to replicas. ``replicas`` is filled after construction, before the run."""

    def __init__(
        self,
        env: Clock,
        workload: RequestTable,
        router: Router,
        max_model_len: int,
        recorder: Recorder,
        progress: Progress | None = None,
        client_overhead_ns: int = 0,
        late_ns: IntColumn | None = None,
    ) -> None:
        """``client_overhead_ns``: how long an end takes to the client and the next request from there to the engine;
        ``late_ns``: what it takes beside that, by row."""
        self.env = env
        self.workload = workload
        self.router = router
        self.max_model_len = max_model_len
        self.recorder = recorder
        self.client_overhead_ns = client_overhead_ns
        self.late_ns = late_ns
        self.replicas: Sequence[Door] = ()
        self.num_ended = 0
        self.num_unsent = 0
        """Turns of conversations whose client has left before them."""
        self.cancelled_rows: Set[int] = frozenset()
        """Rows that ``cancel`` may be asked for."""
        self._sent: dict[int, Request] = {}
        """Those of them that have been submitted."""
        self._latest_ns = 0
        """The furthest that any replica is known to have got."""
        self._num_draining = 0
        self._progress = progress
        self._last_progress = time.perf_counter()
        self._images = None if workload.images is None else workload.images.by_row()
        self._first_own_id = 1 + int(workload.segment_content_id.max(initial=-1))
        self._own_ids: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
        """What a conversation's own tokens are called, by the shared prompt that they follow."""
        self._children = workload.children()
        concurrency = workload.closed_loop_concurrency
        self._next_released = len(workload) if concurrency is None else min(concurrency, len(workload))
        self.senders: Senders | None = None
        """Those that have a bound on what they have under way."""
        if workload.sender is not None:
            self.senders = Senders(workload.sender, workload.sender_caps)
        self.acts_on_ends = concurrency is not None or bool(self._children) or self.senders is not None
        """Whether the end of a request makes another one arrive."""
        self.is_acted_on = False
        """Whether anything but arrivals comes from outside."""
        self.request_type: type[Request] = Request
        self._num_coming = 1
        """Requests that will be sent after their think time or wait at their sender, and 1 while some arrive by
        themselves."""
        self._is_dealt_out = False
        self._counted: CountedReplicas | None = None
        self._chosen = (-1, 0)
        """The prompt routed last, and its replica."""
        env.process(self._arrivals())

    @property
    def is_done(self) -> bool:
        """Whether no request will arrive any more, and none is in a replica."""
        return not self._num_coming and not any(each.num_running or each.num_waiting for each in self.replicas)

    def on_end(self, request: Request, status: Status) -> None:
        """A request has ended: release the one that waits for it.

        A client that has left sends no further turns of its conversation; one of a closed loop goes on with the next.
        """
        self.num_ended += 1
        for child in self._children.get(request.row, ()):
            if status is Status.CANCELLED:
                self._abandon(child)
            else:
                self._release(child, request.row)
        if self._next_released < len(self.workload):
            row, self._next_released = self._next_released, self._next_released + 1
            self._release(row, request.row)
        if self.senders is not None and self.senders.has_cap(request.row):
            self._free_seat(request.row)
        if self.num_ended % PROGRESS_EVERY == 0:
            self._look_up(max(self.env.now, request.last_token_ns))

    def on_ends(self, count: int, now_ns: int) -> None:
        """Count requests that have ended by ``now_ns`` and that nothing waits for."""
        before, self.num_ended = self.num_ended, self.num_ended + count
        if before // PROGRESS_EVERY != self.num_ended // PROGRESS_EVERY:
            self._look_up(now_ns)

    def _look_up(self, now_ns: int) -> None:
        self.recorder.trim()
        self._latest_ns = max(self._latest_ns, now_ns)
        if self._progress is not None:
            now = time.perf_counter()
            if now - self._last_progress >= PROGRESS_INTERVAL_S:
                self._last_progress = now
                self._progress(self.num_ended, len(self.workload), self._latest_ns)

    def _abandon(self, row: int) -> None:
        """Leave out ``row`` and the turns after it: they are never sent."""
        left = [row]
        while left:
            self.num_unsent += 1
            left += self._children.get(left.pop(), ())

    # --- what happens to replicas and their requests -----------------------------------------

    def cancel(self, row: int) -> None:
        """Cancel a request because its client leaves; nothing happens where it has not been sent or has ended."""
        request = self._sent.get(row)
        if request is not None:
            self.replicas[request.replica].cancel(request, Status.CANCELLED)

    def crash(self, index: int) -> None:
        """Crash a replica: it loses what it has, and its requests have failed."""
        reason = f"replica {index} crashed at {self.env.now / 1e9:g} s"
        for request in self.replicas[index].crash():
            self.recorder.end(attempt_row(request, Status.FAILED, self.env.now), reason)
            self.on_end(request, Status.FAILED)

    def drain(self, index: int) -> None:
        """Send no further requests to a replica."""
        replica = self.replicas[index]
        self._num_draining += not replica.is_draining
        replica.drain()

    def undrain(self, index: int) -> None:
        """Send requests to a replica again."""
        replica = self.replicas[index]
        self._num_draining -= replica.is_draining
        replica.undrain()

    # --- dealing out -------------------------------------------------------------------------

    def deal_out(self) -> None:
        """Give each replica all its requests before the run, where nothing that happens can change which it gets."""
        replicas = [replica for replica in self.replicas if isinstance(replica, FastReplica)]
        takes_turns = vars(type(self.router)).get("takes_turns", False) and len(replicas) == len(self.replicas)
        if self.acts_on_ends or self.is_acted_on or not takes_turns:
            return
        self._is_dealt_out = True
        rows, turn = np.arange(len(self.workload)), self.workload.prompt_numbers() % len(replicas)
        for replica in replicas:
            replica.take_feed(partial(self._requests, replica, rows[turn == replica.index]))

    def count_requests(self) -> None:
        """Keep the numbers of requests of all replicas beside them, where nothing but arrivals changes them."""
        replicas = [replica for replica in self.replicas if type(replica) is FastReplica]
        if not (self.acts_on_ends or self.is_acted_on) and len(replicas) == len(self.replicas):
            self._counted = CountedReplicas(self.env, replicas)

    def _requests(self, replica: Door, rows: IntColumn) -> Iterator[Any]:
        """Requests of a replica in order of arrival; those that can never run there are rejected on the way."""
        latest_ns = 0
        for first in range(0, len(rows), ROWS_AT_ONCE):
            for fields in self._rows(rows[first : first + ROWS_AT_ONCE]):
                latest_ns = max(latest_ns, fields[1])
                request = self._make_request(fields, latest_ns)
                request.replica = replica.index
                objection = replica.why_never(request)
                if objection is None:
                    yield request
                else:
                    self._reject(request, objection)

    # --- arrivals ----------------------------------------------------------------------------

    def _arrivals(self) -> Generator[Event, Any, None]:
        """Requests that arrive by themselves, in order of their rows."""
        if self._is_dealt_out:
            self._num_coming -= 1
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
                self._come_due(fields)
        self._num_coming -= 1

    def _rows(self, rows: IntColumn) -> Iterator[tuple[int, ...]]:
        """Rows of the workload as Python integers: the row itself, then ``ROW_FIELDS``, then its segments' range."""
        table = self.workload
        columns = [getattr(table, name)[rows].tolist() for name in ROW_FIELDS]
        offsets = table.segment_offsets
        return zip(rows.tolist(), *columns, offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)

    def _release(self, row: int, after: int) -> None:
        """Let ``row`` arrive after its think time: the end of the row ``after``, which it followed, is now."""
        think_ns = self._client_ns(after) + int(self.workload.arrival_ns[row])
        until_ns = self.workload.release_until_ns
        if until_ns is not None and self.env.now + think_ns >= until_ns:
            return
        if self.env.now + think_ns >= IDLE:
            raise SimulationError(
                f"request {row} would arrive after {(self.env.now + think_ns) / 1e9:.2g} s, and the clock ends at "
                f"{IDLE / 1e9:.2g} s, 146 years; lower think_time_s, or give a duration_s"
            )
        arrival = At(self.env, think_ns, Turn.ARRIVAL + 1 + row)
        arrival.callbacks.append(lambda _: self._arrive_after_thought(row))
        self._num_coming += 1

    def _arrive_after_thought(self, row: int) -> None:
        self._num_coming -= 1
        self._come_due(next(self._rows(np.array([row]))))

    def _come_due(self, fields: tuple[int, ...]) -> None:
        """Send a request, now or when its sender has a seat for it."""
        if self.senders is None or self.senders.take_seat(fields[0], self.env.now):
            self._arrive(fields)
        else:
            self._num_coming += 1

    def _free_seat(self, ended: int) -> None:
        """Give the seat of the row ``ended`` to the next one, when its client has heard of the end, which is now."""
        heard = At(self.env, self._client_ns(ended), Turn.ARRIVAL + 1 + ended)
        heard.callbacks.append(lambda _: self._take_over(ended))

    def _take_over(self, ended: int) -> None:
        following = None if self.senders is None else self.senders.give_seat_back(ended, self.env.now)
        if following is not None:
            self._num_coming -= 1
            self._arrive(next(self._rows(np.array([following]))))

    def _arrive(self, fields: tuple[int, ...]) -> None:
        request = self._make_request(fields, self.env.now)
        replica = self._route(request)
        if replica is None:
            self._reject(request, "every replica is draining")
            return
        objection = replica.why_never(request)
        if objection is not None:
            request.replica = replica.index
            self._reject(request, objection)
            return
        if request.row in self.cancelled_rows:
            self._sent[request.row] = request
        replica.submit(request)
        if self._counted is not None:
            self._counted.note(replica.index)

    def _route(self, request: Request) -> Door | None:
        """The replica for ``request`` among those that are not draining; None where all are."""
        replicas = self.replicas if self._counted is None else self._counted
        if self._num_draining:
            replicas = [replica for replica in replicas if not replica.is_draining]
            if not replicas:
                return None
        position = self._choose(request, replicas)
        if not 0 <= position < len(replicas):
            raise SimulationError(
                f"router {self.router.name} chose replica {position!r} of {len(replicas)} for request "
                f"{request.request_id}; it must answer with a position from 0 on"
            )
        return replicas[position]

    def _choose(self, request: Request, replicas: Sequence[Door]) -> int:
        """The router's choice, made once for all outputs of a prompt."""
        prompts = self.workload.prompt
        if prompts is None:
            return self.router.choose(request, replicas, request.arrival_ns)
        prompt = int(prompts[request.row])
        if prompt != self._chosen[0]:
            self._chosen = prompt, self.router.choose(request, replicas, request.arrival_ns)
        return self._chosen[1]

    def _reject(self, request: Request, objection: str) -> None:
        self.recorder.end(attempt_row(request, Status.REJECTED, NEVER), objection)
        self.on_end(request, Status.REJECTED)

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
        patience_ns = info.patience_ns
        # Own content is numbered after all shared content: conversations first, then single requests.
        own_id = self._first_own_id + (session if in_session else len(table) + row)
        segments: tuple[tuple[int, int], ...] = ()
        if first_segment < stop_segment:
            ids = table.segment_content_id[first_segment:stop_segment].tolist()
            ends = table.segment_end_tokens[first_segment:stop_segment].tolist()
            segments = tuple(zip(ids, ends, strict=True))
            if in_session:
                # Turns that open with different prompts have nothing in common behind them either.
                own_id = self._own_ids.setdefault(
                    (session, segments), self._first_own_id + 2 * len(table) + len(self._own_ids)
                )
        prefix_key = None
        if segments:
            prefix_key = f"content-{segments[0][0]}"
        elif in_session:
            prefix_key = f"session-{session}"
        made = self.request_type(
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
            cancel_ns=NEVER if patience_ns is None else arrival_ns + max(patience_ns - self._client_ns(row), 1),
            expected_output_tokens=None if hint == NO_HINT else hint,
            session=str(session) if in_session else None,
            prefix_key=prefix_key,
        )
        if table.lora is not None:
            made.lora = int(table.lora[row])
        if self._images is not None and self._images[row]:
            made.images = tuple(Image(*values) for values in self._images[row])
            made.images_end = made.images[-1].end
        return made

    def _client_ns(self, row: int) -> int:
        """Between the client of ``row`` and the engine, there and back: so much sooner an engine must be done for its
        last token to reach a client that leaves, and so much later the client hears of its end."""
        return self.client_overhead_ns + (0 if self.late_ns is None else int(self.late_ns[row]))
