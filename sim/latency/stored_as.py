"""What a Hugging Face ``config.json`` says of its weights' number format: ``engine.dtype: auto``.

Follows vLLM 0.32.0 (``_resolve_auto_dtype`` in ``vllm/config/model.py``, on GPUs from Ampere on): 16-bit formats are
taken as they are, float32 and whatever is not known become bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
"""Model types that vLLM runs in bfloat16 instead (``_FLOAT16_NOT_SUPPORTED_MODELS``)."""
FALLBACK = "bfloat16"
QUANTIZATION_KEYS = ("quantization_config", "compression_config")


def stored_format(root: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """The weights' format in this project's words, where the config says so, and the part of it that could not be used.

    ``root``: the whole config; ``text``: its text decoder, which is the same unless the model has others beside it.
    """
    plain, source = _plain_format(root, text)
    for values in (root, text):
        for key in QUANTIZATION_KEYS:
            quantization = values.get(key)
            if not isinstance(quantization, Mapping):
                continue
            method = str(quantization.get("quant_method", "")).lower()
            found = _quantized_format(method, quantization)
            if found is not None:
                return found, f"{key} {method}", None
            told = f"{key} {method or 'without quant_method'} is not read: engine.dtype says how the weights are stored"
            return plain, source, told
    return plain, source, None


def _plain_format(root: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[str, str]:
    for values in (root, text):
        for key in ("dtype", "torch_dtype"):
            given = values.get(key)
            if not isinstance(given, str):
                continue
            name = given.removeprefix("torch.")
            types = {str(each.get("model_type", "")) for each in (root, text)}
            if name == "bfloat16" or (name == "float16" and not types & NO_FLOAT16):
                return name, f"{key} {name}"
            return FALLBACK, f"{key} {name}, which vLLM casts"
    return FALLBACK, ""


def _quantized_format(method: str, quantization: Mapping[str, Any]) -> str | None:
    if method in ("awq", "gptq"):
        bits = next((quantization[key] for key in ("bits", "w_bit", "wbits") if key in quantization), 4)
        return "int4" if bits == 4 else None
    if method == "fp8":
        return "fp8_block" if quantization.get("weight_block_size") else "fp8"
    if method == "fbgemm_fp8":
        return "fp8"
    if method == "compressed-tensors":
        return _compressed_format(quantization.get("config_groups"))
    return None


def _compressed_format(groups: Any) -> str | None:
    """Of compressed-tensors: one format for all groups of layers, or None."""
    members: Sequence[Any] = list(groups.values()) if isinstance(groups, Mapping) else []
    found = {_group_format(group) for group in members}
    return found.pop() if len(found) == 1 else None


def _group_format(group: Any) -> str | None:
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        return None
    weights = group["weights"]
    kind = (weights.get("type", "int"), weights.get("num_bits"), group.get("input_activations") is not None)
    if kind == ("float", 8, True):
        return "fp8_block" if weights.get("strategy") == "block" else "fp8"
    return {("int", 4, False): "int4", ("int", 8, True): "int8"}.get(kind)
