"""The KV block pool of a model whose layers all look back on a sliding window: what is behind it is not kept.

Follows ``SlidingWindowManager`` of ``vllm/v1/core/single_type_kv_cache_manager.py`` (vLLM 0.32.0) for one group.
A request's block table keeps its length, since a token's place follows from its position; where a block was given
back, or was never needed, it has vLLM's null block.
"""

from __future__ import annotations

from collections.abc import Container

from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.kv_cache import NO_CACHING, NO_HIT, NULL_BLOCK, Hit, PrefixKVCache, ceil_div
from sim.engine.request import Request
from sim.engine.variants.group_kinds import reachable_behind_window
from sim.errors import SimulationError
from sim.latency.sliding_window import max_blocks_per_request


class WindowKVCache(PrefixKVCache):
    """See the module. ``settings.sliding_window`` must be given."""

    has_window = True

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings.num_gpu_blocks, settings.block_size)
        if settings.sliding_window is None:
            raise SimulationError("a KV cache with a window needs sliding_window")
        self.sliding_window = settings.sliding_window
        # Behind a window of one token no cached block is ever looked at: vLLM then keeps none.
        self.enable_prefix_caching = settings.enable_prefix_caching and settings.sliding_window > 1
        self.max_blocks_per_request = max_blocks_per_request(
            settings.sliding_window, settings.max_in_flight_tokens, settings.max_model_len, settings.block_size
        )
        self._retention = settings.prefix_cache_retention_interval
        self._num_blocks_of_hit = ceil_div(settings.sliding_window - 1, settings.block_size)
        """Cached blocks in a row that the first token after them looks back on."""

    def _num_skipped(self, num_tokens: int) -> int:
        """Leading blocks that no token after the first ``num_tokens`` looks back on."""
        return max(0, num_tokens - self.sliding_window + 1) // self.block_size

    def kept_of(self, num_tokens: int) -> Hit:
        return Hit(num_tokens, (NULL_BLOCK,) * self._num_skipped(num_tokens))

    def blocks_to_reserve(self, num_tokens: int) -> int:
        """No more than a request of any length holds at a time (vLLM's ``apply_admission_cap``)."""
        return min(self.blocks_for(num_tokens), self.max_blocks_per_request)

    def blocks_in_use(self, num_tokens: int) -> int:
        return self.blocks_for(num_tokens) - self._num_skipped(num_tokens)

    def lookup(self, request: Request) -> Hit:
        """The longest prefix whose last window is cached; its earlier blocks need not be. Without one, the leading
        blocks that are."""
        content = request.content
        if content is None or not self.enable_prefix_caching:
            return NO_HIT
        needed, block_size = self._num_blocks_of_hit, self.block_size
        end = (request.num_tokens - 1) // block_size
        while end >= needed:
            found = self._found_in_a_row(content.block_keys(end - needed, end, block_size))
            if len(found) == needed:
                return self._hit(found, end - needed)
            # No row of that many holds the missing block, so the next one to try ends before it.
            end += len(found) - needed
        return self._hit(self._found_in_a_row(content.block_keys(0, end, block_size)))

    def admit(self, request: Request, hit: Hit, num_tokens: int) -> None:
        request.num_dropped_blocks = hit.blocks.count(NULL_BLOCK)
        super().admit(request, hit, num_tokens)
        if not self.enable_prefix_caching:
            request.next_cacheable_tokens = NO_CACHING

    def drop_behind(self, request: Request, num_processed: int) -> None:
        """Called before the request takes new blocks, so that fewer cached ones are evicted for them."""
        first = request.num_dropped_blocks
        end = min(self._num_skipped(num_processed), request.num_blocks)
        if end <= first:
            return
        behind = request.blocks[first:end]
        request.blocks[first:end] = [NULL_BLOCK] * (end - first)
        request.num_dropped_blocks = end
        self._give_back(behind)

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        if not self.enable_prefix_caching:
            return
        request.num_cached_blocks = max(request.num_cached_blocks, request.num_dropped_blocks)
        super().cache_blocks(request, num_tokens)

    def _reachable(self, request: Request, first: int, end: int) -> Container[int]:
        sizes = (self._num_blocks_of_hit, self.block_size, self.block_size)
        return reachable_behind_window(first, end, (request.num_prompt_tokens - 1,), *sizes, self._retention)

    def _give_back_all(self, request: Request) -> None:
        request.blocks = request.blocks[request.num_dropped_blocks :]
        request.num_dropped_blocks = 0
        super()._give_back_all(request)
