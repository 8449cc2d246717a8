"""Number formats of weights: what one takes in memory, scales included, and at what rate a GPU multiplies it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from sim.latency.gpus import GpuSpec

FLOATS = ("float32", "float16", "bfloat16")


class Format(NamedTuple):
    """One format. ``bits`` of a weight alone; ``scale_bytes`` more for each weight."""

    bits: float
    scale_bytes: float = 0.0
    arithmetic: str = ""
    """Whose rate it is multiplied at; empty = widened to 16 bits on its way."""
    meaning: str = ""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "float32": Format(32, arithmetic="float32", meaning="32-bit floats"),
        "float16": Format(16, meaning="16-bit floats"),
        "bfloat16": Format(16, meaning="16-bit floats"),
        "fp8": Format(8, arithmetic="fp8", meaning="8-bit floats, a scale for each tensor, channel or token"),
        "fp8_block": Format(8, 4.0 / (128 * 128), "fp8", "8-bit floats, a 32-bit scale for each 128 x 128"),
        "mxfp8": Format(8, 1.0 / 32, "fp8", "8-bit floats, an 8-bit exponent for each 32"),
        "int8": Format(8, arithmetic="int8", meaning="8-bit integers, activations too"),
        "fp8_weights": Format(8, meaning="8-bit floats, widened to multiply"),
        "int8_weights": Format(8, 2.0 / 128, meaning="8-bit integers with a 16-bit scale for each 128, widened"),
        "int4": Format(
            4, (2.0 + 0.5) / 128, meaning="4-bit integers, 16-bit scale and zero point for each 128, widened"
        ),
        "int4_g32": Format(4, 2.0 / 32, meaning="4-bit integers, a 16-bit scale for each 32, widened"),
        "bnb_4bit": Format(4, 4.0 / 64, meaning="bitsandbytes' 4 bits, a 32-bit scale for each 64, widened"),
        "mxfp4": Format(4, 1.0 / 32, "mxfp4", "4-bit floats, an 8-bit exponent for each 32: 4.25 bits"),
        "nvfp4": Format(4, 1.0 / 16, "nvfp4", "4-bit floats, an 8-bit scale for each 16: 4.5 bits"),
        "nvfp4_weights": Format(4, 1.0 / 16, meaning="the same, widened to multiply"),
    }
)
"""All formats by name."""


def bytes_per_weight(name: str) -> float:
    """Bytes of one weight with its part of the scales: 0.53125 for MXFP4."""
    found = FORMATS[name]
    return found.bits / 8 + found.scale_bytes


def rate(name: str, gpu: GpuSpec) -> float | None:
    """Dense FLOP/s at which ``gpu`` multiplies the format; None = it has no such arithmetic and widens it.

    GPUs with 4-bit arithmetic multiply MXFP4 by activations of 8 bits.
    """
    arithmetic = FORMATS[name].arithmetic
    if arithmetic == "mxfp4":
        return None if gpu.fp4_flops is None else gpu.fp8_flops
    rates = {"float32": gpu.fp32_flops, "fp8": gpu.fp8_flops, "int8": gpu.int8_flops, "nvfp4": gpu.fp4_flops}
    return rates.get(arithmetic)
