"""Models whose layers are all alike but for windows and leading dense ones: written down in a few numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict, Unpack

from sim.errors import InputError
from sim.latency.attention_kinds import GroupedAttention
from sim.latency.layer_kinds import GATED, PLAIN, Experts, LayerKind, Mlp
from sim.latency.model_spec import ModelSpec, VisionSpec


class Sizes(TypedDict, total=False):
    """What may be said of the layers, in ``ModelSpec``'s words."""

    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    sliding_window: int | None
    num_experts: int
    experts_per_token: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    num_dense_layers: int
    """Of an MoE model: so many layers come first."""
    gated_mlp: bool
    attention_bias: bool
    qk_norm: bool
    has_wide_qk_norm: bool
    has_float32_router: bool


class Around(TypedDict, total=False):
    """What may be said of the rest of a model."""

    scaled_context: int | None
    served_context: int | None
    tie_word_embeddings: bool
    truncates_sampling: bool
    dtype: str
    dtype_source: str
    architecture: str
    vision: VisionSpec | None
    notes: tuple[str, ...]


class Uniform(Sizes, Around, total=False):
    """All keys of ``uniform_model``."""


def uniform_layers(sizes: Sizes) -> tuple[tuple[LayerKind, int], ...]:
    """Make the table of layers: dense ones, then those with experts."""
    matrices = GATED if sizes.get("gated_mlp", True) else PLAIN
    attention = GroupedAttention(
        num_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_kv_heads"],
        head_size=sizes["head_size"],
        window=sizes.get("sliding_window"),
        has_bias=sizes.get("attention_bias", False),
        qk_norm=sizes.get("qk_norm", False),
        has_wide_qk_norm=sizes.get("has_wide_qk_norm", False),
    )
    total, experts = sizes["num_layers"], sizes.get("num_experts", 0)
    num_dense = min(sizes.get("num_dense_layers", 0), total) if experts else total
    dense = LayerKind(mixer=attention, mlp=Mlp(width=sizes["intermediate_size"], matrices_each=matrices))
    runs = [(dense, num_dense)]
    if experts:
        moe = Experts(
            num=experts,
            per_token=sizes["experts_per_token"],
            width=sizes["moe_intermediate_size"],
            shared_width=sizes.get("shared_expert_intermediate_size", 0),
            matrices_each=matrices,
            has_float32_router=sizes.get("has_float32_router", False),
        )
        runs.append((LayerKind(mixer=attention, experts=moe), total - num_dense))
    return tuple((kind, count) for kind, count in runs if count)


def uniform_model(
    *, name: str, hidden_size: int, vocab_size: int, max_position_embeddings: int, **given: Unpack[Uniform]
) -> ModelSpec:
    """Describe a model whose layers are all alike: Llama 3.1 8B is 32 layers of 32 heads, 8 KV heads of 128."""
    around = {key: value for key, value in given.items() if key in Around.__annotations__}
    sizes = {key: value for key, value in given.items() if key in Sizes.__annotations__}
    return ModelSpec(
        name=name,
        layers=uniform_layers(sizes),  # type: ignore[arg-type]
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        max_position_embeddings=max_position_embeddings,
        **around,  # type: ignore[arg-type]
    )


def reshaped(model: ModelSpec, *, hidden_size: int | None = None, **changes: Unpack[Sizes]) -> ModelSpec:
    """Give a uniform model other sizes: ``reshaped(model, num_layers=2)``. Raises InputError for a model of several
    kinds of layers."""
    now: Sizes = {
        "num_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_size": model.head_size,
        "intermediate_size": model.intermediate_size,
        "sliding_window": model.sliding_window,
        "num_experts": model.num_experts,
        "experts_per_token": model.experts_per_token,
        "moe_intermediate_size": model.moe_intermediate_size,
        "shared_expert_intermediate_size": model.shared_expert_intermediate_size,
        "num_dense_layers": model.num_dense_layers,
        "gated_mlp": model.gated_mlp,
        "attention_bias": model.attention_bias,
        "qk_norm": model.qk_norm,
        "has_wide_qk_norm": model.has_wide_qk_norm,
        "has_float32_router": model.has_float32_router,
    }
    if uniform_layers(now) != model.layers:
        raise InputError(f"{model.name} has layers of several kinds: its sizes cannot be changed all at once")
    sizes: Sizes = {**now, **changes}
    return replace(model, layers=uniform_layers(sizes), hidden_size=hidden_size or model.hidden_size)
