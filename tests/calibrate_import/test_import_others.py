"""Tables in Vidur's and LLMServingSim's layouts, written here with numbers of our own; profiles joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpu_calibrate.importers import import_profile
from gpu_calibrate.importers.combine import add_curves
from gpu_calibrate.importers.frames import model_of
from sim.errors import InputError
from sim.latency.profile.file import Curve, Profile


def curves(profile: Profile, operator: str) -> dict[tuple[str | int, ...], Curve]:
    return {curve.key: curve for curve in profile.operators[operator].curves}


def vidur_row(**more: Any) -> dict[str, Any]:
    """Llama-2-70B under TP 2: 64 heads and 8 KV heads of 128, at 512 tokens, all layers' times different."""
    shape = {"n_head": 64, "n_kv_head": 8, "n_embd": 8192, "n_expanded_embd": 28672, "use_gated_mlp": True}
    times = {
        "input_layernorm": 0.03,
        "add": 0.02,
        "attn_pre_proj": 0.5,
        "attn_rope": 0.04,
        "attn_post_proj": 0.4,
        "mlp_up_proj": 2.0,
        "mlp_act": 0.06,
        "mlp_down_proj": 1.0,
    }
    return {**shape, "num_tokens": 512, **{f"{layer}_ms": time for layer, time in times.items()}, **more}


EXPECTED_GEMMS = {
    ("float16", 4096 + 2 * 512, 8192): 500_000,
    ("float16", 8192, 4096): 400_000,
    ("float16", 28672, 8192): 2_000_000,
    ("float16", 8192, 14336): 1_000_000,
}
EXPECTED_ELEMENTWISE = {
    ("rms_norm", 8192): 50_000,
    ("rotary", 4096 + 512): 40_000,
    ("silu_and_mul", 14336): 60_000,
}


def check_layers(profile: Profile) -> None:
    for operator, expected in (("gemm", EXPECTED_GEMMS), ("elementwise", EXPECTED_ELEMENTWISE)):
        found = curves(profile, operator)
        assert {key: curve.time_ns for key, curve in found.items()} == {key: (time,) for key, time in expected.items()}
        assert all(curve.at == (512,) for curve in found.values())


def test_vidur_layers_are_split_by_tensor_parallelism(tmp_path: Path) -> None:
    rows = [vidur_row(gpu="a100", model="m", tp=2), vidur_row(gpu="h100", model="m", tp=2, mlp_act_ms=9.0)]
    pd.DataFrame(rows).to_csv(tmp_path / "mlp_median.csv.gz", index=False)
    profile = import_profile("vidur", gpu="a100", path=tmp_path)
    check_layers(profile)
    assert profile.device.gpu == "a100-80gb-sxm"


def test_vidur_s_own_files_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    row = {
        (f"time_stats.{name.removesuffix('_ms')}.median" if name.endswith("_ms") else name): value
        for name, value in vidur_row(num_tensor_parallel_workers=2).items()
    }
    for gpu, factor in (("a100", 1.0), ("h100", 0.5)):
        folder = tmp_path / "compute" / gpu / "some-model"
        folder.mkdir(parents=True)
        scaled = {name: value * factor if name.startswith("time_stats") else value for name, value in row.items()}
        pd.DataFrame([scaled]).to_csv(folder / "mlp.csv", index=False)
    check_layers(import_profile("vidur", gpu="a100", path=tmp_path))


def test_vidur_all_reduces_are_those_within_a_node_in_bytes(tmp_path: Path) -> None:
    rows = [
        {"network": network, "collective": kind, "num_workers": workers, "devices_per_node": devices, "size": 4096}
        for network, kind, workers, devices in (
            ("a100_dgx", "all_reduce", 2, 2),
            ("a100_dgx", "all_reduce", 2, 1),
            ("a100_dgx", "send_recv", 2, 2),
            ("h100_dgx", "all_reduce", 2, 2),
        )
    ]
    frame = pd.DataFrame(rows).assign(median_ms=[0.01, 0.02, 0.03, 0.04])
    frame.to_csv(tmp_path / "network.csv.gz", index=False)
    profile = import_profile("vidur", gpu="a100", path=tmp_path)
    assert curves(profile, "all_reduce")["nccl", 2].time_ns == (10_000,)
    assert curves(profile, "all_reduce")["nccl", 2].at == (4096,)


def test_vidur_without_rows_of_the_gpu_is_refused(tmp_path: Path) -> None:
    pd.DataFrame([vidur_row(gpu="a40", model="m", tp=1)]).to_csv(tmp_path / "mlp.csv", index=False)
    with pytest.raises(InputError, match="no rows of a100-80gb-sxm"):
        import_profile("vidur", gpu="a100", path=tmp_path)
    with pytest.raises(InputError, match=r"has a100 .a100-80gb-sxm., h100|it has a100"):
        import_profile("vidur", gpu="l40s", path=tmp_path)


def test_other_columns_and_missing_paths_are_told(tmp_path: Path) -> None:
    pd.DataFrame([{"num_tokens": 1, "n_head": 2}]).to_csv(tmp_path / "mlp.csv", index=False)
    with pytest.raises(InputError, match=r"mlp.csv: not the layout this reads; columns missing: n_kv_head"):
        import_profile("vidur", gpu="a100", path=tmp_path)
    with pytest.raises(InputError, match="needs --path"):
        import_profile("vidur", gpu="a100")
    with pytest.raises(InputError, match="no such file or folder"):
        import_profile("llmservingsim", gpu="rtx-4090", path=tmp_path / "nowhere")


LLAMA, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B-Instruct-2507"


def joined(folder: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    frame = pd.DataFrame([{"gpu": "RTXPRO6000", "model": LLAMA, "tp": 2, **more, **row} for row in rows])
    frame.to_parquet(folder / f"v1_{name}.parquet")


def serving(path: Path, gpu: str = "rtx-pro-6000") -> Profile:
    return import_profile("llmservingsim", gpu=gpu, path=path)


def test_layers_of_a_served_model_go_by_its_shapes(tmp_path: Path) -> None:
    layers = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "layernorm", "rotary_emb", "act_fn", "final_layernorm"]
    rows = [{"layer": layer, "tokens": 512, "time_us": 300.0 + i} for i, layer in enumerate(layers)]
    joined(tmp_path, "dense", rows)
    (tmp_path / "meta_one.yaml").write_text("gpu: x\nvllm_version: 0.19.0\n")
    profile = serving(tmp_path)
    assert {key: curve.time_ns[0] for key, curve in curves(profile, "gemm").items()} == {
        ("bfloat16", 2048 + 2 * 512, 4096): 300_000,
        ("bfloat16", 4096, 2048): 301_000,
        ("bfloat16", 14336, 4096): 302_000,
        ("bfloat16", 4096, 7168): 303_000,
    }
    assert {key: curve.time_ns[0] for key, curve in curves(profile, "elementwise").items()} == {
        ("rms_norm", 4096): 304_000,
        ("rotary", 2048 + 512): 305_000,
        ("silu_and_mul", 7168): 306_000,
    }
    assert profile.software == {"vllm": "0.19.0"}
    assert "vLLM 0.19.0" in profile.source.origin


def test_lm_head_is_a_matrix_and_the_sampler_counts_once(tmp_path: Path) -> None:
    rows = [
        {"layer": layer, "sequences": 8, "time_us": time} for layer, time in (("lm_head", 700.0), ("sampler", 26.0))
    ]
    joined(tmp_path, "per_sequence", rows)
    profile = serving(tmp_path)
    assert curves(profile, "gemm")["bfloat16", 64128, 4096].time_ns == (700_000,)
    assert "sampling" not in profile.operators
    joined(tmp_path, "per_sequence", rows, tp=1)
    assert curves(serving(tmp_path), "sampling")[128256,].time_ns == (26_000,)


def test_attention_is_told_apart_by_what_is_in_the_batch(tmp_path: Path) -> None:
    rows = [
        {"prefill_chunk": chunk, "kv_prefill": prior, "n_decode": decodes, "kv_decode": context, "time_us": time}
        for chunk, prior, decodes, context, time in (
            (0, 0, 4, 1024, 20.0),
            (256, 512, 0, 0, 40.0),
            (256, 512, 4, 1024, 70.0),
        )
    ]
    joined(tmp_path, "attention", rows)
    profile = serving(tmp_path)
    heads = ("bfloat16", "bfloat16", 16, 4, 128, 0)
    decode, prefill = curves(profile, "decode_attention"), curves(profile, "prefill_attention")
    mixed = curves(profile, "mixed_attention")
    assert (decode[*heads, 4].at, decode[*heads, 4].time_ns) == ((1024,), (20_000,))
    assert (prefill[*heads, 1, 512].at, prefill[*heads, 1, 512].time_ns) == ((256,), (40_000,))
    assert (mixed[*heads, 256, 512, 4].at, mixed[*heads, 256, 512, 4].time_ns) == ((1024,), (70_000,))
    assert len(decode) == len(prefill) == len(mixed) == 1


def test_experts_are_taken_at_what_random_routing_touches(tmp_path: Path) -> None:
    """Two of 128 experts' worth at one token: eight, exactly measured; at 2 tokens 15.5 of them, between 8 and 16."""
    rows = [
        {"tokens": tokens, "activated_experts": 8 * (i + 1), "time_us": 100.0 * (i + 1)}
        for tokens in (1, 2)
        for i in (0, 1)
    ]
    joined(tmp_path, "moe", rows, model=QWEN, tp=1)
    (curve,) = serving(tmp_path).operators["moe"].curves
    assert curve.key == ("bfloat16", 2048, 768, 128, 8, 1, 1)
    assert curve.time_ns[0] == pytest.approx(100_000)
    assert curve.time_ns[1] == pytest.approx(100_000 * 15.5 / 8, rel=1e-4)


def test_the_profilers_own_folders_say_model_and_degree(tmp_path: Path) -> None:
    for hardware, variant, time in (("RTX4090", "bf16", 200.0), ("RTX4090", "fp8", 1.0), ("RTXPRO6000", "bf16", 2.0)):
        folder = tmp_path / "perf" / hardware / LLAMA / variant / "tp2"
        folder.mkdir(parents=True)
        frame = pd.DataFrame([{"layer": "o_proj", "tokens": 1, "time_us": time}])
        frame.to_csv(folder / "dense.csv", index=False)
    found = curves(serving(tmp_path, "rtx-4090"), "gemm")
    assert {key: curve.time_ns for key, curve in found.items()} == {("bfloat16", 4096, 2048): (200_000,)}


def test_unknown_models_are_left_out_and_named(tmp_path: Path) -> None:
    joined(
        tmp_path,
        "dense",
        [
            {"layer": "o_proj", "tokens": 1, "time_us": 20.0},
            {"layer": "o_proj", "tokens": 1, "time_us": 1.0, "model": "a/Strange-9B"},
        ],
    )
    profile = serving(tmp_path)
    assert len(profile.operators["gemm"].curves) == 1
    assert "models that are no preset are left out: a/Strange-9B" in profile.source.notes


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        (LLAMA, "llama-3.1-8b"),
        (QWEN, "qwen3-30b-a3b"),
        ("meta-llama/Meta-Llama-3-70B", "llama-3-70b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("Qwen/Qwen3-3200B", None),
    ],
)
def test_models_go_by_the_longest_name_they_begin_with(name: str, preset: str | None) -> None:
    model = model_of(name)
    assert (model.name if model else None) == preset


def test_a_second_source_adds_the_curves_that_the_first_lacks(tmp_path: Path) -> None:
    """The same GPU in two sources: the first counts where both have a curve."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    joined(first, "dense", [{"layer": "o_proj", "tokens": 1, "time_us": 20.0}])
    joined(
        second, "dense", [{"layer": layer, "tokens": 1, "time_us": 90.0} for layer in ("o_proj", "down_proj", "act_fn")]
    )
    profile = import_profile("llmservingsim", gpu="rtx-pro-6000", path=first, add=[("llmservingsim", second)])
    assert {key: curve.time_ns for key, curve in curves(profile, "gemm").items()} == {
        ("bfloat16", 4096, 2048): (20_000,),
        ("bfloat16", 4096, 7168): (90_000,),
    }
    assert list(curves(profile, "elementwise")) == [("silu_and_mul", 7168)]
    assert any("1 curves of elementwise, 1 curves of gemm" in note for note in profile.source.notes)


def test_sources_of_different_gpus_are_not_joined(tmp_path: Path) -> None:
    joined(tmp_path, "dense", [{"layer": "o_proj", "tokens": 1, "time_us": 20.0}])
    profile = serving(tmp_path)
    other = profile.model_copy(update={"device": profile.device.model_copy(update={"gpu": "l40s"})})
    with pytest.raises(InputError, match="not the same GPU"):
        add_curves(profile, other)
