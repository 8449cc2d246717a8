"""NVTX ranges: what a profiler (Nsight Systems, Nsight Compute) shows beside the kernels. Without one they cost next to
nothing; where torch has no NVTX they are left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def usable_nvtx(torch: Any) -> Any:
    """``torch.cuda.nvtx``; None where it is missing or a stub, as in builds for CPUs."""
    nvtx: Any = getattr(torch.cuda, "nvtx", None)
    try:
        nvtx.range_push("gpu-calibrate")
        nvtx.range_pop()
    except Exception:
        return None
    return nvtx


class Ranges:
    """Opens ranges by name; does nothing without NVTX."""

    def __init__(self, torch: Any) -> None:
        self._nvtx = usable_nvtx(torch)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What is enqueued inside belongs to ``name``."""
        if self._nvtx is None:
            yield
            return
        self._nvtx.range_push(name)
        try:
            yield
        finally:
            self._nvtx.range_pop()
