"""A workload section to the table of its requests: the one entry point of ``sim.workload``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sim.errors import InputError
from sim.scenario.schema import ClosedLoopArrival, WorkloadConfig
from sim.seeds import rng
from sim.workload.arrivals import arrival_times
from sim.workload.prompt_images import ImagePlaces, joined_images
from sim.workload.rows import NS_PER_S, Numbering, Rows, generated_rows, trace_rows
from sim.workload.sharing import with_isolated_tenants, with_outputs, with_own_contents
from sim.workload.table import NO_GROUP, NO_PARENT, ClassInfo, IntColumn, RequestTable
from sim.workload.trace_table import segments_of
from sim.workload.traffic_plan import ArrivalPlan, Plan, plan_workload


def build_workload(
    config: WorkloadConfig,
    seed: int,
    base_dir: Path,
    max_model_len: int | None = None,
    *,
    isolates_tenants: bool = False,
    serves_loras: bool = True,
    image: ImagePlaces | None = None,
) -> RequestTable:
    """All requests of a run, in the order of their arrival.

    Every random quantity of every class has its own stream, named after it, so that changing one
    leaves the others' draws as they were. Limits: ``requests`` counts requests (turns of
    conversations included) of the whole workload, and of one class where a class gives it;
    ``duration_s`` ends the arrivals (of conversations), strictly before it; whichever comes first.

    ``base_dir`` is the scenario's folder, which trace paths are relative to. With ``max_model_len``,
    conversations end before the turn whose prompt would no longer fit. ``isolates_tenants``: requests
    of different tenants have no content in common. ``serves_loras``: whether adapters that a trace names count.
    ``image``: what an image of the engine's model takes, where the workload does not say it.

    Raises InputError for contradictory or missing settings and unusable traces.
    """
    plan = plan_workload(config)
    numbering = Numbering(serves_loras=serves_loras)
    parts: list[list[Rows]] = []
    for arrivals in plan.arrivals:
        parts.append(_arrival_rows(arrivals, seed, numbering, max_model_len, image))
    only_class = config.classes is None
    for member in plan.traces:
        rows = trace_rows(member, seed, base_dir, numbering, only_class, image)
        parts.append([_limited(rows, member.requests, member.duration_s)])
    limit = config.requests
    if limit is None and len(parts) == 1 and plan.arrivals:
        limit = plan.arrivals[0].requests
    table = merge(parts, limit, [entry.max_concurrency for entry in plan.arrivals])
    table.notes[:0] = plan.notes
    table.loras = tuple(numbering.loras)
    table = with_outputs(table, plan, seed)
    if table.lora is not None:
        table = with_own_contents(table, table.lora)
    if isolates_tenants:
        table = with_isolated_tenants(table)
    _close_loop(table, plan)
    if not len(table):
        durations = [*(entry.duration_s for entry in plan.arrivals), *(entry.duration_s for entry in plan.traces)]
        has_duration = any(duration is not None for duration in durations)
        within = "`duration_s`; give a longer one" if has_duration else "the arrival's stages; give longer ones"
        raise InputError(f"workload: no request arrives within {within} or a higher rate")
    if max_model_len is not None:
        _note_short_outputs(table, max_model_len)
    return table


def _note_short_outputs(table: RequestTable, max_model_len: int) -> None:
    """Generation stops at ``max_model_len``, as in vLLM: what comes out is then not what was asked for."""
    runs = table.input_tokens < max_model_len
    num_short = int(np.count_nonzero(runs & (table.input_tokens + table.output_tokens > max_model_len)))
    if num_short:
        table.notes.append(
            f"max_model_len ({max_model_len}) cuts {num_short:,} output{'s' if num_short > 1 else ''} short"
        )


def _arrival_rows(
    plan: ArrivalPlan, seed: int, numbering: Numbering, max_model_len: int | None, image: ImagePlaces | None
) -> list[Rows]:
    """The rows of every class that draws on one arrival process."""
    times = arrival_times(plan.arrival, rng(seed, "arrivals", plan.stream), plan.requests, plan.duration_s, plan.where)
    roots = np.zeros_like(times) if isinstance(plan.arrival, ClosedLoopArrival) else times
    index = np.arange(len(times))
    if len(plan.members) == 1:
        picks = [index]
    else:
        cumulative = np.cumsum([member.share for member in plan.members])
        draws = rng(seed, "classes").random(len(times)) * cumulative[-1]
        drawn = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(plan.members) - 1)
        picks = [np.flatnonzero(drawn == k) for k in range(len(plan.members))]
    return [
        generated_rows(member, seed, times[pick], roots[pick], pick, numbering, plan.requests, max_model_len, image)
        for member, pick in zip(plan.members, picks, strict=True)
    ]


def _close_loop(table: RequestTable, plan: Plan) -> None:
    """Tell the table that its rows are released by the ends of others."""
    loop = plan.closed_loop
    if loop is None:
        return
    table.closed_loop_concurrency = loop.concurrency
    duration_s = plan.arrivals[0].duration_s
    if duration_s is not None:
        table.release_until_ns = round(duration_s * NS_PER_S)
        if plan.arrivals[0].requests is None:
            table.notes.append(
                f"closed loop over duration_s alone: at most {len(table):,} requests are prepared; "
                "if all of them are submitted before the end, give `requests`"
            )


def _limited(rows: Rows, requests: int | None, duration_s: float | None) -> Rows:
    """The first rows of a trace; of conversations those that open before ``duration_s``."""
    count = len(rows.arrival_ns)
    if duration_s is not None:
        count = int(np.searchsorted(rows.root_ns, round(duration_s * NS_PER_S), side="left"))
    count = count if requests is None else min(count, requests)
    return rows if count == len(rows.arrival_ns) else _take(rows, np.arange(count))


def _take(rows: Rows, order: IntColumn) -> Rows:
    """These rows, in this order; a row that is taken has its parent taken before it."""
    n = len(rows.arrival_ns)
    position = np.full(n, NO_PARENT, dtype=np.int64)
    position[order] = np.arange(len(order))
    parent = rows.parent[order]
    segments = segments_of(order, rows.segment_count)
    return Rows(
        name=rows.name,
        classes=rows.classes,
        root_ns=rows.root_ns[order],
        root_index=rows.root_index[order],
        arrival_ns=rows.arrival_ns[order],
        input_tokens=rows.input_tokens[order],
        output_tokens=rows.output_tokens[order],
        max_tokens=rows.max_tokens[order],
        priority=rows.priority[order],
        class_index=rows.class_index[order],
        parent=np.where(parent == NO_PARENT, NO_PARENT, position[parent]),
        deadline_ns=rows.deadline_ns[order],
        expected_output_tokens=rows.expected_output_tokens[order],
        session=rows.session[order],
        lora=rows.lora[order],
        images=None if rows.images is None else rows.images.take(order),
        segment_count=rows.segment_count[order],
        segment_content_id=rows.segment_content_id[segments],
        segment_end_tokens=rows.segment_end_tokens[segments],
        request_ids=None if rows.request_ids is None else [rows.request_ids[row] for row in order.tolist()],
        notes=rows.notes,
    )


def merge(parts: list[list[Rows]], limit: int | None, caps: Sequence[int | None] = ()) -> RequestTable:
    """One table of all classes, by (first arrival of the conversation, process, arrival, turn), cut to ``limit`` rows.

    ``parts`` holds, for each arrival process or trace, the rows of its classes; ``caps`` the ``max_concurrency`` of the
    first of them.
    """
    flat = [rows for group in parts for rows in group]
    if len(flat) == 1:
        rows = flat[0]
        if limit is not None and len(rows.arrival_ns) > limit:
            rows = _take(rows, np.arange(limit))
        process = np.zeros(len(rows.arrival_ns), dtype=np.int8)
    else:
        rows = _concatenate(flat)
        process = np.repeat(np.arange(len(parts)), [sum(len(rows.arrival_ns) for rows in group) for group in parts])
        order = np.lexsort((rows.root_index, process, rows.root_ns))[:limit]
        rows, process = _take(rows, order), process[order]
    given = [cap for cap in caps if cap is not None]
    places = iter(range(len(given)))
    sender_of = [NO_GROUP if cap is None else next(places) for cap in caps] + [NO_GROUP] * (len(parts) - len(caps))
    return RequestTable(
        arrival_ns=rows.arrival_ns,
        input_tokens=rows.input_tokens,
        output_tokens=rows.output_tokens,
        max_tokens=rows.max_tokens,
        priority=rows.priority,
        class_index=rows.class_index,
        parent=rows.parent,
        deadline_ns=rows.deadline_ns,
        expected_output_tokens=rows.expected_output_tokens,
        session=rows.session,
        lora=rows.lora if np.any(rows.lora) else None,
        images=rows.images if rows.images is not None and len(rows.images.values) else None,
        segment_offsets=np.concatenate(([0], np.cumsum(rows.segment_count))).astype(np.int64),
        segment_content_id=rows.segment_content_id,
        segment_end_tokens=rows.segment_end_tokens,
        classes=rows.classes,
        request_ids=rows.request_ids,
        sender=np.array(sender_of, dtype=np.int64)[process] if given else None,
        sender_caps=tuple(given),
        notes=list(dict.fromkeys(rows.notes)),
    )


def _concatenate(flat: list[Rows]) -> Rows:
    """All rows one after the other; class indices and parents renumbered."""
    sizes = [len(rows.arrival_ns) for rows in flat]
    first_row = np.cumsum([0, *sizes])
    first_class = np.cumsum([0, *(len(rows.classes) for rows in flat)])
    classes: list[ClassInfo] = [info for rows in flat for info in rows.classes]

    def joined(name: str) -> IntColumn:
        return np.concatenate([getattr(rows, name) for rows in flat])

    parents = [
        np.where(rows.parent == NO_PARENT, NO_PARENT, rows.parent + first)
        for rows, first in zip(flat, first_row, strict=False)
    ]
    return Rows(
        name="",
        classes=classes,
        root_ns=joined("root_ns"),
        root_index=joined("root_index"),
        arrival_ns=joined("arrival_ns"),
        input_tokens=joined("input_tokens"),
        output_tokens=joined("output_tokens"),
        max_tokens=joined("max_tokens"),
        priority=joined("priority"),
        class_index=np.concatenate([r.class_index + first for r, first in zip(flat, first_class, strict=False)]),
        parent=np.concatenate(parents),
        deadline_ns=joined("deadline_ns"),
        expected_output_tokens=joined("expected_output_tokens"),
        session=joined("session"),
        lora=joined("lora"),
        images=joined_images([(rows.images, len(rows.arrival_ns)) for rows in flat]),
        segment_count=joined("segment_count"),
        segment_content_id=joined("segment_content_id"),
        segment_end_tokens=joined("segment_end_tokens"),
        request_ids=_joined_ids(flat),
        notes=[note for rows in flat for note in rows.notes],
    )


def _joined_ids(flat: list[Rows]) -> list[str] | None:
    """Ids of several classes: a class's name is put before each, so that they stay unique."""
    if all(rows.request_ids is None for rows in flat):
        return None
    ids: list[str] = []
    for rows in flat:
        given = rows.request_ids or map(str, range(len(rows.arrival_ns)))
        ids.extend(f"{rows.name}/{name}" for name in given)
    return ids
