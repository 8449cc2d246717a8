"""A model whose layers all have a sliding window of any size, as a scenario's ``engine.model``."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

CONFIG = {
    "model_type": "mistral",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
}
"""The shape of Mistral-7B-v0.1."""


EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
"""What makes a mixture of experts of it."""


@cache
def windowed_model(window: int, *, has_experts: bool = False) -> str:
    """The path of a config.json with this window."""
    path = Path(tempfile.mkdtemp(prefix="windowed_")) / f"window-{window}.json"
    experts = EXPERTS if has_experts else {}
    path.write_text(json.dumps({**CONFIG, **experts, "sliding_window": window}))
    return str(path)
