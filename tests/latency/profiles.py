"""Profiles made by hand for the tests: a GPU whose every operator takes a known multiple of its speed of light."""

from __future__ import annotations

import numpy as np

from sim.latency.profile.file import Curve, Device, Key, Operator, Profile, Source
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.speed_of_light import bound_ns

DEVICE = Device(
    name="a hand-made GPU",
    gpu="h100-sxm",
    num_sms=100,
    memory_bytes=80 << 30,
    l2_bytes=50 << 20,
    memory_bandwidth_bytes_per_s=3e12,
    link_bandwidth_bytes_per_s=400e9,
    flops={"float32": 50e12, "bfloat16": 1000e12, "fp8": 2000e12},
)
ATTENTION = ("bfloat16", "bfloat16")
AXES = {
    "gemm": (1, 16, 64, 256, 1024, 4096, 16384),
    "decode_attention": (1, 64, 512, 4096, 32768),
    "prefill_attention": (16, 128, 1024, 8192),
    "mixed_attention": (16, 256, 4096),
    "all_reduce": (1 << 10, 1 << 20, 1 << 26),
    "moe": (1, 16, 256, 4096),
    "host_copy": (1 << 12, 1 << 20, 1 << 28),
}
KEYS: dict[str, list[Key]] = {
    "gemm": [("bfloat16", n, k) for n in (1024, 8192, 65536) for k in (1024, 8192, 65536)],
    "decode_attention": [
        (*ATTENTION, heads, kv, 128, 0, batch) for heads, kv in ((8, 8), (32, 8)) for batch in (1, 32, 512)
    ],
    "prefill_attention": [
        (*ATTENTION, heads, kv, 128, 0, batch, 0) for heads, kv in ((8, 8), (32, 8)) for batch in (1, 16)
    ],
    "all_reduce": [("custom", 2), ("custom", 8)],
}


def curve(operator: str, key: Key, multiple: float, device: Device = DEVICE) -> Curve:
    """Times of exactly ``multiple`` times the speed of light."""
    at = AXES[operator]
    fields = dict(zip(OPERATORS[operator].key, key, strict=True))
    times = multiple * bound_ns(operator, device, fields, np.array(at, dtype=np.float64))
    return Curve(key=key, at=at, time_ns=tuple(float(time) for time in times))


def hand_made(multiple: float = 2.0, device: Device = DEVICE, **extra: list[Key]) -> Profile:
    """Every operator at ``multiple`` times the speed of light of ``device``; ``extra`` adds keys by operator."""
    keys = {**KEYS, **extra}
    return Profile(
        name="hand-made",
        created="2026-01-01T00:00:00Z",
        source=Source(kind="measured", tool="tests", command="none", origin="made by hand"),
        device=device,
        operators={
            name: Operator(kernel="made up", curves=tuple(curve(name, key, multiple, device) for key in each))
            for name, each in keys.items()
        },
    )
