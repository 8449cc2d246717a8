"""GEMM through torch against the same GEMM through CuPy: two ways to cuBLAS, which should take as long.

A profile's matrices are timed through torch alone. If torch chose another library or algorithm, or the timing were
wrong, the two would differ. CuPy refuses to have cuBLAS captured in a graph, so here both are launched one by one, over
the same buffers, at shapes that take longer than their launch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from gpu_calibrate.device.base import Device
from gpu_calibrate.plan.points import LADDER, Point
from gpu_calibrate.timing.replays import Settings, Watch, measure_batch

SHAPES = ((6144, 4096, 4096), (28672, 4096, 2048), (4096, 14336, 2048), (28672, 8192, 64))
"""(n, k, m) of Llama 3.1's layers: three bound by arithmetic, one by reading its weights."""
LIBRARIES = ("torch", "cupy")
TOLERANCE = 0.15
"""Ratios may be this far from 1."""
SETTINGS = Settings(min_replays=20, max_replays=60, batch_points=len(LIBRARIES))


def cublas_points() -> list[tuple[Point, Point]]:
    """Each shape through torch and through CuPy."""
    return [(_point(n, k, m, LIBRARIES[0]), _point(n, k, m, LIBRARIES[1])) for n, k, m in SHAPES]


def _point(n: int, k: int, m: int, library: str) -> Point:
    return Point("gemm", ("float16", n, k), m, LADDER, library)


def time_cublas(device: Device) -> dict[str, Any]:
    """Both medians at every shape, and what could not be timed. Raises DeviceError."""
    rng, shapes, failures = random.Random(2), [], []
    for pair in cublas_points():
        measured, failed = measure_batch(device, pair, SETTINGS, rng, Watch(), [])
        failures += [f"{each.point}: {each.reason}" for each in failed]
        if len(measured) == len(pair):
            _, n, k = pair[0].key
            medians = {f"{each.point.variant}_ns": each.median_ns for each in measured}
            shapes.append({"n": n, "k": k, "m": pair[0].at, **medians})
    return {"shapes": shapes, "failures": failures}


def ratios(record: Mapping[str, Any]) -> list[float]:
    """Median time through torch over that through CuPy, shape by shape."""
    return [float(each["torch_ns"]) / float(each["cupy_ns"]) for each in record["shapes"]]


def cublas_table(record: Mapping[str, Any]) -> list[str]:
    """Markdown: a row per shape."""
    lines = ["| GEMM, float16: m x n x k | torch, us | CuPy, us | torch over CuPy |", "|---|---:|---:|---:|"]
    for each, ratio in zip(record["shapes"], ratios(record), strict=True):
        shape = f"{each['m']:,} x {each['n']:,} x {each['k']:,}"
        lines.append(f"| {shape} | {each['torch_ns'] / 1e3:,.1f} | {each['cupy_ns'] / 1e3:,.1f} | {ratio:.3f} |")
    return lines
