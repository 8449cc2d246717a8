"""Swapping, the older engine's way: a preempted request's KV goes to host memory and comes back, where there is room.

vLLM V1 has only recomputation. The bytes that move are part of the cost of the step that preempts or resumes.
"""

from __future__ import annotations

from sim.engine.reference.kv_cache import Hit, KVCache, PrefixKVCache
from sim.engine.request import Request
from sim.engine.variants.contiguous import ContiguousKVCache
from sim.engine.variants.window import WindowKVCache


class Swapping(KVCache):
    """What swapping adds to a KV cache, whichever it is."""

    def use_host_memory(self, num_blocks: int, block_bytes: int) -> None:
        """``num_blocks`` of ``block_bytes`` each fit into host memory."""
        self.free_swap_blocks = num_blocks
        self._block_bytes = block_bytes
        self._num_moved_blocks = 0

    def lookup(self, request: Request) -> Hit:
        """What is in host memory comes back whole; else what the cache has."""
        num_tokens = request.num_swapped_tokens
        return self.kept_of(num_tokens) if num_tokens else super().lookup(request)

    def admit(self, request: Request, hit: Hit, num_tokens: int) -> None:
        super().admit(request, hit, num_tokens)
        self._num_moved_blocks += self._leave_host(request)

    def preempt(self, request: Request) -> None:
        num_tokens = request.num_computed_tokens
        num_blocks = self.blocks_in_use(num_tokens)
        if num_tokens and num_blocks <= self.free_swap_blocks:
            self.free_swap_blocks -= num_blocks
            self._num_moved_blocks += num_blocks
            request.num_swapped_tokens = num_tokens
        super().preempt(request)

    def free(self, request: Request) -> None:
        super().free(request)
        self._leave_host(request)

    def take_moved_bytes(self) -> int:
        num_blocks, self._num_moved_blocks = self._num_moved_blocks, 0
        return num_blocks * self._block_bytes

    def _leave_host(self, request: Request) -> int:
        """Free the host blocks of a request; returns how many they were."""
        if not request.num_swapped_tokens:
            return 0
        num_blocks = self.blocks_in_use(request.num_swapped_tokens)
        request.num_swapped_tokens = 0
        self.free_swap_blocks += num_blocks
        return num_blocks


class SwappingKVCache(Swapping):
    """Blocks counted, and swapped."""


class SwappingPrefixKVCache(Swapping, PrefixKVCache):
    """Blocks by name, and swapped: a request that comes back finds nothing by content."""


class SwappingWindowKVCache(Swapping, WindowKVCache):
    """Only what the window looks back on is moved."""


class SwappingContiguousKVCache(Swapping, ContiguousKVCache):
    """All that is reserved is moved."""
