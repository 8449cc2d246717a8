"""Tables in aiconfigurator-core's layout, written here with numbers of our own, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpu_calibrate.importers import aic_tables, import_profile
from sim.errors import InputError
from sim.latency.profile.file import Curve, Profile

COMMON = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H100 80GB HBM3"}
MB = 1 << 20


def write(
    folder: Path, rows: list[dict[str, Any]], name: str, *, gpu: str = "h100_sxm", version: str = "0.24.0"
) -> None:
    """One table under ``folder`` as the package has them."""
    family, table, engine = name.split("/")
    place = folder / "aiconfigurator_core" / "systems" / "data" / gpu / family / engine / version
    place.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([{**COMMON, "kernel_source": "kernel", **row} for row in rows]).to_parquet(
        place / f"{table}_perf.parquet"
    )


def gemm(
    m: int, latency: float, *, n: int = 8192, k: int = 8192, dtype: str = "bfloat16", **more: Any
) -> dict[str, Any]:
    return {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": latency, **more}


def attention(batch: int, length: int, latency: float, *, decode: bool, **more: Any) -> dict[str, Any]:
    return {
        "batch_size": batch,
        "isl": 1 if decode else length,
        "num_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attn_dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "step": length if decode else 0,
        "window_size": 0,
        "latency": latency,
        **more,
    }


def run(folder: Path, **more: Any) -> Profile:
    return import_profile("aiconfigurator", gpu="h100_sxm", path=folder, **more)


def curves(profile: Profile, operator: str) -> dict[tuple[str | int, ...], Curve]:
    return {curve.key: curve for curve in profile.operators[operator].curves}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small complete set: weights of 128 MB, so that nothing is warm."""
    write(tmp_path, [gemm(m, 0.05 + m * 1e-3) for m in (1, 16, 64)], "gemm/gemm/vllm")
    prefill = [attention(1, length, length * 1e-3, decode=False) for length in (16, 1024)]
    write(tmp_path, prefill, "attention/context_attention/vllm")
    decode = [attention(64, length, length * 1e-3, decode=True) for length in (4095, 8191)]
    write(tmp_path, decode, "attention/generation_attention/vllm")
    return tmp_path


def test_milliseconds_become_nanoseconds_and_the_file_says_where_from(folder: Path) -> None:
    info = folder / "aiconfigurator_core-1.2.3.dist-info"
    info.mkdir()
    profile = run(folder, command="typed")
    (curve,) = profile.operators["gemm"].curves
    assert curve.key == ("bfloat16", 8192, 8192)
    assert curve.at == (1, 16, 64)
    assert curve.time_ns == pytest.approx((51_000, 66_000, 114_000))
    assert profile.name == profile.device.gpu == "h100-sxm"
    assert profile.device.name == "NVIDIA H100 80GB HBM3"
    assert profile.source.kind == "imported"
    assert profile.source.command == "typed"
    assert "aiconfigurator-core 1.2.3 (Apache-2.0), h100_sxm, vllm 0.24.0" in profile.source.origin
    assert profile.software == {"vllm": "0.24.0", "aiconfigurator-core": "1.2.3"}
    assert profile.operators["gemm"].origin == "aiconfigurator-core 1.2.3, h100_sxm, vllm 0.24.0, gemm"
    assert profile.operators["gemm"].kernel == "kernel"
    assert [(gate.name, gate.passed) for gate in profile.gates] == [("operators", True)]


def test_kv_of_a_decode_is_one_longer_than_its_step_and_prefill_has_no_prior(folder: Path) -> None:
    profile = run(folder)
    heads = ("bfloat16", "bfloat16", 32, 8, 128, 0)
    assert curves(profile, "decode_attention")[*heads, 64].at == (4096, 8192)
    assert curves(profile, "prefill_attention")[*heads, 1, 0].at == (16, 1024)


def test_tables_without_windows_are_of_full_attention(tmp_path: Path) -> None:
    write(tmp_path, [gemm(1, 0.06)], "gemm/gemm/vllm")
    row = attention(1, 16, 0.02, decode=False)
    del row["window_size"]
    write(tmp_path, [row], "attention/context_attention/vllm")
    (curve,) = run(tmp_path).operators["prefill_attention"].curves
    assert curve.key[5] == 0


def test_repeated_rows_are_joined_to_their_median(tmp_path: Path) -> None:
    write(tmp_path, [gemm(1, latency) for latency in (0.06, 0.07, 0.5)], "gemm/gemm/vllm")
    profile = run(tmp_path)
    assert profile.operators["gemm"].curves[0].time_ns == (70_000,)
    assert "gemm: 1 of 3 rows kept; 2 repeated rows joined to their median" in profile.source.notes


def test_faster_than_the_gpu_is_dropped_and_counted(tmp_path: Path) -> None:
    flops_ns = 2 * 4096 * 8192 * 8192 / 989.4e12 * 1e9
    rows = [gemm(1, 0.06), gemm(2048, flops_ns / 2 / 1.04 * 1e-6), gemm(4096, flops_ns / 1.07 * 1e-6)]
    write(tmp_path, rows, "gemm/gemm/vllm")
    profile = run(tmp_path)
    assert profile.operators["gemm"].curves[0].at == (1, 2048)
    assert "gemm: 2 of 3 rows kept; 1 faster than the GPU can" in profile.source.notes


def test_weights_that_cannot_be_in_the_l2_bound_the_time_too(tmp_path: Path) -> None:
    memory_ms = 8192 * 8192 * 2 / 3350e9 * 1e3
    write(tmp_path, [gemm(1, memory_ms / 1.1), gemm(2, memory_ms)], "gemm/gemm/vllm")
    assert run(tmp_path).operators["gemm"].curves[0].at == (2,)


def test_weights_out_of_a_warm_l2_are_raised_to_what_cold_ones_take(tmp_path: Path) -> None:
    """Six copies of 8 MB lie in the L2 of 50 MB, six of 9 do not; cold weights come at 80 % of the peak here."""
    n, k = 1024, 4 * 1024
    reading_ms = n * k * 2 / 3350e9 * 1e3
    warm = [gemm(1, reading_ms * 0.6, n=n, k=k), gemm(64, reading_ms * 1.3, n=n, k=k)]
    between = [gemm(1, reading_ms * 9 / 8, n=n * 9 // 8, k=k)]
    cold = [gemm(1, 8192 * 8192 * 2 / 3350e9 * 1e3 / 0.8)]
    write(tmp_path, warm + between + cold, "gemm/gemm/vllm")
    profile = run(tmp_path)
    found = curves(profile, "gemm")
    assert found["bfloat16", n, k].time_ns == pytest.approx((reading_ms / 0.8 * 1e6, reading_ms * 1.3 * 1e6), rel=1e-4)
    assert found["bfloat16", n * 9 // 8, k].time_ns == pytest.approx((reading_ms * 9 / 8 * 1e6,), rel=1e-4)
    assert "gemm: 4 of 4 rows kept; 1 out of a warm L2 raised to reading from memory" in profile.source.notes


def test_a_slow_point_among_warm_ones_is_no_colder(tmp_path: Path) -> None:
    """KV of 24 and 32 MB: the first is slow by chance, the second out of the L2."""
    write(tmp_path, [gemm(1, 0.06)], "gemm/gemm/vllm")
    rows = [attention(8, length - 1, time, decode=True) for length, time in ((64, 0.012), (768, 0.03), (1024, 0.018))]
    write(tmp_path, rows, "attention/generation_attention/vllm")
    assert run(tmp_path).operators["decode_attention"].curves[0].at == (64,)


def test_kv_out_of_a_warm_l2_is_dropped_unless_it_is_next_to_nothing(tmp_path: Path) -> None:
    """4 KB a token: 2 MB, 32 MB (both fit 50 MB) and 64 MB."""
    write(tmp_path, [gemm(1, 0.06)], "gemm/gemm/vllm")
    rows = [
        attention(8, length - 1, latency, decode=True) for length, latency in ((64, 0.012), (1024, 0.018), (2048, 0.04))
    ]
    write(tmp_path, rows, "attention/generation_attention/vllm")
    profile = run(tmp_path)
    assert profile.operators["decode_attention"].curves[0].at == (64, 2048)
    assert "decode_attention: 2 of 3 rows kept; 1 read out of a warm L2" in profile.source.notes


def test_a_spike_is_dropped_and_a_step_is_not(tmp_path: Path) -> None:
    rows = [gemm(m, latency) for m, latency in ((1, 0.06), (2, 0.2), (3, 0.06), (256, 0.06), (257, 0.16), (512, 0.16))]
    write(tmp_path, rows, "gemm/gemm/vllm")
    assert run(tmp_path).operators["gemm"].curves[0].at == (1, 3, 256, 257, 512)


def test_a_first_point_far_above_those_after_it_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, [gemm(1, 0.06)], "gemm/gemm/vllm")
    rows = [attention(1, length - 1, time, decode=True) for length, time in ((2, 0.031), (4, 0.0127), (8, 0.0127))]
    rising = [attention(2, length - 1, time, decode=True) for length, time in ((2, 0.031), (4, 0.0127), (8, 0.029))]
    write(tmp_path, rows + rising, "attention/generation_attention/vllm")
    found = curves(run(tmp_path), "decode_attention")
    assert {key[-1]: curve.at for key, curve in found.items()} == {1: (4, 8), 2: (2, 8)}


def test_all_reduce_counts_elements_of_two_bytes(folder: Path) -> None:
    rows = [
        {"num_gpus": 2, "message_size": 1024, "backend": "vllm_graph", "latency": 0.005},
        {"num_gpus": 2, "message_size": 1024, "backend": "vllm_eager", "latency": 0.02},
    ]
    write(folder, rows, "comm/custom_allreduce/vllm", version="0.19.0")
    nccl = [
        {"nccl_dtype": dtype, "op_name": op, "num_gpus": 4, "message_size": 512, "latency": 0.01}
        for dtype in ("half", "int8")
        for op in ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
    ]
    write(folder, nccl, "comm/nccl/nccl", version="2.29.2")
    profile = run(folder)
    found = curves(profile, "all_reduce")
    assert found["custom", 2].at == (2048,)
    assert found["custom", 2].time_ns == (5_000,)
    assert found["custom_eager", 2].time_ns == (20_000,)
    assert found["nccl", 4].at == (1024,)
    for operator in ("all_gather", "reduce_scatter", "all_to_all"):
        (curve,) = profile.operators[operator].curves
        assert (curve.key, curve.at, curve.time_ns) == (("nccl", 4), (1024,), (10_000,))
    assert "vllm 0.19.0, custom_allreduce" in str(profile.operators["all_reduce"].origin)


def experts(dtype: str, distribution: str, latency: float, num_tokens: int = 16) -> dict[str, Any]:
    return {
        "moe_dtype": dtype,
        "num_tokens": num_tokens,
        "hidden_size": 2048,
        "inter_size": 768,
        "topk": 8,
        "num_experts": 128,
        "moe_tp_size": 2,
        "moe_ep_size": 1,
        "distribution": distribution,
        "latency": latency,
    }


def test_fp8_experts_are_no_slower_than_the_same_in_blocks_or_in_16_bits(folder: Path) -> None:
    times = {"bfloat16": (0.30, 0.32), "fp8": (0.90, 0.17), "fp8_block": (0.16, 0.18), "int4_wo": (0.05, 0.05)}
    rows = [
        experts(dtype, "power_law_1.01", latency, num_tokens)
        for dtype, both in times.items()
        for num_tokens, latency in zip((16, 64), both, strict=True)
    ]
    write(folder, rows, "moe/moe/vllm")
    profile = run(folder)
    found = {key[0]: curve.time_ns for key, curve in curves(profile, "moe").items()}
    assert found == {
        "bfloat16": (300_000, 320_000),
        "fp8": (160_000, 170_000),
        "fp8_block": (160_000, 180_000),
        "int4": (50_000, 50_000),
    }
    assert "moe: 1 rows of fp8 are the lesser time of fp8_block, bfloat16" in profile.source.notes


def test_experts_routed_by_the_lesser_power_law(folder: Path) -> None:
    rows = [
        experts(dtype, distribution, latency)
        for dtype, distribution, latency in (
            ("bfloat16", "balanced", 0.4),
            ("bfloat16", "power_law_1.01", 0.3),
            ("bfloat16", "power_law_1.2", 0.2),
            ("int4_wo", "power_law_1.01", 0.1),
            ("nvfp4", "power_law_1.01", 0.05),
        )
    ]
    write(folder, rows, "moe/moe/vllm")
    profile = run(folder)
    found = curves(profile, "moe")
    assert {key: curve.time_ns for key, curve in found.items()} == {
        ("bfloat16", 2048, 768, 128, 8, 2, 1): (300_000,),
        ("int4", 2048, 768, 128, 8, 2, 1): (100_000,),
    }
    assert "moe: 1 rows in other number formats left out (nvfp4)" in profile.source.notes
    assert "moe: routing power_law_1.01; 2 rows of other distributions left out" in profile.source.notes


def test_fp8_blocks_timed_with_the_host_in_it_give_way_to_the_same_kernel_elsewhere(tmp_path: Path) -> None:
    ours = [gemm(m, latency, dtype="fp8_block") for m, latency in ((1, 0.06), (1024, 0.3), (2048, 0.5))]
    write(tmp_path, [gemm(1, 0.06), *ours], "gemm/gemm/vllm")
    theirs = [
        gemm(m, latency, dtype="fp8_block", kernel_source="sglang_deepgemm_gemm_nt_f8f8bf16")
        for m, latency in ((1, 0.03), (1024, 0.9))
    ]
    write(tmp_path, theirs, "gemm/gemm/sglang", version="0.5.14")
    curve = curves(run(tmp_path), "gemm")["fp8_block", 8192, 8192]
    assert curve.at == (1, 1024)
    assert curve.time_ns == (30_000, 300_000)


def test_fp8_blocks_without_such_a_kernel_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, [gemm(1, 0.06), gemm(1, 0.3, dtype="fp8_block")], "gemm/gemm/vllm")
    profile = run(tmp_path)
    assert [curve.key[0] for curve in profile.operators["gemm"].curves] == ["bfloat16"]
    assert "gemm: 1 rows of fp8_block left out, timed without a CUDA graph" in profile.source.notes


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    for version, latency in (("0.9.0", 0.1), ("0.24.0", 0.2), ("0.14.0", 0.3)):
        write(tmp_path, [gemm(1, latency)], "gemm/gemm/vllm", version=version)
    assert run(tmp_path).operators["gemm"].curves[0].time_ns == (200_000,)
    assert run(tmp_path, version="0.14.0").operators["gemm"].curves[0].time_ns == (300_000,)


@pytest.mark.parametrize("name", ["h100_sxm", "h100-sxm", "H100-SXM"])
def test_gpus_go_by_either_name(folder: Path, name: str) -> None:
    assert import_profile("aiconfigurator", gpu=name, path=folder).device.gpu == "h100-sxm"


def refused(**arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        import_profile("aiconfigurator", **arguments)
    return str(caught.value)


def test_what_is_not_there_is_told_with_what_is(folder: Path) -> None:
    assert "a100_sxm (a100-80gb-sxm), h100_sxm (h100-sxm)" in refused(gpu="v100", path=folder)
    assert "no tables of a100_sxm there" in refused(gpu="a100_sxm", path=folder)
    assert "--engine trtllm: h100_sxm has tables of vllm" in refused(gpu="h100_sxm", path=folder, engine="trtllm")
    assert "--version 0.23.0: h100_sxm has GEMM tables of vllm 0.24.0" in refused(
        gpu="h100_sxm", path=folder, version="0.23.0"
    )
    assert "no aiconfigurator-core there" in refused(gpu="h100_sxm", path=folder / "aiconfigurator_core" / "nowhere")


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aic_tables, "find_spec", lambda name: None)
    told = refused(gpu="h100_sxm")
    assert "pip install aiconfigurator-core" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("gpu", "engine", "version", "why"),
    [
        ("h200_sxm", "vllm", "0.19.0", "context attention table is wrong"),
        ("l40s", "vllm", "0.14.0", "FP8 KV is wrong"),
        ("a100_sxm", "trtllm", "1.0.0", "165 % of the peak"),
    ],
)
def test_tables_known_to_be_wrong_are_refused_by_name(
    tmp_path: Path, gpu: str, engine: str, version: str, why: str
) -> None:
    write(tmp_path, [gemm(1, 0.2)], f"gemm/gemm/{engine}", gpu=gpu, version=version)
    told = refused(gpu=gpu, engine=engine, version=version, path=tmp_path)
    assert f"{gpu}, {engine} {version} is refused" in told
    assert why in told


def test_other_columns_are_told(tmp_path: Path) -> None:
    write(tmp_path, [{"m": 1, "latency": 0.1}], "gemm/gemm/vllm")
    assert "columns missing: gemm_dtype, n, k" in refused(gpu="h100_sxm", path=tmp_path)


def test_a_broken_table_is_told_with_its_place(tmp_path: Path) -> None:
    write(tmp_path, [gemm(1, 0.1)], "gemm/gemm/vllm")
    (file,) = tmp_path.rglob("gemm_perf.parquet")
    file.write_bytes(b"PAR1 no more")
    assert f"cannot read {file}" in refused(gpu="h100_sxm", path=tmp_path)


def test_times_that_are_none_are_told(tmp_path: Path) -> None:
    write(tmp_path, [gemm(1, 0.1), gemm(2, -1.0)], "gemm/gemm/vllm")
    assert "gemm: 1 rows without a positive time" in refused(gpu="h100_sxm", path=tmp_path)


def test_unknown_sources_are_told() -> None:
    with pytest.raises(InputError, match=r"unknown source 'roofline'.*aiconfigurator, vidur, llmservingsim"):
        import_profile("roofline", gpu="h100-sxm")
