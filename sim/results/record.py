"""The one recorder: the engine writes columns, everything else in ``sim.results`` reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.results.gaps import Gaps, Weighted
from sim.results.interruptions import (
    TURNING_COLUMNS,
    Interrupted,
    Turning,
    interruptions_of,
    no_interruptions,
    requeued_ns,
)
from sim.workload.table import RequestTable

IntColumn = npt.NDArray[np.int64]

ROWS_AT_ONCE = 1 << 19
"""Rows of steps that are read or written at a time, so that a long run stays small."""

NOT_YET = -1
"""An instant that never came (a rejected request has no first token)."""

TRIM_ROWS = 1024
"""Rows of steps or requests kept as Python integers before they are packed."""


class Status(IntEnum):
    """How a request ended. ``submitted`` is the sum of all of them."""

    COMPLETED = 0
    REJECTED = 1
    TIMED_OUT = 2
    FAILED = 3
    CANCELLED = 4


class StepRow(NamedTuple):
    """A step, or a run of identical steps, of one replica. It is written down when it has ended."""

    replica: int
    scheduled_ns: int  # instant of schedule() of the run's first step
    start_ns: int  # the accelerator starts on the run's first step
    end_ns: int  # the accelerator ends the run's last step
    num_steps: int  # steps in this run of identical batches (1 in the reference stepper)
    num_running: int
    num_waiting: int
    num_prefills: int
    num_prefill_tokens: int
    num_decodes: int  # per step
    decode_context_tokens: int  # of the run's first step; it grows by num_decodes each step
    prefill_context_tokens: int
    prefill_attention_pairs: int
    num_sampled: int
    gpu_ns: int  # accelerator time of the whole run
    host_ns: int  # host time of the whole run
    free_blocks: int  # right after scheduling the run's last step
    num_preempted: int
    num_seats: int  # seats held per step: running requests, finished ones kept by static batching included
    last_scheduled_ns: int  # instant of schedule() of the run's last step
    free_block_ns: int  # free blocks times nanoseconds, summed from scheduled_ns to last_scheduled_ns
    further: tuple[int, ...] = ()  # of the ``..._COLUMNS`` below, as the run has them


STEP_COLUMNS = StepRow._fields[:-1]

DECODE_COLUMNS = (
    *("replica", "scheduled_ns", "start_ns", "end_ns", "num_steps", "num_running", "num_waiting", "num_decodes"),
    *("decode_context_tokens", "gpu_ns", "host_ns", "free_blocks", "last_scheduled_ns", "free_block_ns"),
)
"""What is known of a run of steps in which requests decode and nothing else happens; ``STEP_COLUMNS`` follow."""

DRAFT_COLUMNS = (
    "num_draft_tokens",  # verified in the step
    "verify_attention_pairs",
)
"""Further columns of steps where there is speculative decoding."""
SWAP_COLUMNS = ("swap_bytes",)  # moved between GPU and host before the step
IMAGE_COLUMNS = ("num_images", "num_image_embeds", "image_attention_pairs")  # encoded before the step's layers
LORA_COLUMNS = ("num_loras", "num_lora_tokens", "num_lora_loads", "lora_load_bytes", "num_lora_reads")
"""Further columns of steps where requests can be swapped."""

GROUP_COLUMNS = (
    "padded_tokens",  # tokens of this rank's matrices: its own, or the largest rank's rounded up to a CUDA graph
    "group_tokens",  # tokens that go through the experts: of all ranks, padding included
    "own_ns",  # accelerator time of what this rank computes for itself
)
"""Further columns of steps where ranks step together (an MoE model under data parallelism)."""


class AttemptRow(NamedTuple):
    """One try of a request on one replica. It is written down when it ends, in whatever way."""

    row: int  # position in the workload
    attempt: int  # 1 for the first try
    status: int  # Status
    replica: int  # NOT_YET where none was chosen
    arrival_ns: int  # at the replica
    scheduled_ns: int  # first scheduled
    first_token_ns: int
    finish_ns: int  # the last token; NOT_YET unless completed
    end_ns: int  # when it left the replica, in whatever way; NOT_YET where it was refused
    output_tokens: int  # generated
    num_preemptions: int
    num_cached_tokens: int  # prompt tokens found in the prefix cache when first scheduled
    num_recomputed_tokens: int  # tokens computed again after preemptions (the recompute tax)


ATTEMPT_COLUMNS = AttemptRow._fields

REQUEST_COLUMNS = (
    "row",  # position in the workload
    "status",  # of the last attempt, as everything that is not said to be otherwise
    "replica",
    "arrival_ns",  # of the first attempt
    "scheduled_ns",
    "first_token_ns",
    "finish_ns",
    "output_tokens",
    "num_preemptions",  # over all attempts
    "num_cached_tokens",
    "num_recomputed_tokens",  # over all attempts
    "priority",
    "class_index",
    "input_tokens",
    "end_ns",
    "attempts",  # how many there were
    "requeued_ns",  # waited again after preemptions of the last attempt
)
"""A request follows from its attempts and the workload."""


class ColumnWriter:
    """Rows in, integer columns out. ``trim`` now and then turns rows into machine integers: a long run stays small."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._rows: list[int] = []
        self._chunks: list[npt.NDArray[np.int64]] = []
        self._num_in_chunks = 0
        self.append = self._rows.extend
        """One row, in the order of ``names``."""

    def __len__(self) -> int:
        return self._num_in_chunks + len(self._rows) // len(self.names)

    def trim(self, least_rows: int = TRIM_ROWS) -> None:
        """Pack the rows added since the last time, if there are enough of them."""
        num_rows = len(self._rows) // len(self.names)
        if num_rows >= max(least_rows, 1):
            packed = np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))
            self._chunks.append(np.ascontiguousarray(packed.reshape(num_rows, -1).T))
            self._num_in_chunks += num_rows
            self._rows.clear()

    def parts(self, name: str) -> list[IntColumn]:
        """One column of all rows, in parts."""
        self.trim(0)
        place = self.names.index(name)
        return [np.empty(0, dtype=np.int64), *(chunk[place] for chunk in self._chunks)]

    def clear(self) -> None:
        """Forget all rows."""
        self._rows.clear()
        self._chunks.clear()
        self._num_in_chunks = 0

    def take_columns(self) -> dict[str, IntColumn]:
        """All rows, by column name; the writer is empty afterwards."""
        self.trim(0)
        table = np.empty((len(self.names), self._num_in_chunks), dtype=np.int64)
        stop = self._num_in_chunks
        while self._chunks:
            chunk = self._chunks.pop()
            table[:, stop - chunk.shape[1] : stop] = chunk
            stop -= chunk.shape[1]
        self._num_in_chunks = 0
        return dict(zip(self.names, table, strict=True))


class DraftCounts:
    """What became of draft tokens, over all requests."""

    def __init__(self, num_speculative_tokens: int) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        self.num_verifications = 0
        """How often a request's drafts were verified."""
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.num_output_tokens = 0
        """Tokens that came out of those verifications: the accepted drafts, and one more each."""
        self.num_accepted_at = [0] * num_speculative_tokens
        """Accepted ones by position."""

    def add(self, num_drafts: int, num_accepted: int) -> None:
        """``num_drafts`` of one request were verified, the first ``num_accepted`` of them accepted."""
        self.num_verifications += 1
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        for position in range(num_accepted):
            self.num_accepted_at[position] += 1


class Recorder:
    """What happened, as it happens. One per run, shared by all replicas."""

    def __init__(self, *, shape_columns: tuple[str, ...] = (), is_lockstep: bool = False, num_classes: int = 1) -> None:
        """``shape_columns``: further columns of steps, which are fields of ``StepShape``; ``is_lockstep``: they have
        ``GROUP_COLUMNS`` too. ``num_classes``: of requests, whose gaps between tokens are told apart."""
        self.shape_columns = shape_columns
        self.drafts: DraftCounts | None = None
        further = (*shape_columns, *(GROUP_COLUMNS if is_lockstep else ()))
        self.steps = ColumnWriter((*STEP_COLUMNS, *further))
        self.decodes = ColumnWriter(DECODE_COLUMNS)
        self.attempts = ColumnWriter(ATTEMPT_COLUMNS)
        self.turnings = ColumnWriter(TURNING_COLUMNS)
        self.gaps = Gaps(num_classes)
        """Between tokens."""
        self.reasons: dict[int, str] = {}
        """Why a request that was not completed was not, by row."""

    def trim(self) -> None:
        """To be called now and then: keeps a long run small."""
        self.steps.trim()
        self.decodes.trim()
        self.attempts.trim()
        self.turnings.trim()
        self.gaps.trim()

    def step(self, row: StepRow) -> None:
        """A step has ended. Those of one replica come in the order in which they were scheduled."""
        *columns, further = row
        self.steps.append((*columns, *further))

    def itl_columns(self) -> tuple[IntColumn, IntColumn]:
        """Every distinct gap between tokens so far, ascending, and how often it came."""
        return self.gaps.of_all()

    def preempted(self, request: Interrupted, now_ns: int) -> None:
        """A running request is preempted, and waits again."""
        request.is_catching_up = False
        self.turnings.append((request.row, now_ns, Turning.PREEMPTED))

    def resumed(self, request: Interrupted, now_ns: int) -> None:
        """A preempted request is admitted again."""
        request.is_catching_up = True
        self.turnings.append((request.row, now_ns, Turning.RESUMED))

    def caught_up(self, request: Interrupted, now_ns: int) -> None:
        """A request that was preempted has its next token."""
        request.is_catching_up = False
        self.turnings.append((request.row, now_ns, Turning.CAUGHT_UP))

    def step_columns(self) -> dict[str, IntColumn]:
        """All steps by (instant, replica); once, at the end."""
        # Column by column: a run of a million requests has four million rows.
        steps, decodes = self.steps, self.decodes
        same = {"num_sampled": "num_decodes", "num_seats": "num_running"}
        num_decodes = len(decodes)

        def column(name: str) -> IntColumn:
            source = same.get(name, name)
            of_decodes = decodes.parts(source) if source in decodes.names else [np.zeros(num_decodes, dtype=np.int64)]
            return np.concatenate([*of_decodes, *steps.parts(name)])

        order = _order_of_scheduling({name: column(name) for name in ("scheduled_ns", "replica", "gpu_ns", "end_ns")})
        columns = {name: column(name)[order] for name in steps.names}
        steps.clear()
        decodes.clear()
        return columns

    def attempt_columns(self) -> dict[str, IntColumn]:
        """All attempts that ended, those of one request in order; once, at the end."""
        columns = self.attempts.take_columns()
        order = np.lexsort((columns["attempt"], columns["row"]))
        return {name: column[order] for name, column in columns.items()}

    def interruption_columns(self, attempts: Mapping[str, IntColumn]) -> dict[str, IntColumn]:
        """``INTERRUPTION_COLUMNS``; once, at the end. ``attempts`` as from ``attempt_columns``."""
        return interruptions_of(self.turnings.take_columns(), attempts)

    def end(self, attempt: AttemptRow, reason: str | None = None) -> None:
        """An attempt has ended; ``reason`` is why it was not completed."""
        self.attempts.append(attempt)
        if reason is not None:
            self.reasons[attempt.row] = reason


def requests_of(
    attempts: Mapping[str, IntColumn], workload: RequestTable, interruptions: Mapping[str, IntColumn]
) -> dict[str, IntColumn]:
    """``REQUEST_COLUMNS`` of all requests with an attempt, by row; ``attempts`` as from ``attempt_columns``,
    ``interruptions`` as from ``interruption_columns``."""
    row = attempts["row"]
    first = np.flatnonzero(np.append(True, row[1:] != row[:-1])) if len(row) else row
    last = np.append(first[1:], len(row))[: len(first)] - 1
    of_last = {name: attempts[name][last] for name in ATTEMPT_COLUMNS}
    chosen = of_last["row"]
    summed = ("num_preemptions", "num_recomputed_tokens")
    columns = {
        **of_last,
        **{name: np.add.reduceat(attempts[name], first) if len(first) else first for name in summed},
        "arrival_ns": attempts["arrival_ns"][first],
        "priority": workload.priority[chosen],
        "class_index": workload.class_index[chosen],
        "input_tokens": workload.input_tokens[chosen],
        "attempts": last - first + 1,
        "requeued_ns": requeued_ns(chosen, of_last["scheduled_ns"], interruptions),
    }
    return {name: columns[name] for name in REQUEST_COLUMNS}


def _order_of_scheduling(steps: dict[str, IntColumn]) -> IntColumn:
    """Rows by (instant, replica), those of one replica as it took them."""
    scheduled_ns = steps["scheduled_ns"]
    order = np.argsort(scheduled_ns, kind="stable")
    is_tied = np.append(False, np.diff(scheduled_ns[order]) == 0)
    tied = np.flatnonzero(is_tied | np.append(is_tied[1:], False))
    rows = order[tied]
    # At one instant, a replica whose host takes no time forms several batches; the last one may compute nothing.
    is_empty = steps["gpu_ns"][rows] == 0
    order[tied] = rows[np.lexsort((steps["end_ns"][rows], is_empty, steps["replica"][rows], scheduled_ns[rows]))]
    return order


@dataclass(slots=True)
class RunRecord:
    """A finished run, in integer nanoseconds, tokens and blocks. ``requests`` is sorted by row."""

    workload: RequestTable
    requests: dict[str, IntColumn]
    """``REQUEST_COLUMNS``."""
    steps: dict[str, IntColumn]
    itl_ns: IntColumn
    itl_weight: IntColumn
    itl_of_classes: list[Weighted]
    """The same for each class of the workload."""
    reasons: dict[int, str]
    """Why a request that was not completed was not, by row."""
    num_gpu_blocks: list[int]
    """Usable KV blocks of each replica."""
    block_size: int
    tokens_per_block: float
    """Tokens that a block holds of a request of any kind: fewer than ``block_size`` where layers of several groups take
    blocks of their own."""
    group_block_sizes: tuple[int, ...]
    """Tokens of a block in each block table of a request; a state has no places for tokens."""
    replica_models: list[str]
    gpus_per_replica: list[int]
    latency: dict[str, object]
    """``StepCost.describe()``."""
    notes: list[str]
    cpu_s: float
    """CPU seconds of the simulation itself (not of reading inputs or writing outputs)."""
    drafts: DraftCounts | None = None
    """Speculative decoding: what became of the drafts."""
    num_restarts: int = 0
    """How often a fast run met a state that only the reference knows, and was done anew."""
    data_parallel_size: int = 1
    """Replicas of one deployment: numbers of replicas go on from deployment to deployment."""
    reserved_tokens_per_request: int = 0
    """Contiguous KV: places that each request takes for its tokens, however few they are."""
    interruptions: dict[str, IntColumn] = field(default_factory=no_interruptions)
    """``INTERRUPTION_COLUMNS``, by row and instant."""
    terms: Callable[[Mapping[str, IntColumn]], dict[str, IntColumn]] | None = None
    """From rows of ``steps`` to nanoseconds by term of the step cost, where the latency model has terms."""
