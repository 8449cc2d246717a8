"""MLPs and experts of a ``config.json``: which layers have which."""

from __future__ import annotations

from sim.latency.checkpoint.keys import Keys
from sim.latency.layer_kinds import GATED, PLAIN, Experts, Mlp

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN = (
    *("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k"),
    "moe_top_k",
)
WIDTHS = ("moe_intermediate_size", "expert_intermediate_size")
SHARED_COUNTS = ("n_shared_experts", "num_shared_experts", "num_shared_expert")
SHARED_WIDTHS = (
    *("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim"),
    "shared_intermediate_size",
)
LATENT_WIDTHS = ("moe_latent_size", "routed_expert_hidden_size")
TWO_MATRIX_MLP = frozenset(
    ("starcoder2", "phi", "gpt_neox", "opt", "falcon", "gpt_bigcode", "gpt2", "nemotron", "nemotron_h", "mpt")
)
WITH_SHARED_GATE = ("qwen2_moe", "qwen3_next", "qwen3_5")
EXPERT_BIAS = frozenset({"gpt_oss"})


def matrices_each(config: Keys) -> int:
    """Matrices of an MLP of that model type."""
    return PLAIN if config.model_type in TWO_MATRIX_MLP else GATED


def experts_of(config: Keys, intermediate: int) -> Experts | None:
    """The experts of a layer that has some; None = a dense model."""
    count = config.number(EXPERT_COUNTS, 0, least=0)
    if not count:
        return None
    per_token = config.number(PER_TOKEN)
    if per_token > count:
        config.problem(f"{_given(config, PER_TOKEN)} {per_token} is more than the {count} experts")
    width = config.number(WIDTHS, intermediate)
    shared = config.number(SHARED_COUNTS, 0, least=0) * width
    if any(config.has(name) for name in SHARED_WIDTHS):
        shared = config.number(SHARED_WIDTHS, 0, least=0)
    return Experts(
        num=count,
        per_token=per_token,
        width=width,
        shared_width=shared,
        matrices_each=matrices_each(config),
        latent_size=config.number(LATENT_WIDTHS, 0, least=0),
        has_float32_router=config.model_type in ("minimax_m2",),
        has_shared_gate=bool(shared) and config.model_type.startswith(WITH_SHARED_GATE),
        has_bias=config.model_type in EXPERT_BIAS,
    )


def _given(config: Keys, names: tuple[str, ...]) -> str:
    return next((name for name in names if config.has(name)), names[0])


def expert_layers(config: Keys, layers: int) -> list[bool]:
    """Which layers have experts, where the model has any."""
    for name in ("moe_layer_freq", "mlp_layer_types"):
        if isinstance(config.values.get(name), list):
            listed = config.listing(name, layers)
            return [each in (1, True, "sparse", "moe") for each in listed] if listed else [True] * layers
    first = config.number("first_k_dense_replace", 0, least=0)
    if first > layers:
        config.problem(f"{first} dense layers are more than the {layers} layers")
    found = [layer >= first for layer in range(layers)]
    every = config.number(("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq"), 1)
    if config.model_type.startswith("deepseek"):
        found = [each and layer % every == 0 for layer, each in enumerate(found)]
    elif every > 1:
        found = [each and (layer + 1) % every == 0 for layer, each in enumerate(found)]
    return _by_name(config, found)


def _by_name(config: Keys, found: list[bool]) -> list[bool]:
    """Layers that are listed by their numbers."""
    dense, sparse = config.values.get("mlp_only_layers"), config.values.get("moe_layers")
    if isinstance(dense, list):
        found = [each and layer not in dense for layer, each in enumerate(found)]
    elif dense is not None:
        config.problem(f"mlp_only_layers: expected a list of layers, found {dense!r}")
    if isinstance(sparse, list) and sparse:
        found = [layer in sparse for layer in range(len(found))]
    enumerated = config.values.get("moe_layers_enum")
    if isinstance(enumerated, str) and enumerated:
        chosen = {int(each) for each in enumerated.split(",") if each.strip().isdigit()}
        found = [layer in chosen for layer in range(len(found))]
    return found


def dense_mlp(config: Keys, intermediate: int) -> Mlp:
    """The MLP of a layer without experts."""
    width = config.number(("dense_intermediate_size", "intermediate_size_mlp"), intermediate)
    return Mlp(width=width, matrices_each=matrices_each(config))
