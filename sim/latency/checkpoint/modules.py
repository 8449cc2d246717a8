"""Which modules of a checkpoint each part of a layer consists of: what quantisation sections speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from sim.latency.checkpoint.quantization import Stored
from sim.latency.layer_kinds import LayerKind
from sim.latency.state_layers import StateLayer


@dataclass(frozen=True, slots=True)
class Blocks:
    """What a model calls the blocks of a layer."""

    attention: str = "self_attn"
    state: str = "linear_attn"
    mlp: str = "mlp"
    experts: str = "mlp.experts"
    shared: tuple[str, ...] = ("mlp.shared_experts", "mlp.shared_expert")
    router: str = "mlp.gate"
    latent: str = "mlp"


MIXER_ONLY = Blocks("mixer", "mixer", "mixer", "mixer.experts", ("mixer.shared_experts",), "mixer.gate", "mixer")
BY_TYPE: Mapping[str, Blocks] = MappingProxyType(
    {
        "nemotron_h": MIXER_ONLY,
        "minimax_m2": Blocks(experts="block_sparse_moe.experts", router="block_sparse_moe.gate"),
        "minimax_m3": Blocks(
            experts="block_sparse_moe.experts",
            shared=("block_sparse_moe.shared_experts",),
            router="block_sparse_moe.gate",
        ),
        "mixtral": Blocks(experts="block_sparse_moe.experts", router="block_sparse_moe.gate"),
        "gpt_oss": Blocks(router="mlp.router"),
        "gemma4": Blocks(experts="experts", router="router"),
        "kimi_linear": Blocks(
            state="self_attn",
            experts="block_sparse_moe.experts",
            shared=("block_sparse_moe.shared_experts",),
            router="block_sparse_moe.gate",
            latent="block_sparse_moe",
        ),
        "llama4": Blocks(
            experts="feed_forward.experts",
            shared=("feed_forward.shared_expert",),
            router="feed_forward.router",
            mlp="feed_forward",
        ),
        "step3p7": Blocks(experts="moe", shared=("share_expert",), router="moe.gate"),
    }
)

ATTENTION = {
    "qkv": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "out": ("o_proj",),
    "qkv_a": ("q_a_proj", "kv_a_proj_with_mqa"),
    "q_b": ("q_b_proj",),
    "q": ("q_proj",),
    "kv_a": ("kv_a_proj_with_mqa",),
    "kv_b": ("kv_b_proj",),
    "gate": ("g_proj",),
    "index": ("indexer.wq_b", "indexer.wk", "index_q_proj"),
}
STATE = {
    "in": ("in_proj", "in_proj_qkv", "in_proj_qkvz"),
    "gates": ("in_proj_ba", "in_proj_b", "in_proj_a"),
    "out": ("out_proj", "o_proj"),
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "decay_a": ("f_a_proj",),
    "decay_b": ("f_b_proj",),
    "beta": ("b_proj",),
    "gate": ("g_proj",),
    "gate_a": ("g_a_proj",),
    "gate_b": ("g_b_proj",),
}
LATENT = ("fc1_latent_proj", "fc2_latent_proj", "routed_expert_down_proj", "routed_expert_up_proj")
PLAIN_PARTS = frozenset({"router", "gates", "decay_a", "decay_b", "beta"})
"""Parts that vLLM leaves in 16 bits unless they are named."""
UP, DOWN = ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3"), ("down_proj", "w2")


def parts_of(kind: LayerKind, blocks: Blocks) -> dict[str, list[str]]:
    """Parts of a layer -> their modules, as they follow ``layers.N.``."""
    found: dict[str, list[str]] = {}
    mixer = kind.mixer
    if mixer is not None:
        is_state = isinstance(mixer, StateLayer)
        names, block = (STATE, blocks.state) if is_state else (ATTENTION, blocks.attention)
        for matrix in mixer.matrices(1):
            found[matrix.part] = [f"{block}.{name}" for name in names.get(matrix.part, ())]
    if kind.mlp is not None:
        found |= {"up": [f"{blocks.mlp}.{name}" for name in UP], "down": [f"{blocks.mlp}.{name}" for name in DOWN]}
    moe = kind.experts
    if moe is not None:
        found["experts"] = [blocks.experts, *(f"{blocks.experts}.0.{name}" for name in (*UP, *DOWN))]
        found["router"] = [blocks.router]
        if moe.shared_width:
            found["shared"] = [f"{block}.{name}" for block in blocks.shared for name in (*UP, *DOWN)]
        if moe.latent_size:
            found["latent"] = [f"{blocks.latent}.{name}" for name in LATENT]
    return found


def with_formats(
    kinds: Sequence[LayerKind], stored: Stored, model_type: str, hidden: int
) -> tuple[list[LayerKind], str]:
    """Say in each layer which parts are stored in another format than most weights are; and that format (empty = 16
    bits)."""
    if not stored.method:
        return list(kinds), ""
    blocks = BY_TYPE.get(model_type.removesuffix("_vl").removesuffix("_text"), Blocks())
    formats: list[dict[str, str]] = []
    weights: dict[str, int] = {}
    for number, kind in enumerate(kinds):
        sizes = _sizes(kind, hidden)
        each: dict[str, str] = {}
        for part, modules in parts_of(kind, blocks).items():
            told = stored.format_of([f"layers.{number}.{module}" for module in modules], part)
            if part in PLAIN_PARTS and not any(
                f"{prefix}layers.{number}.{module}" in stored.by_module
                for prefix in ("model.", "")
                for module in modules
            ):
                told = ""
            each[part] = told
            weights[told] = weights.get(told, 0) + sizes.get(part, 0)
        formats.append(each)
    quantised = {name: size for name, size in weights.items() if name}
    main = max(quantised, key=lambda name: quantised[name], default="")
    marked = [
        replace(
            kind,
            formats=tuple((part, told or "bfloat16") for part, told in sorted(each.items()) if told != main),
        )
        for kind, each in zip(kinds, formats, strict=True)
    ]
    return marked, main


def _sizes(kind: LayerKind, hidden: int) -> dict[str, int]:
    found: dict[str, int] = {}
    blocks = [block for block in (kind.mixer, kind.mlp) if block is not None]
    for block in blocks:
        for matrix in block.matrices(hidden):
            found[matrix.part] = found.get(matrix.part, 0) + matrix.size
    moe = kind.experts
    if moe is not None:
        found["experts"] = moe.num * moe.each(hidden)
        found |= {"shared": moe.shared(hidden), "latent": moe.latent(hidden), "router": moe.router(hidden)}
    return found
