"""Contiguous KV, a baseline that vLLM does not have: a request takes room for ``max_model_len`` tokens at once."""

from __future__ import annotations

from sim.engine.reference.kv_cache import KVCache, ceil_div


class ContiguousKVCache(KVCache):
    """Every request takes the blocks of ``reserved_tokens`` when it is admitted and never grows."""

    def __init__(self, num_gpu_blocks: int, block_size: int, reserved_tokens: int) -> None:
        super().__init__(num_gpu_blocks, block_size)
        self.reserved_tokens = reserved_tokens

    def blocks_for(self, num_tokens: int) -> int:
        return ceil_div(max(num_tokens, self.reserved_tokens), self.block_size)
