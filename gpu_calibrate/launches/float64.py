"""What each operation must give, in float64 NumPy, and how far rounding may take a kernel from it.

Used by the tests (kernels run on the CPU) and on a GPU (``check``). Straightforward on purpose: whole score matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_calibrate.launches.kernels import KernelError
from gpu_calibrate.launches.plan_types import Plan

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

HALF_STEP = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "fp8": 2.0**-4, "float32": 2.0**-24}
"""Relative error of rounding to a format."""
SMALLEST = {"float16": 2.0**-24, "bfloat16": 0.0, "fp8": 2.0**-9, "float32": 0.0}
"""Distance of neighbours near zero, where it matters."""
FLOAT32_SUMS = 4e-5
"""Relative error of float32 sums, products and exponentials along the way, generously."""
MATRIX_KERNELS = ("paged_attention_gqa", "paged_attention_split_kv", "contiguous_attention", "paged_prefill")
"""These round softmax weights to 16 bits before they multiply V, as FlashAttention does."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What one output must be: ``values`` up to ``tolerance``, element by element; NaN = nothing is written there."""

    values: Floats
    tolerance: Floats


def to_float64(bits: NDArray[Any], dtype: str) -> Floats:
    """The numbers that ``bits`` stand for (see ``launch.STORED_AS``)."""
    if dtype == "float16":
        return np.asarray(bits.view(np.float16).astype(np.float64))
    if dtype == "bfloat16":
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return np.asarray((bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64))
    if dtype == "fp8":
        return np.asarray(_fp8_values()[bits])
    return np.asarray(bits.astype(np.float64))


@lru_cache(maxsize=1)
def _fp8_values() -> Floats:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)
    value[(code & 127) == 127] = np.nan
    return np.where(code & 128, -value, value)


def _rounding(values: Floats, dtype: str, steps: float = 1.0) -> Floats:
    return steps * (HALF_STEP[dtype] * np.abs(values) + SMALLEST[dtype] / 2)


def _softmax_attention(query: Floats, keys: Floats, values: Floats, prior: int, scale: float) -> tuple[Floats, Floats]:
    """Causal attention of ``[queries, q_heads, d]`` over ``[tokens, kv_heads, d]``; and the same of ``|v|``."""
    group = query.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)
    scores = np.einsum("ihd,thd->hit", query, keys) * scale
    visible = np.arange(keys.shape[0])[None, :] <= prior + np.arange(query.shape[0])[:, None]
    scores = np.where(visible[None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("hit,thd->ihd", weights, values), np.einsum("hit,thd->ihd", weights, np.abs(values))


def _attention(plan: Plan, arrays: Arrays) -> dict[str, Expected]:
    shape = plan.shape
    dtype, block_size = str(shape["dtype"]), int(shape["block_size"])
    cache_dtype = plan.arrays["k_cache"].dtype
    call = plan.calls[0]
    floats = [float(arg) for arg in call.args if isinstance(arg, np.float32)]
    k_scale, v_scale = floats[0], floats[1]
    query = to_float64(arrays["query"], dtype)
    lens = arrays["context_lens"].tolist()
    starts = arrays["query_starts"].tolist() if "query_starts" in arrays else list(range(len(lens) + 1))
    scale = k_scale / np.sqrt(query.shape[-1])
    out, magnitude = np.zeros_like(query), np.zeros_like(query)
    for seq, tokens in enumerate(lens):
        if tokens == 0:
            continue
        k_rows, v_rows = (
            _rows(arrays[name], arrays.get("block_tables"), seq, tokens, block_size) for name in ("k_cache", "v_cache")
        )
        keys, values = to_float64(k_rows, cache_dtype), to_float64(v_rows, cache_dtype) * v_scale
        rows = slice(starts[seq], starts[seq + 1])
        prior = tokens - (starts[seq + 1] - starts[seq])
        out[rows], magnitude[rows] = _softmax_attention(query[rows], keys, values, prior, scale)
    weights = HALF_STEP[dtype] if plan.op in MATRIX_KERNELS else 0.0
    return {"out": Expected(out, _rounding(out, dtype) + (weights + FLOAT32_SUMS) * magnitude)}


def _rows(cache: NDArray[Any], tables: NDArray[Any] | None, seq: int, tokens: int, block_size: int) -> NDArray[Any]:
    """Rows of the sequence's tokens, ``[tokens, kv_heads, d]``."""
    if tables is None:
        return np.asarray(cache[seq, :tokens])
    at = np.arange(tokens)
    return np.asarray(cache[tables[seq, at // block_size], at % block_size])


def _reshape_and_cache(plan: Plan, arrays: Arrays) -> dict[str, Expected]:
    dtype, cache_dtype = str(plan.shape["dtype"]), plan.arrays["k_cache"].dtype
    scales = [float(arg) for arg in plan.calls[0].args if isinstance(arg, np.float32)]
    slots = arrays["slot_mapping"]
    expected = {}
    for name, cache, scale in (("key", "k_cache", scales[0]), ("value", "v_cache", scales[1])):
        shape = plan.arrays[cache].shape
        rows = np.full((shape[0] * shape[1], *shape[2:]), np.nan)
        new = to_float64(arrays[name], dtype)
        if cache_dtype == "fp8":
            new = np.clip(new / scale, -448.0, 448.0)
        rows[slots[slots >= 0]] = new[slots >= 0]
        rows = rows.reshape(shape)
        # In the model's own format the bits are copied.
        expected[cache] = Expected(rows, _rounding(rows, "fp8", 1.0001) if cache_dtype == "fp8" else np.zeros(shape))
    return expected


def _rms_norm(plan: Plan, arrays: Arrays) -> dict[str, Expected]:
    dtype, residual = str(plan.shape["dtype"]), "residual" in arrays
    epsilon = next(float(arg) for arg in plan.calls[0].args if isinstance(arg, np.float32))
    total = to_float64(arrays["input"], dtype)
    if residual:
        total = total + to_float64(arrays["residual"], dtype)
    norm = total / np.sqrt((total**2).mean(axis=1, keepdims=True) + epsilon) * to_float64(arrays["weight"], dtype)
    # Fused, the norm is that of the rounded sum.
    result = Expected(norm, _rounding(norm, dtype, 2.2 if residual else 1.0) + FLOAT32_SUMS * np.abs(norm))
    if residual:
        return {"input": result, "residual": Expected(total, _rounding(total, dtype, 1.001))}
    return {"out": result}


def _rotary(plan: Plan, arrays: Arrays) -> dict[str, Expected]:
    dtype, dim = str(plan.shape["dtype"]), int(plan.shape["rotary_dim"])
    angles = to_float64(arrays["cos_sin_cache"], dtype)[arrays["positions"]]
    cosines, sines = angles[:, None, : dim // 2], angles[:, None, dim // 2 :]
    expected = {}
    for name in ("query", "key"):
        rows = to_float64(arrays[name], dtype)
        first, second = rows[..., : dim // 2], rows[..., dim // 2 : dim]
        rotated = [first * cosines - second * sines, second * cosines + first * sines, rows[..., dim:]]
        size = [np.abs(first * cosines) + np.abs(second * sines), np.abs(second * cosines) + np.abs(first * sines)]
        out = np.concatenate(rotated, axis=-1)
        slack = np.concatenate([*size, np.zeros_like(rotated[2])], axis=-1) * FLOAT32_SUMS
        expected[name] = Expected(out, _rounding(out, dtype) + slack)
    return expected


def _silu_and_mul(plan: Plan, arrays: Arrays) -> dict[str, Expected]:
    dtype, size = str(plan.shape["dtype"]), int(plan.shape["intermediate_size"])
    both = to_float64(arrays["input"], dtype)
    out = both[:, :size] / (1 + np.exp(-both[:, :size])) * both[:, size:]
    return {"out": Expected(out, _rounding(out, dtype) + FLOAT32_SUMS * np.abs(out))}


_OTHERS: dict[str, Callable[[Plan, Arrays], dict[str, Expected]]] = {
    "reshape_and_cache": _reshape_and_cache,
    "rms_norm": _rms_norm,
    "rotary": _rotary,
    "silu_and_mul": _silu_and_mul,
}


def expected(plan: Plan, arrays: Arrays) -> dict[str, Expected]:
    """Outputs of ``plan`` for its input ``arrays`` (NumPy, before the launch), by name."""
    return _OTHERS.get(plan.op, _attention)(plan, arrays)


def worst(plan: Plan, expected_outputs: Mapping[str, Expected], after: Arrays) -> float:
    """The largest error in units of what is tolerated: at most 1 is right. Infinite where a number is missing (NaN)."""
    largest = 0.0
    for name, want in expected_outputs.items():
        got = to_float64(after[name], plan.arrays[name].dtype)
        written = ~np.isnan(want.values)
        error = np.abs(got - want.values)[written]
        if np.isnan(error).any():
            return float("inf")
        allowed = np.maximum(want.tolerance[written], 1e-30)
        largest = max(largest, float((error / allowed).max(initial=0.0)))
    return largest


def check(launchable: Any) -> float:
    """Launch once on the GPU and compare: the largest error in units of what is tolerated.

    Args:
        launchable: what ``launch.prepare`` returned; its arrays are copied to the host, so keep the shape small.

    Raises:
        KernelError: the result is wrong (over 1).
    """
    before = {name: array.get() for name, array in launchable.arrays.items()}
    want = expected(launchable.plan, before)
    launchable.call()
    after = {name: array.get() for name, array in launchable.arrays.items()}
    found = worst(launchable.plan, want, after)
    if not found <= 1.0:
        raise KernelError(
            f"{launchable.op} ({launchable.kernel_hash}) gives wrong results for {dict(launchable.shape)}: "
            f"{found:.3g} times the tolerated error"
        )
    return found
