"""Plans of the attention kernels: block tables, how a sequence is split, geometry, bytes and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_calibrate.launches.kernels import KernelError
from gpu_calibrate.launches.plan_types import (
    HEADS_PER_TILE,
    ITEM_BYTES,
    WARP,
    ArraySpec,
    Heads,
    KernelCall,
    Plan,
    Scalar,
    one_of,
    positive,
)

PREFILL_TOKENS_PER_STAGE = 32
SMALL_BLOCK = 128
"""Threads of the lower rungs' blocks (at head size 256 the naive one has 256)."""

DEFAULT_WARPS = 4
"""Per block of the matrix-instruction kernels."""
SPLIT_OVERHEAD_TOKENS = 64
"""What starting one more block and merging its result costs, in tokens of KV read. An estimate until measured."""

DECODE_LADDER = (
    "paged_attention_naive",
    "paged_attention_uncoalesced",
    "paged_attention_shared",
    "paged_attention_vectorised",
    "paged_attention_gqa",
    "paged_attention_split_kv",
)
"""From the slowest rung to the fastest."""


def _lengths(name: str, values: Sequence[int], least: int) -> NDArray[np.int32]:
    if not len(values):
        raise KernelError(f"{name} is empty: give one length per sequence")
    if min(values) < least or max(values) >= 2**31:
        raise KernelError(f"{name} must lie in {least} ... 2**31 - 1, has {min(values)} ... {max(values)}")
    return np.asarray(values, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class PagedCache:
    """Block tables of a batch: physical blocks drawn without order; the rest of a row is never used."""

    block_tables: NDArray[np.int32]
    num_blocks: int

    @classmethod
    def of(cls, context_lens: NDArray[np.int32], block_size: int, seed: int, spare_columns: int = 3) -> PagedCache:
        """``spare_columns`` more columns than the longest sequence needs: the row stride is the table's width."""
        needed = -(-context_lens.astype(np.int64) // block_size)
        total = int(needed.sum())
        order = np.random.default_rng(seed).permutation(total).astype(np.int32)
        tables = np.full((len(context_lens), int(needed.max()) + spare_columns), -1, dtype=np.int32)
        start = 0
        for row, count in enumerate(needed.tolist()):
            tables[row, :count] = order[start : start + count]
            start += count
        return cls(tables, max(total, 1))


def merge_bytes(warps: int, head_size: int) -> int:
    """Shared memory in which a block merges its warps' results: (head_size + 3) floats per warp and head of a tile."""
    return warps * HEADS_PER_TILE * (head_size + 3) * 4


def _warps(op: str, chosen: int | None, defines: dict[str, int]) -> int:
    """Warps per block of a matrix-instruction kernel; another number than the source's own becomes a macro."""
    warps = DEFAULT_WARPS if chosen is None else chosen
    if not 1 <= warps <= 32:
        raise KernelError(f"num_warps must lie in 1 ... 32, is {warps}")
    if warps != DEFAULT_WARPS:
        defines["GQA_THREADS" if op == "paged_attention_gqa" else "SPLIT_THREADS"] = WARP * warps
    return warps


def resident_warps(head_size: int) -> int:
    """Warps of the matrix-instruction kernels that fit on a multiprocessor (RESIDENT_THREADS in decode.cuh)."""
    return 16 if head_size <= 64 else 12 if head_size <= 128 else 8


def choose_split(
    context_lens: Sequence[int], blocks_per_chunk: int, sm_count: int, blocks_per_sm: int, tile_tokens: int
) -> int:
    """Tokens per split that keep every multiprocessor busy to the end, without more splits than that needs.

    Args:
        context_lens: KV tokens of each sequence.
        blocks_per_chunk: thread blocks that share a chunk of tokens (KV heads times head tiles).
        sm_count, blocks_per_sm: multiprocessors, and blocks of this kernel that fit on each.
        tile_tokens: tokens that a block takes at once; the result is a multiple of it.

    The cost of a chunk size is the mean load of a place plus half a chunk of unbalanced tail (places that are done wait
    for the last); each chunk also costs ``SPLIT_OVERHEAD_TOKENS``.
    """
    lens = np.asarray(context_lens, dtype=np.int64)
    longest = int(lens.max())
    places = sm_count * blocks_per_sm
    whole = max(1, -(-longest // tile_tokens)) * tile_tokens
    candidates = {whole} | {size for power in range(7, 24) for size in (2**power, 3 * 2 ** (power - 1)) if size < whole}
    best = (float("inf"), whole)
    for chunk in sorted(candidates):
        if chunk % tile_tokens:
            continue
        chunks = int((-(-lens // chunk)).sum()) * blocks_per_chunk
        load = (int(lens.sum()) * blocks_per_chunk + chunks * SPLIT_OVERHEAD_TOKENS) / places
        best = min(best, (max(load, chunk + SPLIT_OVERHEAD_TOKENS) + chunk / 2, chunk))
    return best[1]


def _decode_counts(heads: Heads, lens: NDArray[np.int32]) -> tuple[int, int]:
    """Bytes: K, V, query and output once. FLOPs: two multiply-adds per token, query head and element."""
    tokens, seqs = int(lens.sum(dtype=np.int64)), len(lens)
    bytes_moved = tokens * heads.kv_bytes_per_token + 2 * seqs * heads.num_q_heads * heads.head_size * 2
    return bytes_moved, 4 * tokens * heads.num_q_heads * heads.head_size


def plan_decode(
    op: str,
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_size: int,
    context_lens: Sequence[int],
    dtype: str = "bfloat16",
    kv_dtype: str = "auto",
    block_size: int = 16,
    sm_count: int = 132,
    tokens_per_split: int | None = None,
    num_warps: int | None = None,
    merge: str = "last_block",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    seed: int = 0,
) -> Plan:
    """Attention of one new token per sequence over its ``context_lens`` tokens of KV (the new one included).

    ``tokens_per_split``, ``num_warps`` and ``merge`` (what merges the splits: the ``last_block`` or a second
    ``kernel``) tune ``paged_attention_split_kv`` and its contiguous twin.
    """
    heads = Heads(num_q_heads, num_kv_heads, head_size, dtype, kv_dtype, block_size)
    lens = _lengths("context_lens", context_lens, 0)
    seqs = len(lens)
    contiguous = op == "contiguous_attention"
    cache = PagedCache.of(lens, block_size, seed)
    rows = (seqs, max(int(lens.max()), 1)) if contiguous else (cache.num_blocks, block_size)
    kv_shape = (*rows, num_kv_heads, head_size)
    arrays = {
        "out": ArraySpec((seqs, num_q_heads, head_size), dtype, "output"),
        "query": ArraySpec((seqs, num_q_heads, head_size), dtype, "input"),
        "k_cache": ArraySpec(kv_shape, heads.cache_dtype, "input"),
        "v_cache": ArraySpec(kv_shape, heads.cache_dtype, "input"),
        "context_lens": ArraySpec((seqs,), "int32", "input", lens),
    }
    if not contiguous:
        arrays["block_tables"] = ArraySpec(cache.block_tables.shape, "int32", "input", cache.block_tables)
    defines = heads.defines()
    details: dict[str, int] = {}
    scalars: list[str | Scalar] = [np.int32(num_q_heads), np.int32(num_kv_heads)]
    stride = np.int64(rows[1] * num_kv_heads * head_size)
    place: list[str | Scalar] = (
        ["context_lens", *scalars, stride]
        if contiguous
        else ["block_tables", "context_lens", *scalars, np.int32(cache.block_tables.shape[1]), stride]
    )
    inputs = ("query", "k_cache", "v_cache", *place, np.float32(k_scale), np.float32(v_scale))
    calls: tuple[KernelCall, ...]
    if op in ("paged_attention_split_kv", "contiguous_attention"):
        warps = _warps(op, num_warps, defines)
        blocks = num_kv_heads * heads.head_tiles
        resident = max(1, resident_warps(head_size) // warps)
        chunk = tokens_per_split or choose_split(lens.tolist(), blocks, sm_count, resident, 16 * warps)
        positive(tokens_per_split=chunk)
        if chunk % 16:
            raise KernelError(
                f"tokens_per_split {chunk} must be a multiple of 16, the tokens of one matrix instruction"
            )
        splits = max(1, -(-int(lens.max()) // chunk))
        details = {"tokens_per_split": chunk, "num_splits": splits}
        partial = (seqs, num_q_heads, splits)
        arrays["partial_out"] = ArraySpec((*partial, head_size) if splits > 1 else (1,), "float32", "scratch")
        arrays["partial_max"] = ArraySpec(partial if splits > 1 else (1,), "float32", "scratch")
        arrays["partial_sum"] = ArraySpec(partial if splits > 1 else (1,), "float32", "scratch")
        arrays["arrivals"] = ArraySpec((seqs, blocks), "int32", "counter")
        parts = ("partial_out", "partial_max", "partial_sum", "arrivals")
        one_of("merge", merge, ("last_block", "kernel"))
        first = KernelCall(
            op,
            (blocks, splits, seqs),
            (WARP * warps, 1, 1),
            merge_bytes(warps, head_size),
            ("out", *parts, *inputs, np.int32(chunk), np.int32(merge == "last_block")),
        )
        second = KernelCall(
            "merge_splits",
            (-(-num_q_heads // 4), seqs, 1),
            (SMALL_BLOCK, 1, 1),
            0,
            ("out", *parts[:3], "context_lens", np.int32(num_q_heads), np.int32(chunk), np.int32(splits)),
        )
        calls = (first, second) if splits > 1 and merge == "kernel" else (first,)
    elif op == "paged_attention_gqa":
        warps = _warps(op, num_warps, defines)
        grid = (num_kv_heads * heads.head_tiles, seqs, 1)
        calls = (KernelCall(op, grid, (WARP * warps, 1, 1), merge_bytes(warps, head_size), ("out", *inputs)),)
    else:
        threads, shared = _small_geometry(op, head_size)
        calls = (KernelCall(op, (num_q_heads, seqs, 1), (threads, 1, 1), shared, ("out", *inputs)),)
    bytes_moved, flops = _decode_counts(heads, lens)
    shape = {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "head_size": head_size, "dtype": dtype}
    shape |= {"context_lens": lens.tolist(), "kv_dtype": kv_dtype, "block_size": block_size}
    return Plan(op, shape, op, defines, arrays, calls, bytes_moved, flops, details)


def _small_geometry(op: str, head_size: int) -> tuple[int, int]:
    """Threads and shared bytes of the lower rungs: a warp of floats to reduce with, scores of a tile, the query."""
    if op == "paged_attention_naive":
        return -(-head_size // WARP) * WARP, WARP * 4
    floats = {
        "paged_attention_uncoalesced": WARP + SMALL_BLOCK,
        "paged_attention_shared": WARP + SMALL_BLOCK + head_size,
        "paged_attention_vectorised": WARP + SMALL_BLOCK + head_size * (1 + SMALL_BLOCK // WARP),
    }
    return SMALL_BLOCK, floats[op] * 4


def plan_prefill(
    op: str,
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_size: int,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    dtype: str = "bfloat16",
    kv_dtype: str = "auto",
    block_size: int = 16,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    seed: int = 0,
) -> Plan:
    """Causal attention of the last ``query_lens`` tokens of each sequence over its ``context_lens`` (prior + chunk)."""
    heads = Heads(num_q_heads, num_kv_heads, head_size, dtype, kv_dtype, block_size)
    queries, lens = _lengths("query_lens", query_lens, 1), _lengths("context_lens", context_lens, 1)
    if len(queries) != len(lens) or bool((queries > lens).any()):
        raise KernelError("query_lens and context_lens must pair up, and no chunk be longer than its context")
    cache = PagedCache.of(lens, block_size, seed)
    starts = np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)
    rows = int(starts[-1])
    kv_shape = (cache.num_blocks, block_size, num_kv_heads, head_size)
    arrays = {
        "out": ArraySpec((rows, num_q_heads, head_size), dtype, "output"),
        "query": ArraySpec((rows, num_q_heads, head_size), dtype, "input"),
        "k_cache": ArraySpec(kv_shape, heads.cache_dtype, "input"),
        "v_cache": ArraySpec(kv_shape, heads.cache_dtype, "input"),
        "block_tables": ArraySpec(cache.block_tables.shape, "int32", "input", cache.block_tables),
        "context_lens": ArraySpec((len(lens),), "int32", "input", lens),
        "query_starts": ArraySpec((len(lens) + 1,), "int32", "input", starts),
    }
    row_bytes = head_size * ITEM_BYTES[heads.cache_dtype]
    # K and V rows of two stages, padded as paged_prefill.cu says.
    shared = 2 * PREFILL_TOKENS_PER_STAGE * (2 * row_bytes + 64 + 16)
    args: tuple[str | Scalar, ...] = (
        "out",
        "query",
        "k_cache",
        "v_cache",
        "block_tables",
        "context_lens",
        "query_starts",
        np.int32(num_q_heads),
        np.int32(num_kv_heads),
        np.int32(cache.block_tables.shape[1]),
        np.int64(block_size * num_kv_heads * head_size),
        np.float32(k_scale),
        np.float32(v_scale),
    )
    queries_per_block = 64 if head_size <= 128 else 32
    grid = (-(-int(queries.max()) // queries_per_block), num_q_heads, len(lens))
    q, c = queries.astype(np.int64), lens.astype(np.int64)
    pairs = int((q * (c - q) + q * (q + 1) // 2).sum())
    bytes_moved = int(c.sum()) * heads.kv_bytes_per_token + 2 * rows * num_q_heads * head_size * 2
    shape = {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "head_size": head_size, "dtype": dtype}
    shape |= {"query_lens": queries.tolist(), "context_lens": lens.tolist(), "kv_dtype": kv_dtype}
    shape |= {"block_size": block_size}
    call = KernelCall(op, grid, (SMALL_BLOCK, 1, 1), shared, args)
    return Plan(op, shape, op, heads.defines(), arrays, (call,), bytes_moved, 4 * pairs * num_q_heads * head_size)
