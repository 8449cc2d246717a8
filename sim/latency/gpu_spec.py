"""The figures of one GPU that step times and memory plans are computed from."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One GPU. Dtypes a GPU lacks natively are None: such weights are stored small and computed in 16 bits."""

    name: str
    memory_bytes: int
    memory_bandwidth: float
    fp32_flops: float
    tf32_flops: float
    fp16_flops: float
    """FP16 and BF16, which run at one rate on all of these."""
    fp8_flops: float | None
    int8_flops: float | None
    fp4_flops: float | None = None
    nvlink_bandwidth: float | None
    """Per direction; None = GPUs talk over PCIe."""
    pcie_bandwidth: float
    """Per direction."""
    num_sms: int
    l2_bytes: int
    tdp_w: float
    usd_per_hour: float
    """A round example of the order of on-demand list prices in 2025, not a quote."""
    source: str

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s per direction between GPUs: NVLink where there is one, else PCIe."""
        return self.nvlink_bandwidth or self.pcie_bandwidth
