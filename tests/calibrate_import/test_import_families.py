"""Tables of latent and sparse attention, states and 4-bit formats, written here, and the curves made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_import_aiconfigurator import gemm, write

from gpu_calibrate.importers.builtin_families import build_family, main
from sim.latency.profile.file import Curve, Profile

US = 1e-3
"""A microsecond in the tables' unit."""


def module(
    batch: int, isl: int, step: int, latency_us: float, *, arch: str = "DeepseekV3ForCausalLM"
) -> dict[str, Any]:
    return {
        "architecture": arch,
        "kv_cache_dtype": "bfloat16",
        "gemm_type": "bfloat16",
        "num_heads": 16,
        "batch_size": batch,
        "isl": isl,
        "step": step,
        "latency": latency_us * US,
    }


def state(kernel: str, phase: str, batch: int, length: int, latency_us: float) -> dict[str, Any]:
    return {
        "kernel_source": kernel,
        "phase": phase,
        "batch_size": batch,
        "seq_len": length,
        "num_k_heads": 4,
        "num_v_heads": 8,
        "latency": latency_us * US,
    }


def built(folder: Path, family: str) -> Profile:
    write(folder, [gemm(1, 0.1)], "gemm/gemm/vllm")
    profile = build_family("h100-sxm", family, folder)
    assert profile is not None
    return profile


def curves(profile: Profile, operator: str) -> dict[tuple[str | int, ...], Curve]:
    return {curve.key: curve for curve in profile.operators[operator].curves}


def test_blocks_of_latent_attention_by_heads_and_batch(tmp_path: Path) -> None:
    """KV of a decode counts all tokens where ``step`` is even; a prompt of one token is left out."""
    decodes = [module(4, 1, step, 100.0 + step / 100.0) for step in (1024, 4096)]
    prompts = [module(2, isl, 0, 50.0 + isl) for isl in (1, 512, 2048)]
    write(tmp_path, decodes, "mla/mla_generation_module/vllm")
    write(tmp_path, prompts, "mla/mla_context_module/vllm")
    profile = built(tmp_path, "latent")
    key = ("mla", "bfloat16", "bfloat16", 16)
    assert curves(profile, "block_decode")[(*key, 4)].at == (1024, 4096)
    prompt = curves(profile, "block_prefill")[(*key, 2)]
    assert prompt.at == (512, 2048)
    assert prompt.time_ns == pytest.approx((562e3, 2098e3))


def test_decodes_of_latent_attention_are_without_what_the_collection_launched(tmp_path: Path) -> None:
    """TensorRT-LLM's time of the same block where it is less, but no more than 45 us less."""
    place = tmp_path / "aiconfigurator_core" / "systems" / "data" / "h100_sxm" / "mla"
    write(tmp_path, [module(4, 1, step, 100.0) for step in (256, 1024, 4096)], "mla/mla_generation_module/vllm")
    other = [module(4, 1, step, us) for step, us in ((256, 60.0), (1024, 30.0), (4096, 200.0))]
    write(tmp_path, other, "mla/mla_generation_module/trtllm", version="1.3.0rc20")
    assert place.is_dir()
    profile = built(tmp_path, "latent")
    (curve,) = profile.operators["block_decode"].curves
    assert curve.at == (256, 1024, 4096)
    assert curve.time_ns == pytest.approx((57.4e3, 57.4e3, 100e3), rel=0.01)  # what falls is joined at its median
    assert any("trtllm's are" in note for note in profile.source.notes)


def test_a_sparse_prompt_timed_without_a_graph_counts_as_its_tokens_decodes(tmp_path: Path) -> None:
    """512 tokens take 1.5 ms of launches, and 0.7 ms as 512 decodes; 8,192 are more decodes than were measured."""
    arch = "DeepseekV32ForCausalLM"
    decodes = [module(batch, 1, step, 0.9 * batch + 239.2, arch=arch) for batch in (256, 512) for step in (256, 1024)]
    prompts = [module(1, 512, 0, 1500.0, arch=arch), module(1, 8192, 0, 10_000.0, arch=arch)]
    write(tmp_path, decodes, "sparse_attention/dsa_generation_module/vllm")
    write(tmp_path, prompts, "sparse_attention/dsa_context_module/vllm")
    profile = built(tmp_path, "sparse")
    prompt = curves(profile, "block_prefill")[("dsa", "bfloat16", "bfloat16", 16, 1)]
    assert prompt.time_ns == pytest.approx((700e3, 10_000e3))
    assert any("1 prompts timed without a CUDA graph" in note for note in profile.source.notes)


def test_convolution_and_recurrence_add_up_unless_one_kernel_does_both_faster(tmp_path: Path) -> None:
    rows = [
        state("causal_conv1d_update", "generation", 4, 1, 2.0),
        state("fused_recurrent_packed_decode", "generation", 4, 1, 5.0),
        state("causal_conv1d_fn", "context", 1, 4096, 20.0),
        state("chunk_rule", "context", 1, 4096, 200.0),
        state("chunk_rule", "context", 1, 8192, 400.0),  # without a convolution: no whole layer
    ]
    write(tmp_path, rows, "linear_attention/gdn/vllm")
    more = [*rows, state("fused_kda_decode", "generation", 4, 1, 6.0)]
    write(tmp_path, more, "kda/kda/vllm")
    profile = built(tmp_path, "state")
    decodes = curves(profile, "state_decode")
    assert decodes["gdn", 4, 8].time_ns == pytest.approx((7e3,))
    assert decodes["kda", 4, 8].time_ns == pytest.approx((6e3,))
    assert curves(profile, "state_prefill")["gdn", 4, 8, 1].at == (4096,)


def test_four_bit_formats_by_our_names(tmp_path: Path) -> None:
    write(tmp_path, [gemm(m, 0.1 + m * 1e-3, dtype="nvfp4") for m in (1, 64)] + [gemm(1, 0.1)], "gemm/gemm/vllm")
    shape = {"hidden_size": 2880, "inter_size": 2880, "num_experts": 128, "topk": 4, "moe_tp_size": 2, "moe_ep_size": 1}
    rows = [
        {**shape, "moe_dtype": dtype, "num_tokens": 16, "distribution": "power_law_1.01", "latency": latency}
        for dtype, latency in (("w4a16_mxfp4", 0.2), ("w4a8_mxfp4_mxfp8", 0.1), ("bfloat16", 0.4))
    ]
    write(tmp_path, rows, "moe/moe/vllm")
    profile = build_family("h100-sxm", "four_bit", tmp_path)
    assert profile is not None
    assert list(curves(profile, "gemm")) == [("nvfp4", 8192, 8192)]
    assert sorted(str(key[0]) for key in curves(profile, "moe")) == ["mxfp4", "mxfp4_mxfp8"]


def test_exchanges_are_in_microseconds(tmp_path: Path) -> None:
    """And of one node alone."""
    row = {"comm_backend": "deepep_ht", "phase": "dispatch", "hidden_size": 7168, "topk": 8, "ep_size": 8}
    rows = [{**row, "num_tokens": n, "node_num": nodes, "latency": 300.0 * nodes} for n in (16, 64) for nodes in (1, 2)]
    write(tmp_path, rows, "comm/moe_a2a/vllm")
    profile = built(tmp_path, "exchange")
    assert curves(profile, "expert_exchange")["deepep_ht", "dispatch", 7168, 8, 8].time_ns == pytest.approx(
        (300e3, 300e3)
    )


def test_tables_that_are_not_there_make_no_file(tmp_path: Path) -> None:
    write(tmp_path, [gemm(1, 0.1)], "gemm/gemm/vllm")
    assert build_family("h100-sxm", "vision", tmp_path) is None
    assert main(["--path", str(tmp_path), "--out", str(tmp_path / "out"), "--family", "exchange", "h100-sxm"]) == 0
    assert not (tmp_path / "out").exists()


def test_no_package_is_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--path", str(tmp_path), "--out", str(tmp_path), "h100-sxm"]) == 2
    assert "no aiconfigurator-core there" in capsys.readouterr().err
