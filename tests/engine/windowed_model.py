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


@cache
def windowed_model(window: int) -> str:
    """The path of a config.json with this window."""
    path = Path(tempfile.mkdtemp(prefix="windowed_")) / f"window-{window}.json"
    path.write_text(json.dumps({**CONFIG, "sliding_window": window}))
    return str(path)
