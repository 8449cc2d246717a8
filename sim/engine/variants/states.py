"""Layers whose KV is one state of fixed size (Mamba, gated delta net): where states are made, kept and found again.

``MambaManager`` of ``vllm/v1/core/single_type_kv_cache_manager.py`` and ``_mamba_block_aligned_split`` of
``sched/scheduler.py`` (vLLM 0.32.0). Its ``mamba_cache_mode`` is ``align`` with a prefix cache, else ``none``: there is
no other. With ``none`` a request has one state. With ``align`` it has one more wherever it crosses the end of a block:
a state cannot be cut, so a prefix can go on only from where one was kept, and chunks of prompts end there.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.kv_cache import NULL_BLOCK
from sim.engine.request import Request
from sim.engine.variants.group_kinds import FullKind, IsCached
from sim.latency.kv_layout import KvGroup


class StateKind(FullKind):
    """See the module."""

    is_state = True

    def __init__(self, group: KvGroup, settings: SchedulerSettings) -> None:
        super().__init__(group, settings)
        self.retention = settings.prefix_cache_retention_interval
        self.alignment = group.checkpoint_alignment
        if not settings.enable_prefix_caching:
            self.block_size = settings.max_model_len
        depth = 2 if settings.async_scheduling else settings.pipeline_parallel_size
        self.most_blocks = 1 + depth if settings.enable_prefix_caching else 1

    def new_blocks(
        self, num_tokens: int, table_length: int, num_skipped: int = 0, *, has_checkpoint: bool = False
    ) -> int:
        """One, where a block is crossed, and one for a state in the middle of the chunk (``has_checkpoint``)."""
        return min(max(self.blocks_for(num_tokens) - table_length, 0), 1 + has_checkpoint)

    def num_skipped(self, num_tokens: int) -> int:
        return max(num_tokens - 1, 0) // self.block_size

    def tokens_to_skip(self, num_blocks: int) -> int:
        return num_blocks * self.block_size + 1

    def find(self, is_cached: IsCached, max_tokens: int) -> tuple[int, int]:
        for block in range(max_tokens // self.block_size - 1, -1, -1):
            if (block + 1) * self.block_size % self.lookup_tokens == 0 and is_cached(block):
                return block, block + 1
        return 0, 0

    def reachable(self, first: int, end: int, boundaries: Iterable[int]) -> Container[int]:
        if self.retention is None:
            return range(first, end)
        reached: set[int] = set()
        if self.retention:
            per_segment = self.retention // self.block_size
            if per_segment <= 1:
                return range(first, end)
            reached.update(i for i in range(first, end) if (i + 1) % per_segment == 0)
        lookup_tokens = self.lookup_tokens
        reached.update(tokens // lookup_tokens * lookup_tokens // self.block_size - 1 for tokens in boundaries)
        return reached

    def has_checkpoint(self, request: Request, table: Sequence[int], start: int, end: int) -> bool:
        """Whether the chunk ``[start, end)`` leaves a state in its middle, in a block of its own."""
        if self.alignment is None or (self.retention == 0 and end < prefill_end(request)):
            return False
        position = last_boundary(end, self.lookup_tokens)
        if not can_checkpoint(start, end, position, self.block_size, self.alignment):
            return False
        place = self.blocks_for(end) - 2
        return place >= 0 and (place >= len(table) or table[place] == NULL_BLOCK)


def last_boundary(num_tokens: int, step: int) -> int:
    """The last multiple of ``step`` that leaves at least one of ``num_tokens`` to compute."""
    return (num_tokens - 1) // step * step


def prefill_end(request: Request) -> int:
    """Tokens that are computed in chunks: the prompt, and after a preemption what had been generated."""
    return max(request.num_prompt_tokens, request.num_tokens - 1)


def can_checkpoint(start: int, end: int, position: int, block_size: int, alignment: int) -> bool:
    """Whether the kernel can write the state at ``position`` while it computes ``[start, end)``
    (``is_mamba_prefill_checkpoint_valid``)."""
    return (
        start % block_size == 0
        and -(-end // block_size) - 2 > (start - 1) // block_size
        and start + block_size <= position < end
        and (position - start) % alignment == 0
    )


class StateChunks:
    """Where chunks of prompts end so that states can be kept."""

    def __init__(self, settings: SchedulerSettings, lookup_tokens: int) -> None:
        states = [group for group in settings.kv_groups if group.kind == "state"]
        self.block_size = states[0].block_size if states else settings.block_size
        self.lookup_tokens = lookup_tokens
        alignments = [group.checkpoint_alignment for group in states]
        self.alignment = None if None in alignments or not alignments else alignments[0]
        self.longest = settings.max_num_batched_tokens - settings.draft_slots
        if threshold := settings.long_prefill_token_threshold:
            self.longest = min(self.longest, threshold)

    def cut(self, request: Request, start: int, num_new: int, shared_prefix: int) -> int:
        """Of ``num_new`` tokens from ``start`` on those that the chunk may have; 0 = none in this step."""
        whole = prefill_end(request)
        if start >= whole:
            return num_new
        block_size = self.block_size
        last = last_boundary(request.num_tokens, block_size)
        end = start + num_new
        is_mid_chunk = (
            self.alignment is not None
            and end >= whole
            and can_checkpoint(start, end, last_boundary(whole, self.lookup_tokens), block_size, self.alignment)
        )
        if end < whole:
            aligned = end // block_size * block_size
            # A block wider than a chunk is crossed in several, the others end where blocks do.
            if aligned > start or block_size <= self.longest:
                end = aligned
        stops = [0 if is_mid_chunk else last]
        if start % block_size and not is_mid_chunk:
            stops.append((start // block_size + 1) * block_size)
        if start < shared_prefix < end:
            stops.append(start + (shared_prefix - start) // block_size * block_size)
        return max(min((stop for stop in stops if start < stop < end), default=end) - start, 0)
