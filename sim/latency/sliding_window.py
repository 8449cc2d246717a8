"""How much KV a sliding window keeps: as ``SlidingWindowSpec`` of ``vllm/v1/kv_cache_interface.py`` (0.32.0) has it."""

from __future__ import annotations


def max_blocks_per_request(sliding_window: int, max_in_flight_tokens: int, max_model_len: int, block_size: int) -> int:
    """Most blocks that one request ever holds (``SlidingWindowSpec.max_admission_blocks_per_request``).

    The window less the token that looks, and what is being computed; one block more, since the window seldom
    begins where a block does.
    """
    num_tokens = min(sliding_window - 1 + max_in_flight_tokens, max_model_len)
    return -(-num_tokens // block_size) + 1
