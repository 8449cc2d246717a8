"""Rows of one class, before the classes are merged: lengths, shared prefixes, conversations, traces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sim.errors import InputError
from sim.seeds import rng
from sim.workload.arrivals import MAX_REQUESTS
from sim.workload.lengths import draw_lengths
from sim.workload.presets import draw_preset_lengths
from sim.workload.prompt_images import DrawnImages, ImagePlaces, draw_images, num_contents, placed, places_of
from sim.workload.table import NO_DEADLINE, NO_GROUP, NO_HINT, NO_LORA, NO_PARENT, ClassInfo, ImageColumns, IntColumn
from sim.workload.trace_classes import trace_classes
from sim.workload.trace_fields import NOT_GIVEN
from sim.workload.trace_table import Trace
from sim.workload.traces import read_trace
from sim.workload.traffic_plan import ClassPlan

NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class Numbering:
    """Hands out content ids and conversation numbers, each once in a workload."""

    next_content: int = 0
    next_session: int = 0
    next_image: int = 0
    owners: dict[str, int] = field(default_factory=dict)
    serves_loras: bool = True
    loras: dict[str, int] = field(default_factory=dict)
    """Number of each LoRA adapter by name."""

    def content(self, count: int, owner: str | None = None) -> int:
        """First of ``count`` new content ids; the same again for the same owner."""
        if owner is not None and owner in self.owners:
            return self.owners[owner]
        first = self.next_content
        self.next_content += count
        if owner is not None:
            self.owners[owner] = first
        return first

    def lora(self, name: str) -> int:
        """The number of the adapter of that name, from 1 on."""
        return self.loras.setdefault(name, len(self.loras) + 1)

    def sessions(self, count: int) -> int:
        """First of ``count`` new conversation numbers."""
        first = self.next_session
        self.next_session += count
        return first


@dataclass(slots=True)
class Rows:
    """The columns of ``RequestTable`` for one class or trace, and where each row belongs among the others'."""

    name: str
    classes: list[ClassInfo]
    root_ns: IntColumn
    """Arrival of the conversation's first request: what rows are merged by."""
    root_index: IntColumn
    """Number of that arrival in its process."""
    arrival_ns: IntColumn
    input_tokens: IntColumn
    output_tokens: IntColumn
    max_tokens: IntColumn
    priority: IntColumn
    class_index: IntColumn
    parent: IntColumn
    deadline_ns: IntColumn
    expected_output_tokens: IntColumn
    session: IntColumn
    lora: IntColumn
    segment_count: IntColumn
    segment_content_id: IntColumn
    segment_end_tokens: IntColumn
    request_ids: list[str] | None = None
    images: ImageColumns | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Turns:
    """Conversations flattened: row by row, one conversation after the other."""

    conversation: IntColumn
    turn: IntColumn
    input_tokens: IntColumn
    output_tokens: IntColumn
    max_tokens: IntColumn
    first_input: IntColumn
    """Text of the conversation's first turn, per row."""
    notes: list[str]
    images: DrawnImages | None = None


def generated_rows(
    plan: ClassPlan,
    seed: int,
    arrival_ns: IntColumn,
    root_ns: IntColumn,
    root_index: IntColumn,
    numbering: Numbering,
    limit: int | None,
    max_model_len: int | None,
    image: ImagePlaces | None = None,
) -> Rows:
    """The first ``limit`` requests of the conversations that open at ``arrival_ns``.

    Without ``sessions`` every conversation has one turn. ``limit`` counts requests, so the last
    conversation may be shortened. Turns whose prompt, with one token of output, would exceed
    ``max_model_len`` are not sent, nor are those after them. ``image``: an image of the engine's model.
    """
    turns = _turns(plan, seed, len(arrival_ns), limit, max_model_len, image)
    n = len(turns.turn)
    later = turns.turn > 0
    sessions = plan.sessions
    think_ns = round(sessions.think_time_s * NS_PER_S) if sessions is not None else 0
    session = np.full(n, NO_GROUP, dtype=np.int64)
    if sessions is not None:
        session = numbering.sessions(len(arrival_ns)) + turns.conversation
    rows = Rows(
        name=plan.name,
        classes=[plan.info],
        root_ns=root_ns[turns.conversation],
        root_index=root_index[turns.conversation],
        arrival_ns=np.where(later, think_ns, arrival_ns[turns.conversation]),
        input_tokens=turns.input_tokens,
        output_tokens=turns.output_tokens,
        max_tokens=turns.max_tokens,
        priority=np.full(n, plan.priority, dtype=np.int64),
        class_index=np.zeros(n, dtype=np.int64),
        parent=np.where(later, np.arange(n) - 1, NO_PARENT),
        deadline_ns=_deadlines(plan, n),
        expected_output_tokens=np.full(n, NO_HINT, dtype=np.int64),
        session=session,
        lora=_draw_loras(plan, seed, turns.conversation, numbering),
        segment_count=np.zeros(n, dtype=np.int64),
        segment_content_id=np.empty(0, dtype=np.int64),
        segment_end_tokens=np.empty(0, dtype=np.int64),
        notes=turns.notes,
    )
    if plan.prefix is not None:
        # A conversation opens with its prefix once; where the first prompt is shorter, the rest is not in it.
        _add_prefix(rows, plan, seed, turns.conversation, turns.first_input, numbering)
    if turns.images is not None:
        rows.images = placed(turns.images, rows.input_tokens, turns.turn, plan, seed, numbering.next_image)
        numbering.next_image += num_contents(turns.images, plan)
    return rows


def _draw_loras(plan: ClassPlan, seed: int, conversation: IntColumn, numbering: Numbering) -> IntColumn:
    """The adapter of each row: one name for all, or one of several for each conversation."""
    if plan.lora is None:
        return np.full(len(conversation), NO_LORA, dtype=np.int64)
    if isinstance(plan.lora, str):
        return np.full(len(conversation), numbering.lora(plan.lora), dtype=np.int64)
    numbers = np.array([numbering.lora(f"{plan.name}/{k + 1}") for k in range(plan.lora.adapters)], dtype=np.int64)
    weights = 1.0 / np.arange(1, len(numbers) + 1) ** plan.lora.skew
    cumulative = np.cumsum(weights)
    count = int(conversation[-1]) + 1 if len(conversation) else 0
    draws = rng(seed, "lora", plan.name).random(count) * cumulative[-1]
    chosen = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(numbers) - 1)
    drawn: IntColumn = numbers[chosen[conversation]]
    return drawn


def _trace_loras(own: IntColumn, trace: Trace, numbering: Numbering, notes: list[str]) -> IntColumn:
    """The adapter that each row of a trace names, else the class's ``own``."""
    if trace.lora is None:
        return own
    if not numbering.serves_loras:
        notes.append("the trace's adapters (`lora`) are not used: engine.enable_lora is off")
        return own
    numbers = np.array([NO_LORA, *map(numbering.lora, trace.lora_names)], dtype=np.int64)
    return np.where(trace.lora == NOT_GIVEN, own, numbers[np.maximum(trace.lora, -1) + 1])


def _deadlines(plan: ClassPlan, n: int) -> IntColumn:
    allowed = NO_DEADLINE if plan.deadline_s is None else round(plan.deadline_s * NS_PER_S)
    return np.full(n, allowed, dtype=np.int64)


def _add_prefix(
    rows: Rows, plan: ClassPlan, seed: int, conversation: IntColumn, first_input: IntColumn, numbering: Numbering
) -> None:
    """One shared segment per row: min(tokens, input) of the conversation's group."""
    if plan.prefix is None:
        return
    count = int(conversation[-1]) + 1 if len(conversation) else 0
    groups = rng(seed, "prefix", plan.name).integers(0, plan.prefix.groups, size=count, dtype=np.int64)
    rows.segment_count = np.ones(len(conversation), dtype=np.int64)
    rows.segment_content_id = numbering.content(plan.prefix.groups, plan.prefix_owner) + groups[conversation]
    rows.segment_end_tokens = np.minimum(first_input, plan.prefix.tokens)


def _turns(
    plan: ClassPlan,
    seed: int,
    conversations: int,
    limit: int | None,
    max_model_len: int | None,
    image: ImagePlaces | None,
) -> _Turns:
    """Draw conversations until ``limit`` rows are there; how many are drawn does not change their values."""
    if plan.sessions is None:
        counts = np.ones(conversations, dtype=np.int64)
    elif isinstance(plan.sessions.turns, int):
        counts = np.full(conversations, plan.sessions.turns, dtype=np.int64)
    else:
        counts = draw_lengths(plan.sessions.turns, rng(seed, "sessions", plan.name), conversations)
    if max_model_len is not None:
        # A turn adds two tokens at least, so that no prompt of a later turn than this fits.
        counts = np.minimum(counts, max_model_len // 2 + 1)
    opened = conversations
    if limit is not None:
        opened = min(conversations, int(np.searchsorted(np.cumsum(counts), limit)) + 1)
    while True:
        turns = _draw_turns(plan, seed, counts[:opened], limit, max_model_len, image)
        if opened == conversations or limit is None or len(turns.turn) >= limit:
            return turns
        opened = min(conversations, 2 * opened)


def _draw_turns(
    plan: ClassPlan,
    seed: int,
    counts: IntColumn,
    limit: int | None,
    max_model_len: int | None,
    image: ImagePlaces | None,
) -> _Turns:
    n = int(counts.sum())
    if n > MAX_REQUESTS:
        raise InputError(
            f"{plan.where}.sessions.turns: these conversations would have {n:,} requests; the limit is {MAX_REQUESTS:,}"
        )
    notes: list[str] = []
    text, output, max_tokens = draw_request_lengths(plan, seed, n, notes)
    images = draw_images(plan, seed, n, image)
    own = text if images is None else text + images.tokens
    conversation = np.repeat(np.arange(len(counts)), counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)
    turn = np.arange(n) - start
    if plan.sessions is None:
        return _Turns(conversation, turn, own, output, max_tokens, text, notes, images)
    before = np.cumsum(own + output) - (own + output)
    prompt = before - before[start] + own
    kept = np.arange(n)
    if max_model_len is not None:
        kept = np.flatnonzero((turn == 0) | (prompt < max_model_len))
    kept = kept[:limit]
    wanted = n if limit is None else min(n, limit)
    if len(kept) < wanted or (len(kept) and int(kept[-1]) >= wanted):
        notes.append(f"class {plan.name}: some conversations end early, at max_model_len ({max_model_len})")
    if images is not None:
        images = replace(images, counts=images.counts[kept])
    columns = (conversation[kept], turn[kept], prompt[kept], output[kept], max_tokens[kept], text[start][kept])
    return _Turns(*columns, notes, images)


def draw_request_lengths(
    plan: ClassPlan, seed: int, n: int, notes: list[str]
) -> tuple[IntColumn, IntColumn, IntColumn]:
    """Input, output and max_tokens of ``n`` requests; an output is never longer than its max_tokens."""
    input_gen, output_gen = rng(seed, "input_tokens", plan.name), rng(seed, "output_tokens", plan.name)
    if plan.preset is not None and (plan.input_tokens is None or plan.output_tokens is None):
        inputs, outputs = draw_preset_lengths(plan.preset, input_gen, output_gen, n)
        input_gen, output_gen = rng(seed, "input_tokens", plan.name), rng(seed, "output_tokens", plan.name)
    if plan.input_tokens is not None:
        inputs = draw_lengths(plan.input_tokens, input_gen, n)
    if plan.output_tokens is not None:
        outputs = draw_lengths(plan.output_tokens, output_gen, n)
    return inputs, *capped_outputs(plan, seed, outputs, notes)


def capped_outputs(plan: ClassPlan, seed: int, outputs: IntColumn, notes: list[str]) -> tuple[IntColumn, IntColumn]:
    """(outputs, max_tokens): what the client asks for at most ends an output that would be longer."""
    if plan.max_tokens is None:
        return outputs, outputs.copy()
    max_tokens = draw_lengths(plan.max_tokens, rng(seed, "max_tokens", plan.name), len(outputs))
    if np.any(outputs > max_tokens):
        notes.append(f"class {plan.name}: some outputs are cut short by max_tokens")
    return np.minimum(outputs, max_tokens), max_tokens


def trace_rows(
    plan: ClassPlan,
    seed: int,
    base_dir: Path,
    numbering: Numbering,
    only_class: bool,
    image: ImagePlaces | None = None,
) -> Rows:
    """The requests of a trace; the classes, tenants and tiers that it names become classes."""
    if plan.trace is None:
        raise ValueError("this class has no trace")
    trace = read_trace(plan.trace, base_dir)
    n = len(trace.arrival_ns)
    notes = list(trace.notes)
    outputs, max_tokens = capped_outputs(plan, seed, trace.output_tokens, notes)
    classes, class_index = trace_classes(plan, trace, only_class)
    none = np.full(n, NO_GROUP, dtype=np.int64)
    priority = np.full(n, plan.priority, dtype=np.int64)
    if trace.priority is not None:
        priority = np.where(trace.priority == NOT_GIVEN, plan.priority, trace.priority)
    deadline_ns = _deadlines(plan, n)
    if trace.deadline_ns is not None:
        deadline_ns = np.where(trace.deadline_ns == NOT_GIVEN, deadline_ns, trace.deadline_ns)
    session = none if trace.session is None else trace.session
    if trace.session is not None:
        first = numbering.sessions(int(session.max()) + 1)
        session = np.where(session == NO_GROUP, NO_GROUP, session + first)
    rows = Rows(
        name=plan.name,
        classes=classes,
        root_ns=trace.root_ns(),
        root_index=np.arange(n),
        arrival_ns=trace.arrival_ns,
        input_tokens=trace.input_tokens,
        output_tokens=outputs,
        max_tokens=max_tokens,
        priority=priority,
        class_index=class_index,
        parent=np.full(n, NO_PARENT, dtype=np.int64) if trace.parent is None else trace.parent,
        deadline_ns=deadline_ns,
        expected_output_tokens=none if trace.expected_output_tokens is None else trace.expected_output_tokens,
        session=session,
        lora=_trace_loras(_draw_loras(plan, seed, np.arange(n), numbering), trace, numbering, notes),
        segment_count=np.zeros(n, dtype=np.int64),
        segment_content_id=np.empty(0, dtype=np.int64),
        segment_end_tokens=np.empty(0, dtype=np.int64),
        request_ids=trace.request_ids,
        notes=notes,
    )
    if plan.sessions is not None:
        rows.notes.append(f"{plan.where}.sessions is not used: the trace says when its requests come")
    if trace.segments is not None:
        ids = trace.segments.content_id
        rows.segment_count, rows.segment_end_tokens = trace.segments.count, trace.segments.end_tokens
        rows.segment_content_id = ids + numbering.content(int(ids.max(initial=-1)) + 1)
        if plan.prefix is not None:
            rows.notes.append(f"{plan.where}.prefix is not used: the trace has shared prefixes of its own")
    elif plan.prefix is not None:
        _add_prefix(rows, plan, seed, np.arange(n), trace.input_tokens, numbering)
    images = _trace_images(plan, trace, seed, image)
    if images is not None:
        rows.input_tokens = rows.input_tokens + images.tokens
        first_turns = np.zeros(n, dtype=np.int64)
        rows.images = placed(images, rows.input_tokens, first_turns, plan, seed, numbering.next_image)
        numbering.next_image += num_contents(images, plan)
    return rows


def _trace_images(plan: ClassPlan, trace: Trace, seed: int, image: ImagePlaces | None) -> DrawnImages | None:
    """Images that the trace counts, else those of the workload."""
    if trace.num_images is None:
        images = draw_images(plan, seed, len(trace.arrival_ns), image)
    else:
        if plan.images is None and image is None:
            count, n = int(np.count_nonzero(trace.num_images)), len(trace.num_images)
            raise InputError(
                f"{plan.where}.trace: {count:,} of {n:,} requests have images (`NumImages`), and how many tokens "
                "one takes is not known; set engine.enable_images: true with a model that has a vision tower, and "
                "`workload.images: {tokens: ...}` where its config does not say it, or keep the rows without images in "
                "a file of their own"
            )
        images = DrawnImages(trace.num_images, places_of(plan, image))
    if images is not None and (trace.parent is not None or trace.session is not None):
        raise InputError(f"{plan.where}.images: images in the conversations of a trace are not modelled; remove them")
    return images
