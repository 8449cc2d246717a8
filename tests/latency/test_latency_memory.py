"""What fits: weights by format, KV by token, splits, and refusals that say by how much (E12, E13, E17)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from engines import engine_config
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.latency.gpus import GPUS
from sim.latency.memory import plan_memory
from sim.latency.memory_weights import weight_parts
from sim.latency.models import MODELS
from sim.latency.precision import parameter_bytes, resolve_precision
from sim.scenario.schema import EngineConfig

GB, GIB, MIB, KIB = 1e9, 1 << 30, 1 << 20, 1024

LLAMA = MODELS["llama-2-7b"]


def engine(model: str = "llama-2-7b", gpu: str = "a100-80gb-sxm", **settings_: Any) -> EngineConfig:
    return engine_config(model=model, gpu=gpu, **settings_)


@pytest.mark.parametrize(
    ("dtype", "gigabytes"), [("float32", 28), ("float16", 14), ("int8", 7), ("fp8", 7), ("int4", 3.5)]
)
def test_seven_billion_parameters_by_format(dtype: str, gigabytes: float) -> None:
    assert parameter_bytes(7_000_000_000, dtype) == gigabytes * GB


def test_planned_weights_of_llama_2_7b() -> None:
    """Plain sizes for unquantised weights; quantisation leaves the 262 M of embedding and LM head in 16 bits."""
    model = MODELS["llama-2-7b"]
    sizes = {dtype: plan_memory(engine(dtype=dtype)).weights_bytes for dtype in ("float32", "float16", "fp8", "int4")}
    assert sizes["float16"] == pytest.approx(2 * model.num_parameters, rel=1e-4)
    assert sizes["float32"] == pytest.approx(4 * model.num_parameters, rel=1e-4)
    segments = 32 * (1 << 20)  # the down projection of each layer, 43 MiB, is in a segment of 44
    expected = model.linear_parameters + 2 * model.embedding_parameters + segments
    assert sizes["fp8"] == pytest.approx(expected, rel=1e-3)
    assert sizes["int4"] / GB == pytest.approx(3.89, abs=0.02)  # the size of the published AWQ checkpoint


@pytest.mark.parametrize(("tp", "pp"), [(8, 1), (4, 2), (2, 4)])
def test_seventy_billion_in_fp16_over_eight_gpus(tp: int, pp: int) -> None:
    for name in ("llama-2-70b", "llama-3.1-70b"):
        plan = plan_memory(engine(name, dtype="float16", tensor_parallel_size=tp, pipeline_parallel_size=pp))
        assert plan.weights_bytes / GB == pytest.approx(17.5, rel=0.05)


@pytest.mark.parametrize(
    ("model", "settings_", "kib"),
    [
        ("llama-2-7b", {}, 512),
        ("llama-2-7b", {"kv_cache_dtype": "fp8"}, 256),
        ("llama-2-7b", {"dtype": "float32"}, 1024),
        ("llama-2-7b", {"dtype": "int4"}, 512),
        ("llama-3.1-8b", {}, 128),
        ("llama-3.1-8b", {"tensor_parallel_size": 8}, 16),
        ("llama-3.1-8b", {"tensor_parallel_size": 16}, 16),
        ("llama-3.1-70b", {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 40),
        ("qwen3-30b-a3b", {}, 96),
    ],
)
def test_kv_bytes_per_token(model: str, settings_: dict[str, Any], kib: int) -> None:
    assert plan_memory(engine(model, **settings_)).kv_bytes_per_token == kib * KIB


def test_blocks_are_what_the_memory_leaves() -> None:
    plan = plan_memory(engine())
    assert plan.requested_bytes == int(plan.total_bytes * 0.9)
    assert plan.available_kv_bytes == plan.requested_bytes - plan.weights_bytes - plan.reserve_bytes
    assert plan.num_gpu_blocks == plan.available_kv_bytes // (16 * 512 * KIB)
    assert plan.num_usable_blocks == plan.num_gpu_blocks - 1
    assert plan.kv_capacity_tokens == 16 * plan.num_usable_blocks
    assert plan.max_concurrency == plan.num_gpu_blocks / 256


def on_h100(**settings_: Any) -> EngineConfig:
    """Llama-3.1-8B as ``vllm serve`` starts it on an H100."""
    defaults = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192, "vllm_version": "0.19.0"}
    return engine_config(**{"model": "llama-3.1-8b", "gpu": "h100-sxm", **defaults, **settings_})


def test_what_the_reserve_is_made_of() -> None:
    """vLLM 0.19: the sampler's logits at all seats, its scratch, hidden states, cuBLAS; libraries."""
    plan = plan_memory(on_h100())
    hidden, sampled, logits = 8192 * 4096 * 2, 2 * 1024 * 4096 * 2, 1024 * 128256
    assert plan.activation_bytes == hidden + sampled + 14 * logits + 132 * 128256 * 4 + 32 * MIB
    assert plan.non_torch_bytes == 256 * MIB
    assert plan.graph_bytes == 0
    assert plan.reserve_bytes == plan.activation_bytes + plan.non_torch_bytes
    logged = plan_memory(on_h100(gpu_memory_utilization=0.95))
    assert logged.logged_kv_tokens == pytest.approx(476_016, rel=1e-4)


@pytest.mark.parametrize(
    ("version", "logit_bytes"), [("0.16.0", 38.4), ("0.17.0", 14.0), ("0.22.0", 14.0), ("0.23.0", 6.0), ("0.28.0", 2.0)]
)
def test_the_sampler_by_version(version: str, logit_bytes: float) -> None:
    """Sorted, cut in place, and under the V2 runner a copy or none: what 512 seats more add."""
    few, many = (
        plan_memory(on_h100(vllm_version=version, max_num_seqs=n, max_num_batched_tokens=n)).activation_bytes
        for n in (4096, 8192)
    )
    hidden = 4096 * 4096 * 2 * (1 if version == "0.16.0" else 2 if logit_bytes < 14 else 3)
    assert many - few == pytest.approx(4096 * 128256 * logit_bytes + hidden, rel=1e-6)


def test_the_v2_runner_takes_models_by_version() -> None:
    """Its sampler is smaller, so that the plan is too."""
    runners = {
        (name, version): plan_memory(
            engine(name, "h200-sxm", vllm_version=version, dtype=dtype, tensor_parallel_size=2)
        ).model_runner
        for name, dtype in (
            ("qwen3-8b", "bfloat16"),
            ("llama-3.1-8b", "fp8"),
            ("qwen2.5-7b", "bfloat16"),
            ("mixtral-8x7b", "bfloat16"),
        )
        for version in ("0.21.0", "0.22.1", "0.24.0", "0.25.0", "0.29.0")
    }
    first = {
        name: next(version for (known, version), runner in runners.items() if known == name and runner == 2)
        for name, _ in runners
    }
    assert first == {
        "qwen3-8b": "0.22.1",
        "llama-3.1-8b": "0.24.0",
        "qwen2.5-7b": "0.25.0",
        "mixtral-8x7b": "0.29.0",
    }


def test_graphs_count_since_0_20_and_not_under_the_first_v2_runners() -> None:
    counted = {v: plan_memory(on_h100(vllm_version=v)).graph_bytes for v in ("0.19.0", "0.20.0", "0.23.0", "0.29.0")}
    assert counted["0.19.0"] == counted["0.23.0"] == 0
    assert counted["0.20.0"] == counted["0.29.0"]
    # 51 graphs of mixed batches and 51 of pure decodes, up to 512 tokens
    assert counted["0.20.0"] == round(350 * MIB + 0.19 * MIB * 32 * 102)
    few = plan_memory(on_h100(vllm_version="0.20.0", max_num_seqs=8)).graph_bytes
    assert few == round(350 * MIB + 0.19 * MIB * 32 * (5 + 4))
    assert plan_memory(on_h100(vllm_version="0.20.0", enforce_eager=True)).graph_bytes == 0


@pytest.mark.parametrize(
    ("gpu", "version", "mib"),
    [
        ("h100-sxm", "0.11.0", 416),
        ("h100-sxm", "0.19.0", 1850),
        ("a100-80gb-sxm", "0.19.0", 416),
        ("l40s", "0.11.0", 96),
        ("l40s", "0.32.0", 96),
    ],
)
def test_communicators_by_link_and_version(gpu: str, version: str, mib: int) -> None:
    one, two = (
        plan_memory(engine("llama-3.1-8b", gpu, tensor_parallel_size=tp, vllm_version=version)).non_torch_bytes
        for tp in (1, 2)
    )
    assert two - one == mib << 20


def test_only_the_last_pipeline_stage_samples() -> None:
    """The first stage of two has the embedding, the last one LM head and sampler: it has the least room."""
    plan = plan_memory(on_h100(pipeline_parallel_size=2))
    logits = 14 * 1024 * 128256
    assert plan.activation_bytes > logits
    alone = plan_memory(on_h100(pipeline_parallel_size=2, max_num_seqs=1))
    assert alone.activation_bytes < logits


def test_experts_keep_their_workspace() -> None:
    """vLLM 0.19 logs a peak of 2.68 GiB for Qwen3-30B-A3B and 1.21 for Mixtral on two GPUs."""
    peaks = [
        plan_memory(on_h100(model=name, tensor_parallel_size=tp)).activation_bytes / GIB
        for name, tp in (("qwen3-30b-a3b", 1), ("mixtral-8x7b", 2))
    ]
    assert peaks == pytest.approx([2.68, 1.21], abs=0.01)


def test_the_kernels_of_gpt_oss_keep_none(tmp_path: Path) -> None:
    """vLLM 0.19 logs a peak of 2.87 GiB for gpt-oss-20b."""
    config = {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "num_hidden_layers": 24,
        "hidden_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    plan = plan_memory(on_h100(model=str(tmp_path), dtype="int4"))
    assert plan.activation_bytes / GIB == pytest.approx(2.87, abs=0.01)


def test_a_72b_in_bfloat16_is_served_by_two_h100() -> None:
    """vLLM 0.19 logs 3.04 GiB and 19,920 tokens for Qwen2.5-72B."""
    plan = plan_memory(on_h100(model="qwen2.5-72b", tensor_parallel_size=2, gpu_memory_utilization=0.95))
    assert plan.weights_bytes / GIB == pytest.approx(67.8, abs=0.03)
    assert plan.logged_kv_tokens == pytest.approx(19_920, rel=0.01)
    newest = plan_memory(
        on_h100(model="qwen2.5-72b", tensor_parallel_size=2, gpu_memory_utilization=0.95, vllm_version="0.32.0")
    )
    assert newest.num_gpu_blocks > 0


def test_a_pool_of_so_many_bytes() -> None:
    plan = plan_memory(on_h100(kv_cache_memory_bytes=20 * GIB))
    assert plan.available_kv_bytes == 20 * GIB
    assert plan.num_gpu_blocks == 20 * GIB // (16 * 128 * KIB)
    assert not plan.notes
    both = plan_memory(on_h100(kv_cache_memory_bytes=20 * GIB, gpu_memory_utilization=0.5))
    assert "without effect" in both.notes[0]
    beyond_its_share = plan_memory(on_h100(kv_cache_memory_bytes=61 * GIB, max_num_seqs=16))
    assert beyond_its_share.num_gpu_blocks == 61 * GIB // (16 * 128 * KIB)
    with pytest.raises(InputError, match=r"kv_cache_memory_bytes 75\.2 GB.*a smaller kv_cache_memory_bytes"):
        plan_memory(on_h100(kv_cache_memory_bytes=70 * GIB))
    with pytest.raises(InputError, match=r"kv_cache_memory_bytes 0\.0 GB.*a larger kv_cache_memory_bytes"):
        plan_memory(on_h100(kv_cache_memory_bytes=1))
    with pytest.raises(InputError, match="does not fit"):
        plan_memory(on_h100(kv_cache_memory_bytes=1 << 20))


def test_logged_tokens_by_version() -> None:
    """Whole blocks before 0.20; since then the maximum concurrency times ``max_model_len``: 1,000 tokens take 63
    blocks of 16, so that 63 blocks count as 1,000."""
    old, new = (plan_memory(on_h100(vllm_version=v, max_model_len=1000)) for v in ("0.19.0", "0.20.0"))
    assert old.logged_kv_tokens == 16 * old.num_gpu_blocks
    assert new.logged_kv_tokens == int(new.num_gpu_blocks / 63 * 1000)


def test_rotary_positions_are_a_table_beside_the_weights() -> None:
    short, long = (plan_memory(engine(name)).weights_bytes for name in ("llama-3-8b", "llama-3.1-8b"))
    assert long - short == (131072 - 8192) * 128 * 2


def test_override_counts_the_null_block() -> None:
    plan = plan_memory(engine(num_gpu_blocks_override=101))
    assert (plan.num_gpu_blocks, plan.num_usable_blocks, plan.kv_capacity_tokens) == (101, 100, 1600)
    assert any("fewer than max_model_len" in note for note in plan.notes)


def test_override_beyond_the_memory_is_noted() -> None:
    plan = plan_memory(engine(num_gpu_blocks_override=10**6))
    assert plan.num_gpu_blocks == 10**6
    assert any("more than the" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("settings", "remedies"),
    [
        ({"gpu": "h100-sxm"}, "tensor_parallel_size: 2 or dtype: fp8"),
        ({"gpu": "l40s", "tensor_parallel_size": 2}, "dtype: fp8 or tensor_parallel_size: 4 (step times: an estimate)"),
        ({"gpu": "rtx-4090"}, "tensor_parallel_size: 8 (step times: an estimate)"),
        (
            {"gpu": "a100-80gb-sxm", "kv_cache_memory_bytes": 10**12, "tensor_parallel_size": 2},
            "a smaller kv_cache_memory_bytes",
        ),
    ],
)
def test_remedies_with_measured_step_times_come_first(settings: dict[str, Any], remedies: str) -> None:
    with pytest.raises(InputError) as raised:
        plan_memory(engine_config(model="llama-3.1-70b", max_model_len=4096, **settings))
    assert str(raised.value).partition("; would fit: ")[2] == remedies


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would() -> None:
    with pytest.raises(InputError) as error:
        plan_memory(engine("llama-2-70b"))
    text = str(error.value)
    activations = 2048 * (3 * 8192 + 3 * 28672) * 2 + 8 * MIB
    graphs = 150 * MIB + 0.125 * MIB * 80 * 86
    misses = 2 * 68.977 + (activations + 128 * MIB + graphs) / GB - 0.9 * 79.15 * GIB / GB
    assert f"misses {misses:.1f} GB" in text
    assert "tensor_parallel_size: 2" in text
    assert "dtype: fp8" in text


def test_a_smaller_token_budget_is_a_remedy() -> None:
    given = {"model": "llama-3.1-8b", "gpu": "l4", "max_model_len": 8192}
    with pytest.raises(InputError, match="would fit: max_num_batched_tokens: 8192 "):
        plan_memory(engine_config(**given, max_num_batched_tokens=200_000))
    plan_memory(engine_config(**given, max_num_batched_tokens=8192))


def test_what_would_fit_does_fit() -> None:
    plan_memory(engine("llama-2-70b", tensor_parallel_size=2))
    plan_memory(engine("llama-2-70b", dtype="fp8"))


def test_no_remedy_is_made_up() -> None:
    with pytest.raises(InputError, match="would fit: a smaller model"):
        plan_memory(engine("llama-3.1-405b", "rtx-4090"))


def test_override_does_not_make_room_for_weights() -> None:
    with pytest.raises(InputError, match="does not fit"):
        plan_memory(engine("llama-2-70b", num_gpu_blocks_override=100))


def test_everything_wrong_is_reported_at_once() -> None:
    with pytest.raises(InputError) as error:
        plan_memory(engine("llama-9", "a300"))
    assert len(error.value.problems) == 2
    with pytest.raises(InputError) as error:
        plan_memory(engine(gpu="a300", tensor_parallel_size=3))
    assert len(error.value.problems) == 3


def test_lengths_beyond_the_positions_are_noted() -> None:
    (note,) = plan_memory(engine(max_model_len=8192)).notes
    assert "4096 positions" in note


def test_formats_that_the_gpu_lacks_are_computed_in_16_bits() -> None:
    a100, h100 = GPUS["a100-80gb-sxm"], GPUS["h100-sxm"]
    on_a100 = resolve_precision(engine(dtype="fp8"), a100, LLAMA)
    assert on_a100.gemm_flops == a100.fp16_flops
    assert "no fp8 arithmetic" in on_a100.notes[0]
    assert any("no fp8 arithmetic" in note for note in plan_memory(engine(dtype="fp8")).notes)
    on_h100 = resolve_precision(engine(dtype="fp8"), h100, LLAMA)
    assert on_h100.gemm_flops == h100.fp8_flops
    assert on_h100.notes == ()


def test_auto_formats() -> None:
    gpu = GPUS["h100-sxm"]
    assert resolve_precision(engine(dtype="auto"), gpu, LLAMA).weights == "bfloat16"
    assert resolve_precision(engine(dtype="int4"), gpu, LLAMA).kv == "bfloat16"
    assert resolve_precision(engine(dtype="float32"), gpu, LLAMA).kv == "float32"


@given(
    utilization=st.floats(0.3, 1.0),
    more=st.floats(0.0, 0.3),
    seqs=st.integers(1, 1024),
    tokens=st.sampled_from([512, 2048, 16384]),
)
@settings(max_examples=40, deadline=None)
def test_more_memory_never_gives_fewer_blocks(utilization: float, more: float, seqs: int, tokens: int) -> None:
    both = [
        plan_memory(
            engine(gpu_memory_utilization=share, max_num_seqs=seqs, max_num_batched_tokens=tokens)
        ).num_gpu_blocks
        for share in (utilization, min(1.0, utilization + more))
    ]
    assert both[0] <= both[1]


def test_eager_engines_keep_no_graphs() -> None:
    assert plan_memory(engine(enforce_eager=True)).num_gpu_blocks > plan_memory(engine()).num_gpu_blocks


@pytest.mark.parametrize(
    ("model", "settings_"),
    [
        ("llama-3.1-8b", {"max_model_len": 131072}),
        ("mistral-7b", {"max_model_len": 32768, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.74}),
    ],
)
def test_a_pool_below_the_longest_request_is_refused_with_a_length_that_fits(
    model: str, settings_: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"engine\.max_model_len: a request of \d+ tokens needs") as caught:
        plan_memory(engine(model, "rtx-4090", **settings_))
    (fitting,) = re.findall(r"lower max_model_len to at most (\d+)", str(caught.value))
    longest = {**settings_, "max_model_len": int(fitting)}
    assert plan_memory(engine(model, "rtx-4090", **longest)).max_concurrency >= 1
    with pytest.raises(InputError, match="max_model_len"):
        plan_memory(engine(model, "rtx-4090", **{**longest, "max_model_len": int(fitting) + 17}))


def test_a_small_pool_by_override_is_a_note() -> None:
    plan = plan_memory(engine("llama-3.1-8b", num_gpu_blocks_override=100))
    assert any("fewer than max_model_len 4096: longer requests are rejected" in note for note in plan.notes)


def test_the_matrix_that_chooses_experts_is_whole_on_each_gpu() -> None:
    """DeepSeek-V3's 58 of 7,168 x 256 in 16 bits are 0.20 GiB of each of eight GPUs (vLLM's ``GateLinear``)."""
    model = MODELS["deepseek-v3"]
    routers = [
        count * size
        for kind, count in model.kinds
        for part, size, _ in weight_parts(kind, model.hidden_size, 8, 1)
        if part == "router"
    ]
    assert sum(routers) * 2 / (1 << 30) == pytest.approx(0.198, rel=0.01)
