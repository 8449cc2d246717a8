"""Which number format a checkpoint stores each part of its layers in.

``quantization_config`` of a ``config.json`` or an ``hf_quant_config.json`` beside it, by vLLM 0.32.0's methods
(``model_executor/layers/quantization``). What is not known is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any

from sim.latency.checkpoint.keys import Keys

PREFIXES = ("model.", "model.language_model.", "language_model.model.", "backbone.", "language_model.", "")
"""What stands before ``layers.N`` in checkpoints of the models that are read."""
IGNORED = ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules")
KV_FORMATS = ("fp8", "fp8_e4m3")
MODELOPT = {
    "fp8": "fp8",
    "fp8_per_channel_per_token": "fp8",
    "fp8_pb_wo": "fp8_block",
    "nvfp4": "nvfp4",
    "nvfp4_awq": "nvfp4",
    "w4a16_nvfp4": "nvfp4_weights",
    "mxfp8": "mxfp8",
    "w4a16_mxfp4": "mxfp4",
    "mxfp4": "mxfp4",
}
"""``quant_algo`` -> format."""
INT4_GROUPS = {32: "int4_g32", 64: "int4", 128: "int4", -1: "int4"}


@dataclass(slots=True)
class Stored:
    """How a checkpoint's matrices are stored."""

    method: str = ""
    """As the file names it, for notes; empty = not quantised."""
    default: str = ""
    """Format of what nothing else is said of; empty = 16 bits."""
    only_experts: bool = False
    """Whether only routed experts are quantised (gpt-oss)."""
    ignored: re.Pattern[str] | None = None
    by_module: dict[str, str] = field(default_factory=dict)
    """Format by the name of a module, in place of ``default``."""
    by_pattern: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    kv: str = ""
    """The KV cache's format that the checkpoint asks for."""

    def format_of(self, modules: Sequence[str], part: str) -> str:
        """Of a part that consists of these modules (``layers.3.self_attn.q_proj``); empty = 16 bits."""
        names = [prefix + module for module in modules for prefix in PREFIXES]
        for name in names:
            if name in self.by_module:
                return self.by_module[name]
        if self.ignored is not None and any(self.ignored.match(name) for name in names):
            return ""
        for pattern, found in self.by_pattern:
            if any(pattern.match(name) for name in names):
                return found
        return "" if self.only_experts and part != "experts" else self.default


def stored_as(config: Keys, quantization: Mapping[str, Any] | None) -> Stored:
    """Read a quantisation section; None = there is none. Problems of it are ``config``'s."""
    if not quantization:
        return Stored()
    inner = quantization.get("quantization")
    values = {**quantization, **(inner if isinstance(inner, Mapping) else {})}
    method = str(values.get("quant_method") or "").lower()
    if not method and (isinstance(values.get("producer"), Mapping) or "quant_algo" in values):
        method = "modelopt"
    reader = _READERS.get(method)
    if reader is None:
        config.problem(
            f"quantization_config: quant_method {method or 'that is not named'} is not read (known: "
            f"{', '.join(_READERS)}); take the section out and say engine.dtype"
        )
        return Stored()
    found = reader(config, values)
    found.method = method
    found.ignored = _ignored(config, values)
    found.kv = _kv_format(config, values, method)
    return found


def _pattern(config: Keys, text: str) -> re.Pattern[str] | None:
    """A pattern of names as the file writes it; None, and a problem, where it is none."""
    try:
        return re.compile(text)
    except re.error as error:
        config.problem(f"quantization_config: {text!r:.60} is no pattern of names: {error.msg}")
        return None


def _ignored(config: Keys, values: Mapping[str, Any]) -> re.Pattern[str] | None:
    """One pattern of all modules that stay as they are. A name stands for what is below it too."""
    globs: list[str] = []
    expressions: list[str] = []
    for key in IGNORED:
        listed = values.get(key)
        for each in listed if isinstance(listed, list) else []:
            if isinstance(each, str) and each.startswith("re:"):
                if _pattern(config, each[3:]) is not None:
                    expressions.append(f"(?:{each[3:]})")
            elif isinstance(each, str) and each:
                globs.append(translate(each).removesuffix(r"\Z"))
    if globs:
        expressions.append(rf"(?:{'|'.join(globs)})(?:\..*)?\Z")
    return re.compile("|".join(expressions)) if expressions else None


def _kv_format(config: Keys, values: Mapping[str, Any], method: str) -> str:
    """The KV cache's format that vLLM takes for ``kv_cache_dtype: auto`` (``resolve_kv_cache_dtype_string``)."""
    if not method.startswith("modelopt"):
        return ""
    told = values.get("kv_cache_scheme") or values.get("kv_cache_quant_algo")
    if isinstance(told, Mapping):
        is_fp8 = told.get("dynamic") is False and told.get("num_bits") == 8 and told.get("type") == "float"
        told = "fp8" if is_fp8 else "of another kind"
    if told is None:
        return ""
    if str(told).lower() in KV_FORMATS:
        return "fp8"
    config.notes.append(f"the checkpoint's format of the KV cache, {told}, is not read: kv_cache_dtype says it")
    return ""


def _fp8(config: Keys, values: Mapping[str, Any]) -> Stored:
    for key in ("quantized_layers", "moe_quant_algo"):
        if values.get(key):
            config.problem(f"quantization_config: {key} beside quant_method fp8 is not read")
    return Stored(default="fp8_block" if values.get("weight_block_size") else "fp8")


def _modelopt(config: Keys, values: Mapping[str, Any]) -> Stored:
    algorithm = str(values.get("quant_algo") or "").lower()
    if not algorithm:
        algorithm = _algorithm_of_groups(values)
    layers = values.get("quantized_layers")
    if algorithm == "mixed_precision":
        if not isinstance(layers, Mapping):
            config.problem("quantization_config: quant_algo MIXED_PRECISION without quantized_layers")
            return Stored()
        return Stored(by_module=_modelopt_modules(config, layers))
    if algorithm not in MODELOPT:
        config.problem(f"quantization_config: quant_algo {algorithm.upper() or 'that is not named'} is not read")
        return Stored()
    return Stored(default=MODELOPT[algorithm])


def _algorithm_of_groups(values: Mapping[str, Any]) -> str:
    groups = values.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = first.get("weights") if isinstance(first, Mapping) else None
    bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
    return {8: "fp8", 4: "nvfp4"}.get(bits, "") if isinstance(bits, int) else ""


def _modelopt_modules(config: Keys, layers: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    unknown: set[str] = set()
    for name, told in layers.items():
        algorithm = str(told.get("quant_algo", "")).lower() if isinstance(told, Mapping) else ""
        if algorithm in MODELOPT:
            found[name] = MODELOPT[algorithm]
        else:
            unknown.add(algorithm.upper())
    for each in sorted(unknown):
        config.problem(f"quantization_config.quantized_layers: quant_algo {each or 'that is not named'} is not read")
    return found


def _mxfp4(config: Keys, values: Mapping[str, Any]) -> Stored:
    return Stored(default="mxfp4", only_experts=True)


def _gptq(config: Keys, values: Mapping[str, Any]) -> Stored:
    bits = next((values[key] for key in ("bits", "w_bit", "wbits") if key in values), 4)
    if bits == 8:
        return Stored(default="int8_weights")
    group = values.get("group_size", values.get("q_group_size", 128))
    if bits != 4 or not isinstance(group, int) or group not in INT4_GROUPS:
        config.problem(f"quantization_config: {bits} bits in groups of {group} are not read")
        return Stored()
    return Stored(default=INT4_GROUPS[group])


def _bitsandbytes(config: Keys, values: Mapping[str, Any]) -> Stored:
    if values.get("load_in_8bit") is True or values.get("_load_in_8bit") is True:
        return Stored(default="int8_weights")
    return Stored(default="bnb_4bit")


def _compressed(config: Keys, values: Mapping[str, Any]) -> Stored:
    """compressed-tensors: groups of modules, each with a format. Of MXFP4 vLLM has the experts' alone."""
    found = Stored(only_experts=values.get("format") == "mxfp4-pack-quantized")
    groups = values.get("config_groups")
    for name, group in groups.items() if isinstance(groups, Mapping) else []:
        told = _group_format(group)
        if told is None:
            config.problem(f"quantization_config.config_groups.{name}: {_group_words(group)} is not read")
            continue
        targets = group.get("targets")
        for target in targets if isinstance(targets, list) else ["Linear"]:
            text = str(target)
            if text == "Linear":
                found.default = told
            elif text.startswith("re:"):
                if (pattern := _pattern(config, text[3:])) is not None:
                    found.by_pattern.append((pattern, told))
            elif "." in text:
                found.by_module[text] = told
            else:
                config.problem(f"quantization_config.config_groups.{name}.targets: {text!r} is not read")
    if not isinstance(groups, Mapping) or not groups:
        config.problem("quantization_config.config_groups is missing: compressed-tensors says formats there")
    return found


def _group_format(group: Any) -> str | None:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    has_activations = group.get("input_activations") is not None
    kind, bits, size = weights.get("type", "int"), weights.get("num_bits"), weights.get("group_size")
    if size is not None and not isinstance(size, int):
        return None
    if kind == "float" and bits == 8:
        if weights.get("strategy") == "block":
            return "fp8_block"
        if size == 32:
            return "mxfp8"
        return "fp8" if has_activations else "fp8_weights"
    if kind == "float" and bits == 4:
        four = {16: "nvfp4" if has_activations else "nvfp4_weights", 32: "mxfp4"}
        return four.get(size or 16)
    if kind == "int" and bits == 4 and not has_activations:
        return INT4_GROUPS.get(size or -1)
    if kind == "int" and bits == 8:
        return "int8" if has_activations else "int8_weights"
    return None


def _group_words(group: Any) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return "a group without weights"
    kind, bits, size = weights.get("type", "int"), weights.get("num_bits"), weights.get("group_size")
    activations = "quantised activations" if group.get("input_activations") is not None else "16-bit activations"
    return f"{kind} of {bits} bits, groups of {size}, with {activations}"


Reader = Callable[[Keys, Mapping[str, Any]], Stored]
_READERS: dict[str, Reader] = {
    "fp8": _fp8,
    "fbgemm_fp8": lambda config, values: Stored(default="fp8"),
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "modelopt_mxfp8": _modelopt,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed,
    "awq": _gptq,
    "gptq": _gptq,
    "auto-round": _gptq,
    "bitsandbytes": _bitsandbytes,
}
"""``quant_method`` -> what reads it."""
