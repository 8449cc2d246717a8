"""The KV block pool: who holds how many blocks, and which full blocks can be found again.

Follows ``vllm/v1/core/block_pool.py`` and ``single_type_kv_cache_manager.py`` (vLLM 0.32.0) for
one full-attention group. Block 0 is vLLM's null block, so a pool of N blocks has N - 1 usable.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from sim.engine.request import Request
from sim.errors import SimulationError

NO_CACHING = 1 << 62
"""``next_cacheable_tokens`` of a request whose blocks are never looked up."""


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below ``a / b``."""
    return -(-a // b)


def slot_of(block_table: Sequence[int], position: int, block_size: int) -> int:
    """Slot in the KV tensors of the token at ``position`` (``slot_mapping`` of vLLM's attention metadata).

    Raises IndexError where the table is too short: the token needs another block first.
    """
    return block_table[position // block_size] * block_size + position % block_size


class KVCache:
    """Blocks counted, not named: enough where no content is ever found again.

    ``reserved_tokens``: 0 for a paged cache; else every request takes the blocks of this many
    tokens when it is admitted and never grows (the contiguous baseline).
    """

    has_window = False
    """Whether blocks are given back while a request runs (``drop_behind``)."""

    def __init__(self, num_gpu_blocks: int, block_size: int, reserved_tokens: int = 0) -> None:
        self.num_usable_blocks = num_gpu_blocks - 1
        self.num_free_blocks = num_gpu_blocks - 1
        self.block_size = block_size
        self.reserved_tokens = reserved_tokens
        self.holders: dict[str, Request] = {}

    def lookup(self, request: Request) -> list[Any]:
        """Blocks already holding the longest known prefix of ``request``; none without a prefix cache."""
        return []

    def num_evictable(self, hits: Sequence[Any]) -> int:
        """How many of ``hits`` nobody holds: they leave the free list when they are taken."""
        return 0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` of one request."""
        return ceil_div(max(num_tokens, self.reserved_tokens), self.block_size)

    def blocks_to_reserve(self, num_tokens: int) -> int:
        """Blocks that must be free for a request of ``num_tokens`` to be computed whole, however it is cut."""
        return self.blocks_for(num_tokens)

    def blocks_in_use(self, num_tokens: int) -> int:
        """Blocks of the first ``num_tokens`` of a request that its further tokens look at."""
        return self.blocks_for(num_tokens)

    def skipped(self, num_tokens: int) -> list[Any]:
        """What stands in a request's block table for those of its first ``num_tokens`` that are no longer kept."""
        return []

    def drop_behind(self, request: Request, num_processed: int) -> None:
        """Give back what nobody looks at once the first ``num_processed`` tokens of ``request`` are computed."""

    def admit(self, request: Request, hits: Sequence[Any], num_tokens: int) -> None:
        """Give a request that holds nothing its hit blocks and blocks up to ``num_tokens``; they must fit."""
        self.holders[request.request_id] = request
        request.num_blocks = len(hits)
        request.num_cached_blocks = len(hits)
        self._take(request, self.blocks_for(num_tokens) - len(hits))
        request.next_cacheable_tokens = NO_CACHING

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Blocks up to ``num_tokens`` for a request that runs, or False (and nothing) where they do not fit."""
        need = self.blocks_for(num_tokens) - request.num_blocks
        if need > self.num_free_blocks:
            return False
        self._take(request, need)
        return True

    def take_unnamed(self, num_blocks: int) -> None:
        """``num_blocks`` leave the pool; who got them is written into the requests later (fast stepping)."""
        self.num_free_blocks -= num_blocks

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        """Make the full blocks among the first ``num_tokens`` of ``request`` findable."""

    def free(self, request: Request) -> None:
        """Everything ``request`` holds, back to the pool."""
        self.num_free_blocks += request.num_blocks
        self._forget(request)

    @property
    def longest_request_tokens(self) -> int:
        """Most tokens that one request can ever hold here."""
        return self.num_usable_blocks * self.block_size if self.blocks_for(0) <= self.num_usable_blocks else 0

    def forget_order(self) -> bool:
        """Whether free blocks may be taken in any order from now on, because none of them can be found again."""
        return True

    def set_free(self, num_blocks: int) -> None:
        """So many blocks are free, after ``forget_order``."""
        self.num_free_blocks = num_blocks

    def restore(self, request: Request, num_tokens: int) -> None:
        """``request`` holds the blocks of its first ``num_tokens``, which ``set_free`` has left out."""
        request.num_blocks = self.blocks_for(num_tokens)
        request.num_slots = request.num_blocks * self.block_size
        request.next_cacheable_tokens = NO_CACHING
        self.holders[request.request_id] = request

    def check_empty(self) -> None:
        """Raise SimulationError, naming the holder, unless every block is free."""
        if self.holders or self.num_free_blocks != self.num_usable_blocks:
            held = {name: request.num_blocks for name, request in self.holders.items()}
            raise SimulationError(
                f"KV blocks leaked: {self.num_free_blocks} of {self.num_usable_blocks} are free at the end; "
                f"still held by request: {held or 'nobody known'}"
            )

    def _take(self, request: Request, num_blocks: int) -> None:
        self.num_free_blocks -= num_blocks
        request.num_blocks += num_blocks
        request.num_slots = request.num_blocks * self.block_size

    def _forget(self, request: Request) -> None:
        self.holders.pop(request.request_id, None)
        request.num_blocks = request.num_slots = request.num_cached_blocks = 0


class PrefixKVCache(KVCache):
    """Blocks by name, with full blocks findable by content until they are evicted (LRU, tails first).

    vLLM's free list, head first, is: freed blocks without a key (a stack), blocks never used
    (a counter), freed blocks with a key in order of freeing. Only the last part is ever searched.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int) -> None:
        super().__init__(num_gpu_blocks, block_size)
        self._unkeyed: list[int] = []
        self._next_unused = 1
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._key_of: dict[int, int] = {}
        self._references: dict[int, int] = {}
        self._block_of: dict[int, int | dict[int, None]] = {}
        """Key -> the block holding that content, or several in order of insertion."""

    def lookup(self, request: Request) -> list[int]:
        if request.content is None:
            return []
        # At least one token is always computed, so that there are logits to sample from.
        max_blocks = (request.num_tokens - 1) // self.block_size
        hits: list[int] = []
        # Most prompts miss at once: ask for the first key before building them all.
        step = 1
        while len(hits) < max_blocks:
            stop = min(len(hits) + step, max_blocks)
            for key in request.content.block_keys(len(hits), stop, self.block_size):
                found = self._block_of.get(key)
                if found is None:
                    return hits
                hits.append(found if isinstance(found, int) else next(iter(found)))
            step = max_blocks
        return hits

    def num_evictable(self, hits: Sequence[Any]) -> int:
        references = self._references
        return sum(1 for block in hits if block not in references)

    def admit(self, request: Request, hits: Sequence[Any], num_tokens: int) -> None:
        self._touch(hits)
        request.blocks = list(hits)
        super().admit(request, hits, num_tokens)
        request.next_cacheable_tokens = (len(hits) + 1) * self.block_size

    def _touch(self, hits: Sequence[Any]) -> None:
        """One more request holds ``hits``."""
        references = self._references
        for block in hits:
            if block in references:
                references[block] += 1
            else:
                references[block] = 1
                del self._evictable[block]
                self.num_free_blocks -= 1

    def _take(self, request: Request, num_blocks: int) -> None:
        for _ in range(num_blocks):
            block = self._pop_free()
            self._references[block] = 1
            request.blocks.append(block)
        super()._take(request, num_blocks)

    def _pop_free(self) -> int:
        if self._unkeyed:
            return self._unkeyed.pop()
        if self._next_unused <= self.num_usable_blocks:
            self._next_unused += 1
            return self._next_unused - 1
        block, _ = self._evictable.popitem(last=False)
        self._drop_key(block)
        return block

    def _drop_key(self, block: int) -> None:
        key = self._key_of.pop(block)
        found = self._block_of[key]
        if isinstance(found, int):
            del self._block_of[key]
        else:
            del found[block]
            if not found:
                del self._block_of[key]

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        num_full = num_tokens // self.block_size
        first = request.num_cached_blocks
        if num_full <= first or request.content is None:
            return
        keys = request.content.block_keys(first, num_full, self.block_size)
        for block, key in zip(request.blocks[first:num_full], keys, strict=True):
            self._key_of[block] = key
            found = self._block_of.setdefault(key, block)
            if found != block:
                if isinstance(found, int):
                    self._block_of[key] = {found: None, block: None}
                else:
                    found[block] = None
        request.num_cached_blocks = num_full
        request.next_cacheable_tokens = (num_full + 1) * self.block_size

    def free(self, request: Request) -> None:
        self._give_back(request.blocks)
        request.blocks = []
        self._forget(request)

    def _give_back(self, blocks: Sequence[int]) -> None:
        """``blocks`` are held once less; those that nobody holds are evicted from the last one down."""
        references, key_of = self._references, self._key_of
        freed_unkeyed: list[int] = []
        for block in reversed(blocks):
            count = references[block] - 1
            if count:
                references[block] = count
                continue
            del references[block]
            self.num_free_blocks += 1
            if block in key_of:
                self._evictable[block] = None
            else:
                freed_unkeyed.append(block)
        # The last block is the head of the free list.
        self._unkeyed.extend(reversed(freed_unkeyed))
