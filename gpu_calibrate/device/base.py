"""What the timing asks of a device: prepare a point, replay it, tell its state. A GPU and a simulated one answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpu_calibrate.plan.points import Point
from sim.errors import InputError, SimrunError
from sim.latency.gpus import GPUS, GpuSpec


class DeviceError(SimrunError):
    """The GPU failed in a way that ends the process: what is measured is kept, a new run goes on. Exit code 1."""


class PointError(SimrunError):
    """One point cannot be timed here; the others can."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The card and the software, as far as they decide what is measured."""

    name: str
    gpu: GpuSpec
    num_sms: int
    memory_bytes: int
    l2_bytes: int
    compute_capability: str = ""
    num_gpus: int = 1
    software: Mapping[str, str] = field(default_factory=dict)
    """Driver, CUDA, torch, CuPy ... by name; a profile is only resumed where all of them are equal."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a card tells about itself at an instant; None = not known."""

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttle: tuple[str, ...] = ()
    """Reasons for lowered clocks that are in force, by NVML's names: ``sw_power_cap``, ``hw_thermal_slowdown`` ..."""


BENIGN = frozenset({"sw_power_cap", "gpu_idle", "applications_clocks_setting", "sync_boost", "display_clock_setting"})
"""Reasons that do not spoil a measurement: a power cap is how these cards run under load, in an engine too."""


def harmful(state: DeviceState) -> tuple[str, ...]:
    """Reasons for lowered clocks that make a measurement say nothing about a healthy card."""
    return tuple(reason for reason in state.throttle if reason not in BENIGN)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A point with its buffers, captured and warm."""

    point: Point
    launches: int
    """In one replay; times are per launch."""
    kernel: str
    """What is timed, as its maker names it."""
    kernel_hash: str | None = None
    """Of the source, where this project compiled it."""
    handle: Any = None
    """What the device needs to run it."""


class Device(Protocol):
    """A GPU as the timing sees it. Every method may raise DeviceError, after which the device is not used again."""

    @property
    def facts(self) -> DeviceFacts: ...

    def prepare(self, point: Point) -> Prepared:
        """Raises PointError where this point cannot be timed."""

    def replay(self, order: Sequence[Prepared]) -> list[float]:
        """Nanoseconds per launch of one replay each, in this order, without waiting in between."""

    def eager(self, prepared: Prepared) -> float | None:
        """Nanoseconds per launch without a graph: the kernel, or its launch where that takes longer."""

    def release(self, prepared: Sequence[Prepared]) -> None:
        """Give their memory back."""

    def state(self) -> DeviceState: ...

    def memory_used_bytes(self) -> int:
        """Device memory in use by this process, now."""


NAMES = (
    ("H200", "h200-sxm"),
    ("H100 80GB HBM3", "h100-sxm"),
    ("A100-SXM4-80GB", "a100-80gb-sxm"),
    ("A100-SXM4-40GB", "a100-40gb-sxm"),
    ("B200", "b200-sxm"),
    ("L40S", "l40s"),
    ("RTX PRO 6000", "rtx-pro-6000"),
    ("RTX 4090", "rtx-4090"),
)
"""Part of the driver's name, preset."""
MEMORY_SHARE = (0.92, 1.08)
"""Of the preset's memory: other cards have like names (GB200, PCIe and NVL variants), and this tells most of them."""


def known_preset(name: str, memory_bytes: float) -> GpuSpec | None:
    """The preset of a card by the driver's name for it and its memory, if there is one."""
    for part, preset in NAMES:
        gpu = GPUS[preset]
        low, high = MEMORY_SHARE
        if part.lower() in name.lower() and low <= memory_bytes / gpu.memory_bytes <= high:
            return gpu
    return None


def preset_of(name: str, memory_bytes: int, asked: str | None = None) -> GpuSpec:
    """The preset whose datasheet a card is held against: by its name and memory, or the one asked for.

    Raises:
        InputError: no preset fits; says how to name one.
    """
    if asked is not None:
        from sim.latency.gpus import load_gpu

        return load_gpu(asked)
    known = known_preset(name, memory_bytes)
    if known is not None:
        return known
    raise InputError(
        f"{name} with {memory_bytes / 1e9:.0f} GB is none of the GPU presets, and times are checked against a "
        f"datasheet; give the one that is nearest: --gpu {', '.join(GPUS)}"
    )
