"""Device memory for the timed operations: one pool of random numbers per format, handed out as views.

Drawing random data for each point anew would take longer than timing it. A pool is a few times the L2 cache; views are
cut from it one after the other, so that the buffers of rotating launches lie apart. Never zeros: products of zeros take
less power, and so run faster, than products of data.
"""

from __future__ import annotations

from typing import Any

from gpu_calibrate.device.base import PointError

ALIGNMENT = 256
POOL_BYTES = 3 << 30
FP8_POOL_BYTES = 1 << 30
SCRATCH_BYTES = 2 << 30
MAX_SETS = 256
"""Rotating buffer sets of one point."""


class Buffers:
    """Views of random numbers (``take``) and of space to write to (``scratch``). ``torch`` may be a stand-in."""

    def __init__(self, torch: Any, device: str, scale: float = 1.0) -> None:
        """``scale`` shrinks the pools, for tests on a CPU."""
        self.torch, self.device = torch, device
        self._scale = scale
        self._pools: dict[str, Any] = {}
        self._next: dict[str, int] = {}

    def _pool(self, kind: str) -> Any:
        pool = self._pools.get(kind)
        if pool is None:
            torch = self.torch
            size = {"fp8": FP8_POOL_BYTES, "scratch": SCRATCH_BYTES}.get(kind, POOL_BYTES)
            elements = int(size * self._scale) // (1 if kind == "fp8" else 2)
            if kind == "scratch":
                pool = torch.empty(elements, dtype=torch.bfloat16, device=self.device)
            else:
                pool = torch.empty(elements, dtype=torch.bfloat16, device=self.device)
                pool.normal_()
                if kind == "fp8":
                    pool = pool.to(torch.float8_e4m3fn)
                elif kind == "float16":
                    pool = pool.to(torch.float16)
            self._pools[kind] = pool
            self._next[kind] = 0
        return pool

    def _view(self, kind: str, shape: tuple[int, ...]) -> Any:
        pool = self._pool(kind)
        size = 1
        for extent in shape:
            size *= extent
        if size > pool.numel():
            gigabytes = size * (1 if kind == "fp8" else 2) / 1e9
            raise PointError(f"needs one buffer of {gigabytes:.1f} GB; the pool is smaller")
        start = self._next[kind]
        if start + size > pool.numel():
            start = 0
        self._next[kind] = -(-(start + size) // ALIGNMENT) * ALIGNMENT
        return pool[start : start + size].view(*shape)

    def take(self, dtype: str, *shape: int) -> Any:
        """Random numbers: ``bfloat16``, ``float16`` or ``fp8``, not to be written to."""
        return self._view(dtype, shape)

    def scratch(self, *shape: int, dtype: str = "bfloat16") -> Any:
        """Space of a 16-bit format for outputs that are not read."""
        space = self._view("scratch", shape)
        return space.view(self.torch.float16) if dtype == "float16" else space

    def release(self) -> None:
        """Forget the pools."""
        self._pools.clear()
        self._next.clear()


def num_sets(footprint_bytes: int, l2_bytes: int, most: int = MAX_SETS) -> int:
    """Buffer sets to rotate over so that together they are at least three times the L2 cache."""
    return max(1, min(most, -(-3 * l2_bytes // max(1, footprint_bytes))))
