"""``trace.json.gz``: the run for Perfetto (ui.perfetto.dev) or chrome://tracing.

The Trace Event Format: one process per replica with its steps (a lane each for the accelerator, the host and, with
``preemption: swap``, copies), one per replica with its requests' phases, counters for the cluster. Times are in
microseconds.
"""

from __future__ import annotations

import gzip
import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sim.results.columns import request_ids
from sim.results.exposed import exposed_host_ns
from sim.results.metrics import run_window
from sim.results.phases import interruptions_by_row, phases
from sim.results.record import RunRecord, Status
from sim.results.series import binned

MAX_STEPS = 20_000
"""Step rows drawn one by one: the run's first."""
MAX_REQUESTS = 5_000
"""Requests drawn one by one, among those that arrive while steps are drawn."""
COUNTER_BINS = 2_000
ACCELERATOR, HOST, COPIES = 1, 2, 3
"""Lanes of a replica's steps."""
REQUESTS_PID = 1_000_000
CLUSTER_PID = 2_000_000

Event = dict[str, Any]
Rows = np.ndarray[Any, np.dtype[np.intp]]


def trace_events(
    record: RunRecord, max_steps: int = MAX_STEPS, max_requests: int = MAX_REQUESTS
) -> tuple[list[Event], str | None]:
    """The events, and what was left out (None if nothing)."""
    order = np.argsort(record.steps["scheduled_ns"], kind="stable")
    drawn = order[:max_steps]
    horizon = np.iinfo(np.int64).max
    notes = []
    if len(drawn) < len(order):
        horizon = int(record.steps["scheduled_ns"][drawn[-1]])
        notes.append(f"steps: the first {max_steps:,} of {len(order):,} rows, until {horizon / 1e9:.3f} s")
    arrival = record.requests["arrival_ns"]
    rows = np.flatnonzero((arrival >= 0) & (arrival <= horizon))[:max_requests]
    if len(rows) < len(arrival):
        notes.append(f"requests: the first {len(rows):,} of {len(arrival):,}")
    if notes:
        notes.append("counters cover the whole run")
    left_out = "; ".join(notes) or None
    events = [*_names(record), *_steps(record, drawn), *_host(record, drawn), *_copies(record, drawn)]
    events += [*_requests(record, rows), *_counters(record)]
    if left_out is not None:
        end_us = _us(horizon) if len(drawn) < len(order) else max(event.get("ts", 0) for event in events)
        events += _cut(left_out, end_us)
    return events, left_out


def left_out(record: RunRecord) -> str | None:
    """What ``trace.json.gz`` does not draw of the run, in one line; None = it draws all."""
    num_rows, num_requests = len(record.steps["replica"]), len(record.requests["row"])
    if num_rows <= MAX_STEPS and num_requests <= MAX_REQUESTS:
        return None
    return (
        f"trace.json.gz is cut: the first {min(MAX_STEPS, num_rows):,} of {num_rows:,} rows of steps, and of their "
        f"requests at most {MAX_REQUESTS:,} of {num_requests:,}; the tables have all"
    )


def _cut(left_out: str, end_us: float) -> Iterator[Event]:
    """What a reader sees of the cut: a label of the cluster's process, and a mark where it is."""
    labels = {"labels": f"cut: {left_out}"}
    yield {"ph": "M", "name": "process_labels", "pid": CLUSTER_PID, "tid": 0, "args": labels}
    mark = {"ph": "i", "s": "g", "pid": CLUSTER_PID, "tid": 0, "ts": end_us}
    yield {**mark, "name": f"trace cut here: {left_out}", "cat": "cut"}


def write_trace(path: Path, record: RunRecord) -> None:
    """Write ``trace.json.gz``; the same run gives the same bytes."""
    events, note = trace_events(record)
    document: dict[str, Any] = {"traceEvents": events, "displayTimeUnit": "ms"}
    if note:
        document["otherData"] = {"left_out": note}
    # Events hold nothing but numbers and text, so that no circle has to be looked for.
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False)
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=5) as out:
        out.write(text.encode())


def _us(ns: int) -> float:
    return ns / 1000


def _name(pid: int, name: str, order: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": order}}


def _names(record: RunRecord) -> Iterator[Event]:
    yield from _name(CLUSTER_PID, "cluster", -1)
    for replica, model in enumerate(record.replica_models):
        yield from _name(replica + 1, f"replica {replica}: steps ({model})", 2 * replica)
        lanes = {ACCELERATOR: "accelerator", HOST: "host"}
        if "swap_bytes" in record.steps:
            lanes[COPIES] = "copies between host and accelerator"
        for lane, name in lanes.items():
            yield {"ph": "M", "name": "thread_name", "pid": replica + 1, "tid": lane, "args": {"name": name}}
        yield from _name(REQUESTS_PID + replica, f"replica {replica}: requests", 2 * replica + 1)


def _step_name(num_steps: int, prefill_tokens: int, decodes: int) -> str:
    parts = [f"prefill {prefill_tokens}"] if prefill_tokens else []
    parts += [f"decode {decodes}"] if decodes else []
    return (" + ".join(parts) or "empty") + (f" x{num_steps}" if num_steps > 1 else "")


def _steps(record: RunRecord, drawn: Rows) -> Iterator[Event]:
    names = ["num_steps", "num_prefills", "num_prefill_tokens", "num_decodes", "num_running", "num_waiting"]
    names += ["num_preempted", "free_blocks"]
    columns = {name: values[drawn].tolist() for name, values in record.steps.items()}
    for i in range(len(drawn)):
        start, end = columns["start_ns"][i], columns["end_ns"][i]
        args = {name: columns[name][i] for name in names}
        args["host_ms"] = columns["host_ns"][i] / 1e6
        yield {
            "ph": "X",
            "name": _step_name(args["num_steps"], args["num_prefill_tokens"], args["num_decodes"]),
            "cat": "step",
            "pid": columns["replica"][i] + 1,
            "tid": ACCELERATOR,
            "ts": _us(start),
            "dur": _us(end - start),
            "args": args,
        }


def _host(record: RunRecord, drawn: Rows) -> Iterator[Event]:
    """Scheduling and launch of each step, named by whether the accelerator waits for it.

    A run of equal steps is one slice, from its first step's scheduling to the end of its last step's launch; the host
    works ``host_ms`` of that.
    """
    names = ("replica", "scheduled_ns", "last_scheduled_ns", "num_steps", "host_ns")
    columns = [record.steps[name][drawn].tolist() for name in names]
    for replica, scheduled, last, num_steps, host, exposed in zip(
        *columns, exposed_host_ns(record, drawn).tolist(), strict=True
    ):
        if not host:
            continue
        kind = "hidden" if not exposed else "exposed" if exposed == host else "partly hidden"
        yield {
            "ph": "X",
            "name": f"schedule and launch, {kind}" + (f" x{num_steps}" if num_steps > 1 else ""),
            "cat": "host",
            "pid": replica + 1,
            "tid": HOST,
            "ts": _us(scheduled),
            "dur": _us(last - scheduled + host // num_steps),
            "args": {"host_ms": host / 1e6, "exposed_ms": exposed / 1e6, "num_steps": num_steps},
        }


def _copies(record: RunRecord, drawn: Rows) -> Iterator[Event]:
    """Copies of swapped KV, which a step waits for, so that they overlap no computation; where a profile times them."""
    if "swap_bytes" not in record.steps or record.terms is None:
        return
    rows = drawn[record.steps["swap_bytes"][drawn] > 0]
    times = record.terms({name: column[rows] for name, column in record.steps.items()})["swap"].tolist()
    columns = [record.steps[name][rows].tolist() for name in ("replica", "start_ns", "swap_bytes")]
    for replica, start, num_bytes, copy_ns in zip(*columns, times, strict=True):
        yield {
            "ph": "X",
            "name": f"swap {num_bytes / 1e6:,.1f} MB, before the step",
            "cat": "copy",
            "pid": replica + 1,
            "tid": COPIES,
            "ts": _us(start),
            "dur": _us(copy_ns),
            "args": {"bytes": num_bytes, "overlapped_ms": 0.0},
        }


def _requests(record: RunRecord, rows: Rows) -> Iterator[Event]:
    """Each request on the first free lane of its replica; its phases nest below it."""
    columns = {name: values[rows].tolist() for name, values in record.requests.items()}
    all_ids = request_ids(record)
    again = interruptions_by_row(record, {*columns["row"]})
    lanes: dict[int, list[int]] = {}
    ends: dict[int, list[tuple[int, int]]] = {}
    order = sorted(range(len(rows)), key=lambda i: (columns["arrival_ns"][i], columns["row"][i]))
    for i in order:
        replica = max(columns["replica"][i], 0)
        arrival, end = columns["arrival_ns"][i], columns["end_ns"][i]
        if end < arrival:
            continue
        free, busy = lanes.setdefault(replica, []), ends.setdefault(replica, [])
        while busy and busy[0][0] <= arrival:
            heapq.heappush(free, heapq.heappop(busy)[1])
        is_new = not free
        lane = len(busy) + 1 if is_new else heapq.heappop(free)
        heapq.heappush(busy, (end, lane))
        place = {"pid": REQUESTS_PID + replica, "tid": lane}
        if is_new:
            yield {"ph": "M", "name": "thread_name", **place, "args": {"name": f"request lane {lane}"}}
        names = ("input_tokens", "output_tokens", "num_cached_tokens", "num_preemptions", "num_recomputed_tokens")
        args = {name: columns[name][i] for name in names}
        args["status"] = Status(columns["status"][i]).name.lower()
        yield {
            "ph": "X",
            "name": f"request {all_ids[rows[i]]}",
            "cat": "request",
            **place,
            "ts": _us(arrival),
            "dur": _us(end - arrival),
            "args": args,
        }
        instants = (arrival, columns["scheduled_ns"][i], columns["first_token_ns"][i], end)
        for name, start, stop in phases(*instants, again.get(columns["row"][i], ())):
            if stop > start:
                yield {"ph": "X", "name": name, "cat": "phase", **place, "ts": _us(start), "dur": _us(stop - start)}


def _counters(record: RunRecord) -> Iterator[Event]:
    if run_window(record) == (0, 0):
        return
    series = binned(record, min(COUNTER_BINS, max(1, 4 * len(record.steps["replica"]))))
    starts = (series.edges_s[:-1] * 1e6).tolist()
    kv = (series.kv_usage * 100).tolist()
    waiting, running = series.waiting.tolist(), series.running.tolist()
    for i, ts in enumerate(starts):
        place = {"ph": "C", "pid": CLUSTER_PID, "tid": 0, "ts": round(ts, 3)}
        yield {**place, "name": "requests", "args": {"waiting": round(waiting[i], 2), "running": round(running[i], 2)}}
        yield {**place, "name": "KV use (%)", "args": {"used": round(kv[i], 2)}}
