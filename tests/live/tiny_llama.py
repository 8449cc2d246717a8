"""A Llama of random weights, small enough for any CPU: its config and a tokenizer, both written here by hand.

There is no weight file: vLLM makes the weights up with ``--load-format dummy``, the same in every process. The
tokenizer knows ``VOCAB_SIZE`` words, one token each, so a text of n of them is a prompt of n tokens and each token that
comes back is a word of its own.

Run as a script to write the copy that ``scenarios/live_smoke.yaml`` names: ``python tests/live/tiny_llama.py FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

VOCAB_SIZE = 512
MAX_MODEL_LEN = 4096
SPECIAL = ("<unk>", "<s>", "</s>")
"""Token ids 0, 1 and 2: unknown, beginning and end of a text. No prompt should hold them."""
FIRST_WORD_ID = len(SPECIAL)

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the smallest that vLLM's CPU attention takes
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": MAX_MODEL_LEN,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def word(token_id: int) -> str:
    """The text of a token."""
    return SPECIAL[token_id] if token_id < FIRST_WORD_ID else f"w{token_id}"


def tokenizer() -> dict[str, Any]:
    """``tokenizer.json``: words parted by white space, nothing added at either end."""
    special = [
        {
            **{"id": token_id, "content": text, "special": True, "normalized": False},
            **{"single_word": False, "lstrip": False, "rstrip": False},
        }
        for token_id, text in enumerate(SPECIAL)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word(token_id): token_id for token_id in range(VOCAB_SIZE)},
            "unk_token": SPECIAL[0],
        },
    }


TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": SPECIAL[0],
    "bos_token": SPECIAL[1],
    "eos_token": SPECIAL[2],
    "model_max_length": MAX_MODEL_LEN,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}


def files() -> dict[str, str]:
    """Name and text of every file of the model."""
    return {
        "config.json": json.dumps(CONFIG, indent=2) + "\n",
        "tokenizer.json": json.dumps(tokenizer(), separators=(",", ":")) + "\n",
        "tokenizer_config.json": json.dumps(TOKENIZER_CONFIG, indent=2) + "\n",
    }


def write_tiny_llama(folder: Path) -> Path:
    """Write the model to ``folder``, made if missing; what ``--model`` and ``engine.model`` take."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return folder


if __name__ == "__main__":
    write_tiny_llama(Path(sys.argv[1]))
