"""Layers with keys and values for each token: which look back on everything, which on a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.latency.attention_kinds import GroupedAttention, SparseIndex
from sim.latency.checkpoint.keys import Keys
from sim.latency.checkpoint.mlp_layers import dense_mlp, expert_layers, experts_of
from sim.latency.layer_kinds import LayerKind

QKV_BIAS = frozenset({"qwen2", "qwen2_moe", "starcoder2", "mimo", "gpt_oss"})
OUTPUT_BIAS = frozenset({"gpt_oss"})
QK_NORM = frozenset(
    (
        *("qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "minimax_m2"),
        *("minimax_m3", "minimax_m3_vl", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "exaone4"),
        *("hunyuan_v1_moe", "hunyuan_v1_dense", "step3p5", "step3p7", "olmo2"),
    )
)
FULL, WINDOWED = ("full_attention", "attention"), ("sliding_attention", "sliding_window", "local_attention", "swa")
FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4}
"""Where ``layer_types`` is not given, one layer in this many has full attention: gemma3, layers 6, 12, 18."""
LLAMA4 = frozenset({"llama4", "llama4_text"})
STATE_LAYERS = ("linear_attention", "mamba", "conv", "recurrent", "hybrid")


def is_qwen2(config: Keys) -> bool:
    """Qwen2's window is off unless ``use_sliding_window`` says otherwise, and begins at ``max_window_layers``."""
    return config.model_type.startswith("qwen2") or config.model_type == "mimo"


def windows_of(config: Keys, layers: int) -> list[int | None]:
    """The window of each layer; None = it looks back on everything. vLLM reads 0 as none."""
    everywhere: list[int | None] = [None] * layers
    if (
        not config.values.get("sliding_window")
        or config.values.get("use_sliding_window", not is_qwen2(config)) is False
    ):
        return everywhere
    window = config.number("sliding_window")
    kinds = config.listing("layer_types", layers)
    if kinds is not None:
        return [window if kind in WINDOWED else None for kind in kinds]
    pattern = config.values.get("hybrid_layer_pattern")
    if pattern is not None:
        listed = config.listing("hybrid_layer_pattern", layers) or []
        return [window if each == 1 else None for each in listed] or everywhere
    every: Any = config.values.get("sliding_window_pattern", config.values.get("_sliding_window_pattern"))
    if isinstance(every, str) and every and set(every) <= set("LG"):
        return [window if every[layer % len(every)] == "L" else None for layer in range(layers)]
    every = FULL_EVERY.get(config.model_type) if every is None else every
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return [window if (layer + 1) % every else None for layer in range(layers)]
    if every is not None:
        config.problem(f"sliding_window_pattern: {every!r} is not read: a number, or a text of L and G, is")
    if is_qwen2(config):
        first = config.number("max_window_layers", 0, least=0)
        return [window if layer >= first else None for layer in range(layers)]
    return [window] * layers


def check_layer_types(config: Keys, layers: int) -> None:
    """Problems of kinds of layers that are not known by these readers."""
    kinds = config.listing("layer_types", layers)
    for kind in dict.fromkeys(map(str, kinds or [])):
        if kind not in (*FULL, *WINDOWED, "chunked_attention", "deepseek_sparse_attention"):
            why = " (a fixed state in place of a KV cache), of a model type whose state is not read" * (
                kind in STATE_LAYERS
            )
            config.problem(f"layer_types: {kind!r} is not read{why}")


def attention_of(config: Keys, hidden: int) -> GroupedAttention:
    """The attention of a layer that looks back on everything."""
    heads = config.number("num_attention_heads")
    kv_heads = config.number(("num_key_value_heads", "num_attention_groups"), heads)
    if kv_heads > heads or heads % kv_heads:
        config.problem(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if not config.has("head_dim") and hidden % heads:
        config.problem(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and no head_dim is given"
        )
    size = config.number(("head_dim", "attention_head_dim"), max(hidden // heads, 1))
    value = config.number("v_head_dim", size)
    return GroupedAttention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=size,
        value_size=0 if value == size else value,
        has_bias=config.flag("attention_bias", config.model_type in QKV_BIAS),
        has_output_bias=config.model_type in OUTPUT_BIAS,
        qk_norm=config.model_type in QK_NORM,
        has_wide_qk_norm=config.model_type == "minimax_m2",
        has_gate=config.flag("attn_output_gate", config.model_type == "qwen3_next"),
    )


def grouped_layers(config: Keys, layers: int, hidden: int, intermediate: int) -> list[LayerKind]:
    """The layers of a decoder whose layers all have keys and values for each token."""
    check_layer_types(config, layers)
    attention = attention_of(config, hidden)
    mixers = [replace(attention, window=window) for window in windows_of(config, layers)]
    if config.model_type in LLAMA4:
        mixers = _llama4(config, mixers)
    elif config.model_type in ("gemma4", "gemma4_text"):
        mixers = _gemma4(config, mixers)
    elif config.has("swa_num_attention_heads"):
        mixers = [_other_heads(config, mixer) for mixer in mixers]
    if config.has("sparse_attention_config"):
        mixers = _block_sparse(config, mixers)
    moe = experts_of(config, intermediate)
    has_experts = expert_layers(config, layers) if moe is not None else [False] * layers
    mlp = dense_mlp(config, intermediate)
    if config.model_type in LLAMA4 and moe is not None:  # one shared expert, as wide as a routed one
        moe = replace(moe, shared_width=moe.width)
    both = config.model_type in ("gemma4", "gemma4_text")  # an MLP beside the experts
    return [
        LayerKind(mixer=mixer, mlp=None if has and not both else mlp, experts=moe if has else None)
        for mixer, has in zip(mixers, has_experts, strict=True)
    ]


def _llama4(config: Keys, mixers: list[GroupedAttention]) -> list[GroupedAttention]:
    """Layers with rotary positions attend within chunks, one in four has none and looks back on everything."""
    if not any(config.has(name) for name in ("num_local_experts", "num_experts")):
        config.problem("num_local_experts is missing: every Llama 4 has layers with experts")
    chunk = config.number("attention_chunk_size", 0, least=0)
    if not chunk:
        return mixers
    listed = config.listing("no_rope_layers", len(mixers)) if config.values.get("no_rope_layers") else None
    every = config.number("no_rope_layer_interval", 4)
    rotary = [bool(each) for each in listed] if listed else [(i + 1) % every > 0 for i in range(len(mixers))]
    return [replace(mixer, chunk=chunk if has else None) for mixer, has in zip(mixers, rotary, strict=True)]


def _gemma4(config: Keys, mixers: list[GroupedAttention]) -> list[GroupedAttention]:
    """Layers that look back on everything have heads of their own size."""
    if config.number("hidden_size_per_layer_input", 0, least=0):
        config.problem("hidden_size_per_layer_input: embeddings for each layer (Gemma 3n, Gemma 4 E) are not read")
    shared = config.number("num_kv_shared_layers", 0, least=0)
    size = config.number("global_head_dim", mixers[0].head_size)
    heads = config.number("num_global_key_value_heads", mixers[0].num_kv_heads)
    is_same = config.flag("attention_k_eq_v", False)
    found = [
        mixer
        if mixer.window is not None
        else replace(
            mixer,
            head_size=size,
            num_kv_heads=heads if is_same else mixer.num_kv_heads,
            values_are_keys=is_same,
        )
        for mixer in mixers
    ]
    return [replace(mixer, shares_kv=i >= len(found) - shared) for i, mixer in enumerate(found)]


def _other_heads(config: Keys, mixer: GroupedAttention) -> GroupedAttention:
    """Layers with a window have heads of their own (MiMo-V2)."""
    if mixer.window is None:
        return mixer
    size = config.number("swa_head_dim", mixer.head_size)
    value = config.number("swa_v_head_dim", mixer.v_size)
    return replace(
        mixer,
        num_heads=config.number("swa_num_attention_heads"),
        num_kv_heads=config.number("swa_num_key_value_heads", mixer.num_kv_heads),
        head_size=size,
        value_size=0 if value == size else value,
    )


def _block_sparse(config: Keys, mixers: list[GroupedAttention]) -> list[GroupedAttention]:
    """Layers that choose blocks of tokens by an index (MiniMax-M3)."""
    inner = config.sub("sparse_attention_config")
    if not inner.flag("use_sparse_attention", True):
        return mixers
    listed = inner.listing("sparse_attention_freq", len(mixers)) or [1] * len(mixers)
    index = SparseIndex(
        num_heads=inner.number("sparse_num_index_heads"),
        head_size=inner.number("sparse_index_dim"),
        top_tokens=inner.number("sparse_topk_blocks") * inner.number("sparse_block_size"),
        key_bytes=2 * inner.number("sparse_index_dim"),  # 16 bits, whatever the KV cache's format is
    )
    return [replace(mixer, index=index if has else None) for mixer, has in zip(mixers, listed, strict=True)]
