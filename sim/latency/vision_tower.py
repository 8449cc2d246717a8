"""The vision tower that a Hugging Face ``config.json`` describes beside its decoder: its size, and its images'.

A vision transformer is square attention (four matrices), an MLP and an embedding of patches; a projection leads to the
decoder's width. Gemma 3's: 27 layers, 1,152 wide, MLP 4,304 = 0.42 B parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.latency.model_spec import VisionSpec

CHANNELS = 3
GATED_TYPES = frozenset({"pixtral", "qwen2_5_vl", "mistral3", "mllama_vision_model"})
"""Towers whose MLP has three matrices."""
GATED_MATRICES, PLAIN_MATRICES = 3, 2
MLP_RATIO = 4
FRAMES = {"Gemma3ForConditionalGeneration": (2, 2)}
"""Tokens around an image by architecture: a double line feed and a marker on either side (``Gemma3Processor``)."""
LARGEST_QWEN = 16_384
"""Embeddings of the largest image of Qwen's processors as published: 16,777,216 pixels of 32 x 32 an embedding
(Qwen3-VL), 12,845,056 of 28 x 28 (Qwen2-VL, Qwen2.5-VL). A ``preprocessor_config.json`` may say another."""


def vision_spec(root: Mapping[str, Any], decoder_width: int) -> VisionSpec | None:
    """The tower of a multimodal config; None where it has none, or none of a shape that is read here."""
    tower = root.get("vision_config")
    if not isinstance(tower, Mapping):
        return None
    width = _number(tower, "embed_dim", "hidden_size", "width", "vt_hidden_size")
    layers = _number(tower, "num_hidden_layers", "depth", "layers", "vt_num_hidden_layers")
    if not width or not layers:
        return None
    mlp = _number(tower, "intermediate_size", "vt_intermediate_size") or MLP_RATIO * width
    matrices = GATED_MATRICES if str(tower.get("model_type")) in GATED_TYPES else PLAIN_MATRICES
    patch, side = _number(tower, "patch_size"), _number(tower, "image_size")
    places = (side // patch) ** 2 if patch and side else 0
    parameters = layers * (4 * width**2 + matrices * width * mlp)
    parameters += (CHANNELS * patch**2 + places + decoder_width) * width
    tokens = _number(root, "mm_tokens_per_image") if side else 0
    architectures = root.get("architectures")
    kind = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    merge = _number(tower, "spatial_merge_size", "pooling_kernel_size") or _number(root, "spatial_merge_size")
    per_embed = places // tokens if tokens else merge**2
    largest = tokens or (places // per_embed if per_embed else 0)
    return VisionSpec(
        parameters=parameters,
        values_per_image=CHANNELS * side**2,
        tokens_per_image=tokens,
        frame=FRAMES.get(kind, (0, 0)),
        largest_embeds=LARGEST_QWEN if kind.startswith("Qwen") else largest,
        layers=layers,
        width=width,
        heads=_number(tower, "num_attention_heads", "num_heads", "heads"),
        mlp_width=mlp,
        mlp_matrices=matrices,
        patch_values=CHANNELS * patch**2,
        patches_per_embed=per_embed,
    )


def _number(values: Mapping[str, Any], *names: str) -> int:
    """The first of ``names`` that is a whole number above 0, else 0."""
    found = (values.get(name) for name in names)
    return next((each for each in found if isinstance(each, int) and not isinstance(each, bool) and each > 0), 0)
