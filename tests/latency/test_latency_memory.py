"""What fits: weights by format, KV by token, splits, and refusals that say by how much (E12, E13, E17)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from engines import engine_config
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.latency.gpus import GPUS
from sim.latency.memory import plan_memory
from sim.latency.models import MODELS
from sim.latency.precision import parameter_bytes, resolve_precision
from sim.scenario.schema import EngineConfig

GB, GIB, KIB = 1e9, 1 << 30, 1024

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
    assert sizes["fp8"] == pytest.approx(model.linear_parameters + 2 * model.embedding_parameters, rel=1e-3)
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


def test_llama_8b_on_an_h100_leaves_what_vllm_logs() -> None:
    """vLLM logs 54-55 GiB of KV cache at the default 0.9, after 15 GiB of weights and 1.2 GiB of activations."""
    plan = plan_memory(engine("llama-3.1-8b", "h100-sxm", max_num_batched_tokens=8192))
    assert plan.weights_bytes / GIB == pytest.approx(14.99, abs=0.05)
    assert plan.available_kv_bytes / GIB == pytest.approx(54.5, rel=0.02)


def test_what_the_reserve_is_made_of() -> None:
    """The sampler's logits at all seats, hidden states, libraries, communicators by link, CUDA graphs."""
    few, many = (plan_memory(engine("llama-3.1-8b", "h100-sxm", max_num_seqs=seats)) for seats in (256, 1024))
    assert many.reserve_bytes - few.reserve_bytes == pytest.approx(768 * 128256 * 38.4)
    hidden, libraries = 2048 * 4096 * 2, 128 << 20
    assert many.reserve_bytes - many.graph_bytes == pytest.approx(1024 * 128256 * 38.4 + hidden + libraries)
    eager = plan_memory(engine("llama-3.1-8b", "h100-sxm", max_num_seqs=1024, enforce_eager=True))
    assert eager.graph_bytes == 0
    assert eager.available_kv_bytes == many.available_kv_bytes + many.graph_bytes


@pytest.mark.parametrize(("gpu", "mib"), [("h100-sxm", 416), ("l40s", 96)])
def test_communicators_by_link(gpu: str, mib: int) -> None:
    one, two = (plan_memory(engine("llama-3.1-8b", gpu, tensor_parallel_size=tp)) for tp in (1, 2))
    assert two.reserve_bytes - one.reserve_bytes == mib << 20


def test_only_the_last_pipeline_stage_samples() -> None:
    """The first stage of two has the embedding, the last one LM head and sampler: it has the least room."""
    plan = plan_memory(engine("llama-3.1-8b", "h100-sxm", pipeline_parallel_size=2, max_num_seqs=1024))
    logits = 1024 * 128256 * 38.4
    assert plan.reserve_bytes > logits
    alone = plan_memory(engine("llama-3.1-8b", "h100-sxm", pipeline_parallel_size=2, max_num_seqs=1))
    assert alone.reserve_bytes < logits / 4


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


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would() -> None:
    with pytest.raises(InputError) as error:
        plan_memory(engine("llama-2-70b"))
    text = str(error.value)
    activations = 2048 * (4 * 8192 + 3 * 28672) * 2 / GB
    misses = 2 * 68.977 + activations + (128 + 80 * 16) * 1024**2 / GB - 0.9 * 79.15 * GIB / GB
    assert f"misses {misses:.1f} GB" in text
    assert "tensor_parallel_size: 2" in text
    assert "dtype: fp8" in text


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
