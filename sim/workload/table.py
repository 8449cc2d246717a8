"""The workload as columns: one row per request, in arrival order where arrivals are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.int64]

NO_PARENT = -1
NO_DEADLINE = -1
NO_HINT = -1
NO_GROUP = -1
NO_LORA = 0


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """Images of all rows, one row's after the other's."""

    FIELDS: ClassVar[tuple[str, ...]] = ("start", "num_tokens", "num_embeds", "content", "num_before")
    """First place in the prompt, places, embeddings, which image, and places before the first embedding."""
    count: IntColumn
    """Images of each row."""
    values: IntColumn
    """Shape (images, fields)."""

    @classmethod
    def none(cls, num_rows: int) -> ImageColumns:
        """Of rows without images."""
        return cls(np.zeros(num_rows, dtype=np.int64), np.empty((0, len(cls.FIELDS)), dtype=np.int64))

    def take(self, rows: IntColumn) -> ImageColumns:
        """Of these rows, in this order."""
        counts, first = self.count[rows], (np.cumsum(self.count) - self.count)[rows]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return ImageColumns(counts, self.values[np.repeat(first, counts) + within])

    def by_row(self) -> list[list[list[int]]]:
        """The fields of each image of each row."""
        ends = np.cumsum(self.count).tolist()
        values = self.values.tolist()
        return [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(slots=True)
class RequestTable:
    """All requests of a run. Row ``i`` is position ``i``: the total order of ties.

    Shared content is a list of segments per request (a CSR pair of arrays): the tokens
    ``[previous end, end)`` of the request have the content named by ``content_id``; tokens after
    the last segment (prompt and output) belong to this request alone unless ``session`` says
    otherwise. Two requests share a prefix exactly as far as their segments agree from token 0.
    """

    arrival_ns: IntColumn
    """Instant of arrival; for a row with a parent, the think time after the parent's end."""
    input_tokens: IntColumn
    output_tokens: IntColumn
    """True output length. Only the engine and the exact predictor may read it."""
    max_tokens: IntColumn
    """What the client asks for at most; equal to ``output_tokens`` unless the workload says more."""
    priority: IntColumn
    class_index: IntColumn
    """Index into ``classes``."""
    parent: IntColumn
    """Row whose end releases this one (multi-turn, closed loop); NO_PARENT = arrives by itself."""
    deadline_ns: IntColumn
    """Time allowed from arrival to end; NO_DEADLINE = none."""
    expected_output_tokens: IntColumn
    """The client's own hint; NO_HINT = none."""
    session: IntColumn
    """Conversation number: rows of one session share ALL their content position by position
    (a later turn's prompt starts with the earlier turns' prompts and outputs); NO_GROUP = none."""
    segment_offsets: IntColumn
    """Shape (n + 1,): row i's segments are ``[segment_offsets[i], segment_offsets[i + 1])``."""
    segment_content_id: IntColumn
    segment_end_tokens: IntColumn
    classes: list[ClassInfo]
    request_ids: list[str] | None = None
    """Ids given by a trace; None = the position as a decimal string."""
    closed_loop_concurrency: int | None = None
    """Closed loop: rows beyond the first this many are released one by one, each by the next end of
    any request, ``arrival_ns`` (think time) later. ``parent`` is then NO_PARENT everywhere."""
    release_until_ns: int | None = None
    """Closed loop with a duration: nothing is released at or after this instant; rows left over then
    were never part of the run. None = every row is released."""
    sender: IntColumn | None = None
    """Position in ``sender_caps`` of what sends a row; NO_GROUP = sent when it is due. None = all of them are."""
    sender_caps: tuple[int, ...] = ()
    """Requests that each sender has under way at most; one that is due beyond that waits until another has ended."""
    lora: IntColumn | None = None
    """Number of each row's LoRA adapter, from 1 on; NO_LORA = the model itself. None = no row has one."""
    loras: tuple[str, ...] = ()
    """Names of the adapters: number 1 is the first."""
    images: ImageColumns | None = None
    """Images of the prompts, whose places ``input_tokens`` counts; None = no row has any."""
    prompt: IntColumn | None = None
    """Number of the prompt that a row is an output of: rows of one prompt follow each other. None = one row each."""
    notes: list[str] = field(default_factory=list)
    """What the reader of the results should know (for example settings that had no effect)."""

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def prompt_numbers(self) -> IntColumn:
        """The number of each row's prompt."""
        return np.arange(len(self)) if self.prompt is None else self.prompt

    def children(self) -> dict[int, list[int]]:
        """The rows that wait for the end of a row, by that row."""
        found: dict[int, list[int]] = {}
        for row in np.flatnonzero(self.parent != NO_PARENT).tolist():
            found.setdefault(int(self.parent[row]), []).append(row)
        return found

    def request_id(self, row: int) -> str:
        """The id of a row, as written in every output."""
        return str(row) if self.request_ids is None else self.request_ids[row]


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """What all requests of one workload class (or trace tenant) have in common."""

    name: str
    tenant: str
    tier: str
    slo: dict[str, float] | None = None
    """The class's own SLO, by metric name, in ms; None = the scenario's."""
    num_outputs: int = 1
    """Outputs of each prompt (a class's ``n``)."""
    patience_ns: int | None = None
    """From a request's arrival until its client leaves, unless it has its last token by then; None = it waits."""
