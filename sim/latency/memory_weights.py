"""Weights on one GPU, as PyTorch allocates them."""

from __future__ import annotations

from collections.abc import Iterator

from sim.latency.model_spec import ModelSpec
from sim.latency.parallel import kv_heads_per_gpu
from sim.latency.precision import Precision

MIB = 1 << 20
LARGE_ALLOCATION_BYTES = 10 * MIB
"""From here on PyTorch's caching allocator asks CUDA for a segment of its own."""
SEGMENT_BYTES = 2 * MIB
"""Such segments are multiples of it."""
UNSPLIT_BYTES = 1 * MIB
"""What a segment has more than was asked for is split off for others where it is more than this, else counts as
allocated."""


def weights_bytes(
    model: ModelSpec, precision: Precision, tp: int, layers: range, *, embed: bool, head: bool, dp: int = 1
) -> int:
    """Weights on one of ``tp`` GPUs that hold ``layers``, with the table of rotary positions. Quantisation leaves the
    embedding and the LM head in 16 bits; KV projections are replicated where there are more GPUs than KV heads. Routed
    experts are spread over ``dp`` such ranks, whole or split: a GPU holds as much either way. A vision tower is on the
    first stage, split as the decoder is. What the allocator rounds up is in it: 80 MiB for Qwen2.5-72B on two GPUs,
    where vLLM 0.19 logs 67.80 GiB for 67.72 of parameters."""
    extra_kv = max(0, tp * kv_heads_per_gpu(model.num_kv_heads, tp) - model.num_kv_heads)
    replicated = 2 * model.hidden_size * extra_kv * model.head_size
    attention = model.attention_parameters + replicated
    moe = model.router_parameters + model.num_experts * model.expert_parameters + model.shared_expert_parameters
    num_dense = len(range(layers.start, min(layers.stop, model.num_layers - model.num_moe_layers)))
    num_moe = len(layers) - num_dense
    linear = len(layers) * attention + num_dense * model.dense_mlp_parameters + num_moe * moe
    elsewhere = num_moe * model.num_experts * model.expert_parameters * (dp - 1) / dp
    matrices = 1 if embed and head and model.tie_word_embeddings else int(embed) + int(head)
    outer = matrices * model.vocab_size * model.hidden_size
    if embed and model.vision is not None:
        outer += model.vision.parameters
    norms = (2 * len(layers) + 1) * model.hidden_size * precision.activation_bytes
    rotary = model.max_position_embeddings * model.head_size * precision.activation_bytes
    here = (linear - elsewhere) / tp
    rounding = sum(_rounded_up(size) for size in _matrix_bytes(model, precision, tp, len(layers), num_moe, dp))
    return round(here * precision.linear_bytes + outer / tp * precision.head_bytes) + norms + rotary + rounding


def _matrix_bytes(
    model: ModelSpec, precision: Precision, tp: int, num_layers: int, num_moe: int, dp: int
) -> Iterator[int]:
    """Bytes of each tensor of the layers: query, key and value are one, gate and up, the experts of a layer."""
    kv = kv_heads_per_gpu(model.num_kv_heads, tp) * model.head_size
    width, gated = model.hidden_size, model.mlp_matrices - 1
    attention = ((model.q_size // tp + 2 * kv) * width, model.q_size // tp * width)
    dense = (gated * model.intermediate_size // tp * width, model.intermediate_size // tp * width)
    experts = model.num_experts * width * model.moe_intermediate_size // (tp * dp)
    shapes = ((num_layers, attention), (num_layers - num_moe, dense), (num_moe, (gated * experts, experts)))
    for count, elements in shapes:
        for each in elements:
            yield from [round(each * precision.linear_bytes)] * count


def _rounded_up(num_bytes: int) -> int:
    """What PyTorch allocates beyond ``num_bytes``: 462.5 MiB take 464, and 1.5 of them are split off; 231 take 232."""
    if num_bytes < LARGE_ALLOCATION_BYTES:
        return 0
    more = -num_bytes % SEGMENT_BYTES
    return more if more <= UNSPLIT_BYTES else 0
