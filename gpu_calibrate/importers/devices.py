"""GPUs as the tables' makers call them, and the facts about each that a profile carries."""

from __future__ import annotations

from sim.errors import InputError
from sim.latency.gpus import GPUS, GpuSpec
from sim.latency.profile.file import Device

COMPUTE_CAPABILITY = {"a100": "8.0", "h100": "9.0", "h200": "9.0", "b200": "10.0", "l40s": "8.9", "rtx-4090": "8.9"}
COMPUTE_CAPABILITY |= {"b300": "10.3", "gb200": "10.0", "rtx-pro-6000": "12.0"}


def device_of(preset: str, reported_name: str) -> Device:
    """The profile's device entry: datasheet facts of a preset, under the name that the driver reported."""
    gpu = GPUS[preset]
    return Device(
        name=reported_name,
        gpu=preset,
        compute_capability=next((cc for start, cc in COMPUTE_CAPABILITY.items() if preset.startswith(start)), None),
        num_sms=gpu.num_sms,
        memory_bytes=gpu.memory_bytes,
        l2_bytes=gpu.l2_bytes,
        memory_bandwidth_bytes_per_s=gpu.memory_bandwidth,
        link_bandwidth_bytes_per_s=gpu.link_bandwidth,
        flops=_flops(gpu),
    )


def _flops(gpu: GpuSpec) -> dict[str, float]:
    rates = {"float32": gpu.fp32_flops, "bfloat16": gpu.fp16_flops, "fp8": gpu.fp8_flops, "int8": gpu.int8_flops}
    return {name: rate for name, rate in rates.items() if rate is not None}


def resolve_gpu(name: str, own_names: dict[str, str], source: str) -> tuple[str, str]:
    """(preset, the source's own name) from either of the two. ``own_names``: the source's names to presets.

    Raises InputError with all that the source has.
    """
    asked = name.lower()
    for own, preset in own_names.items():
        if asked in (own.lower(), preset):
            return preset, own
    known = ", ".join(f"{own} ({preset})" for own, preset in own_names.items())
    raise InputError(f"--gpu {name}: {source} has no tables of it; it has {known}")
