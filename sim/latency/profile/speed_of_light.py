"""The least time that an operator can take on a GPU: its arithmetic or its traffic at the datasheet's peaks.

Measured times are interpolated as multiples of this bound (``predict``), which takes most of the shape out of a curve.
A start of ``LAUNCH_NS`` is part of every bound, so that a multiple says something for tiny shapes too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from sim.latency.formats import FORMATS, bytes_per_weight
from sim.latency.profile.file import Device

Floats = npt.NDArray[np.float64]
Fields = Mapping[str, str | int]

LAUNCH_NS = 2000.0
"""Start and end of a kernel inside a CUDA graph."""
ELEMENT_BYTES = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8": 1.0,
    "int4": 0.53,
}
ARITHMETIC = {"float16": "bfloat16", "fp8_block": "fp8", "int4": "bfloat16"}
"""Number formats that are multiplied at another one's rate."""


def element_bytes(dtype: str) -> float:
    """Bytes of one number, scales included."""
    return ELEMENT_BYTES[dtype] if dtype in ELEMENT_BYTES else bytes_per_weight(dtype)


def peak_flops(device: Device, dtype: str) -> float:
    """Dense FLOP/s of a number format; a GPU without it multiplies in 16 bits."""
    known = FORMATS[dtype].arithmetic if dtype in FORMATS and dtype not in ELEMENT_BYTES else ""
    rate = device.flops.get(ARITHMETIC.get(dtype, known or dtype))
    return rate if rate is not None else device.flops["bfloat16"]


def _bound(device: Device, dtype: str, flops: Floats, traffic: Floats) -> Floats:
    seconds = np.maximum(flops / peak_flops(device, dtype), traffic / device.memory_bandwidth_bytes_per_s)
    bound: Floats = seconds * 1e9 + LAUNCH_NS
    return bound


def _gemm(device: Device, fields: Fields, m: Floats) -> Floats:
    dtype, n, k = str(fields["dtype"]), float(fields["n"]), float(fields["k"])
    weight = element_bytes(dtype)
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
    traffic = touched * parameters * element_bytes(dtype) + rows * 4.0 * float(fields["hidden_size"])
    return _bound(device, dtype, 2.0 * rows * parameters, traffic)


def _collective(share: Callable[[float], float]) -> Callable[[Device, Fields, Floats], Floats]:
    def bound(device: Device, fields: Fields, size: Floats) -> Floats:
        link = device.link_bandwidth_bytes_per_s or 32e9
        return size * share(float(fields["num_gpus"])) / link * 1e9 + LAUNCH_NS

    return bound


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
    "elementwise": _elementwise,
    "sampling": _sampling,
    "host_copy": _host_copy,
}


def bound_ns(operator: str, device: Device, fields: Fields, at: Floats) -> Floats:
    """Speed-of-light time of ``operator`` at each place ``at`` of its axis, shape as ``at``, nanoseconds.

    ``fields`` gives the operator's key by name (``layout.OPERATORS``).
    """
    return _BOUNDS[operator](device, fields, at)
