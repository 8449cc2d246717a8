"""Mooncake's JSONL and what has become of it: rows of lengths and block hashes, with or without conversations.

Sources of the fields, by repository and file:

- kvcache-ai/Mooncake, ``FAST25-release/README.md``: ``timestamp`` (ms), ``input_length``, ``output_length``,
  ``hash_ids`` of 512 tokens each.
- ai-dynamo/dynamo, ``docs/dynosim/trace-formats.md`` and ``lib/data-gen/src/mooncake.rs``: ``session_id`` makes rows
  turns of a closed loop; ``delay`` (ms) after the turn before in place of a timestamp; the spellings ``input_tokens``,
  ``output_tokens``, ``created_time``, ``delay_ms``; ``wait_for`` (request ids) and ``tool_wait_ms``, the time of a tool
  between two requests; ``priority``. ``input_length`` is the whole prompt, in its mooncake-delta what a turn adds.
- ai-dynamo/aiperf, ``dataset/loader/models.py`` (``MooncakeTrace``): ``hash_ids`` may be absent; in a session
  ``input_length`` is what a turn adds; ``text_input``, ``messages`` or ``payload`` in place of lengths.
- vllm-project/guidellm, ``docs/guides/trace_replay.md``: other block sizes; its timestamps count seconds.
- alibaba-edu/qwen-bailian-usagetraces-anon, ``README.md``: blocks of 16 tokens, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.workload.table import NO_GROUP, NO_PARENT, IntColumn
from sim.workload.trace_fields import NOT_GIVEN, HashesField, IdField, IntField, NameField, TimeField, WaitsField
from sim.workload.trace_files import open_trace, read_jsonl
from sim.workload.trace_formats import UNITS, RowFields, rename
from sim.workload.trace_table import Segments, Source, Trace

BLOCK_TOKENS = 512
"""Tokens that one of Mooncake's ``hash_ids`` stands for (the last one of a prompt: what is left)."""


@dataclass(slots=True)
class _Turns:
    """How rows follow each other."""

    session: IntColumn
    """Number of a row's ``session_id``, or NO_GROUP."""
    before: IntColumn
    """The row before it in its session, or NO_PARENT."""


def read_mooncake(source: Source) -> Trace:
    """Rows of lengths, with hashes of the prompt's blocks and with conversations where the file has them."""
    unit = UNITS[source.config.time_unit or "ms"]
    arrival, delay = TimeField("timestamp", unit, required=False), TimeField("delay", unit, required=False)
    tool_wait = TimeField("tool_wait_ms", "ms", required=False)
    delay_ms = TimeField("delay_ms", "ms", required=False)
    inputs, outputs = IntField("input_length", minimum=0), IntField("output_length", minimum=0)
    arrival.aliases = ("created_time",)
    inputs.aliases, outputs.aliases = ("input_tokens",), ("output_tokens",)
    hashes, waits = HashesField("hash_ids"), WaitsField("wait_for")
    rows = RowFields(session=NameField("session_id"), request_id=IdField("request_id"))
    named = {"arrival_s": arrival, "input_tokens": inputs, "output_tokens": outputs, "delay": delay}
    named |= {"delay_ms": delay_ms, "tool_wait_ms": tool_wait, "hash_ids": hashes, "wait_for": waits} | rows.named()
    del named["prefix_group"], named["prefix_tokens"]  # the hashes say what prompts share
    rename(named, source)
    with open_trace(source.path, source.problems) as stream:
        read_jsonl(stream, list(named.values()), source.problems, source.config.limit)
    source.problems.raise_if_any()
    trace = Trace(arrival.column(), inputs.column(), outputs.column())
    rows.put_into(trace, source)
    turns = _turns(trace)
    waited = sum(np.where(each.column() == NOT_GIVEN, 0, each.column()) for each in (delay, delay_ms, tool_wait))
    has_delay = (delay.column() != NOT_GIVEN) | (delay_ms.column() != NOT_GIVEN)
    _follow(trace, turns, has_delay, np.asarray(waited), _waited_for(trace, waits, source), source)
    _share_blocks(trace, hashes, source)
    if source.config.turns == "added":
        _add_up(trace, turns, source)
    return trace


def _turns(trace: Trace) -> _Turns:
    size = len(trace.arrival_ns)
    session = np.full(size, NO_GROUP, dtype=np.int64) if trace.session is None else trace.session.copy()
    before = np.full(size, NO_PARENT, dtype=np.int64)
    latest: dict[int, int] = {}
    for row in np.flatnonzero(session != NO_GROUP).tolist():
        number = int(session[row])
        before[row] = latest.get(number, NO_PARENT)
        latest[number] = row
    return _Turns(session, before)


def _waited_for(trace: Trace, waits: WaitsField, source: Source) -> IntColumn:
    """The row whose ``request_id`` a row names in ``wait_for``, or NO_PARENT."""
    column = waits.column()
    found = np.full(len(column), NO_PARENT, dtype=np.int64)
    names = list(waits.numbers)
    place = {name: row for row, name in enumerate(trace.request_ids or ())}
    for row in np.flatnonzero(column != NOT_GIVEN).tolist():
        name = names[int(column[row])]
        if place.get(name, row) >= row:
            why = "which is not before it in the file" if name in place else "which no row has"
            source.problems.add(f"request {row + 1} of the file: wait_for names the request_id {name!r}, {why}")
        else:
            found[row] = place[name]
    source.problems.raise_if_any()
    return found


def _follow(
    trace: Trace, turns: _Turns, has_delay: IntColumn, waited_ns: IntColumn, named: IntColumn, source: Source
) -> None:
    """Parents and arrivals: after the row that ``wait_for`` names, or after the turn before where a delay takes the
    place of a timestamp; else at the timestamp."""
    is_dated = trace.arrival_ns != NOT_GIVEN
    parent = np.where(has_delay | ~is_dated, turns.before, NO_PARENT)
    parent = np.where(named != NO_PARENT, named, parent)
    alone = parent == NO_PARENT
    for row in np.flatnonzero(alone & ~is_dated).tolist():
        source.problems.add(
            f"request {row + 1} of the file: neither a timestamp nor a turn before it in its session_id, so nothing "
            "says when it comes"
        )
    source.problems.raise_if_any()
    if np.any(alone & (waited_ns > 0)):
        count = int(np.count_nonzero(alone & (waited_ns > 0)))
        source.notes.append(f"{source.name}: {count:,} requests have a delay but follow none; they come when dated")
    trace.arrival_ns = np.where(alone, trace.arrival_ns, waited_ns)
    trace.parent = None if np.all(alone) else parent


# --- what prompts share --------------------------------------------------------------------------


def _share_blocks(trace: Trace, hashes: HashesField, source: Source) -> None:
    """Segments of a block for each hash; a trace without any hash shares nothing."""
    counts = np.frombuffer(hashes.counts, dtype=np.int64) if hashes.counts else np.empty(0, dtype=np.int64)
    ids, block_tokens = hashes.column(), source.config.block_size or BLOCK_TOKENS
    if not np.any(counts):
        source.notes.append(f"{source.name}: no hash_ids: what prompts share is not known, and counts as nothing")
        return
    without = int(np.count_nonzero((counts == 0) & (trace.input_tokens > 0)))
    if without:
        source.notes.append(
            f"{source.name}: {without:,} of {len(counts):,} requests have no hash_ids and share nothing"
        )
    _check_counts(trace, counts, block_tokens, source)
    if int(ids.max()) >= 1 << 40:
        ids = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    row_of = np.repeat(np.arange(len(counts)), counts)
    block = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = np.minimum((block + 1) * block_tokens, trace.input_tokens[row_of])
    chained = chain(ids, block)
    if chained is not ids:
        source.notes.append(
            f"{source.name}: some hash_ids follow different ones; such a block counts as another content each time, as "
            "chained hashes have it"
        )
    trace.segments = Segments(counts, chained, ends)


def _check_counts(trace: Trace, counts: IntColumn, block_tokens: int, source: Source) -> None:
    """A hash for each block of a prompt, and no more."""
    expected = -(-trace.input_tokens // block_tokens)
    wrong = np.flatnonzero((counts != expected) & (counts > 0) & (trace.input_tokens > 0))
    if not len(wrong):
        return
    fits = _block_sizes_that_fit(trace.input_tokens, counts)
    row = int(wrong[0])
    more = f", and {len(wrong) - 1:,} more likewise" if len(wrong) > 1 else ""
    source.problems.add(
        f"request {row + 1} of the file: expected {expected[row]} hash_ids (one per {block_tokens} tokens of its "
        f"input_length {trace.input_tokens[row]}), found {counts[row]}{more}{fits}"
    )
    source.problems.raise_if_any()


def _block_sizes_that_fit(inputs: IntColumn, counts: IntColumn) -> str:
    """Name the block sizes with which every row has a hash for each of its blocks.

    Example: 20 tokens in 2 blocks are blocks of 10 to 19 tokens.
    """
    several = (counts > 0) & (inputs > 0)
    inputs, counts = inputs[several], counts[several]
    low = int((-(-inputs // counts)).max())
    bounded = counts > 1
    high = int((-(-inputs[bounded] // (counts[bounded] - 1)) - 1).min()) if np.any(bounded) else low
    if low > high:
        return "; no block size fits all requests"
    sizes = f"{low}" if low == high else f"{low} to {high}"
    return f"; all requests fit workload.trace.block_size {sizes}"


def chain(ids: IntColumn, block: IntColumn) -> IntColumn:
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


def _add_up(trace: Trace, turns: _Turns, source: Source) -> None:
    """Make each turn's prompt the whole conversation: earlier prompts and outputs, then its own.

    Of the hashes those of the first turn stay: what follows an output is the conversation's own.
    """
    failed = (trace.input_tokens == 0) | (trace.output_tokens == 0)
    first = np.arange(len(failed))
    told = np.where(
        failed, 0, trace.input_tokens + trace.output_tokens
    )  # up to a row's end; a failed turn adds nothing
    inputs = trace.input_tokens.copy()
    for row in np.flatnonzero(turns.before != NO_PARENT).tolist():
        before = int(turns.before[row])
        first[row] = first[before]
        told[row] += told[before]
        inputs[row] += told[before]
    trace.input_tokens = np.where(failed, 0, inputs)
    if trace.segments is None:
        return
    old = trace.segments
    starts = np.cumsum(old.count) - old.count
    counts = old.count[first]
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    pick = np.repeat(starts[first], counts) + within
    if np.any((turns.before != NO_PARENT) & (old.count > 0)):
        source.notes.append(f"{source.name}: hash_ids of later turns are not used: what follows an output is its own")
    trace.segments = Segments(counts, old.content_id[pick], old.end_tokens[pick])
