"""The KV block pool of a model whose layers are of several kinds: one pool, and a block table for each KV group.

Follows ``KVCacheManager`` and ``HybridKVCacheCoordinator`` of ``vllm/v1/core`` (0.32.0): groups are served in their
order, whatever is taken or given back; a prefix is found where every group can go on from it. Block tables keep their
length, since a token's place follows from its position; where a block was given back or was never needed, they have
vLLM's null block.

What is not followed, ``kv_layout.why_not_followed`` refuses by name. The last block of a hit, which EAGLE and MTP drop,
is not dropped: there are no such drafts here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.kv_cache import NO_CACHING, NO_HIT, NULL_BLOCK, Hit, PrefixKVCache
from sim.engine.request import Content, Request
from sim.engine.variants.group_kinds import ChunkKind, FullKind, IsCached, WindowKind
from sim.engine.variants.states import StateChunks, StateKind, last_boundary
from sim.errors import SimulationError
from sim.latency.kv_layout import tokens_per_lookup, why_not_followed

NEVER_FREE = 1 << 60
"""More blocks than any pool has."""
KINDS = {"full": FullKind, "latent": FullKind, "window": WindowKind, "chunk": ChunkKind, "state": StateKind}


@dataclass(frozen=True, slots=True)
class GroupedHit(Hit):
    """A beginning that every group can go on from."""

    tables: tuple[tuple[int, ...], ...] = ()
    """The blocks that hold it, by group."""
    shared_prefix: int = 0
    """Tokens of the longest beginning that some group has, where that is more than ``num_tokens``; else 0."""


class Table:
    """The blocks of one request in one group."""

    __slots__ = ("blocks", "has_checkpoint", "num_cached", "num_dropped")

    def __init__(self, blocks: Sequence[int] = ()) -> None:
        self.blocks = list(blocks)
        self.num_cached = len(blocks)
        """Leading blocks that ``cache_blocks`` has seen."""
        self.num_dropped = 0
        """Leading blocks that have been given back, or are null blocks since the beginning."""
        self.has_checkpoint = False
        """A state is made in the middle of the chunk that is scheduled."""


class Holding:
    """What one request has: a table in each group."""

    __slots__ = ("next_drop", "shared_prefix", "tables")

    def __init__(self, tables: tuple[Table, ...], shared_prefix: int) -> None:
        self.tables = tables
        self.shared_prefix = shared_prefix
        self.next_drop = 0
        """With fewer tokens computed than that there is nothing to give back."""


class GroupedKVCache(PrefixKVCache):
    """See the module. ``settings.kv_groups`` must be given."""

    has_window = True

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings.num_gpu_blocks, settings.block_size)
        self.settings = settings
        self.kinds = tuple(KINDS[group.kind](group, settings) for group in settings.kv_groups)
        self.enable_prefix_caching = settings.enable_prefix_caching
        self.lookup_tokens = tokens_per_lookup(settings.kv_groups)
        self._alike = _alike(settings)
        self._is_simple = len(self._alike) == 2 and settings.kv_groups[self._alike[0][0]].keeps_all
        """vLLM asks a group that keeps all, then the only other kind, and is done."""
        self._held: dict[str, Holding] = {}
        has_states = any(kind.is_state for kind in self.kinds)
        reason = why_not_followed(
            settings.kv_groups,
            has_prefix_cache=settings.enable_prefix_caching,
            has_drafts=settings.num_speculative_tokens > 0,
        )
        if reason is not None:
            raise SimulationError(reason)
        self.cuts_chunks = has_states and settings.enable_prefix_caching
        self._chunks = StateChunks(settings, self.lookup_tokens)
        self._new_states: set[int] = set()
        """Keys of states that the step being formed makes: no request goes on from them before the next one."""

    # --- sizes -----------------------------------------------------------------------------------

    def blocks_to_reserve(self, num_tokens: int) -> int:
        return sum(kind.most_held(num_tokens) for kind in self.kinds)

    def blocks_to_admit(self, request: Request, hit: Hit, num_tokens: int, *, is_whole: bool = False) -> int:
        need = hit.num_evictable
        for kind, blocks in zip(self.kinds, self._tables_of(hit), strict=True):
            if blocks and kind.is_state and self._key_of[blocks[-1]] in self._new_states:
                return NEVER_FREE
            need += self._need(kind, request, blocks, hit.num_tokens, num_tokens, is_whole=is_whole)
        return need

    def _need(
        self,
        kind: FullKind,
        request: Request,
        table: Sequence[int],
        start: int,
        num_tokens: int,
        *,
        is_whole: bool = False,
    ) -> int:
        """Blocks that ``table`` lacks when the tokens from ``start`` up to ``num_tokens`` are computed."""
        if isinstance(kind, StateKind):
            has_checkpoint = kind.has_checkpoint(request, table, start, num_tokens)
            return kind.new_blocks(num_tokens, len(table), has_checkpoint=has_checkpoint)
        new_blocks = kind.new_blocks_of_whole if is_whole else kind.new_blocks
        return new_blocks(num_tokens, len(table), kind.num_skipped(start))

    def _tables_of(self, hit: Hit) -> tuple[tuple[int, ...], ...]:
        return hit.tables if isinstance(hit, GroupedHit) else ((),) * len(self.kinds)

    # --- finding ---------------------------------------------------------------------------------

    def lookup(self, request: Request) -> Hit:
        """The longest prefix that every group can go on from: each in turn takes it or makes it shorter, until all
        have taken it (``find_longest_cache_hit``)."""
        content = request.content
        if content is None or not self.enable_prefix_caching:
            return NO_HIT
        kinds, groups = self.kinds, self.settings.kv_groups
        wanted = request.num_tokens - 1
        longest_seen = 0
        found: dict[int, tuple[int, int]] = {}
        while True:
            tokens = wanted
            for alike in self._alike:
                number = alike[0]
                size = kinds[number].block_size
                if groups[number].keeps_all and number in found:
                    tokens = min(tokens, found[number][1] * size)
                    continue
                is_cached = self._is_cached(content, alike, tokens // size, size)
                found[number] = kinds[number].find(is_cached, tokens)
                tokens = found[number][1] * size
                longest_seen = max(longest_seen, tokens)
            is_taken = tokens >= wanted
            wanted = tokens
            if is_taken or self._is_simple:
                return self._grouped_hit(content, found, wanted, longest_seen if longest_seen > wanted else 0)

    def _is_cached(self, content: Content, alike: Sequence[int], num_blocks: int, block_size: int) -> IsCached:
        """Whether a block of ``content`` is in the cache of all groups that are ``alike``."""
        block_of, num_groups = self._block_of, len(self.kinds)
        keys: list[int] = []

        def is_cached(block: int) -> bool:
            if not keys:
                if block == 0 and num_blocks:  # most prompts miss at once: one key is enough
                    key = content.block_keys(0, 1, block_size)[0] * num_groups
                    if any(key + number not in block_of for number in alike):
                        return False
                keys.extend(content.block_keys(0, num_blocks, block_size))
            key = keys[block] * num_groups
            return all(key + number in block_of for number in alike)

        return is_cached

    def _grouped_hit(
        self, content: Content, found: dict[int, tuple[int, int]], num_tokens: int, shared_prefix: int
    ) -> Hit:
        tables: list[tuple[int, ...]] = [()] * len(self.kinds)
        references, num_evictable = self._references, 0
        for alike in self._alike:
            kind = self.kinds[alike[0]]
            first = max(found[alike[0]][0], kind.num_skipped(num_tokens))
            keys = content.block_keys(first, num_tokens // kind.block_size, kind.block_size)
            for number in alike:
                blocks = self._found_in_a_row([self._key(key, number) for key in keys])
                num_evictable += sum(1 for block in blocks if block not in references)
                tables[number] = (*[NULL_BLOCK] * first, *blocks)
        return GroupedHit(num_tokens, (), num_evictable, tuple(tables), shared_prefix)

    def _key(self, content_key: int, group: int) -> int:
        """Of a block of one group: the same tokens have one in each."""
        return content_key * len(self.kinds) + group

    # --- taking ----------------------------------------------------------------------------------

    def begin_step(self) -> None:
        self._new_states.clear()

    def cut(self, request: Request, hit: Hit, computed: int, num_new: int) -> int:
        held = self._held.get(request.request_id)
        shared_prefix = hit.shared_prefix if isinstance(hit, GroupedHit) else held.shared_prefix if held else 0
        return self._chunks.cut(request, computed, num_new, shared_prefix)

    def admit(self, request: Request, hit: Hit, num_tokens: int) -> None:
        tables = self._tables_of(hit)
        for blocks in tables:  # before any block is taken, so that none of them is evicted for it
            self._touch(blocks)
        shared_prefix = hit.shared_prefix if isinstance(hit, GroupedHit) else 0
        self.holders[request.request_id] = request
        self._held[request.request_id] = Holding(tuple(map(Table, tables)), shared_prefix)
        self._extend(request, hit.num_tokens, num_tokens)
        request.next_cacheable_tokens = 0 if self.enable_prefix_caching else NO_CACHING

    def grow(self, request: Request, num_tokens: int) -> bool:
        tables, start = self._held[request.request_id].tables, request.num_computed_tokens
        need = sum(
            self._need(kind, request, table.blocks, start, num_tokens)
            for kind, table in zip(self.kinds, tables, strict=True)
        )
        if need > self.num_free_blocks:
            return False
        self._extend(request, start, num_tokens)
        return True

    def _extend(self, request: Request, start: int, num_tokens: int) -> None:
        held = self._held[request.request_id]
        tables = held.tables
        for kind, table in zip(self.kinds, tables, strict=True):
            blocks = table.blocks
            length = kind.blocks_for(num_tokens)
            if isinstance(kind, StateKind) and length > len(blocks):
                table.has_checkpoint = kind.has_checkpoint(request, blocks, start, num_tokens)
                blocks.extend([NULL_BLOCK] * (length - 1 - table.has_checkpoint - len(blocks)))
                if table.has_checkpoint:
                    held.next_drop = 0  # where it is told to be over
            for _ in range(length - len(blocks)):
                block = self._pop_free()
                self._references[block] = 1
                self.num_free_blocks -= 1
                blocks.append(block)
        request.num_slots = min(
            len(table.blocks) * kind.block_size for kind, table in zip(self.kinds, tables, strict=True)
        )
        request.num_blocks = sum(len(table.blocks) for table in tables)

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        content = request.content
        if content is None or not self.enable_prefix_caching:
            request.next_cacheable_tokens = NO_CACHING
            return
        held = self._held[request.request_id]
        aligned = num_tokens - num_tokens % self.lookup_tokens
        is_noted = False
        boundaries = [request.num_prompt_tokens - 1]
        if held.shared_prefix:
            boundaries.append(held.shared_prefix)
        for number, (kind, table) in enumerate(zip(self.kinds, held.tables, strict=True)):
            end = aligned // kind.block_size
            if end > table.num_cached:
                self._cache(content, number, table, end, boundaries)
            if kind.is_state:
                is_noted |= table.has_checkpoint or self._note_state(request, content, number, table, end)
        request.next_cacheable_tokens = 0 if is_noted else aligned + self.lookup_tokens

    def _cache(self, content: Content, number: int, table: Table, end: int, boundaries: Sequence[int]) -> None:
        """Make blocks up to ``end`` of one group findable, as far as a later request can use them."""
        kind, first = self.kinds[number], table.num_cached
        table.num_cached = end
        first = max(first, table.num_dropped)
        if first >= end:
            return
        reachable = kind.reachable(first, end, boundaries)
        keys = content.block_keys(first, end, kind.block_size)
        for place, content_key in enumerate(keys, first):
            block = table.blocks[place]
            if block != NULL_BLOCK and place in reachable:
                key = self._key(content_key, number)
                self._insert(block, key)
                if kind.is_state:
                    self._new_states.add(key)

    def _note_state(self, request: Request, content: Content, number: int, table: Table, end: int) -> bool:
        """While no more than the reusable part of the prompt counts as full, vLLM puts its state into the cache in
        each step, and so takes it for a new one. Returns whether it did."""
        size = self.kinds[number].block_size
        is_at_boundary = end * size == last_boundary(request.num_prompt_tokens, size)
        if not (end and is_at_boundary) or table.blocks[end - 1] == NULL_BLOCK:
            return False
        self._new_states.add(self._key(content.block_keys(end - 1, end, size)[0], number))
        return True

    # --- giving back -----------------------------------------------------------------------------

    def drop_behind(self, request: Request, num_processed: int) -> None:
        held = self._held[request.request_id]
        if num_processed < held.next_drop:
            return
        held.next_drop = NEVER_FREE
        for kind, table in zip(self.kinds, held.tables, strict=True):
            table.has_checkpoint = False
            first, end = table.num_dropped, min(kind.num_skipped(num_processed), len(table.blocks))
            if end > first:
                behind = [block for block in table.blocks[first:end] if block != NULL_BLOCK]
                table.blocks[first:end] = [NULL_BLOCK] * (end - first)
                table.num_dropped = end
                self._give_back(behind)
            held.next_drop = min(held.next_drop, kind.tokens_to_skip(table.num_dropped + 1))

    def _give_back_all(self, request: Request) -> None:
        held = self._held.pop(request.request_id, None)
        if held is not None:
            for table in held.tables:
                self._give_back([block for block in table.blocks if block != NULL_BLOCK])
        self._forget(request)


def _alike(settings: SchedulerSettings) -> tuple[tuple[int, ...], ...]:
    """Numbers of the groups that are looked up together, since they keep the same; those that keep all come first."""
    by_kind: dict[object, list[int]] = {}
    for number, group in enumerate(settings.kv_groups):
        by_kind.setdefault((group.kind, group.block_size, group.sliding_window), []).append(number)
    numbers = sorted(by_kind.values(), key=lambda each: not settings.kv_groups[each[0]].keeps_all)
    return tuple(map(tuple, numbers))
