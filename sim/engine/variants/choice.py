"""Which KV cache and which seats the engine's settings ask for: vLLM's, a variant's or a baseline's."""

from __future__ import annotations

from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.kv_cache import KVCache, PrefixKVCache
from sim.engine.reference.seats import Seats
from sim.engine.variants.contiguous import ContiguousKVCache
from sim.engine.variants.groups import GroupedKVCache
from sim.engine.variants.loading_cache import LoadingKVCache
from sim.engine.variants.static import StaticSeats
from sim.engine.variants.swapping import (
    Swapping,
    SwappingContiguousKVCache,
    SwappingKVCache,
    SwappingPrefixKVCache,
    SwappingWindowKVCache,
)
from sim.engine.variants.window import WindowKVCache
from sim.errors import SimulationError


def build_seats(settings: SchedulerSettings) -> Seats:
    """The seats of one engine."""
    return StaticSeats(settings.max_num_seqs) if settings.static_batching else Seats(settings.max_num_seqs)


def build_kv_cache(settings: SchedulerSettings) -> KVCache:
    """The KV cache of one engine, empty."""
    num_blocks, block_size = settings.num_gpu_blocks, settings.block_size
    swaps = settings.num_swap_blocks > 0
    cache: KVCache
    if settings.drops_last_block and (swaps or settings.kv_groups or settings.sliding_window is not None):
        raise SimulationError("draft heads beside windows, states or preemption: swap are not simulated")
    if settings.contiguous_kv:
        contiguous = SwappingContiguousKVCache if swaps else ContiguousKVCache
        cache = contiguous(num_blocks, block_size, settings.max_model_len)
    elif settings.num_host_blocks:
        if settings.kv_groups or settings.sliding_window is not None or not settings.enable_prefix_caching or swaps:
            raise SimulationError("KV offloading needs a prefix cache, all layers with full attention, and no swapping")
        cache = LoadingKVCache(num_blocks, block_size)
    elif settings.kv_groups:
        if swaps:
            raise SimulationError("KV groups beside preemption: swap, which vLLM does not have, are not simulated")
        cache = GroupedKVCache(settings)
    elif settings.sliding_window is not None:
        cache = (SwappingWindowKVCache if swaps else WindowKVCache)(settings)
    elif settings.enable_prefix_caching and swaps:
        cache = SwappingPrefixKVCache(num_blocks, block_size)
    elif settings.enable_prefix_caching:
        cache = PrefixKVCache(num_blocks, block_size, drops_last_block=settings.drops_last_block)
    else:
        cache = (SwappingKVCache if swaps else KVCache)(num_blocks, block_size)
    if isinstance(cache, Swapping):
        cache.use_host_memory(settings.num_swap_blocks, settings.block_bytes)
    return cache
