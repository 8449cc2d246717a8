"""Layers with a state beside layers with attention: Qwen3-Next, Qwen3.5, Nemotron-H, Kimi Linear."""

from __future__ import annotations

from sim.latency.checkpoint.grouped_layers import attention_of
from sim.latency.checkpoint.keys import Keys
from sim.latency.checkpoint.latent_layers import latent_of
from sim.latency.checkpoint.mlp_layers import dense_mlp, expert_layers, experts_of
from sim.latency.layer_kinds import LayerKind, Mixer
from sim.latency.state_layers import Projection, StateLayer

DELTA_NET_TYPES = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"})
NEMOTRON_H, KIMI_LINEAR = "nemotron_h", "kimi_linear"
HYBRID_TYPES = frozenset({*DELTA_NET_TYPES, NEMOTRON_H, KIMI_LINEAR})
STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}


def hybrid_layers(config: Keys, layers: int, hidden: int, intermediate: int) -> list[LayerKind]:
    """All layers of such a model."""
    if config.model_type == NEMOTRON_H:
        return _nemotron(config, layers, hidden, intermediate)
    if config.model_type == KIMI_LINEAR:
        mixers = _kimi_linear(config, layers, hidden)
    else:
        mixers = _delta_net_mixers(config, layers, hidden)
    if config.problems:
        return []
    moe = experts_of(config, intermediate)
    has_experts = expert_layers(config, layers) if moe is not None else [False] * layers
    mlp = dense_mlp(config, intermediate)
    return [
        LayerKind(mixer=mixer, experts=moe) if has else LayerKind(mixer=mixer, mlp=mlp)
        for mixer, has in zip(mixers, has_experts, strict=True)
    ]


def _state_bytes(config: Keys, *names: str) -> int:
    """Bytes of an element of the heads' state; 0 = as activations."""
    for name in names:
        value = config.values.get(name)
        if isinstance(value, str) and value in STATE_BYTES:
            return STATE_BYTES[value]
        if value is not None:
            config.problem(f"{name}: {value!r} is not read")
    return 0


def _delta_net_mixers(config: Keys, layers: int, hidden: int) -> list[Mixer]:
    """Gated delta nets, and full attention in one layer of some."""
    attention = attention_of(config, hidden)
    kinds = config.listing("layer_types", layers)
    if kinds is None:
        every = config.number("full_attention_interval")
        kinds = ["linear_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    for kind in dict.fromkeys(map(str, kinds)):
        if kind not in ("linear_attention", "full_attention"):
            config.problem(f"layer_types: {kind!r} is not read in a {config.model_type}")
    keys, values = config.number("linear_num_key_heads"), config.number("linear_num_value_heads")
    key_size, value_size = config.number("linear_key_head_dim"), config.number("linear_value_head_dim")
    kernel = config.number("linear_conv_kernel_dim")
    key_width, value_width = keys * key_size, values * value_size
    conv = 2 * key_width + value_width
    state = StateLayer(
        kind="gdn",
        projections=(
            Projection("in", conv + value_width, hidden, "outputs"),
            Projection("gates", 2 * values, hidden, "outputs"),
            Projection("out", hidden, value_width, "inputs"),
        ),
        num_heads=values,
        head_size=value_size,
        state_size=key_size,
        num_groups=keys,
        conv_width=conv,
        conv_kernel=kernel,
        state_bytes_each=_state_bytes(config, "mamba_ssm_dtype"),
        small=conv * kernel + 2 * values + value_size,
    )
    return [state if kind == "linear_attention" else attention for kind in kinds]


def _nemotron(config: Keys, layers: int, hidden: int, intermediate: int) -> list[LayerKind]:
    """Mamba-2, attention, MLP or experts: one of them in each layer."""
    listed = config.values.get("layers_block_type")
    pattern = config.values.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        unknown = sorted(set(pattern) - set(NEMOTRON_LETTERS))
        if unknown:
            config.problem(
                f"hybrid_override_pattern: {', '.join(unknown)} is not read, of M, *, E and - are layers made"
            )
        listed = [NEMOTRON_LETTERS.get(letter, "mlp") for letter in pattern]
    if not isinstance(listed, list) or len(listed) != layers:
        config.problem(f"hybrid_override_pattern or layers_block_type has to name each of the {layers} layers")
        return []
    moe = experts_of(config, intermediate) if "moe" in listed else None
    if "moe" in listed and moe is None:
        config.problem("layers with experts are named, and n_routed_experts is missing")
    kinds = {
        "mamba": LayerKind(mixer=_mamba2(config, hidden)),
        "attention": LayerKind(mixer=attention_of(config, hidden)),
        "mlp": LayerKind(mixer=None, mlp=dense_mlp(config, intermediate)),
        "moe": LayerKind(mixer=None, experts=moe),
    }
    for kind in dict.fromkeys(map(str, listed)):
        if kind not in kinds:
            config.problem(f"layers_block_type: {kind!r} is not read")
    return [kinds.get(str(kind), kinds["mlp"]) for kind in listed]


def _mamba2(config: Keys, hidden: int) -> StateLayer:
    heads, size = config.number("mamba_num_heads"), config.number("mamba_head_dim")
    groups, state = config.number("n_groups"), config.number("ssm_state_size")
    kernel = config.number("conv_kernel")
    inner = heads * size
    conv = inner + 2 * groups * state
    return StateLayer(
        kind="mamba2",
        projections=(
            Projection("in", inner + conv + heads, hidden, "outputs"),
            Projection("out", hidden, inner, "inputs"),
        ),
        num_heads=heads,
        head_size=size,
        state_size=state,
        num_groups=groups,
        conv_width=conv,
        conv_kernel=kernel,
        state_bytes_each=_state_bytes(config, "mamba_ssm_cache_dtype") or STATE_BYTES["float32"],
        small=conv * (kernel + 1) + 3 * heads + inner,
    )


def _kimi_linear(config: Keys, layers: int, hidden: int) -> list[Mixer]:
    """Kimi delta attention, and latent attention in one layer of some; layers are counted from 1."""
    inner = config.sub("linear_attn_config")
    full = inner.values.get("full_attn_layers")
    linear = inner.values.get("kda_layers")
    named = [*full, *linear] if isinstance(full, list) and isinstance(linear, list) else []
    if len(named) != layers or any(layer not in named for layer in range(1, layers + 1)):
        inner.problem(f"full_attn_layers and kda_layers have to name each of the {layers} layers, from 1 on")
        return []
    heads, size, kernel = inner.number("num_heads"), inner.number("head_dim"), inner.number("short_conv_kernel_size")
    width = heads * size
    if inner.flag("use_full_rank_gate", False):
        gate = [Projection("gate", width, hidden, "outputs")]
    else:
        gate = [Projection("gate_a", size, hidden, ""), Projection("gate_b", width, size, "outputs")]
    state = StateLayer(
        kind="kda",
        projections=(
            Projection("qkv", 3 * width, hidden, "outputs"),
            Projection("decay_a", size, hidden, ""),
            Projection("decay_b", width, size, "outputs"),
            Projection("beta", heads, hidden, "outputs"),
            *gate,
            Projection("out", hidden, width, "inputs"),
        ),
        num_heads=heads,
        head_size=size,
        state_size=size,
        num_groups=heads,
        conv_width=3 * width,
        conv_kernel=kernel,
        small=3 * width * kernel + width + heads + size,
    )
    attention = latent_of(config)
    is_full = [isinstance(full, list) and layer in full for layer in range(1, layers + 1)]
    return [attention if each else state for each in is_full]
