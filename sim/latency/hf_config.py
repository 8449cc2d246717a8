"""Reading a Hugging Face ``config.json`` into a ModelSpec, refusing what cannot be costed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sim.errors import InputError, Problem
from sim.latency.attention_kinds import GroupedAttention
from sim.latency.context_length import context_lengths
from sim.latency.layer_kinds import LayerKind
from sim.latency.model_spec import ModelSpec
from sim.latency.stored_as import stored_format
from sim.latency.uniform import uniform_model
from sim.latency.vision_tower import vision_spec

MLA = "multi-head latent attention (MLA) keeps one compressed vector per token instead of keys and values"
STATE_SPACE = "state-space, recurrent or linear-attention layers keep a fixed state instead of a KV cache"
ENCODER_DECODER = "an encoder-decoder has cross-attention and two kinds of KV cache"
ENCODER = "an encoder does not generate text"
MIXED_LAYERS = "its layers differ in kind of attention and MLP, which one layer's cost times their number cannot say"

REFUSED_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "minicpm3", "longcat_flash"), MLA),
    **dict.fromkeys(
        (
            *("mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba", "zamba2", "nemotron_h"),
            *("granitemoehybrid", "qwen3_next", "qwen3_5", "lfm2", "rwkv", "recurrent_gemma", "plamo2"),
            *("minimax", "minimax_text_01", "kimi_linear"),
        ),
        STATE_SPACE,
    ),
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "whisper"), ENCODER_DECODER),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "distilbert", "albert", "deberta-v2", "modernbert"), ENCODER),
}
"""``model_type`` -> why it is refused."""

REFUSED_KEYS: Mapping[str, str] = {
    "kv_lora_rank": MLA,
    "mamba_d_state": STATE_SPACE,
    "ssm_cfg": STATE_SPACE,
    "ssm_state_size": STATE_SPACE,
    "linear_num_value_heads": STATE_SPACE,
    "attn_layer_period": STATE_SPACE,
    "block_configs": MIXED_LAYERS,
}

LLAMA4 = frozenset({"llama4", "llama4_text"})
"""``intermediate_size`` is the width of an expert there, routed or shared; ``intermediate_size_mlp`` that of a dense
layer. Layers with experts come every ``interleave_moe_layer_step``, or are listed as ``moe_layers``."""

UNREAD_KEYS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "multi_query": ((False,), "num_key_value_heads (1, or what `num_kv_heads` says)"),
    "multi_query_attention": ((False,), "num_key_value_heads (what `multi_query_group_num` says)"),
    "num_kv_heads": ((), "num_key_value_heads"),
    "moe_num_experts": ((0,), "num_experts, num_experts_per_tok and moe_intermediate_size"),
    "ffn_config": ((), "intermediate_size and, of experts, num_experts, num_experts_per_tok, moe_intermediate_size"),
}
"""Keys under which some model types say what is read under other names here -> (values that say nothing, the name)."""

EVERY_LAYER_KEYS = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq")
"""Steps from one layer with experts to the next."""

STATE_LAYERS = ("linear_attention", "mamba", "conv")

KNOWN_TYPES = frozenset(
    (
        *("llama", "mistral", "mistral3", "ministral3", "mixtral", "minimax_m2", "gpt_oss", "phi3", "granite"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "glm", "glm4", "glm4_moe", "internlm3", "stablelm"),
        *("gemma", "gemma2", "gemma3", "gemma3_text", "olmo", "olmo2", "starcoder2", "cohere", "cohere2"),
        *LLAMA4,
    )
)
"""Types whose layers are known to be attention plus a (gated) MLP or experts of the shape read here."""

TWO_MATRIX_MLP = frozenset({"starcoder2", "phi", "gpt_neox", "opt", "falcon", "gpt_bigcode", "gpt2", "nemotron"})
QKV_BIAS = frozenset({"qwen2", "qwen2_moe", "starcoder2"})
TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "cohere", "cohere2"})
ALTERNATING_TYPES = frozenset({"gemma2", "gemma3", "gemma3_text", "gpt_oss", "cohere2"})
"""Where ``layer_types`` is not given, every second layer or so has full attention."""
FULL_EVERY: Mapping[str, int] = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4}
"""Where ``layer_types`` is not given, one layer in this many has full attention: gemma3, layers 6, 12, 18."""

REQUIRED = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads"),
    *("intermediate_size", "vocab_size", "max_position_embeddings"),
)
LARGEST_DIMENSION = 10**9


class _Config:
    """The keys of one config, with every problem kept for one report."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self.values = values
        self.file = file
        self.problems: list[Problem] = []

    def problem(self, message: str) -> None:
        self.problems.append(Problem(message, file=self.file))

    def number(self, names: Iterable[str], default: int | None = None, *, least: int = 1) -> int:
        """The first of ``names`` that is given, as a whole number; ``default`` None = required."""
        names = tuple(names)
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_DIMENSION:
                self.problem(f"{name}: expected a whole number of at least {least}, found {value!r}")
                return max(least, 1)
            return value
        if default is None:
            self.problem(
                f"{' or '.join(names)} is missing: not a config.json of a decoder that can be costed, or "
                "left to the default of its model type; write it in"
            )
            return 1
        return default

    def flag(self, name: str, default: bool) -> bool:
        """``name`` as true or false; null = ``default``."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(f"{name}: expected true or false, found {value!r}")
        return value is True


def read_model_config(path: Path) -> ModelSpec:
    """The model of a Hugging Face ``config.json``.

    Raises InputError with every problem: unreadable file, missing or impossible values, or an
    architecture whose step cost or KV cache this project does not model.
    """
    file = str(path)
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(f"cannot read the model config: {error}", file=file)) from error
    except json.JSONDecodeError as error:
        raise InputError(Problem(f"not JSON: {error.msg}", file=file, line=error.lineno, column=error.colno)) from error
    except RecursionError as error:
        raise InputError(Problem("not a config.json: nested too deeply", file=file)) from error
    if not isinstance(loaded, dict):
        raise InputError(Problem("expected a JSON object, as in a Hugging Face config.json", file=file))
    notes: list[str] = []
    values: Mapping[str, Any] = loaded
    if isinstance(loaded.get("text_config"), dict):
        _refuse(loaded, file)
        values = loaded["text_config"]
        notes.append("only the text decoder of this multimodal model is simulated")
    _refuse(values, file)
    dtype, source, unread = stored_format(loaded, values)
    if unread is not None:
        notes.append(unread)
    spec = _to_spec(_Config(values, file), path, notes)
    return replace(
        spec,
        dtype=dtype,
        dtype_source=source,
        architecture=_architecture(loaded),
        vision=vision_spec(loaded, spec.hidden_size),
        truncates_sampling=_truncates_sampling(path),
    )


def _architecture(root: Mapping[str, Any]) -> str:
    """vLLM's class of the whole model, where the config names one."""
    given = root.get("architectures")
    return given[0] if isinstance(given, list) and given and isinstance(given[0], str) else ""


def _truncates_sampling(path: Path) -> bool:
    """Whether the ``generation_config.json`` beside a config draws from the most probable tokens only, as vLLM reads
    it: a ``top_p`` below 1, or a ``top_k``. False without such a file, or where it is none that can be read."""
    try:
        loaded = json.loads((path.parent / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(loaded, dict):
        return False
    top_p, top_k = loaded.get("top_p"), loaded.get("top_k")
    return (isinstance(top_p, int | float) and 0 < top_p < 1) or (isinstance(top_k, int) and top_k > 0)


def _refuse(values: Mapping[str, Any], file: str) -> None:
    """Raise for an architecture that cannot be costed, by name and with the reason."""
    model_type = str(values.get("model_type", ""))
    architectures = values.get("architectures") or [model_type or "this architecture"]
    name = str(architectures[0]) if isinstance(architectures, list) else str(architectures)
    reason = REFUSED_TYPES.get(model_type)
    if reason is None and values.get("is_encoder_decoder") is True:
        reason = ENCODER_DECODER
    if reason is None:
        reason = next((why for key, why in REFUSED_KEYS.items() if values.get(key) is not None), None)
    layer_types = values.get("layer_types")
    if reason is None and isinstance(layer_types, list) and any(each in STATE_LAYERS for each in layer_types):
        reason = STATE_SPACE
    if reason is not None:
        raise InputError(Problem(f"{name} is not supported: {reason}", file=file))


def _to_spec(config: _Config, path: Path, notes: list[str]) -> ModelSpec:
    values = config.values
    model_type = str(values.get("model_type", ""))
    if model_type not in KNOWN_TYPES:
        notes.append(f"model_type {model_type!r} is not one that was checked: read as a decoder with GQA and MLP")
    layers, hidden, heads, intermediate, vocab, positions = (config.number([name]) for name in REQUIRED)
    is_whole = not config.problems
    _check_names(config)
    kv_heads = config.number(["num_key_value_heads"], heads)
    if is_whole and (kv_heads > heads or heads % kv_heads):
        config.problem(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if is_whole and values.get("head_dim") is None and hidden % heads:
        config.problem(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and no head_dim is given"
        )
    head_size = config.number(["head_dim"], max(hidden // heads, 1))
    if model_type in LLAMA4:
        experts, per_token, width, shared, dense_layers = _llama4_moe(config, layers, intermediate, notes)
        intermediate = config.number(["intermediate_size_mlp"], intermediate)
    else:
        experts, per_token, width, shared, dense_layers = _moe(config, layers, intermediate)
    window = _sliding_window(config, layers, notes)
    longest, served = context_lengths(values)
    is_tied = config.flag("tie_word_embeddings", model_type in TIED_BY_DEFAULT)
    has_bias = config.flag("attention_bias", model_type in QKV_BIAS)
    if config.problems:
        raise InputError(config.problems)
    spec = uniform_model(
        name=_name(values, path),
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        intermediate_size=intermediate,
        vocab_size=vocab,
        max_position_embeddings=positions,
        scaled_context=longest,
        served_context=served,
        tie_word_embeddings=is_tied,
        sliding_window=window,
        num_experts=experts,
        experts_per_token=per_token,
        moe_intermediate_size=width,
        shared_expert_intermediate_size=shared,
        num_dense_layers=dense_layers,
        gated_mlp=model_type not in TWO_MATRIX_MLP,
        attention_bias=has_bias,
        qk_norm=model_type in ("qwen3", "qwen3_moe", "minimax_m2"),
        has_wide_qk_norm=model_type == "minimax_m2",
        has_float32_router=model_type == "minimax_m2",
        notes=tuple(notes),
    )
    is_windowed = [False] * layers if window is not None else _window_layers(values, layers)
    return _with_windows(spec, is_windowed, values["sliding_window"]) if any(is_windowed) else spec


def _with_windows(spec: ModelSpec, is_windowed: list[bool], window: int) -> ModelSpec:
    """Give some layers a window."""
    kinds: list[LayerKind] = []
    for kind, has_window in zip(spec.layer_list, is_windowed, strict=True):
        if has_window and isinstance(kind.mixer, GroupedAttention):
            kind = replace(kind, mixer=replace(kind.mixer, window=window))
        kinds.append(kind)
    return replace(spec, layers=tuple((kind, len(list(run))) for kind, run in groupby(kinds)))


def _check_names(config: _Config) -> None:
    """Problems of keys that would go unread, and the model be another one than the file means."""
    for name, (silent, instead) in UNREAD_KEYS.items():
        value, given = config.values.get(name), instead.split(",")[0].split(" ")[0]
        if value is not None and value not in silent and config.values.get(given) is None:
            config.problem(f"{name} is not read; write {instead} into the file")
    if not isinstance(layer_types := config.values.get("layer_types", []), list | None):
        config.problem(f"layer_types: expected a list of one kind a layer, found {layer_types!r}")


def _moe(
    config: _Config, layers: int, intermediate: int, *, every_layer: tuple[str, ...] = EVERY_LAYER_KEYS
) -> tuple[int, int, int, int, int]:
    """(experts, experts per token, width of one, width of the shared ones, dense layers)."""
    experts = config.number(("num_experts", "num_local_experts", "n_routed_experts"), 0, least=0)
    if not experts:
        return 0, 0, 0, 0, 0
    per_token = config.number(("num_experts_per_tok", "experts_per_token", "num_experts_per_token"))
    if per_token > experts:
        config.problem(f"num_experts_per_tok {per_token} is more than the {experts} experts")
    width = config.number(("moe_intermediate_size",), intermediate)
    shared_each = config.number(("n_shared_experts", "num_shared_experts"), 0, least=0) * width
    shared = config.number(("shared_expert_intermediate_size",), shared_each, least=0)
    dense_layers = config.number(("first_k_dense_replace",), 0, least=0)
    for name in every_layer:
        every = config.values.get(name)
        if every != [1] * layers and config.number((name,), 1) != 1:
            config.problem(f"{name} other than 1 is not supported: only leading dense layers are")
    mlp_only = config.values.get("mlp_only_layers")
    if isinstance(mlp_only, list):
        dense_layers = max(dense_layers, len(mlp_only))
    elif mlp_only is not None:
        config.problem(f"mlp_only_layers: expected a list of layers, found {mlp_only!r}")
    if dense_layers > layers:
        config.problem(f"{dense_layers} dense layers are more than the {layers} layers")
    return experts, per_token, width, shared, dense_layers


def _llama4_moe(config: _Config, layers: int, intermediate: int, notes: list[str]) -> tuple[int, int, int, int, int]:
    """``_moe`` of a Llama 4 (``transformers`` ``Llama4TextConfig``): one shared expert beside the routed ones."""
    experts, per_token, width, _, _ = _moe(config, layers, intermediate, every_layer=())
    if not experts:
        config.problem("num_local_experts is missing: every Llama 4 has layers with experts")
    listed = config.values.get("moe_layers")
    num_moe = layers // config.number(["interleave_moe_layer_step"], 1)
    if isinstance(listed, list) and listed:
        num_moe = len(listed)
    if num_moe > layers:
        config.problem(f"{num_moe} moe_layers are more than the {layers} layers")
    elif num_moe < layers:
        notes.append(
            "layers with experts alternate with dense ones: pipeline stages are split as if the dense came first"
        )
    chunk = config.number(["attention_chunk_size"], 0, least=0)
    if chunk:
        notes.append(
            f"most layers attend within chunks of {chunk} tokens: all are costed as full attention, and keep all KV"
        )
    return experts, per_token, width, width, layers - num_moe


def _sliding_window(config: _Config, layers: int, notes: list[str]) -> int | None:
    """The window of all layers, or None. vLLM too asks whether all are of that kind (``EngineArgs``'s
    ``create_engine_config``), and reads 0 as none."""
    values = config.values
    if not values.get("sliding_window") or values.get("use_sliding_window", not _is_qwen2(values)) is False:
        return None
    window = config.number(("sliding_window",))
    num_full = _num_full_layers(values)
    if num_full == 0:
        return window
    if num_full < layers:
        notes.append(
            f"layers with a sliding window of {window} tokens alternate with full ones: all are costed as full "
            "attention and keep the KV of the whole context"
        )
    return None


def _window_layers(values: Mapping[str, Any], layers: int) -> list[bool]:
    """Which layers have a window beside full ones, as far as the config or the model type says."""
    window, none = values.get("sliding_window"), [False] * layers
    if not isinstance(window, int) or window <= 0 or values.get("use_sliding_window", not _is_qwen2(values)) is False:
        return none
    layer_types = values.get("layer_types")
    if isinstance(layer_types, list):
        return [kind == "sliding_attention" for kind in layer_types] if len(layer_types) == layers else none
    every = values.get("sliding_window_pattern", FULL_EVERY.get(str(values.get("model_type", ""))))
    return [(layer + 1) % every > 0 for layer in range(layers)] if isinstance(every, int) and every > 1 else none


def _is_qwen2(values: Mapping[str, Any]) -> bool:
    """Qwen2's window is off unless ``use_sliding_window`` says otherwise, and begins at ``max_window_layers``."""
    return str(values.get("model_type", "")).startswith("qwen2")


def _num_full_layers(values: Mapping[str, Any]) -> int:
    """At least so many layers look back on everything, although there is a window."""
    layer_types = values.get("layer_types")
    if isinstance(layer_types, list):
        return layer_types.count("full_attention")
    if values.get("sliding_window_pattern") is not None or values.get("model_type") in ALTERNATING_TYPES:
        return 1
    first = values.get("max_window_layers") if _is_qwen2(values) else 0
    return first if isinstance(first, int) else 0


def _name(values: Mapping[str, Any], path: Path) -> str:
    given = values.get("_name_or_path")
    if isinstance(given, str) and given.strip("/"):
        return given.rstrip("/").rsplit("/", 1)[-1]
    return path.resolve().parent.name if path.name == "config.json" else path.stem
