"""Every kernel of this project once against float64 on the GPU: a part of the self-test."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from typing import Any

LIMIT_S = 75.0
"""Seconds after which the rest is left out."""


def kernel_shapes() -> list[tuple[str, dict[str, Any]]]:
    """Every kernel: the charged ones in every head size and format, the lower rungs in a few; lengths that do not fill
    their last block, an empty one, one beyond 2,048 tokens. The most important come first."""
    from gpu_calibrate.launches.plans import DECODE_LADDER

    lengths = [1, 17, 300, 33, 2500]
    shapes: list[tuple[str, dict[str, Any]]] = []
    formats = [("bfloat16", "auto"), ("bfloat16", "fp8"), ("float16", "auto")]

    def attention(op: str, head_size: int, dtype: str, kv_dtype: str, block_size: int) -> None:
        shape: dict[str, Any] = {"num_q_heads": 8, "num_kv_heads": 2, "head_size": head_size, "dtype": dtype}
        shape |= {"kv_dtype": kv_dtype, "block_size": block_size, "context_lens": lengths}
        if op == "paged_prefill":
            shape["query_lens"] = [1, 17, 70, 5, 100]
        shapes.append((op, shape))

    for op in ("paged_attention_split_kv", *DECODE_LADDER[:-1], "contiguous_attention", "paged_prefill"):
        attention(op, 128, "bfloat16", "auto", 16)
    for name, extra in (
        ("rms_norm", {"hidden_size": 4096}),
        ("rotary", {"num_q_heads": 8, "num_kv_heads": 2, "head_size": 128}),
        ("silu_and_mul", {"intermediate_size": 14336}),
        ("reshape_and_cache", {"num_kv_heads": 8, "head_size": 128}),
    ):
        shapes += [(name, {"num_tokens": tokens, "dtype": "bfloat16", **extra}) for tokens in (1, 77)]
    for head_size, (dtype, kv_dtype), block_size in product((64, 80, 96, 128, 256), formats, (16, 32)):
        attention("paged_attention_split_kv", head_size, dtype, kv_dtype, block_size)
    for op, head_size in product(DECODE_LADDER[:-1], (80, 256)):
        attention(op, head_size, "float16", "fp8", 32)
    for head_size in (64, 80, 96, 256):
        attention("paged_attention_gqa", head_size, "bfloat16", "auto", 16)
        attention("paged_prefill", head_size, "bfloat16", "auto", 16)
    return shapes


def check_kernels(limit_s: float = LIMIT_S, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """Each kernel once against float64: the largest error in units of what is tolerated, and what went wrong."""
    from gpu_calibrate.launches import float64, launch

    started, checked, wrong, skipped = clock(), [], [], 0
    for op, shape in kernel_shapes():
        if clock() - started > limit_s:
            skipped += 1
            continue
        try:
            error = float64.check(launch.prepare(op, **shape))
            checked.append({"op": op, "shape": {**shape}, "error": error})
        except Exception as error:
            wrong.append({"op": op, "shape": {**shape}, "reason": f"{type(error).__name__}: {error}"})
    return {"checked": checked, "wrong": wrong, "skipped": skipped, "seconds": round(clock() - started, 1)}
