"""Layers with multi-head latent attention: DeepSeek V2 to V3.2, Kimi K2, GLM-5."""

from __future__ import annotations

from dataclasses import replace

from sim.latency.attention_kinds import LatentAttention, SparseIndex
from sim.latency.checkpoint.keys import Keys
from sim.latency.checkpoint.mlp_layers import dense_mlp, expert_layers, experts_of
from sim.latency.layer_kinds import LayerKind

LATENT_TYPES = frozenset(
    ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa", "glm4_moe_lite", "deepseek_vl_v2")
)


def latent_of(config: Keys) -> LatentAttention:
    """The attention of one layer, without an index."""
    return LatentAttention(
        num_heads=config.number("num_attention_heads"),
        q_lora_rank=config.number("q_lora_rank", 0, least=0),
        kv_lora_rank=config.number("kv_lora_rank"),
        rope_size=config.number("qk_rope_head_dim"),
        nope_size=config.number("qk_nope_head_dim"),
        value_size=config.number("v_head_dim"),
        has_gate=config.flag("mla_use_output_gate", False),
    )


def latent_layers(config: Keys, layers: int, hidden: int, intermediate: int) -> list[LayerKind]:
    """All layers of such a model."""
    mixer = latent_of(config)
    mixers = [mixer] * layers
    if config.has("index_topk"):
        index = SparseIndex(
            num_heads=config.number("index_n_heads"),
            head_size=config.number("index_head_dim"),
            top_tokens=config.number("index_topk"),
        )
        kinds = config.listing("indexer_types", layers) or ["full"] * layers
        for kind in dict.fromkeys(map(str, kinds)):
            if kind not in ("full", "shared"):
                config.problem(f"indexer_types: {kind!r} is not read")
        mixers = [replace(mixer, index=replace(index, has_own=kind == "full")) for kind in kinds]
    moe = experts_of(config, intermediate)
    has_experts = expert_layers(config, layers) if moe is not None else [False] * layers
    mlp = dense_mlp(config, intermediate)
    return [
        LayerKind(mixer=each, experts=moe) if has else LayerKind(mixer=each, mlp=mlp)
        for each, has in zip(mixers, has_experts, strict=True)
    ]
