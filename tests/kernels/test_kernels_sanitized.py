"""Memory accesses of the kernels: AddressSanitizer, UndefinedBehaviorSanitizer, and 64-bit offsets."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels_cpu import (
    FULL_MATRIX,
    Specialisation,
    compile_kernels,
    fresh_arrays,
    launch,
    run_sanitized,
)
from numpy.typing import NDArray

from gpu_calibrate.launches.float64 import expected, worst
from gpu_calibrate.launches.plans import DECODE_LADDER, plan

Compiled = Callable[[Specialisation], ctypes.CDLL]

SANITIZED = (
    # Odd sizes have the most to get wrong: partial vectors, idle lanes.
    Specialisation(80, 16, "float16", "fp8"),
    Specialisation(64, 32, "bfloat16", "fp8"),
    Specialisation(96, 16, "bfloat16", "auto"),
    Specialisation(128, 32, "float16", "auto"),
    Specialisation(256, 16, "float16", "fp8"),
)[: None if FULL_MATRIX else 1]


@pytest.mark.parametrize("specialisation", SANITIZED, ids=str)
def test_no_access_out_of_bounds_and_no_undefined_behaviour(
    kernel_folder: Path, specialisation: Specialisation
) -> None:
    library = compile_kernels(kernel_folder, specialisation.defines(), sanitize=True)
    done = run_sanitized(library, specialisation)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.endswith("15 cases are right\n")


FAR_BLOCKS = 2**20
FAR = Specialisation(128, 32, "float16", "fp8")
"""With one KV head a block has 4,096 elements: block 2^20 starts at element 2^32."""


def far_array(near: NDArray[Any]) -> NDArray[Any]:
    """A cache of 2^20 more blocks, whose last ones hold ``near``. What is not touched takes no memory."""
    blocks = FAR_BLOCKS + near.shape[0]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, blocks * near[0].nbytes, flags=flags)
    far = np.frombuffer(memory, dtype=near.dtype).reshape(blocks, *near.shape[1:])
    far[FAR_BLOCKS:] = near
    return far


@pytest.mark.parametrize("op", DECODE_LADDER)
def test_offsets_beyond_32_bits(compiled: Compiled, op: str) -> None:
    planned = plan(op, num_q_heads=2, num_kv_heads=1, context_lens=[40, 70], **FAR.shape())
    arrays = fresh_arrays(planned)
    want = expected(planned, arrays)
    arrays["block_tables"] += np.where(arrays["block_tables"] >= 0, FAR_BLOCKS, 0).astype(np.int32)
    for name in ("k_cache", "v_cache"):
        arrays[name] = far_array(arrays[name])
    launch(compiled(FAR), planned, arrays)
    assert worst(planned, want, arrays) <= 1.0


def test_slots_beyond_32_bits(compiled: Compiled) -> None:
    planned = plan("reshape_and_cache", num_tokens=9, num_kv_heads=1, **FAR.shape())
    arrays = fresh_arrays(planned)
    want = expected(planned, arrays)
    arrays["slot_mapping"] += FAR_BLOCKS * 32
    for name in ("k_cache", "v_cache"):
        arrays[name] = far_array(arrays[name])
    launch(compiled(FAR), planned, arrays)
    near = {name: arrays[name][FAR_BLOCKS:] for name in ("k_cache", "v_cache")}
    assert worst(planned, want, near) <= 1.0
