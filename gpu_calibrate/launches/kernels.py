"""Where the CUDA sources are, what each is compiled with, and how: one text and one hash per kernel.

The sources (``kernels/*.cu``) include only each other, never CUDA's headers, so NVRTC needs no include path. The loader
puts the included files into the text itself: the text that is hashed is the text that is compiled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Target = Literal["cuda", "cpu"]
Defines = Mapping[str, int]

HEAD_SIZES = (64, 80, 96, 128, 256)
BLOCK_SIZES = (16, 32)
DTYPES = ("float16", "bfloat16")
KV_DTYPES = ("auto", "fp8")
"""vLLM's ``kv_cache_dtype``: ``auto`` = as the model, ``fp8`` = e4m3 with one scale per tensor."""

_INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"\s*$')


class KernelError(Exception):
    """A kernel cannot be found, compiled or launched as asked; the message names the value and a remedy."""


@dataclass(frozen=True, slots=True)
class KernelFile:
    """One ``.cu``: its entry points, and the macros that specialise it."""

    name: str
    entries: tuple[str, ...]
    defines: tuple[str, ...]
    """Macros it must be given, a subset of HEAD_SIZE, BLOCK_SIZE, DTYPE_BF16, KV_FP8, ROTARY_DIM."""


_ATTENTION = ("HEAD_SIZE", "BLOCK_SIZE", "DTYPE_BF16", "KV_FP8")
FILES: dict[str, KernelFile] = {
    file.name: file
    for file in (
        KernelFile("paged_attention_naive", ("paged_attention_naive",), _ATTENTION),
        KernelFile("paged_attention_uncoalesced", ("paged_attention_uncoalesced",), _ATTENTION),
        KernelFile("paged_attention_shared", ("paged_attention_shared",), _ATTENTION),
        KernelFile("paged_attention_vectorised", ("paged_attention_vectorised",), _ATTENTION),
        KernelFile("paged_attention_gqa", ("paged_attention_gqa",), _ATTENTION),
        KernelFile(
            "paged_attention_split_kv",
            ("paged_attention_split_kv", "merge_splits"),
            _ATTENTION,
        ),
        KernelFile(
            "contiguous_attention",
            ("contiguous_attention", "merge_splits"),
            _ATTENTION,
        ),
        KernelFile("paged_prefill", ("paged_prefill",), _ATTENTION),
        KernelFile("reshape_and_cache", ("reshape_and_cache",), _ATTENTION),
        KernelFile("rms_norm", ("rms_norm", "fused_add_rms_norm"), ("DTYPE_BF16",)),
        KernelFile("rotary", ("rotary",), ("HEAD_SIZE", "ROTARY_DIM", "DTYPE_BF16")),
        KernelFile("silu_and_mul", ("silu_and_mul",), ("DTYPE_BF16",)),
    )
}


@dataclass(frozen=True, slots=True)
class Source:
    """A kernel's whole text, includes put in, and the first 16 hex digits of its SHA-256."""

    name: str
    text: str
    hash: str


@lru_cache(maxsize=1)
def kernels_dir() -> Path:
    """The folder of the sources: the installed copy inside this package, else the repository's ``kernels/``.

    Raises:
        KernelError: neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / "paged_attention_split_kv.cu").is_file():
            return folder
    raise KernelError(f"the CUDA sources are neither in {package / 'kernels'} nor beside it: install the package again")


def _device_file(target: Target) -> Path:
    """The one file with two bodies: what the hardware offers, and its stand-in on the CPU."""
    return kernels_dir() / ("cpu/device.cuh" if target == "cpu" else "device.cuh")


def _inlined(path: Path, target: Target, seen: set[Path]) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _INCLUDE.match(line)
        if match is None:
            if line != "#pragma once":  # this function sees to that
                lines.append(line)
            continue
        inner = _device_file(target) if match[1] == "device.cuh" else kernels_dir() / match[1]
        if inner not in seen:
            seen.add(inner)
            lines.append(_inlined(inner, target, seen))
    return "\n".join(lines)


def device_text(target: Target) -> str:
    """The part of every kernel's text that stands for the hardware."""
    return _inlined(_device_file(target), target, set())


def text_of(names: Sequence[str], target: Target = "cuda") -> str:
    """The texts of kernel files one after the other, every included file once.

    Raises:
        KernelError: there is no such kernel.
    """
    seen, parts = set[Path](), []
    for name in names:
        if name not in FILES:
            raise KernelError(f"unknown kernel {name!r}: there are {', '.join(FILES)}")
        parts.append(_inlined(kernels_dir() / f"{name}.cu", target, seen) + "\n")
    return "".join(parts)


@lru_cache(maxsize=64)
def source(name: str) -> Source:
    """Text and hash of kernel file ``name`` (a key of ``FILES``), as NVRTC gets it.

    Raises:
        KernelError: there is no such kernel.
    """
    text = text_of([name])
    return Source(name, text, hashlib.sha256(text.encode()).hexdigest()[:16])


def define_flags(defines: Defines) -> tuple[str, ...]:
    """``-DNAME=value`` in a fixed order."""
    return tuple(f"-D{name}={value}" for name, value in sorted(defines.items()))


def nvrtc_options(arch: str, defines: Defines) -> tuple[str, ...]:
    """Options for NVRTC. The architecture is always named (``sm_90``): NVRTC's own default is an older one.

    Raises:
        KernelError: ``arch`` is not of the form sm_NN, or is below sm_80 (no bf16 tensor cores).
    """
    match = re.fullmatch(r"sm_(\d{2,3})a?", arch)
    if match is None:
        raise KernelError(f"architecture {arch!r}: name it as sm_80, sm_90 ...")
    if int(match[1]) < 80:
        raise KernelError(f"architecture {arch}: the kernels need sm_80 (A100) or newer")
    return ("-std=c++17", f"--gpu-architecture={arch}", *define_flags(defines))


_MODULES: dict[tuple[str, str, tuple[str, ...]], Any] = {}


def load_module(name: str, defines: Defines, arch: str | None = None) -> Any:
    """The compiled ``cupy.RawModule`` of kernel file ``name``; the current device's architecture unless given.

    Compiled once per (text, architecture, macros) in a process; CuPy keeps its own cache on disk between processes.

    Raises:
        KernelError: CuPy is missing, or the source does not compile.
    """
    try:
        import cupy  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise KernelError("CuPy is not installed: pip install 'simrun-llm[gpu-cu12]' or '[gpu-cu13]'") from error
    text = source(name)
    chosen = arch or f"sm_{cupy.cuda.Device().compute_capability}"
    options = nvrtc_options(chosen, defines)
    key = (text.hash, chosen, options)
    if key not in _MODULES:
        # CuPy names the architecture itself, from the device; twice is an error of NVRTC.
        given = tuple(option for option in options if not option.startswith("--gpu-architecture"))
        try:
            module = cupy.RawModule(code=text.text, options=given, backend="nvrtc")
            module.compile()
        except cupy.cuda.compiler.CompileException as error:
            raise KernelError(f"kernel {name} does not compile with {' '.join(options)}: {error}") from error
        _MODULES[key] = module
    return _MODULES[key]
