"""Weights on one GPU, as PyTorch allocates them."""

from __future__ import annotations

from collections.abc import Iterator

from sim.latency.layer_kinds import LayerKind
from sim.latency.model_spec import ModelSpec
from sim.latency.precision import Precision

MIB = 1 << 20
LARGE_ALLOCATION_BYTES = 10 * MIB
"""From here on PyTorch's caching allocator asks CUDA for a segment of its own."""
SEGMENT_BYTES = 2 * MIB
"""Such segments are multiples of it."""
UNSPLIT_BYTES = 1 * MIB
"""What a segment has more than was asked for is split off for others where it is more than this, else counts as
allocated."""


MXFP4_HIDDEN, MXFP4_WIDTH = 256, 128
"""Experts in MXFP4 are padded to multiples of it (``mxfp4_round_up_hidden_size_and_intermediate_size``)."""


def weights_bytes(
    model: ModelSpec,
    precision: Precision,
    tp: int,
    layers: range,
    *,
    embed: bool,
    head: bool,
    dp: int = 1,
    is_whole: bool = False,
) -> int:
    """Weights on one of ``tp`` GPUs that hold ``layers``, with the table of rotary positions. Quantisation leaves the
    embedding and the LM head in 16 bits; KV projections are replicated where there are more GPUs than KV heads. Routed
    experts are spread over ``dp`` such ranks, whole or split: a GPU holds as much either way. A vision tower is on the
    first stage, split as the decoder is. What the allocator rounds up is in it: 80 MiB for Qwen2.5-72B on two GPUs,
    where vLLM 0.19 logs 67.80 GiB for 67.72 of parameters."""
    hidden = model.hidden_size
    matrices = 1 if embed and head and model.tie_word_embeddings else int(embed) + int(head)
    outer = matrices * model.vocab_size * hidden
    if embed and model.vision is not None:
        outer += model.vision.parameters
    here, blocks, rounding = 0.0, 0, 0
    plain = 0
    for kind in model.layer_list[layers.start : layers.stop]:
        blocks += kind.num_blocks
        plain += 0 if kind.experts is None else kind.experts.biases(hidden) // (tp * dp)
        for part, size, split in weight_parts(kind, hidden, tp, dp):
            each_bytes = precision.bytes_of(kind, part)
            if part == "experts" and precision.format_of(kind, part) == "mxfp4":
                size *= _padded(kind, hidden, 1 if is_whole else tp * dp)
            here += size * each_bytes
            rounding += sum(_rounded_up(round(each * each_bytes)) for each in split)
    norms = (blocks + 1) * hidden * precision.activation_bytes
    rotary = model.max_position_embeddings * model.head_size * precision.activation_bytes
    small = norms + rotary + plain * precision.activation_bytes
    return round(here + outer / tp * precision.head_bytes) + small + rounding


def _padded(kind: LayerKind, hidden: int, split: int) -> float:
    """How much larger padding makes the experts of a layer, each split over so many GPUs: 9 % of gpt-oss-120b's, whose
    2,880 x 2,880 become 3,072 x 2,944."""
    moe = kind.experts
    if moe is None:
        return 1.0
    inputs, width = moe.latent_size or hidden, moe.width / split
    return -(-inputs // MXFP4_HIDDEN) * MXFP4_HIDDEN / inputs * (-(-width // MXFP4_WIDTH) * MXFP4_WIDTH / width)


def weight_parts(kind: LayerKind, hidden: int, tp: int, dp: int) -> Iterator[tuple[str, float, tuple[int, ...]]]:
    """Name and parameters of each part of a layer on one GPU, and those of its larger tensors: query, key and value are
    one, gate and up, the experts of a layer."""
    blocks = [block for block in (kind.mixer, kind.mlp) if block is not None]
    for block in blocks:
        for matrix in block.matrices(hidden, tp):
            yield matrix.part, matrix.size, (matrix.size,)
    moe = kind.experts
    if moe is not None:
        each = moe.num * (moe.latent_size or hidden) * moe.width // (tp * dp)
        yield "experts", moe.num * moe.each(hidden) / (tp * dp), ((moe.matrices_each - 1) * each, each)
        yield "router", moe.router(hidden), ()  # each GPU has it whole
        yield "shared", moe.shared(hidden) / tp, ()
        yield "latent", moe.latent(hidden) / tp, ()


def _rounded_up(num_bytes: int) -> int:
    """What PyTorch allocates beyond ``num_bytes``: 462.5 MiB take 464, and 1.5 of them are split off; 231 take 232."""
    if num_bytes < LARGE_ALLOCATION_BYTES:
        return 0
    more = -num_bytes % SEGMENT_BYTES
    return more if more <= UNSPLIT_BYTES else 0
