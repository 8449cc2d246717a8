"""The least time that an operator can take on a GPU: its arithmetic or its traffic at the datasheet's peaks.

Measured times are interpolated as multiples of this bound (``predict``), which takes most of the shape out of a curve.
A start of ``LAUNCH_NS`` is part of every bound, so that a multiple says something for tiny shapes too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from sim.latency.formats import FORMATS, bytes_per_weight
from sim.latency.profile.blocks import BLOCKS
from sim.latency.profile.file import Device

Floats = npt.NDArray[np.float64]
Fields = Mapping[str, str | int]

LAUNCH_NS = 2000.0
"""Start and end of a kernel inside a CUDA graph."""
ELEMENT_BYTES = {name: bytes_per_weight(name) for name in FORMATS} | {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8": 1.0,
    "int4": 0.53,
    "mxfp4_mxfp8": bytes_per_weight("mxfp4"),
    "mxfp4_marlin": bytes_per_weight("mxfp4"),
}
ARITHMETIC = {"fp8_block": "fp8", "mxfp8": "fp8", "nvfp4": "fp8", "mxfp4_mxfp8": "fp8"}
"""Number formats that are multiplied at another one's rate; those without a rate of their own are in 16 bits."""
FASTER = {"nvfp4": 2.0}
"""Times that rate, where tensor cores multiply in 4 bits."""
FOUR_BIT_ARITHMETIC = 10
"""Compute capability from which they do."""


def peak_flops(device: Device, dtype: str) -> float:
    """Dense FLOP/s of a number format; a GPU without it multiplies in 16 bits."""
    rate = device.flops.get(ARITHMETIC.get(dtype, dtype))
    if dtype in FASTER and int((device.compute_capability or "0").partition(".")[0]) < FOUR_BIT_ARITHMETIC:
        rate = None
    return rate * FASTER.get(dtype, 1.0) if rate is not None else device.flops["bfloat16"]


def _bound(device: Device, dtype: str, flops: Floats, traffic: Floats) -> Floats:
    seconds = np.maximum(flops / peak_flops(device, dtype), traffic / device.memory_bandwidth_bytes_per_s)
    bound: Floats = seconds * 1e9 + LAUNCH_NS
    return bound


def _gemm(device: Device, fields: Fields, m: Floats) -> Floats:
    dtype, n, k = str(fields["dtype"]), float(fields["n"]), float(fields["k"])
    weight = ELEMENT_BYTES[dtype]
    activation = 2.0 if weight < 2.0 else weight
    return _bound(device, dtype, 2.0 * m * n * k, n * k * weight + m * (n + k) * activation)


def kv_bytes_per_token(fields: Fields) -> float:
    """Keys and values of one token in one layer."""
    return 2.0 * float(fields["num_kv_heads"]) * float(fields["head_size"]) * ELEMENT_BYTES[str(fields["kv_dtype"])]


def _attended(fields: Fields, context: Floats) -> Floats:
    window = float(fields["window"])
    return np.minimum(context, window) if window else context


def _decode_attention(device: Device, fields: Fields, context: Floats) -> Floats:
    batch, heads, size = float(fields["batch"]), float(fields["num_heads"]), float(fields["head_size"])
    seen = _attended(fields, context)
    flops = 4.0 * batch * heads * size * seen
    traffic = batch * (seen * kv_bytes_per_token(fields) + 4.0 * heads * size)
    return _bound(device, str(fields["dtype"]), flops, traffic)


def causal_pairs(chunk: Floats, prior: Floats | float, window: float = 0.0) -> Floats:
    """Query-key pairs of a causal chunk after ``prior`` tokens; with a window each query sees that many at most."""
    pairs: Floats = chunk * prior + chunk * (chunk + 1.0) / 2.0
    if window:
        start = np.maximum(0.0, np.minimum(chunk, window - prior))
        """Queries that see less than the window."""
        pairs = start * prior + start * (start + 1.0) / 2.0 + (chunk - start) * window
    return pairs


def _prefill_attention(device: Device, fields: Fields, chunk: Floats) -> Floats:
    batch, heads, size = float(fields["batch"]), float(fields["num_heads"]), float(fields["head_size"])
    prior = float(fields["prior_tokens"])
    flops = 4.0 * batch * heads * size * causal_pairs(chunk, prior, float(fields["window"]))
    traffic = batch * ((prior + chunk) * kv_bytes_per_token(fields) + 4.0 * chunk * heads * size)
    return _bound(device, str(fields["dtype"]), flops, traffic)


def _mixed_attention(device: Device, fields: Fields, context: Floats) -> Floats:
    chunk = np.full_like(context, float(fields["chunk_tokens"]))
    prefill = _prefill_attention(device, {**fields, "batch": 1}, chunk)
    decode = _decode_attention(device, {**fields, "batch": fields["num_decodes"]}, context)
    total: Floats = prefill + decode - LAUNCH_NS
    return total


def _moe(device: Device, fields: Fields, tokens: Floats) -> Floats:
    experts, chosen = float(fields["num_experts"]), float(fields["experts_per_token"])
    parameters = 3.0 * float(fields["hidden_size"]) * float(fields["intermediate_size"]) / float(fields["tp"])
    dtype = str(fields["dtype"])
    rows = tokens * chosen / float(fields["ep"])
    local = experts / float(fields["ep"])
    touched = local * (1.0 - (1.0 - chosen / experts) ** tokens)
    traffic = touched * parameters * ELEMENT_BYTES[dtype] + rows * 4.0 * float(fields["hidden_size"])
    return _bound(device, dtype, 2.0 * rows * parameters, traffic)


def _collective(share: Callable[[float], float]) -> Callable[[Device, Fields, Floats], Floats]:
    def bound(device: Device, fields: Fields, size: Floats) -> Floats:
        link = device.link_bandwidth_bytes_per_s or 32e9
        return size * share(float(fields["num_gpus"])) / link * 1e9 + LAUNCH_NS

    return bound


def _block_weights(device: Device, fields: Fields, tokens: Floats) -> tuple[Floats, Floats]:
    """(seconds of arithmetic, bytes of weights and activations) of a block's matrices for so many tokens."""
    sizes, heads, dtype = BLOCKS[str(fields["block"])], int(fields["num_heads"]), str(fields["dtype"])
    parameters = float(sum(n * k for n, k in sizes.projections(heads)) + sizes.absorbed(heads))
    compute: Floats = 2.0 * tokens * parameters / peak_flops(device, dtype)
    return compute, parameters * ELEMENT_BYTES[dtype] + tokens * 4.0 * sizes.hidden


def _block_bound(device: Device, compute: Floats, traffic: Floats) -> Floats:
    bound: Floats = np.maximum(compute, traffic / device.memory_bandwidth_bytes_per_s) * 1e9 + LAUNCH_NS
    return bound


def _block_decode(device: Device, fields: Fields, context: Floats) -> Floats:
    sizes, heads, batch = BLOCKS[str(fields["block"])], int(fields["num_heads"]), float(fields["batch"])
    compute, traffic = _block_weights(device, fields, np.full_like(context, batch))
    seen: Floats = np.minimum(context, float(sizes.top_tokens)) if sizes.top_tokens else context
    flops = batch * (seen * sizes.decode_flops_per_token(heads) + context * sizes.index_flops())
    read = seen * sizes.elements_per_token(heads) * ELEMENT_BYTES[str(fields["kv_dtype"])] + context * sizes.index_size
    return _block_bound(device, compute + flops / peak_flops(device, "bfloat16"), traffic + batch * read)


def _block_prefill(device: Device, fields: Fields, chunk: Floats) -> Floats:
    sizes, heads, batch = BLOCKS[str(fields["block"])], int(fields["num_heads"]), float(fields["batch"])
    compute, traffic = _block_weights(device, fields, chunk * batch)
    pairs = causal_pairs(chunk, 0.0, float(sizes.top_tokens))
    flops = batch * (pairs * sizes.pair_flops(heads) + causal_pairs(chunk, 0.0) * sizes.index_flops())
    return _block_bound(device, compute + flops / peak_flops(device, "bfloat16"), traffic)


STATE_HEAD, STATE_CONV, STATE_CHUNK = 128, 4, 64
"""Of gated delta nets: elements of a head's keys and values, taps of the convolution, tokens taken together."""


def _state_width(fields: Fields) -> tuple[float, float]:
    """Elements of the convolution, and of the state of all heads."""
    keys, heads = float(fields["num_key_heads"]), float(fields["num_heads"])
    return (2.0 * keys + heads) * STATE_HEAD, heads * STATE_HEAD * STATE_HEAD


def _state_decode(device: Device, fields: Fields, requests: Floats) -> Floats:
    width, state = _state_width(fields)
    traffic = requests * (2.0 * 4.0 * state + 2.0 * (STATE_CONV + 1.0) * width)
    return _bound(device, "bfloat16", np.zeros_like(requests), traffic)


def _state_prefill(device: Device, fields: Fields, chunk: Floats) -> Floats:
    width, state = _state_width(fields)
    batch, heads = float(fields["batch"]), float(fields["num_heads"])
    tokens = batch * chunk
    flops = tokens * (4.0 * state + 4.0 * STATE_CHUNK * heads * STATE_HEAD)
    traffic = tokens * 3.0 * 2.0 * width + batch * 2.0 * 4.0 * state
    return _bound(device, "bfloat16", flops, traffic)


def _expert_exchange(device: Device, fields: Fields, tokens: Floats) -> Floats:
    gpus, chosen = float(fields["num_gpus"]), float(fields["experts_per_token"])
    others = (gpus - 1.0) * (1.0 - (1.0 - 1.0 / gpus) ** chosen)
    link = device.link_bandwidth_bytes_per_s or 32e9
    bound: Floats = tokens * others * float(fields["hidden_size"]) / link * 1e9 + LAUNCH_NS
    return bound


def _encoder_attention(device: Device, fields: Fields, tokens: Floats) -> Floats:
    batch, width = float(fields["batch"]), float(fields["num_heads"]) * float(fields["head_size"])
    return _bound(device, "bfloat16", 4.0 * batch * width * tokens * tokens, batch * tokens * 4.0 * width * 2.0)


ELEMENTWISE_BYTES = {"rms_norm": 8.0, "silu_and_mul": 6.0, "rotary": 4.0, "reshape_and_cache": 4.0}
"""Bytes moved per element of the width, 16-bit numbers (``layout`` says which width)."""


def _elementwise(device: Device, fields: Fields, tokens: Floats) -> Floats:
    traffic = tokens * float(fields["width"]) * ELEMENTWISE_BYTES.get(str(fields["name"]), 4.0)
    return _bound(device, "bfloat16", np.zeros_like(tokens), traffic)


def _sampling(device: Device, fields: Fields, rows: Floats) -> Floats:
    return _bound(device, "float32", np.zeros_like(rows), rows * float(fields["vocab_size"]) * 4.0)


def _host_copy(device: Device, fields: Fields, size: Floats) -> Floats:
    return size / 64e9 * 1e9 + LAUNCH_NS


_BOUNDS: dict[str, Callable[[Device, Fields, Floats], Floats]] = {
    "gemm": _gemm,
    "decode_attention": _decode_attention,
    "decode_attention_contiguous": _decode_attention,
    "prefill_attention": _prefill_attention,
    "mixed_attention": _mixed_attention,
    "moe": _moe,
    "moe_triton": _moe,
    "moe_cutlass": _moe,
    "all_reduce": _collective(lambda gpus: 2.0 * (gpus - 1.0) / gpus),
    "all_gather": _collective(lambda gpus: (gpus - 1.0) / gpus),
    "reduce_scatter": _collective(lambda gpus: (gpus - 1.0) / gpus),
    "all_to_all": _collective(lambda gpus: (gpus - 1.0) / gpus),
    "block_decode": _block_decode,
    "block_prefill": _block_prefill,
    "state_decode": _state_decode,
    "state_prefill": _state_prefill,
    "expert_exchange": _expert_exchange,
    "encoder_attention": _encoder_attention,
    "elementwise": _elementwise,
    "sampling": _sampling,
    "host_copy": _host_copy,
}


def bound_ns(operator: str, device: Device, fields: Fields, at: Floats) -> Floats:
    """Speed-of-light time of ``operator`` at each place ``at`` of its axis, shape as ``at``, nanoseconds.

    ``fields`` gives the operator's key by name (``layout.OPERATORS``).
    """
    return _BOUNDS[operator](device, fields, at)
