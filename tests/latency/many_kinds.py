"""Models of several kinds of layers for the tests, as their ``config.json`` has them."""

from __future__ import annotations

from sim.latency.attention_kinds import GroupedAttention, LatentAttention, SparseIndex
from sim.latency.layer_kinds import PLAIN, Experts, LayerKind, Mlp
from sim.latency.model_spec import ModelSpec
from sim.latency.state_layers import Projection, StateLayer

LATENT = LatentAttention(num_heads=128, q_lora_rank=1536, kv_lora_rank=512, rope_size=64, nope_size=128, value_size=128)
INDEX = SparseIndex(num_heads=64, head_size=128, top_tokens=2048, key_bytes=132)
DEEPSEEK_EXPERTS = Experts(num=256, per_token=8, width=2048, shared_width=2048)


def deepseek(name: str = "deepseek-v3", *, heads: int = 128, index: SparseIndex | None = None) -> ModelSpec:
    """DeepSeek-V3, or V3.2 with its ``index``."""
    mixer = LatentAttention(
        num_heads=heads, q_lora_rank=1536, kv_lora_rank=512, rope_size=64, nope_size=128, value_size=128, index=index
    )
    dense = LayerKind(mixer=mixer, mlp=Mlp(width=18432))
    return ModelSpec(
        name=name,
        layers=((dense, 3), (LayerKind(mixer=mixer, experts=DEEPSEEK_EXPERTS), 58)),
        hidden_size=7168,
        vocab_size=129280,
        max_position_embeddings=163840,
        dtype="fp8_block",
    )


def gpt_oss() -> ModelSpec:
    """gpt-oss-120b: every second layer sees 128 tokens, experts in MXFP4."""
    experts = Experts(num=128, per_token=4, width=2880, has_bias=True)
    kinds = [
        LayerKind(
            mixer=GroupedAttention(
                num_heads=64, num_kv_heads=8, head_size=64, window=window, has_bias=True, has_output_bias=True
            ),
            experts=experts,
            formats=(("experts", "mxfp4"),),
        )
        for window in (128, None)
    ]
    return ModelSpec(
        name="gpt-oss-120b",
        layers=tuple((kind, 1) for kind in kinds) * 18,
        hidden_size=2880,
        vocab_size=201088,
        max_position_embeddings=131072,
    )


def delta_net(heads: int = 48, hidden: int = 5120) -> StateLayer:
    """Qwen3.5's gated delta net: 16 heads of keys."""
    keys, values = 16 * 128, heads * 128
    return StateLayer(
        kind="gdn",
        projections=(
            Projection("in", 2 * keys + 2 * values, hidden, "outputs"),
            Projection("ba", 2 * heads, hidden, "outputs"),
            Projection("out", hidden, values, "inputs"),
        ),
        num_heads=heads,
        head_size=128,
        state_size=128,
        num_groups=16,
        conv_width=2 * keys + values,
        conv_kernel=4,
    )


def qwen35() -> ModelSpec:
    """Qwen3.5-27B: three layers of four are gated delta nets."""
    attention = GroupedAttention(num_heads=24, num_kv_heads=4, head_size=256, qk_norm=True, has_gate=True)
    mlp = Mlp(width=17408)
    period = ((LayerKind(mixer=delta_net(), mlp=mlp), 3), (LayerKind(mixer=attention, mlp=mlp), 1))
    return ModelSpec(
        name="qwen3.5-27b", layers=period * 16, hidden_size=5120, vocab_size=248320, max_position_embeddings=262144
    )


def nemotron() -> ModelSpec:
    """Nemotron 3 Nano: layers of one part each: Mamba-2, experts of two matrices, and a few with attention."""
    mamba = StateLayer(
        kind="mamba2",
        projections=(
            Projection("in", 2 * 4096 + 2 * 8 * 128 + 64, 2688, "outputs"),
            Projection("out", 2688, 4096, "inputs"),
        ),
        num_heads=64,
        head_size=64,
        state_size=128,
        num_groups=8,
        conv_width=4096 + 2 * 8 * 128,
        conv_kernel=4,
    )
    experts = Experts(num=128, per_token=6, width=1856, shared_width=3712, matrices_each=PLAIN)
    attention = GroupedAttention(num_heads=32, num_kv_heads=2, head_size=128)
    parts = (
        (LayerKind(mixer=mamba), 23),
        (LayerKind(mixer=None, experts=experts), 23),
        (LayerKind(mixer=attention), 6),
    )
    return ModelSpec(
        name="nemotron-3-nano", layers=parts, hidden_size=2688, vocab_size=131072, max_position_embeddings=262144
    )
