"""Traces that are tables, a row per request: Azure, BurstGPT, ServeGen, and this project's own.

Sources of the formats, by repository and file:

- Azure 2023, 2024, 2025 (LMM): Azure/AzurePublicDataset, ``AzureLLMInferenceDataset2023.md`` (``...2024.md``,
  ``AzureLMMInferenceDataset2025.md``): ``TIMESTAMP``, ``ContextTokens``, ``GeneratedTokens``, of the LMM trace also
  ``NumImages``.
- BurstGPT: HPMLL/BurstGPT, ``README.md``: ``Timestamp`` in seconds from the first day's midnight, ``Request tokens``,
  ``Response tokens`` (0 where a request failed), ``Model``, ``Total tokens``, ``Log Type``.
- ServeGen: alibaba/ServeGen, ``servegen/construct.py``: a generated ``Request`` has ``timestamp`` in seconds and, in
  ``data``, ``input_tokens`` (``text_tokens`` of the multimodal ones, beside lists ``image_tokens``, ``audio_tokens``,
  ``video_tokens``) and ``output_tokens``. ``data/offline/README.md``: batch tasks with ``input_length`` and
  ``output_length``, no arrivals, because a task is submitted as a whole.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.workload.table import NO_GROUP, NO_HINT, IntColumn
from sim.workload.trace_fields import (
    NOT_GIVEN,
    Field,
    IdField,
    IntField,
    MediaField,
    NameField,
    TimeField,
    TimestampField,
)
from sim.workload.trace_files import looks_like_json, nearest_name, open_trace, read_csv, read_jsonl
from sim.workload.trace_table import Segments, Source, Trace

UNITS = {"s": "seconds", "ms": "ms", "us": "us", "ns": "ns"}
"""Values of ``time_unit``, and what messages call them."""


@dataclass(slots=True)
class RowFields:
    """Columns that any table may have beside arrivals and lengths, under these names."""

    request_id: IdField = field(default_factory=lambda: IdField("request_id"))
    priority: IntField = field(default_factory=lambda: IntField("priority", required=False, minimum=None))
    tenant: NameField = field(default_factory=lambda: NameField("tenant"))
    tier: NameField = field(default_factory=lambda: NameField("tier"))
    class_: NameField = field(default_factory=lambda: NameField("class"))
    deadline_s: TimeField = field(default_factory=lambda: TimeField("deadline_s", "seconds", required=False))
    prefix_group: NameField = field(default_factory=lambda: NameField("prefix_group"))
    prefix_tokens: IntField = field(default_factory=lambda: IntField("prefix_tokens", required=False, minimum=0))
    session: NameField = field(default_factory=lambda: NameField("session"))
    expected: IntField = field(default_factory=lambda: IntField("expected_output_tokens", required=False))
    lora: NameField = field(default_factory=lambda: NameField("lora"))
    model: NameField = field(default_factory=lambda: NameField("model"))

    def named(self) -> dict[str, Field]:
        """By the names that ``columns`` knows them by."""
        return {
            "request_id": self.request_id,
            "priority": self.priority,
            "tenant": self.tenant,
            "tier": self.tier,
            "class": self.class_,
            "deadline_s": self.deadline_s,
            "prefix_group": self.prefix_group,
            "prefix_tokens": self.prefix_tokens,
            "session": self.session,
            "expected_output_tokens": self.expected,
            "lora": self.lora,
            "model": self.model,
        }

    def put_into(self, trace: Trace, source: Source) -> None:
        """Give ``trace`` the columns that its file has."""
        if self.model.numbers:
            reason = "every replica serves the engine's one model"
            source.notes.append(f"{source.name}: the column `{self.model.name}` is not used: {reason}")
        trace.lora, trace.lora_names = _if_any(self.lora.column()), list(self.lora.numbers)
        trace.request_ids = self.request_id.texts if any(self.request_id.texts) else None
        trace.priority = _if_any(self.priority.column())
        trace.tenant, trace.tenant_names = _if_any(self.tenant.column()), list(self.tenant.numbers)
        trace.tier, trace.tier_names = _if_any(self.tier.column()), list(self.tier.numbers)
        trace.class_, trace.class_names = _if_any(self.class_.column()), list(self.class_.numbers)
        trace.deadline_ns = _if_any(self.deadline_s.column())
        trace.session = _or_else(self.session.column(), NO_GROUP)
        trace.expected_output_tokens = _or_else(self.expected.column(), NO_HINT)


def rename(fields: dict[str, Field], source: Source) -> None:
    """Give fields the names that the file has for them (``columns``); a format's own name means the same field."""
    by_name = fields | {name: each for each in fields.values() for name in each.names}
    for name, theirs in (source.config.columns or {}).items():
        if name not in by_name:
            hint = f"; did you mean {near}?" if (near := nearest_name(name, by_name)) else ""
            if theirs in by_name:
                hint = f"; the file's name stands on the right: write `{theirs}: {name}`"
            source.problems.add(f"workload.trace.columns: unknown name {name!r}{hint} (known: {', '.join(by_name)})")
            continue
        by_name[name].name, by_name[name].aliases = theirs, ()
    source.problems.raise_if_any()


def read_azure(source: Source) -> Trace:
    """Azure's LLM inference traces of 2023 and 2024, and its LMM trace, whose context tokens are text."""
    if source.config.time_unit is not None:
        source.problems.add("workload.trace.time_unit: Azure's TIMESTAMP is a date and time; leave the key out")
        source.problems.raise_if_any()
    arrival, images = TimestampField("TIMESTAMP"), MediaField("NumImages", required=False)
    inputs, outputs = IntField("ContextTokens", minimum=0), IntField("GeneratedTokens", minimum=0)
    trace = _table(source, arrival, inputs, outputs, counted=images)
    trace.arrival_ns = trace.arrival_ns - trace.arrival_ns.min(initial=2**63 - 1)
    return trace


def read_burstgpt(source: Source) -> Trace:
    """BurstGPT's CSV."""
    arrival = TimeField("Timestamp", UNITS[source.config.time_unit or "s"])
    rows = RowFields(model=NameField("Model"))
    inputs, outputs = IntField("Request tokens", minimum=0), IntField("Response tokens", minimum=0)
    return _table(source, arrival, inputs, outputs, rows=rows)


def read_servegen(source: Source) -> Trace:
    """Requests that ServeGen generated, as CSV or JSONL, or its offline batch tasks."""
    _refuse_client_table(source)
    arrival = TimeField("timestamp", UNITS[source.config.time_unit or "s"], required=False)
    arrival.aliases = ("arrival_s",)
    inputs, outputs = IntField("input_tokens", minimum=0), IntField("output_tokens", minimum=0)
    inputs.aliases, outputs.aliases = ("text_tokens", "input_length"), ("output_length",)
    media = [MediaField(f"{kind}_tokens", required=False) for kind in ("image", "audio", "video")]
    images = MediaField("img_ids", required=False)
    trace = _table(source, arrival, inputs, outputs, *media, images, unfold="data")
    given = trace.arrival_ns != NOT_GIVEN
    if not np.any(given):
        trace.arrival_ns = np.zeros_like(trace.arrival_ns)
        source.notes.append(f"{source.name}: no timestamps, as in ServeGen's batch tasks: all requests arrive at once")
    for row in np.flatnonzero(~given).tolist() if np.any(given) else ():
        source.problems.add(f"request {row + 1} of the file: no timestamp, and others have one")
    return trace


def _refuse_client_table(source: Source) -> None:
    """Refuse ServeGen's ``chunk-<i>-trace.csv``, which has no header: rates of one client by window, no requests."""
    with open_trace(source.path, source.problems) as stream:
        cells = next(csv.reader([stream.readline(4096)]), [])
    is_table = len(cells) == 6 and cells[3] in ("Gamma", "Weibull", "")
    if is_table and all(cell.replace(".", "").replace("-", "").isdigit() for cell in cells[:3]):
        source.problems.add(
            "a table of one client's rates (ServeGen's chunk-<i>-trace.csv), not of requests: draw requests with "
            "ServeGen's generate_workload, and write timestamp, input_tokens and output_tokens of each to a CSV file",
            1,
        )
        source.problems.raise_if_any()


def read_generic(source: Source) -> Trace:
    """This project's CSV or JSONL. A BurstGPT or Azure file is read as what it is."""
    other = None if source.config.columns else _other_format(source)
    if other is not None:
        source.notes.append(f"{source.name}: read as format {other}, which its columns are of")
        source.problems.trace_format = other
        return OTHERS[other][1](source)
    arrival = TimeField("arrival_s", UNITS[source.config.time_unit or "s"])
    return _table(source, arrival, IntField("input_tokens", minimum=0), IntField("output_tokens", minimum=0))


OTHERS: dict[str, tuple[tuple[str, ...], Callable[[Source], Trace]]] = {
    "burstgpt": (("Timestamp", "Request tokens", "Response tokens"), read_burstgpt),
    "azure": (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), read_azure),
}
"""Formats that a file which is said to be generic is known by, with the columns that they need."""


def _other_format(source: Source) -> str | None:
    """The one of ``OTHERS`` that the file's first line is a header of."""
    with open_trace(source.path, source.problems) as stream:
        if looks_like_json(stream):
            return None
        header = [name.strip() for name in next(csv.reader([stream.readline(4096)]), [])]
    return next((name for name, (needed, _) in OTHERS.items() if {*needed} <= {*header}), None)


def _table(
    source: Source,
    arrival: Field,
    inputs: IntField,
    outputs: IntField,
    *media: MediaField,
    rows: RowFields | None = None,
    unfold: str | None = None,
    counted: MediaField | None = None,
) -> Trace:
    """Read a CSV file with a header, or an object per line, into these fields; ``counted``: of images."""
    rows = rows or RowFields()
    named: dict[str, Field] = {"arrival_s": arrival, "input_tokens": inputs, "output_tokens": outputs, **rows.named()}
    named |= {each.name: each for each in (*media, *([counted] if counted else ()))}
    rename(named, source)
    fields, problems, limit = list(named.values()), source.problems, source.config.limit
    with open_trace(source.path, problems) as stream:
        if looks_like_json(stream):
            read_jsonl(stream, fields, problems, limit, unfold)
        else:
            read_csv(stream, fields, problems, limit)
    problems.raise_if_any()
    trace = Trace(_filled(arrival.column(), inputs.size()), inputs.column(), outputs.column())
    _refuse_media(media, len(trace.input_tokens), source)
    if counted is not None and np.any(counted.column()):
        trace.num_images = counted.column()
    rows.put_into(trace, source)
    _share_prefixes(trace, rows.prefix_group.column(), rows.prefix_tokens.column(), source)
    return trace


def _filled(column: IntColumn, size: int) -> IntColumn:
    """A column with nothing in it where the file has none."""
    return column if len(column) else np.full(size, NOT_GIVEN, dtype=np.int64)


def _refuse_media(media: Sequence[MediaField], requests: int, source: Source) -> None:
    for each in media:
        count = int(np.count_nonzero(each.column()))
        if count:
            source.problems.add(
                f"{each.name}: {count:,} of {requests:,} requests have images, sound or video, which are not modelled; "
                "keep the rows without in a file of their own"
            )
    source.problems.raise_if_any()


def _if_any(column: IntColumn) -> IntColumn | None:
    """The column, or None where no row gives it."""
    return column if np.any(column != NOT_GIVEN) else None


def _or_else(column: IntColumn, default: int) -> IntColumn | None:
    """The column with a default where a row does not give it, or None where no row does."""
    if _if_any(column) is None:
        return None
    column[column == NOT_GIVEN] = default
    return column


def _share_prefixes(trace: Trace, group: IntColumn, tokens: IntColumn, source: Source) -> None:
    """Segments from ``prefix_group`` and ``prefix_tokens``: both or neither, at most the prompt."""
    group, tokens = (_filled(column, len(trace.arrival_ns)) for column in (group, tokens))
    for rows, missing in (
        (np.flatnonzero((group != NOT_GIVEN) & (tokens == NOT_GIVEN)), "prefix_group without prefix_tokens"),
        (np.flatnonzero((group == NOT_GIVEN) & (tokens > 0)), "prefix_tokens without prefix_group"),
    ):
        for row in rows.tolist():
            source.problems.add(f"request {row + 1} of the file: {missing}; give both or neither")
    shared = (group != NOT_GIVEN) & (tokens > 0)
    if np.any(shared):
        ends = np.minimum(tokens, trace.input_tokens)
        trace.segments = Segments(shared.astype(np.int64), group[shared], ends[shared])
