"""GPUs without measured step times: datasheet figures alone, which the roofline computes with.

Units and meaning as in ``gpus``. Where no report of CUDA's total memory was at hand, ``source`` says what the figure
stands on.
"""

from __future__ import annotations

from sim.latency.gpu_spec import GIB, GpuSpec

MORE_GPUS = (
    GpuSpec(
        name="l4",
        memory_bytes=int(22.20 * GIB),
        memory_bandwidth=300e9,
        fp32_flops=30.3e12,
        tf32_flops=60.5e12,
        fp16_flops=121e12,
        fp8_flops=242.5e12,
        int8_flops=242.5e12,
        fp4_flops=None,
        nvlink_bandwidth=None,
        pcie_bandwidth=32e9,
        num_sms=58,
        l2_bytes=48 << 20,
        tdp_w=72.0,
        usd_per_hour=0.8,
        source=(
            "NVIDIA L4 datasheet; memory: 23,034 MiB by nvidia-smi (modal-client pull request 2797) less 1.3 %, "
            "as on the L40S"
        ),
    ),
    GpuSpec(
        name="a10g",
        memory_bytes=int(22.20 * GIB),
        memory_bandwidth=600e9,
        fp32_flops=35e12,
        tf32_flops=35e12,
        fp16_flops=70e12,
        fp8_flops=None,
        int8_flops=140e12,
        fp4_flops=None,
        nvlink_bandwidth=None,
        pcie_bandwidth=32e9,
        num_sms=72,
        l2_bytes=6 << 20,
        tdp_w=300.0,
        usd_per_hour=1.2,
        source=(
            "NVIDIA A10G datasheet (FP16 at half of an A10); memory: 23,028 MiB by nvidia-smi less 1.3 %, as on "
            "the L40S"
        ),
    ),
    GpuSpec(
        name="a30",
        memory_bytes=int(23.53 * GIB),
        memory_bandwidth=933e9,
        fp32_flops=10.3e12,
        tf32_flops=82e12,
        fp16_flops=165e12,
        fp8_flops=None,
        int8_flops=330e12,
        fp4_flops=None,
        nvlink_bandwidth=None,
        pcie_bandwidth=32e9,
        num_sms=56,
        l2_bytes=24 << 20,
        tdp_w=165.0,
        usd_per_hour=1.0,
        source=(
            "NVIDIA A30 datasheet; memory as PyTorch reports it (RB-Modulation issue 5). The NVLink bridge of two "
            "is left out"
        ),
    ),
    GpuSpec(
        name="a40",
        memory_bytes=int(44.42 * GIB),
        memory_bandwidth=696e9,
        fp32_flops=37.4e12,
        tf32_flops=74.8e12,
        fp16_flops=149.7e12,
        fp8_flops=None,
        int8_flops=299.3e12,
        fp4_flops=None,
        nvlink_bandwidth=None,
        pcie_bandwidth=32e9,
        num_sms=84,
        l2_bytes=6 << 20,
        tdp_w=300.0,
        usd_per_hour=0.8,
        source="NVIDIA A40 datasheet; memory as of the L40S, which has as much. The NVLink bridge of two is left out",
    ),
    GpuSpec(
        name="rtx-3090",
        memory_bytes=int(23.69 * GIB),
        memory_bandwidth=936e9,
        fp32_flops=35.6e12,
        tf32_flops=35.6e12,
        fp16_flops=71e12,
        fp8_flops=None,
        int8_flops=284e12,
        fp4_flops=None,
        nvlink_bandwidth=None,
        pcie_bandwidth=32e9,
        num_sms=82,
        l2_bytes=6 << 20,
        tdp_w=350.0,
        usd_per_hour=0.4,
        source=(
            "NVIDIA Ampere GA102 whitepaper (GeForce RTX 3090, FP32 accumulation); memory as PyTorch reports it "
            "(MiniCPM-V issue 612)"
        ),
    ),
    GpuSpec(
        name="a6000",
        memory_bytes=int(47.54 * GIB),
        memory_bandwidth=768e9,
        fp32_flops=38.7e12,
        tf32_flops=77.4e12,
        fp16_flops=154.8e12,
        fp8_flops=None,
        int8_flops=309.7e12,
        fp4_flops=None,
        nvlink_bandwidth=None,
        pcie_bandwidth=32e9,
        num_sms=84,
        l2_bytes=6 << 20,
        tdp_w=300.0,
        usd_per_hour=0.8,
        source=(
            "NVIDIA RTX A6000 datasheet and GA102 whitepaper; memory 1 % under 48 GiB. The NVLink bridge of two "
            "is left out"
        ),
    ),
    GpuSpec(
        name="h20",
        memory_bytes=int(95.12 * GIB),
        memory_bandwidth=4000e9,
        fp32_flops=44e12,
        tf32_flops=74e12,
        fp16_flops=148e12,
        fp8_flops=296e12,
        int8_flops=296e12,
        fp4_flops=None,
        nvlink_bandwidth=450e9,
        pcie_bandwidth=64e9,
        num_sms=78,
        l2_bytes=60 << 20,
        tdp_w=400.0,
        usd_per_hour=2.0,
        source=(
            "NVIDIA H20 figures as published by server makers (SXM, 96 GB); memory: 97,871 MiB by nvidia-smi less "
            "what an H100 lacks"
        ),
    ),
    GpuSpec(
        name="h100-pcie",
        memory_bytes=int(79.11 * GIB),
        memory_bandwidth=2039e9,
        fp32_flops=51e12,
        tf32_flops=378e12,
        fp16_flops=756e12,
        fp8_flops=1513e12,
        int8_flops=1513e12,
        fp4_flops=None,
        nvlink_bandwidth=None,
        pcie_bandwidth=64e9,
        num_sms=114,
        l2_bytes=50 << 20,
        tdp_w=350.0,
        usd_per_hour=2.5,
        source=(
            "NVIDIA H100 PCIe datasheet; memory as PyTorch reports 80 GB (vLLM issue 27508). The NVLink bridge of "
            "two is left out"
        ),
    ),
    GpuSpec(
        name="h100-nvl",
        memory_bytes=int(93.11 * GIB),
        memory_bandwidth=3938e9,
        fp32_flops=60e12,
        tf32_flops=417.5e12,
        fp16_flops=835.5e12,
        fp8_flops=1671e12,
        int8_flops=1671e12,
        fp4_flops=None,
        nvlink_bandwidth=300e9,
        pcie_bandwidth=64e9,
        num_sms=132,
        l2_bytes=50 << 20,
        tdp_w=400.0,
        usd_per_hour=2.8,
        source=(
            "NVIDIA H100 NVL datasheet (94 GB, per GPU); NVLink is a bridge of two GPUs; memory 0.5 % under 95,830 MiB"
        ),
    ),
    GpuSpec(
        name="gh200",
        memory_bytes=int(94.50 * GIB),
        memory_bandwidth=4000e9,
        fp32_flops=67e12,
        tf32_flops=494.7e12,
        fp16_flops=989.4e12,
        fp8_flops=1978.9e12,
        int8_flops=1978.9e12,
        fp4_flops=None,
        nvlink_bandwidth=450e9,
        pcie_bandwidth=450e9,
        num_sms=132,
        l2_bytes=50 << 20,
        tdp_w=900.0,
        usd_per_hour=3.0,
        source="NVIDIA GH200 datasheet (96 GB HBM3; to the host over NVLink-C2C); memory 1.5 % under 96 GiB",
    ),
    GpuSpec(
        name="b300-sxm",
        memory_bytes=int(267.90 * GIB),
        memory_bandwidth=7750e9,
        fp32_flops=75e12,
        tf32_flops=1100e12,
        fp16_flops=2250e12,
        fp8_flops=4500e12,
        int8_flops=153.5e12,
        fp4_flops=14000e12,
        nvlink_bandwidth=900e9,
        pcie_bandwidth=128e9,
        num_sms=148,
        l2_bytes=126 << 20,
        tdp_w=1100.0,
        usd_per_hour=7.0,
        source=(
            "NVIDIA HGX B300 datasheet (per GPU, dense); memory: 275,040 MiB by nvidia-smi (aiconfigurator) less "
            "what a B200 lacks"
        ),
    ),
    GpuSpec(
        name="gb200",
        memory_bytes=int(184.30 * GIB),
        memory_bandwidth=8000e9,
        fp32_flops=80e12,
        tf32_flops=1250e12,
        fp16_flops=2500e12,
        fp8_flops=5000e12,
        int8_flops=5000e12,
        fp4_flops=10000e12,
        nvlink_bandwidth=900e9,
        pcie_bandwidth=450e9,
        num_sms=152,
        l2_bytes=126 << 20,
        tdp_w=1200.0,
        usd_per_hour=7.0,
        source=(
            "NVIDIA GB200 NVL72 datasheet (per GPU, dense; to the host over NVLink-C2C); memory: 189,471 MiB by "
            "nvidia-smi (aiconfigurator) less what a B200 lacks"
        ),
    ),
)
"""Smaller ones first."""
