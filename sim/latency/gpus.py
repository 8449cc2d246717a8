"""GPU figures from their makers' datasheets: what the roofline and the memory plan compute with.

FLOP/s are dense (without sparsity), tensor cores with FP32 accumulation except ``fp32``, which is
the ordinary cores' rate: PyTorch, and so vLLM by default, does not use TF32 for float32 matrices.
Bandwidths are bytes/s; link bandwidths are per direction, half of what datasheets print.
``memory_bytes`` is what CUDA reports as total, the figure vLLM multiplies by
``gpu_memory_utilization``; it is 1-7 % under the nominal size (ECC, driver, HBM spare rows).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from sim.errors import InputError
from sim.latency.gpu_spec import GIB, GpuSpec
from sim.latency.more_gpus import MORE_GPUS

if TYPE_CHECKING:
    from sim.scenario.schema import GpuConfig


def _presets() -> tuple[GpuSpec, ...]:
    a100 = GpuSpec(
        name="a100-80gb-sxm",
        memory_bytes=int(79.15 * GIB),
        memory_bandwidth=2039e9,
        fp32_flops=19.5e12,
        tf32_flops=156e12,
        fp16_flops=312e12,
        fp8_flops=None,
        int8_flops=624e12,
        nvlink_bandwidth=300e9,
        pcie_bandwidth=32e9,
        num_sms=108,
        l2_bytes=40 << 20,
        tdp_w=400.0,
        usd_per_hour=2.0,
        source="NVIDIA A100 datasheet and A100 architecture whitepaper (SXM4, 80 GB)",
    )
    h100 = GpuSpec(
        name="h100-sxm",
        memory_bytes=int(79.19 * GIB),
        memory_bandwidth=3350e9,
        fp32_flops=67e12,
        tf32_flops=494.7e12,
        fp16_flops=989.4e12,
        fp8_flops=1978.9e12,
        int8_flops=1978.9e12,
        nvlink_bandwidth=450e9,
        pcie_bandwidth=64e9,
        num_sms=132,
        l2_bytes=50 << 20,
        tdp_w=700.0,
        usd_per_hour=3.0,
        source="NVIDIA H100 datasheet and Hopper whitepaper (SXM5; dense = half of the figures with sparsity)",
    )
    return (
        replace(
            a100,
            name="a100-40gb-sxm",
            memory_bytes=int(39.39 * GIB),
            memory_bandwidth=1555e9,
            usd_per_hour=1.5,
            source="NVIDIA A100 datasheet and A100 architecture whitepaper (SXM4, 40 GB)",
        ),
        a100,
        h100,
        replace(
            h100,
            name="h200-sxm",
            memory_bytes=int(139.80 * GIB),
            memory_bandwidth=4800e9,
            usd_per_hour=4.0,
            source="NVIDIA H200 datasheet (SXM; compute as the H100)",
        ),
        GpuSpec(
            name="b200-sxm",
            memory_bytes=int(178.36 * GIB),
            memory_bandwidth=8000e9,
            fp32_flops=75e12,
            tf32_flops=1100e12,
            fp16_flops=2250e12,
            fp8_flops=4500e12,
            int8_flops=4500e12,
            fp4_flops=9000e12,
            nvlink_bandwidth=900e9,
            pcie_bandwidth=64e9,  # HGX B200 hosts are PCIe 5.0
            num_sms=148,
            l2_bytes=126 << 20,
            tdp_w=1000.0,
            usd_per_hour=5.5,
            source="NVIDIA HGX B200 datasheet and Blackwell architecture brief (1,000 W; per GPU, dense)",
        ),
        GpuSpec(
            name="l40s",
            memory_bytes=int(44.42 * GIB),
            memory_bandwidth=864e9,
            fp32_flops=91.6e12,
            tf32_flops=183e12,
            fp16_flops=362.05e12,
            fp8_flops=733e12,
            int8_flops=733e12,
            nvlink_bandwidth=None,
            pcie_bandwidth=32e9,
            num_sms=142,
            l2_bytes=96 << 20,
            tdp_w=350.0,
            usd_per_hour=1.5,
            source="NVIDIA L40S datasheet",
        ),
        GpuSpec(
            name="rtx-pro-6000",
            memory_bytes=int(94.973 * GIB),
            memory_bandwidth=1792e9,
            fp32_flops=125e12,
            tf32_flops=251.9e12,
            fp16_flops=503.8e12,
            fp8_flops=1007.6e12,
            int8_flops=1007.6e12,
            fp4_flops=2015.2e12,
            nvlink_bandwidth=None,
            pcie_bandwidth=64e9,
            num_sms=188,
            l2_bytes=128 << 20,
            tdp_w=600.0,
            usd_per_hour=2.0,
            source="NVIDIA RTX PRO 6000 Blackwell Workstation datasheet, RTX Blackwell PRO whitepaper (1,597 GB/s on "
            "the Server Edition)",
        ),
        GpuSpec(
            name="rtx-4090",
            memory_bytes=int(23.52 * GIB),
            memory_bandwidth=1008e9,
            fp32_flops=82.6e12,
            tf32_flops=82.6e12,
            fp16_flops=165.2e12,
            fp8_flops=330.3e12,
            int8_flops=660.6e12,
            nvlink_bandwidth=None,
            pcie_bandwidth=32e9,
            num_sms=128,
            l2_bytes=72 << 20,
            tdp_w=450.0,
            usd_per_hour=0.7,
            source="NVIDIA Ada GPU architecture whitepaper (GeForce RTX 4090, FP32 accumulation)",
        ),
    )


__all__ = ["GIB", "GPUS", "GpuSpec", "best_known_first", "load_gpu", "standing"]

GPUS: dict[str, GpuSpec] = {gpu.name: gpu for gpu in (*_presets(), *MORE_GPUS)}
"""Presets by name."""

SCALED = frozenset({"a100-40gb-sxm"})
ESTIMATED = frozenset({"rtx-4090", *(gpu.name for gpu in MORE_GPUS)} - {"b300-sxm", "gb200"})
ALIASES = {"rtx-a6000": "a6000", "h20-sxm": "h20", "b300": "b300-sxm", "gb200-nvl72": "gb200"}
"""Presets whose step times are measured ones of the same chip, scaled to their memory; and those without measured ones,
whose step times are a roofline's. All others have a profile that comes with the program."""


def standing(gpu: GpuSpec) -> str:
    """What the step times of a preset stand on: ``measured``, ``scaled`` or ``estimate``."""
    return "scaled" if gpu.name in SCALED else "estimate" if gpu.name in ESTIMATED else "measured"


def best_known_first() -> list[GpuSpec]:
    """Presets in the order in which to recommend them: measured ones, scaled ones, estimates."""
    order = ("measured", "scaled", "estimate")
    return sorted(GPUS.values(), key=lambda gpu: order.index(standing(gpu)))


def _named(gpu: GpuSpec) -> str:
    return gpu.name if standing(gpu) == "measured" else f"{gpu.name} ({standing(gpu)})"


def load_gpu(gpu: str | GpuConfig) -> GpuSpec:
    """A GPU preset by name, or the GPU that a scenario describes.

    Raises InputError for an unknown name, with the presets that it can mean, and for a preset's name on a GPU of
    one's own.
    """
    if not isinstance(gpu, str):
        return _described(gpu)
    found = GPUS.get(ALIASES.get(gpu.lower(), gpu.lower()))
    if found is not None:
        return found
    meant = [_named(preset) for preset in best_known_first() if _can_mean(gpu, preset)]
    if meant:
        raise InputError(f"engine.gpu: unknown GPU {gpu!r}; did you mean {' or '.join(meant)}?")
    section = "{name: ..., memory_gib: ..., memory_bandwidth_gb_s: ..., fp16_tflops: ...}"
    hint = f"presets: {', '.join(map(_named, best_known_first()))}; another goes in as a section: {section}"
    raise InputError(f"engine.gpu: unknown GPU {gpu!r}; {hint}")


def _described(gpu: GpuConfig) -> GpuSpec:
    if gpu.name.lower() in GPUS:
        raise InputError(
            f"engine.gpu.name: {gpu.name} is a preset; write `gpu: {gpu.name.lower()}`, or give your own another name"
        )
    tflops = 1e12
    return GpuSpec(
        name=gpu.name,
        memory_bytes=int(gpu.memory_gib * GIB),
        memory_bandwidth=gpu.memory_bandwidth_gb_s * 1e9,
        fp32_flops=tflops * (gpu.fp16_tflops / 16 if gpu.fp32_tflops is None else gpu.fp32_tflops),
        tf32_flops=gpu.fp16_tflops / 2 * tflops,
        fp16_flops=gpu.fp16_tflops * tflops,
        fp8_flops=None if gpu.fp8_tflops is None else gpu.fp8_tflops * tflops,
        int8_flops=None if gpu.int8_tflops is None else gpu.int8_tflops * tflops,
        nvlink_bandwidth=None if gpu.nvlink_gb_s is None else gpu.nvlink_gb_s * 1e9,
        pcie_bandwidth=gpu.pcie_gb_s * 1e9,
        num_sms=0,
        l2_bytes=0,
        tdp_w=0.0,
        usd_per_hour=gpu.usd_per_hour or 0.0,
        source="the scenario",
    )


_NOISE = re.compile(r"nvidia|geforce|tesla|rtx|hgx|sxm\d?|gpu")
"""Parts of names that tell no two presets apart. (``pcie`` and ``nvl`` do: those are other GPUs.)"""
_MEMORY = re.compile(r"(?<![a-z\d])(\d{2,3})gi?b?(?![a-z\d])")


def _can_mean(name: str, preset: GpuSpec) -> bool:
    """Whether ``name`` is another spelling of a preset's: the same chip, and no other memory.

    ``H100_SXM5 80GB`` can mean h100-sxm. ``mi300x`` and ``l40`` are GPUs without a preset.
    """
    given, known = _chip(name), _chip(preset.name)
    if given != known:  # else two letters the wrong way round: the same letters and, in order, the same digits
        given, known = _letters(name), _letters(preset.name)
        if sorted(given) != sorted(known) or re.findall(r"\d+", given) != re.findall(r"\d+", known):
            return False
    sizes = [int(size) for size in _MEMORY.findall(name.lower())]
    return all(abs(size * GIB / preset.memory_bytes - 1) < 0.1 for size in sizes)


def _chip(name: str) -> str:
    """What tells chips apart in a name: ``NVIDIA A100-SXM4-80GB`` -> ``a100``."""
    return _NOISE.sub("", _letters(name))


def _letters(name: str) -> str:
    """A name without its memory and all that is neither letter nor digit."""
    return re.sub(r"[^a-z\d]", "", _MEMORY.sub("", name.lower()))
