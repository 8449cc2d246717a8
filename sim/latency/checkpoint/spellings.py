"""Configs that say the usual things under other names, put into the usual ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

Values = Mapping[str, Any]
MISTRAL_POSITIONS = 128_000
"""What vLLM takes where a ``params.json`` does not say it."""
FALCON_POSITIONS = 2048


def in_usual_words(values: Values) -> dict[str, Any]:
    """The keys of a config under the names that most configs use."""
    model_type = str(values.get("model_type", ""))
    if not model_type and "dim" in values and "n_layers" in values:
        return _mistral(values)
    known = _BY_TYPE.get(model_type)
    return dict(values) if known is None else known(values)


def _renamed(values: Values, names: Mapping[str, str]) -> dict[str, Any]:
    """With each key of ``names`` also under its other name, where that is not given."""
    found = dict(values)
    for theirs, usual in names.items():
        if values.get(theirs) is not None and found.get(usual) is None:
            found[usual] = values[theirs]
    return found


def _section(values: Values, name: str) -> Values:
    inner = values.get(name)
    return inner if isinstance(inner, Mapping) else {}


_SHORT = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "max_seq_len": "max_position_embeddings",
}


def _mistral(values: Values) -> dict[str, Any]:
    """Mistral's own ``params.json``."""
    names = {**_SHORT, "dim": "hidden_size", "hidden_dim": "intermediate_size", "n_kv_heads": "num_key_value_heads"}
    names |= {"tied_embeddings": "tie_word_embeddings"}
    found = _renamed(values, names)
    found.setdefault("model_type", "mistral")
    found.setdefault("max_position_embeddings", MISTRAL_POSITIONS)
    moe = _section(values, "moe")
    if moe:
        found |= {"num_local_experts": moe.get("num_experts"), "num_experts_per_tok": moe.get("num_experts_per_tok")}
        found["model_type"] = "mixtral"
    return found


def _dbrx(values: Values) -> dict[str, Any]:
    attention, ffn = _section(values, "attn_config"), _section(values, "ffn_config")
    return {
        **_renamed(values, _SHORT),
        "num_key_value_heads": attention.get("kv_n_heads"),
        "intermediate_size": ffn.get("ffn_hidden_size"),
        "num_local_experts": ffn.get("moe_num_experts"),
        "num_experts_per_tok": ffn.get("moe_top_k"),
    }


def _mpt(values: Values) -> dict[str, Any]:
    found = _renamed(values, _SHORT)
    width, ratio = values.get("d_model"), values.get("expansion_ratio", 4)
    if isinstance(width, int) and isinstance(ratio, int):
        found["intermediate_size"] = ratio * width
    found["num_key_value_heads"] = _section(values, "attn_config").get("kv_n_heads")
    found.setdefault("tie_word_embeddings", True)
    return found


def _falcon(values: Values) -> dict[str, Any]:
    """KV heads: of the newer architecture as told, else one (``multi_query``) or as many as heads."""
    found = dict(values)
    if values.get("new_decoder_architecture"):
        found["num_key_value_heads"] = values.get("num_kv_heads")
    elif values.get("multi_query", True):
        found["num_key_value_heads"] = 1
    else:
        found["num_key_value_heads"] = values.get("num_attention_heads")
    width = values.get("hidden_size")
    if isinstance(width, int):
        found["intermediate_size"] = values.get("ffn_hidden_size") or 4 * width
    found.setdefault("tie_word_embeddings", True)
    found.setdefault("max_position_embeddings", FALCON_POSITIONS)
    return found


_BY_TYPE: Mapping[str, Callable[[Values], dict[str, Any]]] = MappingProxyType(
    {"dbrx": _dbrx, "mpt": _mpt, "falcon": _falcon}
)
