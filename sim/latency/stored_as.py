"""What a Hugging Face ``config.json`` says of the number format of weights that are not quantised.

Follows vLLM 0.32.0 (``_resolve_auto_dtype`` in ``vllm/config/model.py``, on GPUs from Ampere on): 16-bit formats are
taken as they are, float32 and whatever is not known become bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
"""Model types that vLLM runs in bfloat16 instead (``_FLOAT16_NOT_SUPPORTED_MODELS``)."""
FALLBACK = "bfloat16"


def plain_format(root: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[str, str]:
    """The format of weights that are not quantised, and where the config says so.

    ``root``: the whole config; ``text``: its text decoder, which is the same unless the model has others beside it.
    """
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
