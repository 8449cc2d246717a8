"""The longest context of a model, as vLLM 0.32.0 reads it from a ``config.json`` (``_get_and_verify_max_len`` of
``vllm/config/model.py``): what ``engine.max_model_len: null`` takes, and what a larger one is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LENGTH_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""Keys that state a length; the smallest of those given counts, except that ``model_max_length`` has the last word."""
SCALED_ALREADY = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})
"""Kinds of rope scaling whose factor ``max_position_embeddings`` contains already; that of others multiplies it."""


def context_lengths(values: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Read the longest context of a model and the one that it is served with by default; None = no key says it.

    ``max_position_embeddings`` 4,096 with linear scaling by 4 gives 16,384 twice. With longrope the default is
    ``original_max_position_embeddings``: 131,072 and 4,096 for a Phi-3.
    """
    told = [length for key in LENGTH_KEYS if (length := _length(values.get(key))) is not None]
    if not told:
        return None, None
    longest = float(_length(values.get("model_max_length")) or min(told))
    kinds: set[str] = set()
    if "gemma3" not in str(values.get("model_type", "")):
        factor = 1.0
        for rope in _ropes(values):
            kind = str(rope.get("rope_type") or rope.get("type") or "default")
            kinds.add(kind)
            given = rope.get("factor")
            if kind not in SCALED_ALREADY and isinstance(given, int | float) and not isinstance(given, bool):
                factor = given
        longest *= factor
    original = _length(values.get("original_max_position_embeddings"))
    is_long = bool({"longrope", "su"} & kinds)
    return int(longest), original if is_long and original is not None else int(longest)


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _ropes(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rope sections: one, or one for each kind of layer."""
    section = values.get("rope_parameters") or values.get("rope_scaling")
    if not isinstance(section, dict):
        return
    nested = [each for each in section.values() if isinstance(each, dict)]
    if nested and len(nested) == len(section):
        yield from nested
    else:
        yield section
