"""What can be timed: one point is one operator at one shape, with the bytes and FLOPs that no kernel can do without."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.latency.gpus import GpuSpec
from sim.latency.profile.layout import OPERATORS

Key = tuple[str | int, ...]

CURVE, RANDOM, REPEAT, SKEW, LADDER, ANCHOR = "curve", "random", "repeat", "skew", "ladder", "anchor"
ROLES = (CURVE, RANDOM, REPEAT, SKEW, LADDER, ANCHOR)
"""curve: becomes part of the profile. random: held out, says how wrong the profile is between its places. repeat: a
curve's place measured once more, later. skew: a decode batch of unequal lengths. ladder: another kernel. anchor:
watches drift."""

ON_GPU = "on_gpu"
"""Direction of a ``host_copy`` point that never leaves the GPU: the ceiling for bandwidths. Its bytes
are those read plus those written. It is an anchor, never a curve."""

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1}
SKEWS = ("even", "one_long", "lognormal")


@dataclass(frozen=True, slots=True)
class Point:
    """One operator (``sim.latency.profile.layout``) at one place of its axis."""

    operator: str
    key: Key
    at: int
    role: str = CURVE
    variant: str = ""
    """A kernel of the ladder by name, or the library that calls cuBLAS; empty = what is charged to engines."""
    skew: str = "even"
    """How unequal the contexts of a decode batch are, ``at`` being their mean."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The key by the names of the layout."""
        return dict(zip(OPERATORS[self.operator].key, self.key, strict=True))

    @property
    def id(self) -> str:
        """The point as text, the same in every run: what a partial file and a comparison find it by."""
        return json.dumps([self.operator, list(self.key), self.at, self.role, self.variant, self.skew])

    @property
    def number(self) -> int:
        """A number drawn from the id, for seeds that do not depend on the order of points."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:4], "big")

    def __str__(self) -> str:
        key = ", ".join(str(part) for part in self.key)
        extra = "".join(f", {part}" for part in (self.variant, self.skew if self.skew != "even" else "") if part)
        return f"{self.operator}({key}; {OPERATORS[self.operator].axis} {self.at:,}{extra})"


@dataclass(frozen=True, slots=True)
class Work:
    """The least that a kernel must do: ``bytes`` through memory (inputs once, outputs once), ``flops`` of ``dtype``."""

    bytes: int
    flops: int = 0
    dtype: str = "bfloat16"
    link: bool = False
    """The bytes go over a link, not through the GPU's memory."""


def context_lengths(point: Point) -> list[int]:
    """Tokens of KV of each request of a decode point; their mean is ``at`` as far as whole tokens allow."""
    import numpy as np

    batch, mean = int(point.fields["batch"]), point.at
    if point.skew == "one_long" and batch > 1:
        long = max(1, batch * mean // 2)
        rest, more = divmod(batch * mean - long, batch - 1)
        return [long, *(max(1, rest + (1 if i < more else 0)) for i in range(batch - 1))]
    if point.skew == "lognormal" and batch > 1:
        drawn = np.random.default_rng(point.number).lognormal(0.0, 0.83, batch)  # cv 1
        return [max(1, round(value)) for value in drawn / drawn.mean() * mean]
    return [mean] * batch


def _attention_work(fields: Mapping[str, Any], queries: int, context: int, pairs: int) -> Work:
    """``queries`` new tokens in all, ``context`` tokens of KV read in all, ``pairs`` of a query and a key."""
    heads, size = int(fields["num_heads"]), int(fields["head_size"])
    kv = 2 * int(fields["num_kv_heads"]) * size * ELEMENT_BYTES[str(fields["kv_dtype"])]
    element = ELEMENT_BYTES[str(fields["dtype"])]
    return Work(context * kv + 2 * queries * heads * size * element, 4 * pairs * heads * size, str(fields["dtype"]))


def _decode_work(point: Point) -> Work:
    fields = point.fields
    window = int(fields["window"])
    lengths = [min(length, window) if window else length for length in context_lengths(point)]
    return _attention_work(fields, len(lengths), sum(lengths), sum(lengths))


def _prefill_work(point: Point) -> Work:
    fields = point.fields
    batch, prior, chunk = int(fields["batch"]), int(fields["prior_tokens"]), point.at
    window = int(fields["window"]) or prior + chunk
    # Queries that see less than the window: each one token more than the one before.
    growing = max(0, min(chunk, window - prior))
    pairs = growing * prior + growing * (growing + 1) // 2 + (chunk - growing) * window
    context = min(prior + chunk, window + chunk)
    return _attention_work(fields, batch * chunk, batch * context, batch * pairs)


def _gemm_work(point: Point) -> Work:
    dtype, n, k, m = str(point.fields["dtype"]), int(point.fields["n"]), int(point.fields["k"]), point.at
    weight = ELEMENT_BYTES[dtype]
    return Work(n * k * weight + m * k * weight + m * n * max(2, weight), 2 * m * n * k, dtype)


def elementwise_bytes(name: str, width: int, tokens: int) -> int:
    """Traffic of an element-wise kernel on 16-bit numbers; residual read and written, gate and up read."""
    per_element = {"rms_norm": 8, "silu_and_mul": 6, "rotary": 4, "reshape_and_cache": 4}[name]
    return tokens * width * per_element


def work_of(point: Point) -> Work:
    """Compulsory bytes and FLOPs of a point."""
    if point.operator == "gemm":
        return _gemm_work(point)
    if point.operator in ("decode_attention", "decode_attention_contiguous"):
        return _decode_work(point)
    if point.operator == "prefill_attention":
        return _prefill_work(point)
    if point.operator == "elementwise":
        return Work(elementwise_bytes(str(point.fields["name"]), int(point.fields["width"]), point.at))
    if point.operator == "sampling":
        return Work(point.at * int(point.fields["vocab_size"]) * 4, dtype="float32")
    return Work(point.at, link=point.key[0] != ON_GPU)


def peak_flops(gpu: GpuSpec, dtype: str) -> float:
    """Dense FLOP/s of a number format on this GPU; formats without arithmetic of their own run in 16 bits."""
    rate = {"float32": gpu.fp32_flops, "fp8": gpu.fp8_flops, "int8": gpu.int8_flops}.get(dtype, gpu.fp16_flops)
    return rate or gpu.fp16_flops


def floor_ns(point: Point, gpu: GpuSpec, l2_bytes: int) -> float:
    """The least time a point can take at datasheet peaks, nanoseconds. Traffic counts where it exceeds the L2 cache."""
    work = work_of(point)
    seconds = work.flops / peak_flops(gpu, work.dtype)
    if work.link:
        return 0.0
    if work.bytes > l2_bytes:
        seconds = max(seconds, work.bytes / gpu.memory_bandwidth)
    return seconds * 1e9


def expected_ns(point: Point, gpu: GpuSpec) -> float:
    """A rough guess before measuring, to plan the time of a run and the number of launches in a graph."""
    work = work_of(point)
    if work.link:
        return (
            work.bytes / (0.7 * (gpu.pcie_bandwidth if point.operator == "host_copy" else gpu.link_bandwidth)) * 1e9
            + 1e4
        )
    slow = 25.0 if point.variant in SLOW_VARIANTS else 1.0
    traffic = work.bytes / (0.75 * gpu.memory_bandwidth)
    if point.operator == "sampling":
        traffic *= 8  # softmax, noise, quotient, maximum: several passes
    return slow * max(work.flops / (0.6 * peak_flops(gpu, work.dtype)), traffic) * 1e9 + 4000.0


SLOW_VARIANTS = ("paged_attention_naive", "paged_attention_uncoalesced", "paged_attention_shared")
