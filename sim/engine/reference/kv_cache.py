"""The KV block pool: how many blocks each request holds, and which full blocks can be found again.

Follows ``vllm/v1/core/block_pool.py`` and ``single_type_kv_cache_manager.py`` (vLLM 0.32.0) for
one full-attention group. Block 0 is vLLM's null block, so a pool of N blocks has N - 1 usable.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass

from sim.engine.request import Content, Request
from sim.errors import SimulationError

NULL_BLOCK = 0
"""vLLM's null block: stands for a block that is not kept."""
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


@dataclass(frozen=True, slots=True)
class Hit:
    """The beginning of a request whose KV is there already."""

    num_tokens: int = 0
    blocks: tuple[int, ...] = ()
    """The blocks that hold it, in order; the null block stands for one that is not needed any more."""
    num_evictable: int = 0
    """How many of them no running request holds: they leave the free list when they are taken."""


NO_HIT = Hit()


class KVCache:
    """Blocks counted, not named: enough where no content is ever found again.

    A request takes blocks by ``admit`` and ``grow``, and gives all back by ``preempt`` or ``free``. With a prefix
    cache, ``cache_blocks`` makes full blocks findable and ``lookup`` finds them; with a sliding window,
    ``drop_behind`` gives back what no further token looks at.
    """

    has_window = False
    """Whether blocks are given back while a request runs (``drop_behind``)."""
    cuts_chunks = False
    """Whether chunks of prompts end where the cache can keep what they leave (``cut``)."""
    free_swap_blocks = 0
    """Blocks of host memory that preempted requests can move to."""

    def __init__(self, num_gpu_blocks: int, block_size: int) -> None:
        self.num_usable_blocks = num_gpu_blocks - 1
        self.num_free_blocks = num_gpu_blocks - 1
        self.block_size = block_size
        self.holders: dict[str, Request] = {}

    # --- sizes -----------------------------------------------------------------------------------

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks of a table that holds ``num_tokens`` of one request."""
        return ceil_div(num_tokens, self.block_size)

    def blocks_to_reserve(self, num_tokens: int) -> int:
        """Blocks that must be free for a request of ``num_tokens`` to be computed whole, however it is cut."""
        return self.blocks_for(num_tokens)

    def blocks_to_admit(self, request: Request, hit: Hit, num_tokens: int, *, is_whole: bool = False) -> int:
        """Free blocks that ``request`` needs to come in with ``hit`` and be computed up to ``num_tokens``, at once or
        (``is_whole``) however it is cut."""
        need = self.blocks_to_reserve(num_tokens) if is_whole else self.blocks_for(num_tokens)
        return need - len(hit.blocks) + hit.num_evictable

    def blocks_in_use(self, num_tokens: int) -> int:
        """Blocks of the first ``num_tokens`` of a request that its further tokens look at."""
        return self.blocks_for(num_tokens)

    # --- taking ----------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """A step is formed from now on."""

    def cut(self, request: Request, hit: Hit, computed: int, num_new: int) -> int:
        """Of ``num_new`` tokens behind ``computed`` those that one chunk may have; 0 = none in this step."""
        return num_new

    def lookup(self, request: Request) -> Hit:
        """Find the longest beginning of ``request`` whose KV is there; none without a prefix cache."""
        return NO_HIT

    def kept_of(self, num_tokens: int) -> Hit:
        """What is left of the blocks of ``num_tokens`` that come back from elsewhere."""
        return Hit(num_tokens)

    def admit(self, request: Request, hit: Hit, num_tokens: int) -> None:
        """Give a request that holds nothing the blocks of its hit, and new ones up to ``num_tokens``; they must fit."""
        self.holders[request.request_id] = request
        request.num_blocks = request.num_cached_blocks = len(hit.blocks)
        self._take(request, self.blocks_for(num_tokens) - len(hit.blocks))
        request.next_cacheable_tokens = NO_CACHING

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Give a running request blocks up to ``num_tokens``. False, and nothing is given, where they do not fit."""
        need = self.blocks_for(num_tokens) - request.num_blocks
        if need > self.num_free_blocks:
            return False
        self._take(request, need)
        return True

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        """Make the full blocks among the first ``num_tokens`` of ``request`` findable."""

    # --- giving back -----------------------------------------------------------------------------

    def drop_behind(self, request: Request, num_processed: int) -> None:
        """Give back what no token looks at any more, once the first ``num_processed`` of ``request`` are computed."""

    def preempt(self, request: Request) -> None:
        """Take all blocks of a running request, which comes back later."""
        self._give_back_all(request)

    def free(self, request: Request) -> None:
        """Take all blocks of a request that has ended."""
        self._give_back_all(request)

    def take_moved_bytes(self) -> int:
        """Bytes moved to and from host memory since the last call."""
        return 0

    def check_empty(self) -> None:
        """Raise SimulationError, naming the holders, unless every block is free."""
        if self.holders or self.num_free_blocks != self.num_usable_blocks:
            held = {name: request.num_blocks for name, request in self.holders.items()}
            raise SimulationError(
                f"KV blocks leaked: {self.num_free_blocks} of {self.num_usable_blocks} are free at the end; "
                f"still held by request: {held or 'none that is known'}"
            )

    def _take(self, request: Request, num_blocks: int) -> None:
        self.num_free_blocks -= num_blocks
        request.num_blocks += num_blocks
        request.num_slots = request.num_blocks * self.block_size

    def _give_back_all(self, request: Request) -> None:
        self.num_free_blocks += request.num_blocks
        self._forget(request)

    def _forget(self, request: Request) -> None:
        self.holders.pop(request.request_id, None)
        request.num_blocks = request.num_slots = request.num_cached_blocks = 0


class PrefixKVCache(KVCache):
    """Blocks by name, with full blocks findable by content until they are evicted (LRU, tails first).

    vLLM's free list, head first, is: freed blocks without a key (a stack), blocks never used
    (a counter), freed blocks with a key in order of freeing. Only the last part is ever searched.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int, *, drops_last_block: bool = False) -> None:
        """``drops_last_block``: as ``SchedulerSettings`` has it."""
        super().__init__(num_gpu_blocks, block_size)
        self._num_dropped = int(drops_last_block)
        self._unkeyed: list[int] = []
        self._next_unused = 1
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._key_of: dict[int, int] = {}
        self._references: dict[int, int] = {}
        self._block_of: dict[int, int | dict[int, None]] = {}
        """Key -> the block holding that content, or several in order of insertion."""

    def lookup(self, request: Request) -> Hit:
        if request.content is None:
            return NO_HIT
        # At least one token is always computed, so that there are logits to sample from.
        blocks = self._leading_blocks(request.content, (request.num_tokens - 1) // self.block_size)
        if self._num_dropped:
            del blocks[-self._num_dropped :]
        return self._hit(blocks) if blocks else NO_HIT

    def _leading_blocks(self, content: Content, max_blocks: int) -> list[int]:
        """Blocks with the first ``max_blocks`` blocks of ``content``, up to the first that is missing."""
        blocks: list[int] = []
        # Most prompts miss at once: ask for the first key before building them all.
        step = 1
        while len(blocks) < max_blocks:
            stop = min(len(blocks) + step, max_blocks)
            wanted = stop - len(blocks)
            found = self._found_in_a_row(content.block_keys(len(blocks), stop, self.block_size))
            blocks += found
            if len(found) < wanted:
                break
            step = max_blocks
        return blocks

    def _found_in_a_row(self, keys: Sequence[int]) -> list[int]:
        """Blocks with the content of ``keys``, up to the first that is missing."""
        blocks: list[int] = []
        for key in keys:
            found = self._block_of.get(key)
            if found is None:
                break
            blocks.append(found if isinstance(found, int) else next(iter(found)))
        return blocks

    def _hit(self, found: Sequence[int], num_skipped: int = 0) -> Hit:
        """``found`` blocks, behind ``num_skipped`` that no further token looks at."""
        references = self._references
        num_evictable = sum(1 for block in found if block not in references)
        blocks = (*[NULL_BLOCK] * num_skipped, *found)
        return Hit(len(blocks) * self.block_size, blocks, num_evictable)

    def admit(self, request: Request, hit: Hit, num_tokens: int) -> None:
        self._touch(hit.blocks)
        request.blocks = list(hit.blocks)
        super().admit(request, hit, num_tokens)
        request.next_cacheable_tokens = (len(hit.blocks) + 1) * self.block_size

    def _touch(self, blocks: Sequence[int]) -> None:
        """One more request holds ``blocks``."""
        references = self._references
        for block in blocks:
            if block == NULL_BLOCK:
                continue
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
        reachable = self._reachable(request, first, num_full)
        for place, key in enumerate(keys, first):
            if reachable is None or place in reachable:
                self._insert(request.blocks[place], key)
        request.num_cached_blocks = num_full
        request.next_cacheable_tokens = (num_full + 1) * self.block_size

    def _reachable(self, request: Request, first: int, end: int) -> Container[int] | None:
        """Of the full blocks ``[first, end)`` those that some later lookup can use; None = all."""
        return None

    def _insert(self, block: int, key: int) -> None:
        """``block`` can be found by ``key``, behind those that have it already."""
        self._key_of[block] = key
        found = self._block_of.setdefault(key, block)
        if isinstance(found, dict):
            found[block] = None
        elif found != block:
            self._block_of[key] = {found: None, block: None}

    def _give_back_all(self, request: Request) -> None:
        self._give_back(request.blocks)
        request.blocks = []
        self._forget(request)

    def _give_back(self, blocks: Sequence[int]) -> None:
        """``blocks`` are held once less; those that no request holds any more are evicted from the last one down."""
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
