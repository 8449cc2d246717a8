"""The part of the scenario format that describes a GPU which is no preset."""

from __future__ import annotations

from sim.scenario.types import Figure, PositiveFloat, PositiveInt, Strict, Text


class GpuConfig(Strict):
    """A GPU of one's own, by its datasheet. Step times are then a roofline's, or those of a profile measured on it."""

    name: Text
    """What it is called in the results; no preset's name. A profile fits if its device has this name."""
    memory_gib: Figure
    """GiB that the driver reports as total, some percent under the nominal size (``nvidia-smi``: MiB / 1024)."""
    memory_bandwidth_gb_s: Figure
    """GB/s."""
    fp16_tflops: Figure
    """Dense TFLOP/s in FP16 and BF16: half of a figure with sparsity."""
    fp32_tflops: Figure | None = None
    """The same in FP32, for ``dtype: float32``; null = a sixteenth of ``fp16_tflops``."""
    fp8_tflops: Figure | None = None
    """The same in FP8; null = it has none: such weights are stored small and computed in 16 bits."""
    int8_tflops: Figure | None = None
    """Dense TOP/s in INT8; null = it has none."""
    nvlink_gb_s: Figure | None = None
    """GB/s per direction between GPUs, half of what datasheets print; null = they talk over PCIe."""
    pcie_gb_s: Figure = 32.0
    """GB/s per direction: 32 for 16 lanes of PCIe 4.0, 64 for 5.0."""
    kv_block_multiple: PositiveInt = 16
    """Tokens that its attention kernels need ``block_size`` to be a multiple of; 16 on NVIDIA GPUs."""
    usd_per_hour: PositiveFloat | None = None
    """Price of an hour; null = no cost is computed."""
