"""Runs the CUDA kernels on the CPU: compiles their sources with g++ and launches plans on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_calibrate import kernels
from gpu_calibrate.launch import allocate
from gpu_calibrate.plan_types import Plan

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function")
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

Arrays = dict[str, NDArray[Any]]


class CompileError(Exception):
    """g++ is missing or refuses a source."""


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise CompileError(
            "these tests compile the CUDA kernels for the CPU and need g++ (C++17): install it (Debian, Ubuntu: "
            "apt-get install g++), or name another compiler in CXX"
        )
    return found


def compile_kernels(
    folder: Path,
    defines: Mapping[str, int],
    names: tuple[str, ...] = tuple(kernels.FILES),
    change: Callable[[str], str] | None = None,
    sanitize: bool = False,
) -> Path:
    """The library of the kernels ``names`` under the macros ``defines``; ``change`` may alter the text."""
    text = kernels.text_of(names, "cpu")
    if change is not None:
        text = change(text)
    entries = sorted({entry for name in names for entry in kernels.FILES[name].entries})
    text += "".join(f"CPU_KERNEL({entry})\n" for entry in entries)
    options = [*FLAGS, *(SANITIZERS if sanitize else ()), *kernels.define_flags(defines)]
    key = hashlib.sha256("\n".join([text, *options]).encode()).hexdigest()[:20]
    library = folder / f"kernels_{key}.so"
    if not library.exists():
        code, fresh = folder / f"{key}.cpp", folder / f"{key}.{os.getpid()}.so"
        code.write_text(text, encoding="utf-8")
        done = subprocess.run([compiler(), *options, str(code), "-o", str(fresh)], capture_output=True, text=True)
        if done.returncode:
            raise CompileError(done.stderr[:4000])
        fresh.rename(library)
    return library


@lru_cache(maxsize=256)
def load(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


def defines_for(head_size: int, block_size: int, dtype: str, kv_dtype: str) -> dict[str, int]:
    """One set of macros for all kernels."""
    return {
        "HEAD_SIZE": head_size,
        "BLOCK_SIZE": block_size,
        "DTYPE_BF16": int(dtype == "bfloat16"),
        "KV_FP8": int(kv_dtype == "fp8"),
        "ROTARY_DIM": head_size,
    }


def fresh_arrays(plan: Plan, seed: int = 0) -> Arrays:
    """Inputs as on the GPU; outputs and what no sequence owns hold NaN, so that mistakes show."""
    arrays: Arrays = allocate(np, plan, seed)
    for name, spec in plan.arrays.items():
        if spec.role in ("output", "scratch"):
            arrays[name].view(np.uint8)[...] = 0x7F
    if "block_tables" in arrays:
        poison_unused(arrays, int(plan.shape["block_size"]))
    elif plan.op == "contiguous_attention":
        for seq, tokens in enumerate(arrays["context_lens"].tolist()):
            for name in ("k_cache", "v_cache"):
                arrays[name][seq, tokens:].view(np.uint8)[...] = 0x7F
    return {name: exact(array) for name, array in arrays.items()}


def poison_unused(arrays: Arrays, block_size: int) -> None:
    """Slots of the cache that belong to no token get NaN (the bytes 7F 7F: NaN in all formats here)."""
    used = np.zeros(arrays["k_cache"].shape[:2], dtype=bool)
    for row, tokens in zip(arrays["block_tables"], arrays["context_lens"].tolist(), strict=True):
        at = np.arange(tokens)
        used[row[at // block_size], at % block_size] = True
    for name in ("k_cache", "v_cache"):
        arrays[name][~used] = 0x7F7F if arrays[name].itemsize == 2 else 0x7F


_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = [ctypes.c_size_t]


def exact(array: NDArray[Any]) -> NDArray[Any]:
    """A copy in memory of exactly its size from ``malloc``: AddressSanitizer sees any access beyond it. Never freed."""
    memory = (ctypes.c_uint8 * array.nbytes).from_address(_LIBC.malloc(array.nbytes))
    copy = np.frombuffer(memory, dtype=array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def launch(library: ctypes.CDLL, plan: Plan, arrays: Arrays, order: int = 0) -> None:
    """Run the plan's kernels. ``order``: 0 threads in order, 1 backwards, more = shuffled by that seed.

    Raises:
        RuntimeError: threads waited in vain, an address was not aligned ... (what the runner found).
    """
    for call in plan.calls:
        function = getattr(library, f"cpu_launch_{call.entry}")
        function.restype = ctypes.c_char_p
        storage = []
        for arg in call.args:
            if isinstance(arg, str):
                storage.append(np.array([arrays[arg].ctypes.data], dtype=np.uint64))
            else:
                storage.append(np.array([arg]))
        pointers = (ctypes.c_void_p * len(storage))(*[held.ctypes.data for held in storage])
        triple = ctypes.c_uint * 3
        error = function(triple(*call.grid), triple(*call.block), call.shared_bytes, order, pointers)
        if error is not None:
            raise RuntimeError(f"{call.entry}: {error.decode()}")
