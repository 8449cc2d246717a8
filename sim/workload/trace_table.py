"""A trace as columns, whatever format it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sim.scenario.schema import TraceConfig
from sim.workload.table import NO_PARENT, IntColumn
from sim.workload.trace_files import TraceProblems


@dataclass(slots=True)
class Source:
    """A trace file that is being read."""

    path: Path
    config: TraceConfig
    problems: TraceProblems
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What notes call the file."""
        return self.path.name


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
    """Of a row with a parent, how long after the parent's end it arrives."""
    input_tokens: IntColumn
    output_tokens: IntColumn
    parent: IntColumn | None = None
    """Row before it whose end a row waits for, or NO_PARENT."""
    priority: IntColumn | None = None
    """NOT_GIVEN where the cell is empty."""
    tenant: IntColumn | None = None
    """Index into ``tenant_names``, or NOT_GIVEN."""
    tenant_names: list[str] = field(default_factory=list)
    tier: IntColumn | None = None
    """Index into ``tier_names``, or NOT_GIVEN."""
    tier_names: list[str] = field(default_factory=list)
    class_: IntColumn | None = None
    """Index into ``class_names``, or NOT_GIVEN."""
    class_names: list[str] = field(default_factory=list)
    lora: IntColumn | None = None
    """Index into ``lora_names``, or NOT_GIVEN."""
    lora_names: list[str] = field(default_factory=list)
    num_images: IntColumn | None = None
    """Images of each row, whose places ``input_tokens`` does not count."""
    deadline_ns: IntColumn | None = None
    """Time allowed from arrival to end, or NOT_GIVEN."""
    session: IntColumn | None = None
    """Conversation number from 0, or NO_GROUP."""
    expected_output_tokens: IntColumn | None = None
    segments: Segments | None = None
    request_ids: list[str] | None = None
    """Empty text where a row has none."""
    notes: list[str] = field(default_factory=list)

    def root_ns(self) -> IntColumn:
        """Arrival of the row that each row follows, by way of others or at once; its own where it follows none."""
        if self.parent is None:
            return self.arrival_ns
        place = np.arange(len(self.parent))
        root = np.where(self.parent == NO_PARENT, place, self.parent)
        for _ in range(len(self.parent).bit_length()):
            root = root[root]
        return self.arrival_ns[root]

    def take(self, rows: IntColumn) -> None:
        """Keep these rows, in this order; a row that is kept has its parent kept too."""
        position = np.full(len(self.arrival_ns), NO_PARENT, dtype=np.int64)
        position[rows] = np.arange(len(rows))
        for name in COLUMNS:
            column = getattr(self, name)
            setattr(self, name, None if column is None else column[rows])
        if self.parent is not None:
            self.parent = np.where(self.parent == NO_PARENT, NO_PARENT, position[self.parent])
        if self.request_ids is not None:
            self.request_ids = [self.request_ids[row] for row in rows.tolist()]
        if self.segments is not None:
            old = self.segments
            pick = segments_of(rows, old.count)
            self.segments = Segments(old.count[rows], old.content_id[pick], old.end_tokens[pick])


COLUMNS = (
    *("arrival_ns", "input_tokens", "output_tokens", "parent", "priority", "tenant", "tier", "class_", "deadline_ns"),
    *("session", "expected_output_tokens", "lora", "num_images"),
)
"""Columns of a ``Trace`` with a value per row."""


def segments_of(rows: IntColumn, counts: IntColumn) -> IntColumn:
    """Where the segments of ``rows`` lie in a table whose row i has ``counts[i]`` segments, row after row."""
    picked = counts[rows]
    first = (np.cumsum(counts) - counts)[rows]
    within = np.arange(int(picked.sum())) - np.repeat(np.cumsum(picked) - picked, picked)
    places: IntColumn = np.repeat(first, picked) + within
    return places
