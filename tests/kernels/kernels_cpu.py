"""Runs the CUDA kernels on the CPU: compiles their sources with g++ and launches plans on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_calibrate.launches import kernels
from gpu_calibrate.launches.float64 import expected, worst
from gpu_calibrate.launches.launch import allocate
from gpu_calibrate.launches.plan_types import Plan

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


def compile_kernels(folder: Path, defines: Mapping[str, int], sanitize: bool = False) -> Path:
    """The library of all kernels under the macros ``defines``."""
    entries = sorted({entry for file in kernels.FILES.values() for entry in file.entries})
    text = kernels.text_of(list(kernels.FILES), "cpu") + "".join(f"CPU_KERNEL({entry})\n" for entry in entries)
    return compile_text(folder, text, defines, sanitize)


@dataclass(frozen=True, slots=True)
class Mistake:
    """A kernel with something wrong in it: each ``old`` text is replaced by its ``new`` one."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    barrier: int | None = None
    """Instead of changes: which barrier of the text is left out, counted from 0."""

    def applied(self, text: str) -> str:
        for old, new in self.changes:
            if old not in text:
                raise CompileError(f"{self.name}: {self.file} no longer contains {old!r}")
            text = text.replace(old, new)
        if self.barrier is not None:
            parts = text.split(BARRIER)
            if not self.barrier < len(parts) - 1:
                raise CompileError(f"{self.name}: {self.file} has {len(parts) - 1} barriers")
            text = (
                BARRIER.join(parts[: self.barrier + 1]) + BARRIER.join(["", *parts[self.barrier + 1 :]])[len(BARRIER) :]
            )
        return text


BARRIER = "__syncthreads();"


def compile_mistakes(
    folder: Path, defines: Mapping[str, int], mistakes: Sequence[Mistake], sanitize: bool = False
) -> Path:
    """One library of wrong kernels: mistake ``name``'s entry points start with that name and an underscore."""
    device = kernels.device_text("cpu")
    parts = [device]
    for mistake in mistakes:
        text = kernels.text_of([mistake.file], "cpu").replace(device, "")
        wrong = mistake.applied(text).replace('extern "C" __global__', "__global__")
        parts.append(f"namespace {mistake.name} {{\n{wrong}\n}}\n")
        for entry in kernels.FILES[mistake.file].entries:
            parts.append(f"CPU_KERNEL_AS({mistake.name}_{entry}, {mistake.name}::{entry})\n")
    return compile_text(folder, "".join(parts), defines, sanitize)


def compile_text(folder: Path, text: str, defines: Mapping[str, int], sanitize: bool) -> Path:
    """A shared library of C++ ``text``, compiled once per text and options."""
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


@dataclass(frozen=True, slots=True)
class Specialisation:
    """One set of macros for all kernels."""

    head_size: int
    block_size: int
    dtype: str
    kv_dtype: str

    def defines(self) -> dict[str, int]:
        return {
            "HEAD_SIZE": self.head_size,
            "BLOCK_SIZE": self.block_size,
            "DTYPE_BF16": int(self.dtype == "bfloat16"),
            "KV_FP8": int(self.kv_dtype == "fp8"),
            "ROTARY_DIM": self.rotary_dim,
        }

    @property
    def rotary_dim(self) -> int:
        """Of some only the first half of a head is rotated."""
        return self.head_size // 2 if self.block_size == 32 and self.head_size % 32 == 0 else self.head_size

    def shape(self) -> dict[str, Any]:
        """What the attention planners take."""
        return {
            "head_size": self.head_size,
            "block_size": self.block_size,
            "dtype": self.dtype,
            "kv_dtype": self.kv_dtype,
        }

    def __str__(self) -> str:
        return f"{self.head_size}-{self.block_size}-{self.dtype}-{self.kv_dtype}"


FULL_MATRIX = os.environ.get("KERNEL_MATRIX") == "full"
"""All 40 specialisations (minutes), as CI runs them; else ten, the fewest in which any two values occur together: five
head sizes with either block size, each time in the other formats."""

SPECIALISATIONS = (
    tuple(
        Specialisation(*values)
        for values in product(kernels.HEAD_SIZES, kernels.BLOCK_SIZES, kernels.DTYPES, kernels.KV_DTYPES)
    )
    if FULL_MATRIX
    else (
        Specialisation(128, 16, "bfloat16", "auto"),
        Specialisation(128, 32, "float16", "fp8"),
        Specialisation(64, 32, "float16", "auto"),
        Specialisation(64, 16, "bfloat16", "fp8"),
        Specialisation(80, 16, "float16", "fp8"),
        Specialisation(80, 32, "bfloat16", "auto"),
        Specialisation(96, 16, "float16", "auto"),
        Specialisation(96, 32, "bfloat16", "fp8"),
        Specialisation(256, 16, "float16", "auto"),
        Specialisation(256, 32, "bfloat16", "fp8"),
    )
)
COMMON = Specialisation(128, 16, "bfloat16", "auto")
"""What the tests use that do not depend on the specialisation."""


NAN_BYTE = 0xFF
"""Repeated, NaN in every format here."""


def fresh_arrays(plan: Plan, seed: int = 0) -> Arrays:
    """Inputs as on the GPU; outputs and what no sequence owns hold NaN, so that mistakes show."""
    arrays: Arrays = allocate(np, plan, seed)
    for name, spec in plan.arrays.items():
        if spec.role in ("output", "scratch"):
            arrays[name].view(np.uint8)[...] = NAN_BYTE
    if "block_tables" in arrays:
        poison_unused(arrays, int(plan.shape["block_size"]))
    elif plan.op == "contiguous_attention":
        for seq, tokens in enumerate(arrays["context_lens"].tolist()):
            for name in ("k_cache", "v_cache"):
                arrays[name][seq, tokens:].view(np.uint8)[...] = NAN_BYTE
    return {name: exact(array) for name, array in arrays.items()}


def poison_unused(arrays: Arrays, block_size: int) -> None:
    """Slots of the cache that belong to no token get NaN."""
    used = np.zeros(arrays["k_cache"].shape[:2], dtype=bool)
    for row, tokens in zip(arrays["block_tables"], arrays["context_lens"].tolist(), strict=True):
        at = np.arange(tokens)
        used[row[at // block_size], at % block_size] = True
    for name in ("k_cache", "v_cache"):
        arrays[name][~used] = 0xFFFF if arrays[name].itemsize == 2 else NAN_BYTE


_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = [ctypes.c_size_t]


def exact(array: NDArray[Any]) -> NDArray[Any]:
    """A copy in memory of exactly its size from ``malloc``: AddressSanitizer sees any access beyond it. Never freed."""
    memory = (ctypes.c_uint8 * array.nbytes).from_address(_LIBC.malloc(array.nbytes))
    copy = np.frombuffer(memory, dtype=array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def error_of(library: ctypes.CDLL, plan: Plan, order: int = 0, prefix: str = "") -> float:
    """Run ``plan`` on fresh data: its largest error in units of what rounding allows. At most 1 is right."""
    arrays = fresh_arrays(plan)
    want = expected(plan, arrays)
    launch(library, plan, arrays, order, prefix)
    return worst(plan, want, arrays)


def run_sanitized(
    library: Path, specialisation: Specialisation, op: str | None = None, prefix: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run sanitized_cases.py on a library compiled with ``sanitize``, in a process with the sanitizers preloaded."""
    runtimes = [
        subprocess.run(
            [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        # Fibers leave their stacks without returning, and the interpreter frees less than it allocates.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    root, here = Path(__file__).parents[2], Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(here)])
    values = (specialisation.head_size, specialisation.block_size, specialisation.dtype, specialisation.kv_dtype)
    command = [sys.executable, str(here / "sanitized_cases.py"), str(library), *map(str, values)]
    return subprocess.run([*command, *([op, prefix] if op else [])], env=environment, capture_output=True, text=True)


def launch(library: ctypes.CDLL, plan: Plan, arrays: Arrays, order: int = 0, prefix: str = "") -> None:
    """Run the plan's kernels. ``order``: 0 threads in order, 1 backwards, more = shuffled by that seed.
    ``prefix``: of the entry points' names, for libraries that hold several variants.

    Raises:
        RuntimeError: threads waited in vain, an address was not aligned ... (what the runner found).
    """
    for call in plan.calls:
        function = getattr(library, f"cpu_launch_{prefix}{call.entry}")
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
