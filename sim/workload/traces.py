"""Recorded workloads: Azure CSV, Mooncake JSONL, generic CSV or JSONL, ``vllm bench serve`` results.

Files are read as a stream into one flat array per column: what is held is the table itself (plus
request ids where the trace names them), never the text of the file. A ``vllm bench serve`` result is
one JSON object and the exception: its text is held, its values one key at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import InputError
from sim.scenario.schema import TraceConfig
from sim.workload.table import NO_GROUP, NO_HINT, IntColumn
from sim.workload.trace_fields import (
    NOT_GIVEN,
    HashesField,
    IdField,
    IntField,
    NameField,
    TimeField,
    TimestampField,
)
from sim.workload.trace_files import (
    TraceProblems,
    looks_like_json,
    open_trace,
    read_csv,
    read_jsonl,
    resolve,
    take_cell,
)

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens that one of Mooncake's ``hash_ids`` stands for (the last one of a prompt: what is left)."""


@dataclass(slots=True)
class Segments:
    """Shared content of all rows, one row's segments after the other's."""

    count: IntColumn
    """Segments of each row."""
    content_id: IntColumn
    """From 0, within this trace."""
    end_tokens: IntColumn


@dataclass(slots=True)
class Trace:
    """A trace as columns, sorted by arrival. Optional columns are None where the trace has none."""

    arrival_ns: IntColumn
    input_tokens: IntColumn
    output_tokens: IntColumn
    priority: IntColumn | None = None
    """NOT_GIVEN where the cell is empty."""
    tenant: IntColumn | None = None
    """Index into ``tenant_names``, or NOT_GIVEN."""
    tenant_names: list[str] = field(default_factory=list)
    session: IntColumn | None = None
    """Conversation number from 0, or NO_GROUP."""
    expected_output_tokens: IntColumn | None = None
    segments: Segments | None = None
    request_ids: list[str] | None = None
    """Empty text where a row has none."""
    notes: list[str] = field(default_factory=list)


def read_trace(config: TraceConfig, base_dir: Path) -> Trace:
    """The trace named by a scenario, its arrivals divided by ``rate_scale``.

    Azure's and vLLM's arrivals count from the earliest of the file, those of the other formats are
    taken as written. Raises InputError naming file and line of everything that is wrong.
    """
    path = resolve(config.path, base_dir)
    problems = TraceProblems(path)
    readers = {"azure": _azure, "mooncake": _mooncake, "generic": _generic, "vllm_bench": _vllm_bench}
    trace = readers[config.format](path, problems, config.limit)
    if not len(trace.arrival_ns):
        problems.add("the trace holds no requests")
    problems.raise_if_any()
    if np.any(np.diff(trace.arrival_ns) < 0):
        trace.notes.append(f"{path.name}: arrivals were out of order and have been sorted")
        _sort(trace)
    trace.arrival_ns = scale_times(trace.arrival_ns, config.rate_scale)
    _check_ids(trace, problems)
    return trace


def scale_times(times: IntColumn, rate_scale: float) -> IntColumn:
    """``times / rate_scale`` in whole ns: the exact quotient by the decimal as written, halves rounded up."""
    if rate_scale == 1:
        return times
    ratio = Fraction(repr(rate_scale))
    p, q = ratio.numerator, ratio.denominator
    latest = int(times.max(initial=0))
    if (2 * latest * q + p) // (2 * p) >= 1 << 62:
        raise InputError(f"workload.trace.rate_scale: {rate_scale:g} stretches the trace beyond 64-bit nanoseconds")
    if 2 * latest * q + p < 1 << 62 and 2 * p < 1 << 62:
        return (2 * q * times + p) // (2 * p)
    return np.array([(2 * t * q + p) // (2 * p) for t in times.tolist()], dtype=np.int64)


def _azure(path: Path, problems: TraceProblems, limit: int | None) -> Trace:
    arrival = TimestampField("TIMESTAMP")
    inputs, outputs = IntField("ContextTokens", minimum=0), IntField("GeneratedTokens", minimum=0)
    with open_trace(path, problems) as stream:
        read_csv(stream, (arrival, inputs, outputs), problems, limit)
    times = arrival.column()
    trace = Trace(times - times.min(initial=2**63 - 1), inputs.column(), outputs.column())
    # A service logs a request that produced nothing with 0 tokens; an engine has to run one all the same.
    for name, column in (("ContextTokens", trace.input_tokens), ("GeneratedTokens", trace.output_tokens)):
        if zeros := int(np.count_nonzero(column == 0)):
            trace.notes.append(f"{path.name}: {zeros:,} requests with {name} 0 are run with 1 token")
            np.maximum(column, 1, out=column)
    return trace


def _mooncake(path: Path, problems: TraceProblems, limit: int | None) -> Trace:
    arrival = TimeField("timestamp", "ms", 1_000_000)
    inputs, outputs = IntField("input_length"), IntField("output_length")
    hashes = HashesField("hash_ids")
    with open_trace(path, problems) as stream:
        read_jsonl(stream, (arrival, inputs, outputs, hashes), problems, limit)
    trace = Trace(arrival.column(), inputs.column(), outputs.column())
    counts = np.frombuffer(hashes.counts, dtype=np.int64) if hashes.counts else np.empty(0, dtype=np.int64)
    expected = -(-trace.input_tokens // MOONCAKE_BLOCK_TOKENS)
    for row in np.flatnonzero(counts != expected).tolist():
        problems.add(
            f"request {row + 1} of the file: expected {expected[row]} hash_ids (one per {MOONCAKE_BLOCK_TOKENS} "
            f"tokens of its input_length {trace.input_tokens[row]}), found {counts[row]}"
        )
    problems.raise_if_any()
    ids = hashes.column()
    if len(ids) and int(ids.max()) >= 1 << 40:
        ids = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    row_of = np.repeat(np.arange(len(counts)), counts)
    block = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = np.minimum((block + 1) * MOONCAKE_BLOCK_TOKENS, trace.input_tokens[row_of])
    chained = _chained(ids, block)
    if chained is not ids:
        trace.notes.append(
            f"{path.name}: some hash_ids follow different ones; such a block counts as another content each time, as "
            "chained hashes have it"
        )
    trace.segments = Segments(counts, chained, ends)
    return trace


def _chained(ids: IntColumn, block: IntColumn) -> IntColumn:
    """``ids`` so that an id stands for all content before it too; ``ids`` itself where it does. ``block`` is the place
    of each in its request."""
    before = np.where(block > 0, np.append(-1, ids[:-1]), -1) if len(ids) else ids
    order = np.argsort(ids, kind="stable")
    same = np.diff(ids[order]) == 0
    if not np.any(same & ((np.diff(before[order]) != 0) | (np.diff(block[order]) != 0))):
        return ids
    numbers: dict[tuple[int, int], int] = {}
    chained, latest = [], -1
    for content_id, place in zip(ids.tolist(), block.tolist(), strict=True):
        latest = numbers.setdefault((latest if place else -1, content_id), len(numbers))
        chained.append(latest)
    return np.array(chained, dtype=np.int64)


def _generic(path: Path, problems: TraceProblems, limit: int | None) -> Trace:
    arrival = TimeField("arrival_s", "seconds", 1_000_000_000)
    inputs, outputs = IntField("input_tokens"), IntField("output_tokens")
    expected = IntField("expected_output_tokens", required=False)
    priority = IntField("priority", required=False, minimum=None)
    prefix_tokens = IntField("prefix_tokens", required=False, minimum=0)
    tenant, session, group, model = (NameField(name) for name in ("tenant", "session", "prefix_group", "model"))
    ids = IdField("request_id")
    fields = (arrival, inputs, outputs, ids, priority, tenant, group, prefix_tokens, session, expected, model)
    with open_trace(path, problems) as stream:
        read = read_jsonl if looks_like_json(stream) else read_csv
        read(stream, fields, problems, limit)
    trace = Trace(arrival.column(), inputs.column(), outputs.column())
    if model.names:
        trace.notes.append(f"{path.name}: the column `model` is not used: every replica serves the engine's one model")
    trace.request_ids = ids.texts if any(ids.texts) else None
    trace.priority = _if_any(priority.column())
    trace.tenant, trace.tenant_names = _if_any(tenant.column()), list(tenant.names)
    trace.session = _or_else(session.column(), NO_GROUP)
    trace.expected_output_tokens = _or_else(expected.column(), NO_HINT)
    _shared_prefixes(trace, group.column(), prefix_tokens.column(), problems)
    return trace


def _if_any(column: IntColumn) -> IntColumn | None:
    """The column, or None where no row gives it."""
    return column if np.any(column != NOT_GIVEN) else None


def _or_else(column: IntColumn, default: int) -> IntColumn | None:
    """The column with a default where a row does not give it, or None where no row does."""
    if _if_any(column) is None:
        return None
    column[column == NOT_GIVEN] = default
    return column


def _shared_prefixes(trace: Trace, group: IntColumn, tokens: IntColumn, problems: TraceProblems) -> None:
    """Segments from ``prefix_group`` and ``prefix_tokens``: both or neither, at most the prompt."""
    n = len(trace.arrival_ns)
    group = group if len(group) else np.full(n, NOT_GIVEN)
    tokens = tokens if len(tokens) else np.full(n, NOT_GIVEN)
    if not len(group) == len(tokens) == n:
        return  # rows were refused: there are problems already
    for rows, missing in (
        (np.flatnonzero((group != NOT_GIVEN) & (tokens == NOT_GIVEN)), "prefix_group without prefix_tokens"),
        (np.flatnonzero((group == NOT_GIVEN) & (tokens > 0)), "prefix_tokens without prefix_group"),
    ):
        for row in rows.tolist():
            problems.add(f"request {row + 1} of the file: {missing}; give both or neither")
    shared = (group != NOT_GIVEN) & (tokens > 0)
    if np.any(shared):
        ends = np.minimum(tokens, trace.input_tokens)
        trace.segments = Segments(shared.astype(np.int64), group[shared], ends[shared])


def _vllm_bench(path: Path, problems: TraceProblems, limit: int | None) -> Trace:
    """Start times and lengths of a benchmark run (keys as vLLM's ``benchmarks/serve.py`` writes them)."""
    arrival = TimeField("start_times", "seconds", 1_000_000_000)
    inputs, outputs = IntField("input_lens"), IntField("output_lens", minimum=0)
    fields = (arrival, inputs, outputs)
    with open_trace(path, problems) as stream:
        found = _json_values(stream.read(), [field.name for field in fields], problems)
    missing = [field.name for field in fields if field.name not in found]
    if missing == [arrival.name] and not problems.listed:
        problems.add(
            "this result has lengths but no start_times, which `vllm bench serve` writes since vLLM 0.15: measure with "
            "the benchmark of a later vLLM (the server may stay as it is), or give lengths and an arrival process"
        )
    elif missing and not problems.listed:
        problems.add(
            f"this result has no {', '.join(missing)}: run `vllm bench serve` with both --save-result and "
            "--save-detailed, which write the lengths and the start time of each request"
        )
    problems.raise_if_any()
    lengths = {name: len(values) for name, values in found.items() if isinstance(values, list)}
    if len(lengths) < len(fields) or len(set(lengths.values())) > 1:
        problems.add(f"start_times, input_lens and output_lens must be lists of one length, found {lengths}")
        problems.raise_if_any()
    for column in fields:
        _take_list(column, found[column.name][:limit], problems)
    problems.raise_if_any()
    done = outputs.column() > 0
    times = arrival.column()[done]
    trace = Trace(times - times.min(initial=2**63 - 1), inputs.column()[done], outputs.column()[done])
    if failed := int(np.count_nonzero(~done)):
        trace.notes.append(f"{path.name}: {failed:,} requests without output (failed in the measured run) are left out")
    return trace


def _take_list(column: TimeField | IntField, values: list[Any], problems: TraceProblems) -> None:
    try:
        if values:
            column.extend(values)
    except (ValueError, TypeError, OverflowError):
        for index, value in enumerate(values):
            take_cell(column, value, problems, None, f"{column.name}[{index}]")


def _json_values(text: str, wanted: Sequence[str], problems: TraceProblems) -> dict[str, Any]:
    """The wanted keys of the one JSON object in ``text``; the other values are dropped as they are passed."""
    decoder = json.JSONDecoder()
    found: dict[str, Any] = {}

    def skip_blank(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    def expect(at: int, characters: str) -> int:
        at = skip_blank(at)
        if at >= len(text) or text[at] not in characters:
            raise json.JSONDecodeError(f"expected {' or '.join(map(repr, characters))}", text, at)
        return at + 1

    try:
        at = skip_blank(expect(0, "{"))
        more = text[at : at + 1] != "}"
        at = at if more else at + 1
        while more:
            key, at = decoder.raw_decode(text, skip_blank(at))
            value, at = decoder.raw_decode(text, skip_blank(expect(at, ":")))
            if key in wanted:
                found[key] = value
            at = expect(at, ",}")
            more = text[at - 1] == ","
        if text[at:].strip():
            problems.add(
                "the file holds more than one result (--append-result); keep the one to replay in its own file"
            )
    except json.JSONDecodeError as error:
        problems.add(f"not a benchmark result: {error.msg}", error.lineno, error.colno)
    except (ValueError, RecursionError) as error:
        problems.add(f"not a benchmark result: {error}")
    return found


def _sort(trace: Trace) -> None:
    """All columns by arrival, rows of one instant in the order of the file."""
    order = np.argsort(trace.arrival_ns, kind="stable")
    for name in ("arrival_ns", "input_tokens", "output_tokens", "priority", "tenant", "session"):
        column = getattr(trace, name)
        setattr(trace, name, None if column is None else column[order])
    if trace.expected_output_tokens is not None:
        trace.expected_output_tokens = trace.expected_output_tokens[order]
    if trace.request_ids is not None:
        trace.request_ids = [trace.request_ids[row] for row in order.tolist()]
    if trace.segments is not None:
        old = trace.segments
        pick = segments_of(order, old.count)
        trace.segments = Segments(old.count[order], old.content_id[pick], old.end_tokens[pick])


def segments_of(rows: IntColumn, counts: IntColumn) -> IntColumn:
    """Where the segments of ``rows`` lie in a table whose row i has ``counts[i]`` segments, row after row."""
    picked = counts[rows]
    first = (np.cumsum(counts) - counts)[rows]
    within = np.arange(int(picked.sum())) - np.repeat(np.cumsum(picked) - picked, picked)
    places: IntColumn = np.repeat(first, picked) + within
    return places


def _check_ids(trace: Trace, problems: TraceProblems) -> None:
    """Request ids are unique; a row without one gets its position."""
    ids = trace.request_ids
    if ids is None:
        return
    if not all(ids):
        ids = trace.request_ids = [given or str(row) for row, given in enumerate(ids)]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        for given in ids:
            if given in seen:
                problems.add(f"request_id {given!r} is given twice; ids must be unique")
            seen.add(given)
    problems.raise_if_any()
