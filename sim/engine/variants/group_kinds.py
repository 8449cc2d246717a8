"""What a KV group keeps of a request, by the kind of its layers, and which cached blocks make a prefix of it.

The managers of ``vllm/v1/core/single_type_kv_cache_manager.py`` (vLLM 0.32.0). Blocks of a request are numbered from 0;
``num_tokens`` tokens of it are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.kv_cache import ceil_div
from sim.errors import SimulationError
from sim.latency.kv_layout import KvGroup, tokens_per_lookup
from sim.latency.sliding_window import max_blocks_per_request

NEVER = 1 << 60
"""More tokens than any request has."""
IsCached = Callable[[int], bool]
"""Whether the block of that number is in the cache."""


class FullKind:
    """All KV is kept, and a prefix is found from its beginning."""

    most_blocks: int | None = None
    """Blocks that admission reserves at most for a request of any length; None = as many as it has."""
    is_state = False

    def __init__(self, group: KvGroup, settings: SchedulerSettings) -> None:
        self.group = group
        self.block_size = group.block_size
        self.lookup_tokens = tokens_per_lookup(settings.kv_groups)

    def blocks_for(self, num_tokens: int) -> int:
        """Length of the block table that ``num_tokens`` need."""
        return ceil_div(num_tokens, self.block_size)

    def most_held(self, num_tokens: int) -> int:
        """Blocks that a request of ``num_tokens`` may hold at a time."""
        need = self.blocks_for(num_tokens)
        return need if self.most_blocks is None else min(need, self.most_blocks)

    def new_blocks(self, num_tokens: int, table_length: int, num_skipped: int = 0) -> int:
        """Blocks that a table of ``table_length`` lacks for ``num_tokens``, the first ``num_skipped`` not needed."""
        return max(self.blocks_for(num_tokens) - max(table_length, num_skipped), 0)

    def new_blocks_of_whole(self, num_tokens: int, table_length: int, num_skipped: int) -> int:
        """The same where admission asks for the whole request, in however many chunks it is computed."""
        return max(self.most_held(num_tokens) - max(table_length, num_skipped), 0)

    def num_skipped(self, num_tokens: int) -> int:
        """Leading blocks that no further token looks at."""
        return 0

    def tokens_to_skip(self, num_blocks: int) -> int:
        """The fewest tokens of which so many leading blocks are not looked at."""
        return NEVER

    def find(self, is_cached: IsCached, max_tokens: int) -> tuple[int, int]:
        """The longest prefix of ``max_tokens`` at most that can go on from the cache, as blocks ``[first, end)`` that
        are there: it is ``end`` blocks long, those before ``first`` are not needed."""
        most = max_tokens // self.block_size
        end = next((block for block in range(most) if not is_cached(block)), most)
        return 0, self._aligned(end)

    def _aligned(self, num_blocks: int) -> int:
        tokens = num_blocks * self.block_size
        return (tokens - tokens % self.lookup_tokens) // self.block_size

    def reachable(self, first: int, end: int, boundaries: Iterable[int]) -> Container[int]:
        """Of the full blocks ``[first, end)`` those that some later lookup can use; ``boundaries``: tokens behind which
        a later request may go on."""
        return range(first, end)


class WindowKind(FullKind):
    """The last ``sliding_window`` tokens are kept, and a prefix needs no more of the cache."""

    def __init__(self, group: KvGroup, settings: SchedulerSettings) -> None:
        super().__init__(group, settings)
        self.window = group.sliding_window or 0
        if self.window <= 0:
            raise SimulationError("a KV group with a window needs sliding_window")
        self.retention = settings.prefix_cache_retention_interval
        self.most_blocks = max_blocks_per_request(
            self.window, settings.max_in_flight_tokens, settings.max_model_len, self.block_size
        )
        self.blocks_of_hit = ceil_div(self.window - 1, self.block_size)
        """Cached blocks in a row that the first token after them looks back on."""

    def num_skipped(self, num_tokens: int) -> int:
        return max(0, num_tokens - self.window + 1) // self.block_size

    def tokens_to_skip(self, num_blocks: int) -> int:
        return num_blocks * self.block_size + self.window - 1

    def find(self, is_cached: IsCached, max_tokens: int) -> tuple[int, int]:
        needed, in_a_row = self.blocks_of_hit, 0
        for block in range(max_tokens // self.block_size - 1, -1, -1):
            if not is_cached(block):
                in_a_row = 0
            elif in_a_row or (block + 1) * self.block_size % self.lookup_tokens == 0:
                in_a_row += 1
                if in_a_row >= needed:
                    return block, block + in_a_row
        return 0, self._aligned(in_a_row)

    def reachable(self, first: int, end: int, boundaries: Iterable[int]) -> Container[int]:
        sizes = (self.blocks_of_hit, self.block_size, self.lookup_tokens)
        return reachable_behind_window(first, end, boundaries, *sizes, self.retention)


def reachable_behind_window(
    first: int,
    end: int,
    boundaries: Iterable[int],
    needed: int,
    block_size: int,
    lookup_tokens: int,
    retention: int | None,
) -> Container[int]:
    """Of the full blocks ``[first, end)`` the ``needed`` ones before each place where a lookup can end: multiples of
    ``lookup_tokens`` in ``boundaries``, and every ``retention`` tokens (0 = nowhere else, None = every multiple)."""
    reached: set[int] = set()
    every = lookup_tokens if retention is None else retention
    if every:
        per_segment = every // block_size
        if needed >= per_segment:
            return range(first, end)
        reached.update(i for i in range(first, end) if i % per_segment >= per_segment - needed)
    if retention is not None:
        for tokens in boundaries:
            stop = tokens // lookup_tokens * lookup_tokens // block_size
            reached.update(range(max(first, stop - needed), min(end, stop)))
    return reached


class ChunkKind(FullKind):
    """Tokens look back on their own chunk of ``sliding_window`` tokens; whole chunks before it count as there."""

    def __init__(self, group: KvGroup, settings: SchedulerSettings) -> None:
        super().__init__(group, settings)
        self.chunk = group.sliding_window or 0
        if self.chunk <= 0:
            raise SimulationError("a KV group of chunks needs sliding_window, the length of one")
        most_tokens = min(self.chunk + settings.max_in_flight_tokens, settings.max_model_len)
        self.most_blocks = ceil_div(most_tokens, self.block_size)

    def num_skipped(self, num_tokens: int) -> int:
        return num_tokens // self.chunk * self.chunk // self.block_size

    def tokens_to_skip(self, num_blocks: int) -> int:
        return ceil_div(num_blocks * self.block_size, self.chunk) * self.chunk

    def find(self, is_cached: IsCached, max_tokens: int) -> tuple[int, int]:
        first, most = self.num_skipped(max_tokens), max_tokens // self.block_size
        return first, next((block for block in range(first, most) if not is_cached(block)), max(first, most))
