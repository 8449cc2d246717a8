"""KV groups of models of several kinds of layers, against vLLM's own ``get_kv_cache_groups`` of the same layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.core.kv_cache_utils import get_kv_cache_groups
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from sim.latency.attention_kinds import GroupedAttention, LatentAttention
from sim.latency.kv_pages import KvPool
from sim.latency.layer_kinds import Mixer
from sim.latency.models import MODELS
from sim.latency.state_layers import StateLayer

BLOCK = 16


def config(max_model_len: int, in_flight: int, *, has_prefix_cache: bool) -> Any:
    """As much of a VllmConfig as grouping and counting look at."""
    layout = SimpleNamespace(is_block_outermost=False)
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: layout,
            mamba_cache_mode="align" if has_prefix_cache else "none",
            block_size=BLOCK,
        ),
        model_config=SimpleNamespace(max_model_len=max_model_len),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        max_in_flight_tokens=in_flight,
        speculative_config=None,
        attention_config=SimpleNamespace(hisparse_config=None),
    )


def specs_of(mixer: Mixer, tp: int, block_size: int, padded: int) -> list[KVCacheSpec]:
    if isinstance(mixer, StateLayer):
        shapes = ((mixer.state_bytes(tp, 2) // 2,),)
        return [MambaSpec(block_size=block_size, shapes=shapes, dtypes=(torch.bfloat16,), page_size_padded=padded)]
    if isinstance(mixer, LatentAttention):
        sizes = [mixer.latent_size, *([mixer.index_bytes(2) // 2] if mixer.index else [])]
        return [
            MLAAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=s, dtype=torch.bfloat16) for s in sizes
        ]
    shape: dict[str, Any] = {
        "block_size": block_size,
        "num_kv_heads": max(1, mixer.num_kv_heads // tp),
        "head_size": mixer.head_size,
        "head_size_v": mixer.v_size,
        "dtype": torch.bfloat16,
    }
    if mixer.window is not None:
        return [SlidingWindowSpec(**shape, sliding_window=mixer.window)]
    if mixer.chunk is not None:
        return [ChunkedLocalAttentionSpec(**shape, attention_chunk_size=mixer.chunk)]
    return [FullAttentionSpec(**shape)]


def kind_of(spec: KVCacheSpec) -> str:
    if isinstance(spec, MambaSpec):
        return "state"
    if isinstance(spec, MLAAttentionSpec):
        return "latent"
    if isinstance(spec, SlidingWindowSpec):
        return "window"
    return "chunk" if isinstance(spec, ChunkedLocalAttentionSpec) else "full"


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(
    "name",
    [
        *("gpt-oss-20b", "gpt-oss-120b", "gemma-2-9b", "gemma-3-27b", "gemma-3-4b", "gemma-4-31b", "gemma-4-26b-a4b"),
        *("llama-4-scout-17b-16e", "qwen3.5-27b", "qwen3-next-80b-a3b", "nemotron-3-nano-30b-a3b"),
    ],
)
def test_groups_and_blocks_are_vllms(name: str, tp: int) -> None:
    """Kinds, block sizes, layers, bytes of a block, and the blocks of a request of 8,192 tokens."""
    model = MODELS[name]
    pool = KvPool.of(model, tp, 2, 2, BLOCK)
    sizes = [group.block_size for group in pool.groups if group.kind == "state"]
    largest = max(pool.page_bytes)
    layers: dict[str, KVCacheSpec] = {}
    for number, kind in enumerate(model.layer_list):
        if kind.mixer is not None:
            for part, spec in enumerate(specs_of(kind.mixer, tp, sizes[0] if sizes else BLOCK, largest)):
                layers[f"layers.{number}.{part}"] = spec
    for has_prefix_cache in (True, False):
        vllm_config = config(8192, 4096, has_prefix_cache=has_prefix_cache)
        theirs = get_kv_cache_groups(vllm_config, dict(layers))
        ours = [(group.kind, group.block_size, group.window, len(group.layers)) for group in pool.groups]
        found = [
            (
                kind_of(group.kv_cache_spec),
                group.kv_cache_spec.block_size,
                getattr(group.kv_cache_spec, "sliding_window", None)
                or getattr(group.kv_cache_spec, "attention_chunk_size", None),
                len(group.layer_names),
            )
            for group in theirs
        ]
        assert ours == found
        assert [group.layers for group in pool.groups] == [
            tuple(int(layer.split(".")[1]) for layer in group.layer_names) for group in theirs
        ]
        page = theirs[0].kv_cache_spec.page_size_bytes
        assert pool.block_bytes(range(model.num_layers)) == page * max(len(group.layer_names) for group in theirs)
        needed = sum(-(-group.kv_cache_spec.max_memory_usage_bytes(vllm_config) // page) for group in theirs)
        assert pool.request_blocks(8192, 4096, has_prefix_cache=has_prefix_cache) == needed


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v3.2", "glm-5"])
def test_latent_layers_are_one_group(name: str) -> None:
    model = MODELS[name]
    layers = {
        f"layers.{number}.{part}": spec
        for number, kind in enumerate(model.layer_list)
        if isinstance(kind.mixer, LatentAttention | GroupedAttention)
        for part, spec in enumerate(specs_of(kind.mixer, 1, BLOCK, 0))
    }
    (group,) = get_kv_cache_groups(config(8192, 4096, has_prefix_cache=True), layers)
    pool = KvPool.of(model, 8, 2, 2, BLOCK)
    assert pool.kv_groups == ()
    total = sum(spec.page_size_bytes for spec in layers.values())
    assert pool.block_bytes(range(model.num_layers)) == total
    assert len(group.layer_names) == len(layers)
