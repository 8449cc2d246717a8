"""Reading a Hugging Face ``config.json`` into a ModelSpec, refusing what cannot be costed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sim.errors import InputError, Problem
from sim.latency.checkpoint.grouped_layers import LLAMA4, grouped_layers
from sim.latency.checkpoint.hybrid_layers import HYBRID_TYPES, hybrid_layers
from sim.latency.checkpoint.keys import Keys
from sim.latency.checkpoint.latent_layers import LATENT_TYPES, latent_layers
from sim.latency.checkpoint.modules import with_formats
from sim.latency.checkpoint.pruned_layers import pruned_layers
from sim.latency.checkpoint.quantization import stored_as
from sim.latency.checkpoint.refusals import KNOWN_TYPES, PLAIN_KEYS, refusal
from sim.latency.checkpoint.spellings import in_usual_words
from sim.latency.context_length import context_lengths
from sim.latency.layer_kinds import LayerKind
from sim.latency.model_spec import ModelSpec
from sim.latency.stored_as import plain_format
from sim.latency.vision_tower import vision_spec

QUANTIZATION_KEYS = ("quantization_config", "compression_config")
QUANTIZATION_FILE = "hf_quant_config.json"
DECODERS = ("text_config", "llm_config", "language_config")
"""Where a multimodal config nests its decoder."""
TIED_BY_DEFAULT = frozenset(
    ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "cohere", "cohere2", "mpt", "falcon")
)
REQUIRED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")
NO_DENSE_MLP = ("moe_intermediate_size", "block_configs")
"""Keys that stand in for ``intermediate_size``."""
MTP_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
"""How families say how many layers draft."""
OTHER_NAMES = {
    "multi_query": "num_key_value_heads",
    "multi_query_attention": "num_key_value_heads",
    "num_kv_heads": "num_key_value_heads",
    "ffn_config": "num_local_experts",
}
"""Keys under which some model types say what is read under another name."""
SHAPE_WORDS = re.compile(
    r"layer|window|head|expert|moe|attn|attention|ssm|mamba|conv|state|rank|freq|interval|pattern|sparse|compress|latent"
    r"|hidden|intermediate|dim$|_dim_|_size$|kv|mlp|ffn|block|shared|chunk|topk|top_k|index"
)
"""What a key is called that may say how layers are made."""


def read_model_config(path: Path) -> ModelSpec:
    """The model of a Hugging Face ``config.json`` (or Mistral's ``params.json``).

    Raises InputError with every problem: unreadable file, missing or impossible values, or an
    architecture whose step cost or KV cache this project does not model.
    """
    root = _loaded(path)
    spec = read_values(root, file=str(path), name=_name(root, path), beside=_beside(path))
    return replace(spec, truncates_sampling=_truncates_sampling(path))


def read_values(root: Mapping[str, Any], *, file: str, name: str, beside: Mapping[str, Any] | None = None) -> ModelSpec:
    """The model that a config's values describe; ``beside``: what ``hf_quant_config.json`` says. Raises InputError."""
    values: Mapping[str, Any] = root
    section, notes = "", list[str]()
    for nested in ("thinker_config", *DECODERS):
        if isinstance(values.get(nested), dict):
            _refuse(values, file)
            values, section = {"model_type": values.get("model_type"), **values[nested]}, f"{section}{nested}."
            notes = [
                "of this multimodal model the text decoder is simulated, and images where engine.enable_images is on"
            ]
    _refuse(values, file)
    config = Keys(in_usual_words(values), file, section)
    config.notes += notes
    spec = _to_spec(config, root, name, beside)
    if config.problems:
        raise InputError(config.problems)
    return spec


def _loaded(path: Path) -> dict[str, Any]:
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
    return loaded


def _refuse(values: Mapping[str, Any], file: str) -> None:
    """Raise for an architecture that cannot be costed, by name and with the reason."""
    reason = refusal(values)
    if reason is not None:
        architectures = values.get("architectures") or [values.get("model_type") or "this architecture"]
        name = str(architectures[0]) if isinstance(architectures, list) else str(architectures)
        raise InputError(Problem(f"{name} is not supported: {reason}", file=file))


def _to_spec(config: Keys, root: Mapping[str, Any], name: str, beside: Mapping[str, Any] | None) -> ModelSpec:
    values = config.values
    layers, hidden, _, vocab, positions = (config.number([name]) for name in _required(config))
    has_other_widths = any(config.has(name) for name in NO_DENSE_MLP)
    intermediate = config.number("intermediate_size", 1 if has_other_widths else None)
    kinds: list[LayerKind] = []
    if not config.problems:
        _check_unknown(config)
        kinds = _layers(config, layers, hidden, intermediate)
    quantization = _quantization(root, values, beside)
    stored = stored_as(config, quantization)
    if config.problems:
        raise InputError(config.problems)
    kinds, dtype = with_formats(kinds, stored, config.model_type, hidden)
    plain, source = plain_format(root, values)
    if dtype:
        source = f"quantization_config {stored.method}"
    longest, served = context_lengths(values)
    vision = vision_spec(root, hidden)
    if vision is None and isinstance(root.get("vision_config"), dict):
        config.notes.append("the vision tower's shape is not read: its weights are left out of the memory plan")
    is_tied = config.flag("tie_word_embeddings", config.model_type in TIED_BY_DEFAULT)
    return ModelSpec(
        name=name,
        layers=tuple((kind, len(list(run))) for kind, run in groupby(kinds)),
        hidden_size=hidden,
        vocab_size=vocab,
        max_position_embeddings=positions,
        scaled_context=longest,
        served_context=served,
        tie_word_embeddings=is_tied,
        dtype=dtype or plain,
        dtype_source=source,
        kv_dtype=stored.kv,
        architecture=_architecture(root),
        vision=vision,
        mtp_layers=_mtp_layers(values),
        notes=tuple(config.notes),
    )


def _mtp_layers(values: Mapping[str, Any]) -> int:
    """Layers that draft, as vLLM counts them (``SpeculativeConfig.hf_config_override``)."""
    return max((value for key in MTP_KEYS if isinstance(value := values.get(key), int)), default=0)


def _required(config: Keys) -> tuple[str, ...]:
    """The numbers without which nothing is known. The pattern of a Nemotron-H says how many layers there are."""
    pattern = config.values.get("hybrid_override_pattern") or config.values.get("layers_block_type")
    if isinstance(pattern, str | list) and not config.has("num_hidden_layers"):
        config.values = {**config.values, "num_hidden_layers": len(pattern)}
    return REQUIRED


def _layers(config: Keys, layers: int, hidden: int, intermediate: int) -> list[LayerKind]:
    if config.has("block_configs"):
        return pruned_layers(config, layers, hidden)
    if config.model_type in HYBRID_TYPES:
        return hybrid_layers(config, layers, hidden, intermediate)
    if config.model_type in LATENT_TYPES:
        return latent_layers(config, layers, hidden, intermediate)
    found = grouped_layers(config, layers, hidden, intermediate)
    if config.model_type in LLAMA4 and any(getattr(kind.mixer, "chunk", None) for kind in found):
        chunk = config.number("attention_chunk_size")
        config.notes.append(f"layers that attend within chunks of {chunk} tokens are costed as a window of as many")
    return found


def _check_unknown(config: Keys) -> None:
    """Problems of a model type that is not known and says something of its layers under a name that is not read."""
    for name, instead in OTHER_NAMES.items():
        if config.values.get(name) not in (None, False) and not config.has(instead):
            config.problem(f"{name} is not read; write {instead} into the file")
    if config.model_type in KNOWN_TYPES or config.has("block_configs"):
        return
    odd = sorted(
        key
        for key, value in config.values.items()
        if key not in PLAIN_KEYS and value not in (None, False, 0, [], {}) and SHAPE_WORDS.search(key)
    )
    if odd:
        config.problem(
            f"model_type {config.model_type!r} is not known, and what {', '.join(odd)} mean{'s' * (len(odd) == 1)} for "
            "its layers is not either"
        )
    else:
        config.notes.append(
            f"model_type {config.model_type!r} is not one that was checked: read as a decoder with GQA and MLP"
        )


def _quantization(
    root: Mapping[str, Any], values: Mapping[str, Any], beside: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The section that says how weights are stored: in the config, else in the file beside it."""
    for each in (root, values):
        for key in QUANTIZATION_KEYS:
            section = each.get(key)
            if isinstance(section, Mapping):
                return section
    return beside


def _beside(path: Path) -> Mapping[str, Any] | None:
    """What ModelOpt's own file says."""
    try:
        beside = json.loads((path.parent / QUANTIZATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return beside if isinstance(beside, dict) else None


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


def _name(values: Mapping[str, Any], path: Path) -> str:
    given = values.get("_name_or_path")
    if isinstance(given, str) and given.strip("/"):
        return given.rstrip("/").rsplit("/", 1)[-1]
    return path.resolve().parent.name if path.name == "config.json" else path.stem
