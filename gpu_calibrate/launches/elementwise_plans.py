"""Plans of the kernels around attention: cache writes, norms, rotary embedding, the gated activation."""

from __future__ import annotations

import numpy as np

from gpu_calibrate.launches.kernels import DTYPES, KernelError
from gpu_calibrate.launches.plan_types import ITEM_BYTES, WARP, ArraySpec, Heads, KernelCall, Plan, one_of, positive


def plan_reshape_and_cache(
    op: str,
    *,
    num_tokens: int,
    num_kv_heads: int,
    head_size: int,
    dtype: str = "bfloat16",
    kv_dtype: str = "auto",
    block_size: int = 16,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    seed: int = 0,
) -> Plan:
    """New keys and values go to the cache slots of ``slot_mapping`` (block * block_size + offset; -1: nowhere)."""
    heads = Heads(num_kv_heads, num_kv_heads, head_size, dtype, kv_dtype, block_size)
    positive(num_tokens=num_tokens)
    blocks = -(-num_tokens // block_size) + 1
    slots = np.random.default_rng(seed).permutation(blocks * block_size)[:num_tokens].astype(np.int64)
    width = num_kv_heads * head_size
    kv_shape = (blocks, block_size, num_kv_heads, head_size)
    arrays = {
        "key": ArraySpec((num_tokens, num_kv_heads, head_size), dtype, "input"),
        "value": ArraySpec((num_tokens, num_kv_heads, head_size), dtype, "input"),
        "k_cache": ArraySpec(kv_shape, heads.cache_dtype, "output"),
        "v_cache": ArraySpec(kv_shape, heads.cache_dtype, "output"),
        "slot_mapping": ArraySpec((num_tokens,), "int64", "input", slots),
    }
    scalars = (np.int64(width), np.int64(width), np.int32(num_kv_heads), np.int64(block_size * width))
    args = ("key", "value", "k_cache", "v_cache", "slot_mapping", *scalars, np.float32(k_scale), np.float32(v_scale))
    call = KernelCall(op, (num_tokens, 1, 1), (_threads(width // 8), 1, 1), 0, args)
    bytes_moved = num_tokens * (2 * width * (2 + ITEM_BYTES[heads.cache_dtype]) + 8)
    shape = {"num_tokens": num_tokens, "num_kv_heads": num_kv_heads, "head_size": head_size, "dtype": dtype}
    shape |= {"kv_dtype": kv_dtype, "block_size": block_size}
    return Plan(op, shape, op, heads.defines(), arrays, (call,), bytes_moved, 0)


def _threads(vectors: int, most: int = 512) -> int:
    """Whole warps for ``vectors`` 16-byte pieces of a row, at most ``most`` threads."""
    return min(most, -(-vectors // WARP) * WARP)


def plan_rms_norm(
    op: str, *, num_tokens: int, hidden_size: int, dtype: str = "bfloat16", residual: bool = True, seed: int = 0
) -> Plan:
    """``x / sqrt(mean(x^2) + eps) * weight``; with ``residual`` vLLM's fused form: both are added first, in place."""
    del seed  # nothing is drawn but the data
    one_of("dtype", dtype, DTYPES)
    positive(num_tokens=num_tokens, hidden_size=hidden_size)
    if hidden_size % 8:
        raise KernelError(f"hidden_size {hidden_size} must be a multiple of 8: rows are read 16 bytes at a time")
    matrix = (num_tokens, hidden_size)
    arrays = {"input": ArraySpec(matrix, dtype, "inout" if residual else "input")}
    arrays |= {"weight": ArraySpec((hidden_size,), dtype, "input")}
    arrays |= (
        {"residual": ArraySpec(matrix, dtype, "inout")} if residual else {"out": ArraySpec(matrix, dtype, "output")}
    )
    scalars = (np.float32(1e-6), np.int32(hidden_size))
    names = ("input", "residual", "weight") if residual else ("out", "input", "weight")
    entry = "fused_add_rms_norm" if residual else "rms_norm"
    call = KernelCall(entry, (num_tokens, 1, 1), (_threads(hidden_size // 8, 1024), 1, 1), WARP * 4, (*names, *scalars))
    bytes_moved = (num_tokens * (4 if residual else 2) + 1) * hidden_size * 2
    flops = num_tokens * hidden_size * (5 if residual else 4)
    shape = {"num_tokens": num_tokens, "hidden_size": hidden_size, "dtype": dtype, "residual": residual}
    defines = {"DTYPE_BF16": int(dtype == "bfloat16")}
    return Plan(op, shape, op, defines, arrays, (call,), bytes_moved, flops)


def plan_rotary(
    op: str,
    *,
    num_tokens: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_size: int,
    rotary_dim: int | None = None,
    max_position: int = 4096,
    dtype: str = "bfloat16",
    seed: int = 0,
) -> Plan:
    """Rotary embedding in place on queries and keys, halves paired (GPT-NeoX, as Llama and Qwen do)."""
    heads = Heads(num_q_heads, num_kv_heads, head_size, dtype)
    positive(num_tokens=num_tokens, max_position=max_position)
    dim = head_size if rotary_dim is None else rotary_dim
    if dim % 16 or not 0 < dim <= head_size:
        raise KernelError(f"rotary_dim {dim} must be a multiple of 16 and at most head_size {head_size}")
    positions = np.random.default_rng(seed).integers(0, max_position, num_tokens).astype(np.int64)
    arrays = {
        "positions": ArraySpec((num_tokens,), "int64", "input", positions),
        "query": ArraySpec((num_tokens, num_q_heads, head_size), dtype, "inout"),
        "key": ArraySpec((num_tokens, num_kv_heads, head_size), dtype, "inout"),
        "cos_sin_cache": ArraySpec((max_position, dim), dtype, "input"),
    }
    strides = (np.int64(num_q_heads * head_size), np.int64(num_kv_heads * head_size))
    args = ("positions", "query", "key", "cos_sin_cache", *strides, np.int32(num_q_heads), np.int32(num_kv_heads))
    rotated = num_q_heads + num_kv_heads
    call = KernelCall(op, (num_tokens, 1, 1), (_threads(rotated * dim // 16), 1, 1), 0, args)
    bytes_moved = num_tokens * (2 * rotated * dim * 2 + dim * 2 + 8)
    defines = {"HEAD_SIZE": head_size, "ROTARY_DIM": dim, "DTYPE_BF16": heads.defines()["DTYPE_BF16"]}
    shape = {"num_tokens": num_tokens, "num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "dtype": dtype}
    shape |= {"head_size": head_size, "rotary_dim": dim, "max_position": max_position}
    return Plan(op, shape, op, defines, arrays, (call,), bytes_moved, 3 * num_tokens * rotated * dim)


def plan_silu_and_mul(
    op: str, *, num_tokens: int, intermediate_size: int, dtype: str = "bfloat16", seed: int = 0
) -> Plan:
    """``silu(x[:, :n]) * x[:, n:]`` for the gate and up halves of a gated MLP."""
    del seed
    one_of("dtype", dtype, DTYPES)
    positive(num_tokens=num_tokens, intermediate_size=intermediate_size)
    if intermediate_size % 8:
        raise KernelError(
            f"intermediate_size {intermediate_size} must be a multiple of 8: rows are read 16 bytes at a time"
        )
    arrays = {
        "out": ArraySpec((num_tokens, intermediate_size), dtype, "output"),
        "input": ArraySpec((num_tokens, 2 * intermediate_size), dtype, "input"),
    }
    threads = _threads(intermediate_size // 8, 256)
    grid = (num_tokens, -(-intermediate_size // (8 * threads)), 1)
    call = KernelCall(op, grid, (threads, 1, 1), 0, ("out", "input", np.int32(intermediate_size)))
    shape = {"num_tokens": num_tokens, "intermediate_size": intermediate_size, "dtype": dtype}
    elements = num_tokens * intermediate_size
    return Plan(op, shape, op, {"DTYPE_BF16": int(dtype == "bfloat16")}, arrays, (call,), 6 * elements, 4 * elements)
