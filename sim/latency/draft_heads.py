"""Heads that draft from the model's own hidden states: EAGLE, EAGLE-3 and the layers of multi-token prediction (MTP).

As vLLM 0.32.0 builds them (``llama_eagle.py``, ``llama_eagle3.py`` and ``deepseek_mtp.py`` of its
``model_executor/models``): one decoder layer with a KV cache of its own, a matrix that joins embedding and hidden
states, and an LM head. A head here has the shape of the model's layers; published heads may differ from it, so that its
cost is an estimate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sim.latency.attention_kinds import GroupedAttention, LatentAttention
from sim.latency.layer_kinds import LayerKind, Mlp
from sim.latency.model_spec import ModelSpec
from sim.latency.operators import Efficiency
from sim.latency.parallel import kv_heads_per_gpu

if TYPE_CHECKING:
    from sim.latency.gpus import GpuSpec
    from sim.scenario.schema import EngineConfig

EAGLE3_VOCABULARY = 32_000
"""Tokens that an EAGLE-3 head can draft: ``draft_vocab_size`` of the published heads of Llama 3 and Qwen3."""
ELEMENT_BYTES = 2
"""Of the joining matrix, which is not quantised."""
PLAIN_FORMATS = ("bfloat16", "float16", "float32")

Size = tuple[int, int]
"""Outputs and inputs of a matrix on one GPU."""


def head_problem(model: ModelSpec, method: str, num_tokens: int) -> str | None:
    """Why drafts of ``model`` by ``method`` are not simulated, and what to do about it; None = they are."""
    mixers = [mixer for mixer, _ in model.mixers]
    attention = [mixer for mixer in mixers if isinstance(mixer, GroupedAttention | LatentAttention)]
    bounded = any(mixer.window is not None or getattr(mixer, "chunk", None) is not None for mixer in attention)
    if len(attention) < len(mixers) or bounded:
        return (
            f"`method: {method}` beside layers with a window, chunks or a state ({model.name}) is not simulated: vLLM "
            "keeps KV groups for them; choose `method: ngram`"
        )
    if len(set(mixers)) > 1:
        return f"`method: {method}` beside layers of several kinds of attention ({model.name}) is not simulated"
    if method != "mtp":
        if any(isinstance(mixer, LatentAttention) for mixer in attention):
            return (
                f"`method: {method}` beside latent attention ({model.name}) is not simulated: the head's layer has "
                "KV of another kind; choose `method: mtp` or `ngram`"
            )
        return None
    if model.mtp_layers == 0:
        return (
            f"`method: mtp`: {model.name} has no layer that drafts (num_nextn_predict_layers, mtp_num_hidden_layers); "
            "choose `method: eagle3`, `draft_model` or `ngram`"
        )
    if min(model.mtp_layers or 1, num_tokens) > 1:
        return (
            f"`method: mtp` with several of the {model.mtp_layers} layers of {model.name} that draft is not simulated; "
            "set num_speculative_tokens to 1"
        )
    return None


def head_notes(model: ModelSpec, method: str) -> list[str]:
    """What a reader of the results should know of the head."""
    notes = [
        f"`method: {method}`: the head that drafts is taken to be one layer of {model.name}'s shape; its time is an "
        "estimate"
    ]
    if method == "mtp" and model.mtp_layers is None:
        notes.append(f"whether {model.name} has a layer that drafts (MTP) is not known here: one is assumed")
    return notes


def draft_head(model: ModelSpec, method: str) -> ModelSpec:
    """The head as a model of one layer. An MTP layer is one of the model's last kind, in its formats; EAGLE's have a
    plain MLP, as wide as what a token passes of the experts where there are experts, in 16 bits."""
    kind, dtype, vocabulary = model.layer_list[-1], model.dtype, model.vocab_size
    if method != "mtp":
        moe = kind.experts
        width = 0 if moe is None else moe.per_token * moe.width + moe.shared_width
        kind = LayerKind(mixer=kind.mixer, mlp=Mlp(width=width) if moe is not None else kind.mlp)
        dtype = dtype if dtype in PLAIN_FORMATS else "bfloat16"
    if method == "eagle3":
        vocabulary = min(vocabulary, EAGLE3_VOCABULARY)
    return replace(
        model,
        name=f"{model.name} {method} head",
        layers=((kind, 1),),
        vocab_size=vocabulary,
        tie_word_embeddings=False,
        dtype=dtype,
        vision=None,
        notes=(),
    )


def first_matrices(head: ModelSpec, method: str) -> list[Size]:
    """Beside the layer, in the pass over the step's own tokens alone: EAGLE-3 joins the hidden states of three layers
    there (4096 x 12288 for Llama 3.1 8B). Each GPU has it whole."""
    return [(head.hidden_size, 3 * head.hidden_size)] if method == "eagle3" else []


def further_matrices(head: ModelSpec, method: str, tp: int) -> list[Size]:
    """Beside the layer, in every pass: embedding and hidden state are joined (4096 x 8192); of EAGLE-3 queries, keys
    and values are made of both, which is as much again as the layer's own."""
    if method != "eagle3":
        return [(head.hidden_size, 2 * head.hidden_size)]
    width = head.q_size // tp + 2 * kv_heads_per_gpu(head.num_kv_heads, tp) * head.head_size
    return [(width, head.hidden_size)]


def head_bytes(head: ModelSpec, method: str, tp: int) -> int:
    """Of the matrices beside the layer, on one GPU."""
    sizes = first_matrices(head, method) + further_matrices(head, method, tp)
    return sum(outputs * inputs for outputs, inputs in sizes) * ELEMENT_BYTES


class JoiningCost:
    """Time of the matrices beside the layer, by the roofline: arithmetic, or reading them and their tokens."""

    def __init__(self, head: ModelSpec, method: str, gpu: GpuSpec, engine: EngineConfig, time_scale: float) -> None:
        tp = engine.tensor_parallel_size
        self.method = method
        self._every = further_matrices(head, method, tp)
        self._first = first_matrices(head, method)
        self._efficiency = Efficiency()
        self._peak = gpu.fp16_flops
        self._bandwidth = gpu.memory_bandwidth
        self._scale = time_scale * 1e9

    def ns(self, tokens: int, *, is_first: bool) -> int:
        """Of one pass over ``tokens`` tokens; ``is_first``: over those of the step itself."""
        costs, seconds = self._efficiency, 0.0
        for outputs, inputs in self._every + (self._first if is_first else []):
            moved = (outputs * inputs + tokens * (outputs + inputs)) * ELEMENT_BYTES
            arithmetic = 2.0 * tokens * outputs * inputs / (self._peak * costs.gemm)
            seconds += max(arithmetic, moved / (self._bandwidth * costs.memory)) + costs.kernel_s
        return int(np.rint(seconds * self._scale))
