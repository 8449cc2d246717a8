"""Arithmetic that courses quote, from the step cost's own bounds: intensity, FP32, all-reduces, a 220B design."""

from __future__ import annotations

import numpy as np
import pytest

from sim.latency.gpus import GPUS
from sim.latency.precision import parameter_bytes
from sim.latency.profile.file import Device
from sim.latency.profile.library import find_profile
from sim.latency.profile.speed_of_light import LAUNCH_NS, Fields, bound_ns

A100 = GPUS["a100-80gb-sxm"]
DEVICE = find_profile(None, A100).device
RIDGE = A100.fp16_flops / A100.memory_bandwidth


def seconds(operator: str, fields: Fields, at: float, device: Device = DEVICE) -> float:
    """The bound without the kernel's start."""
    return (float(bound_ns(operator, device, fields, np.array([float(at)]))[0]) - LAUNCH_NS) / 1e9


def intensity(operator: str, fields: Fields, at: float) -> float:
    """FLOPs per byte: the bound on a GPU with endless bandwidth against one with endless arithmetic."""
    rates = DEVICE.flops
    arithmetic = DEVICE.model_copy(update={"memory_bandwidth_bytes_per_s": 1e30})
    traffic = DEVICE.model_copy(update={"flops": dict.fromkeys(rates, 1e30)})
    flops = seconds(operator, fields, at, arithmetic) * rates["bfloat16"]
    return flops / (seconds(operator, fields, at, traffic) * DEVICE.memory_bandwidth_bytes_per_s)


def attention(group: int, **others: str | int) -> Fields:
    fields: dict[str, str | int] = {"dtype": "bfloat16", "kv_dtype": "bfloat16", "head_size": 128, "window": 0}
    return {**fields, "num_heads": 32, "num_kv_heads": 32 // group, "batch": 1, **others}


@pytest.mark.parametrize("tokens", [512, 1024, 4096])
def test_causal_prefill_attention_does_a_quarter_of_its_tokens_per_byte(tokens: int) -> None:
    """N / 4 FLOPs per byte, each query's own key included: (N + 1) / 4."""
    assert intensity("prefill_attention", attention(1, prior_tokens=0), tokens) == pytest.approx((tokens + 1) / 4)


def test_prefill_attention_of_512_tokens_is_below_an_a100s_ridge() -> None:
    """128 against 153: compute-bound from 612 tokens on where heads do not share KV, from 383 on where four do."""
    assert intensity("prefill_attention", attention(1, prior_tokens=0), 512) < RIDGE == pytest.approx(153, abs=0.5)
    for group, turn in ((1, 4 * RIDGE), (4, 2.5 * RIDGE)):
        fields = attention(group, prior_tokens=0)
        below, above = (intensity("prefill_attention", fields, turn * share) for share in (0.98, 1.02))
        assert below < RIDGE < above


def test_the_matrices_of_a_prompt_are_above_the_ridge() -> None:
    fields: Fields = {"dtype": "bfloat16", "n": 4096, "k": 4096}
    assert intensity("gemm", fields, 512) == pytest.approx(409.6)
    assert intensity("gemm", fields, 1) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("group", [1, 4, 8])
def test_decode_attention_does_its_group_size_per_byte(group: int) -> None:
    assert intensity("decode_attention", attention(group), 100_000) == pytest.approx(group, rel=0.01)


def test_fp32_reads_twice_as_much_and_multiplies_at_a_sixteenth() -> None:
    """Twice the time for few rows, 16 times for many; FP32 turns compute-bound from 19 rows on."""

    def ratio(rows: int) -> float:
        wide, half = (
            seconds("gemm", {"dtype": dtype, "n": 4096, "k": 4096}, rows) for dtype in ("float32", "bfloat16")
        )
        return wide / half

    assert ratio(1) == pytest.approx(2)
    assert ratio(16) == pytest.approx(2)
    assert 2.5 < ratio(32) < 4
    assert ratio(4096) == pytest.approx(16)


@pytest.mark.parametrize(("link", "milliseconds"), [(300e9, 21.5), (None, 201)])
def test_a_passes_all_reduces_take_at_least_a_rings_time(link: float | None, milliseconds: float) -> None:
    """64 payloads of 64 MiB over four GPUs; without a link's figure PCIe's 32 GB/s count."""
    device = DEVICE.model_copy(update={"link_bandwidth_bytes_per_s": link})
    each = seconds("all_reduce", {"implementation": "nccl", "num_gpus": 4}, 64 << 20, device)
    assert 64 * each * 1e3 == pytest.approx(milliseconds, rel=0.003)


def test_a_dense_220b_on_two_a100s() -> None:
    """Its INT4 weights take 27 ms to read, 2,000 tokens/s are 880 TFLOP/s, 10,000 users a minute 165 or 329 GPUs."""
    read_s = parameter_bytes(220_000_000_000, "int4") / (2 * A100.memory_bandwidth)
    assert read_s * 1e3 == pytest.approx(27, abs=0.1)
    assert 150 * read_s == pytest.approx(4.05, abs=0.01)
    per_token = 2 * 220e9
    assert per_token * 2000 == 880e12 > 2 * A100.fp16_flops == 624e12
    demand = 10_000 / 60 * (200 + 150)
    gpus = per_token * demand / (0.5 * A100.fp16_flops)
    assert (round(gpus), round(2 * gpus)) == (165, 329)
