"""Which points are timed: shapes of the presets, tiers, budgets, and the work that each point is counted with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gpu_calibrate.device.buffers import FP8_POOL_BYTES, POOL_BYTES, SCRATCH_BYTES
from gpu_calibrate.device.operations import DECODE_KERNEL
from gpu_calibrate.launches.plans import DECODE_LADDER
from gpu_calibrate.plan.grid import (
    CORE_MODELS,
    DEFAULT_S,
    DENSE_M,
    HEAD_M,
    QUICK_S,
    TP_SIZES,
    Plan,
    candidates,
    fits,
    head_matrix,
    measured_models,
    model_matrices,
    plan,
    point_seconds,
)
from gpu_calibrate.plan.points import (
    CURVE,
    ELEMENT_BYTES,
    RANDOM,
    REPEAT,
    SKEW,
    SLOW_VARIANTS,
    Point,
    context_lengths,
    expected_ns,
    floor_ns,
    work_of,
)
from sim.latency.gpus import GPUS
from sim.latency.models import MODELS
from sim.latency.profile.file import Device
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.speed_of_light import LAUNCH_NS, bound_ns

H200 = GPUS["h200-sxm"]


def test_matrices_of_a_layer_are_those_of_the_model() -> None:
    # Llama-3.1-8B: q 4096, k and v 1024 each, MLP 14336 twice up and once down.
    assert list(model_matrices(MODELS["llama-3.1-8b"], 1)) == [
        (6144, 4096),
        (4096, 4096),
        (28672, 4096),
        (4096, 14336),
    ]
    assert list(model_matrices(MODELS["llama-3.1-70b"], 8)) == [(1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584)]
    # 4 KV heads on 8 GPUs: one each, replicated.
    assert next(iter(model_matrices(MODELS["qwen3-30b-a3b"], 8))) == ((32 // 8 + 2) * 128, 2048)
    assert list(model_matrices(MODELS["qwen2.5-7b"], 8)) == [], "28 heads do not split by 8"
    assert head_matrix(MODELS["llama-3.1-8b"], 2) == (64128, 4096)


@pytest.mark.parametrize("gpu", GPUS)
def test_matrices_of_layers_are_timed_from_1_to_16384_rows(gpu: str) -> None:
    served = [(model, tp) for model in measured_models() for tp in TP_SIZES if fits(model, tp, GPUS[gpu])]
    layers = {("bfloat16", n, k) for model, tp in served for n, k in model_matrices(model, tp)}
    rows: dict[tuple[str | int, ...], set[int]] = {}
    for point in (point for tier in candidates(GPUS[gpu]) for point in tier):
        if point.operator == "gemm" and point.role == CURVE:
            rows.setdefault(point.key, set()).add(point.at)
    layers |= {key for key in rows if key[0] == "fp8"}
    assert len(layers) > 100
    assert {(min(rows[key]), max(rows[key])) for key in layers} == {(1, 16384)}
    others = [rows[key] for key in rows if key not in layers]
    assert {max(places) for places in others} == {max(HEAD_M)}, "rows of the LM head are seats"


@pytest.mark.parametrize("gpu", GPUS)
def test_every_matrix_fits_its_pool(gpu: str) -> None:
    for point in (point for tier in candidates(GPUS[gpu]) for point in tier):
        if point.operator != "gemm":
            continue
        dtype, n, k = str(point.key[0]), int(point.key[1]), int(point.key[2])
        pool = FP8_POOL_BYTES if dtype == "fp8" else POOL_BYTES
        assert max(n, point.at) * k * ELEMENT_BYTES[dtype] <= pool, point
        assert point.at * n * 2 <= SCRATCH_BYTES, point


def test_every_preset_that_fits_is_in_a_full_grid() -> None:
    keys = {point.key for tier in candidates(H200) for point in tier if point.operator == "gemm"}
    assert {"llama-3.1-70b", "gemma-3-27b", "qwen3-235b-a22b"} <= {model.name for model in measured_models()}
    assert not {"deepseek-v3", "qwen3.5-27b", "gemma-2-27b"} & {model.name for model in measured_models()}
    for model in measured_models():
        for tp in (1, 2, 4, 8):
            if fits(model, tp, H200):
                assert {("bfloat16", n, k) for n, k in model_matrices(model, tp)} <= keys
    assert not fits(MODELS["llama-3.1-405b"], 1, H200)
    assert ("fp8", 6144, 4096) in keys
    a100 = {point.key[0] for tier in candidates(GPUS["a100-80gb-sxm"]) for point in tier if point.operator == "gemm"}
    assert a100 == {"bfloat16"}, "no FP8 arithmetic there"


def test_points_are_of_the_layout_and_there_once() -> None:
    points = [point for tier in candidates(H200, 8) for point in tier]
    assert max(Counter(point.id for point in points).values()) == 1
    for point in points:
        assert len(point.key) == len(OPERATORS[point.operator].key), point
        assert point.at >= 1
    assert {point.operator for point in points} >= {"gemm", "decode_attention", "prefill_attention", "elementwise"}
    assert {point.operator for point in points} >= {"sampling", "host_copy", "all_reduce"}
    alone = {point.operator for tier in candidates(H200, 1) for point in tier}
    assert "all_reduce" not in alone


def test_prefill_is_asked_for_with_16_bit_kv_only() -> None:
    """What the charged kernel is not called with would be a failed point each, and failures are a gate."""
    points = [point for tier in candidates(H200) for point in tier if point.operator == "prefill_attention"]
    assert {point.fields["kv_dtype"] for point in points} == {"bfloat16"}


def test_m_is_dense_where_tiles_wave() -> None:
    inside = [m for m in DENSE_M if 129 <= m <= 1024]
    assert len(inside) >= 20
    assert max(DENSE_M) == 16384
    assert min(DENSE_M) == 1
    assert list(DENSE_M) == sorted(set(DENSE_M))


def counts_of_roles(chosen: Plan) -> Counter[str]:
    return Counter(point.role for point in chosen.points)


@pytest.mark.parametrize("gpu", ["h200-sxm", "a100-80gb-sxm", "rtx-4090"])
def test_a_plan_keeps_its_budget_and_what_is_needed(gpu: str) -> None:
    quick, full = plan(GPUS[gpu], QUICK_S), plan(GPUS[gpu], DEFAULT_S)
    assert quick.seconds <= 1.1 * QUICK_S
    assert full.seconds <= 1.1 * DEFAULT_S
    assert len(full.points) > 3 * len(quick.points)
    for chosen in (quick, full):
        counts = Counter(point.operator for point in chosen.points)
        assert counts["gemm"] > 100
        assert counts["decode_attention"] > 40
        assert counts["prefill_attention"] > 15
        repeats = counts_of_roles(chosen)[REPEAT]
        assert 0.02 < repeats / counts_of_roles(chosen)[CURVE] < 0.08 or repeats > 30
    assert quick.left_out > full.left_out
    assert {point.role for point in full.points} == {CURVE, RANDOM, REPEAT, SKEW}


@pytest.mark.parametrize("gpu", ["h200-sxm", "a100-80gb-sxm"])
def test_the_page_states_what_is_planned(gpu: str) -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "calibration.md").read_text(encoding="utf-8").split())
    planned = plan(GPUS[gpu], DEFAULT_S)
    gemms = {point.key for point in planned.points if point.operator == "gemm"}
    told = (
        f"{len(planned.points):,} points, {len(gemms)} matrices among them, in {planned.seconds:.0f} s; "
        f"{planned.left_out:,} are left out"
    )
    assert told in page, f"docs/calibration.md should say: {told}"


def test_the_same_plan_every_time_and_core_models_in_each() -> None:
    assert plan(H200, QUICK_S) == plan(H200, QUICK_S)
    keys = {point.key for point in plan(H200, QUICK_S).points}
    for name, tp in CORE_MODELS:
        assert {("bfloat16", n, k) for n, k in model_matrices(MODELS[name], tp)} <= keys


def test_what_comes_first_is_of_all_operators() -> None:
    """A run that is slower than planned stops somewhere: each operator should have its share by then."""
    first = [point.operator for point in plan(H200, QUICK_S).points[:120]]
    assert {"gemm", "decode_attention", "prefill_attention", "elementwise", "sampling", "host_copy"} <= set(first)


def test_held_out_points_are_in_no_curve_but_within_reach() -> None:
    points = plan(H200, DEFAULT_S).points
    curves = {(point.operator, point.key, point.at) for point in points if point.role == CURVE}
    held_out = [point for point in points if point.role == RANDOM]
    assert len(held_out) > 150
    assert not curves & {(point.operator, point.key, point.at) for point in held_out}
    gemms = {key for operator, key, _ in curves if operator == "gemm"}
    assert all(point.key in gemms for point in held_out if point.operator == "gemm")
    batches = {point.key[-1] for point in held_out if point.operator == "decode_attention"}
    assert batches - {1, 2, 4, 8, 16, 32, 64, 128, 256}, "also batches between the curves"


def test_skewed_batches_have_the_mean_they_say() -> None:
    for point in plan(H200, DEFAULT_S).points:
        if point.role != SKEW:
            continue
        lengths = context_lengths(point)
        assert len(lengths) == point.fields["batch"]
        assert sum(lengths) == pytest.approx(len(lengths) * point.at, rel=0.01)
        assert max(lengths) > 1.5 * point.at
    assert context_lengths(Point("decode_attention", ("bfloat16",) * 2 + (8, 8, 64, 0, 3), 5)) == [5, 5, 5]


def device() -> Device:
    return Device(
        name="x",
        gpu="h200-sxm",
        num_sms=H200.num_sms,
        memory_bytes=H200.memory_bytes,
        l2_bytes=H200.l2_bytes,
        memory_bandwidth_bytes_per_s=H200.memory_bandwidth,
        flops={"bfloat16": H200.fp16_flops, "fp8": float(H200.fp8_flops or 1), "float32": H200.fp32_flops},
    )


@pytest.mark.parametrize(
    "point",
    [
        Point("gemm", ("bfloat16", 8192, 8192), 3000),
        Point("gemm", ("bfloat16", 8192, 28672), 16),
        Point("gemm", ("fp8", 28672, 8192), 16),
        Point("decode_attention", ("bfloat16", "bfloat16", 32, 8, 128, 0, 64), 4096),
        Point("decode_attention", ("bfloat16", "fp8", 32, 8, 128, 0, 64), 4096),
        Point("decode_attention", ("bfloat16", "bfloat16", 32, 8, 128, 1024, 64), 4096),
        Point("prefill_attention", ("bfloat16", "bfloat16", 32, 8, 128, 0, 2, 500), 4096),
        Point("prefill_attention", ("bfloat16", "bfloat16", 32, 8, 128, 1024, 1, 500), 4096),
        Point("elementwise", ("rms_norm", 8192), 16384),
        Point("elementwise", ("silu_and_mul", 8192), 16384),
    ],
    ids=str,
)
def test_work_is_the_simulators_speed_of_light(point: Point) -> None:
    """Two countings of the same bytes and FLOPs, here and in the predictor, agree."""
    import numpy as np

    simulated = float(bound_ns(point.operator, device(), point.fields, np.array([float(point.at)]))[0]) - LAUNCH_NS
    assert floor_ns(point, H200, 0) == pytest.approx(simulated, rel=0.02)


def test_what_is_expected_is_above_the_floor() -> None:
    for point in plan(H200, QUICK_S).points:
        assert expected_ns(point, H200) > floor_ns(point, H200, H200.l2_bytes)
        assert point_seconds(point, H200) > 0
    assert work_of(Point("host_copy", ("to_gpu",), 64)).link
    assert set(SLOW_VARIANTS) < set(DECODE_LADDER)
    assert DECODE_KERNEL in DECODE_LADDER
