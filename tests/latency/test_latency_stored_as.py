"""``engine.dtype: auto``: the number format that a config.json says, as vLLM takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engines import engine_config

from sim.errors import InputError
from sim.latency.build import build_step_cost
from sim.latency.gpus import load_gpu
from sim.latency.memory import plan_memory
from sim.latency.models import MODELS, load_model
from sim.latency.precision import resolve_precision
from sim.run import load
from sim.scenario.schema import LatencyConfig

SHAPE = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def compressed(**groups: tuple[str, int, str, bool]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {
            name: {
                "weights": {"type": kind, "num_bits": bits, "strategy": strategy},
                "input_activations": {"num_bits": bits} if has_activations else None,
            }
            for name, (kind, bits, strategy, has_activations) in groups.items()
        },
    }


def written(folder: Path, **more: Any) -> str:
    (folder / "config.json").write_text(json.dumps(SHAPE | more))
    return str(folder)


PLAIN: list[tuple[dict[str, Any], str, str]] = [
    ({"torch_dtype": "float16"}, "float16", "torch_dtype float16"),
    ({"torch_dtype": "bfloat16"}, "bfloat16", "torch_dtype bfloat16"),
    ({"dtype": "float16", "torch_dtype": "float32"}, "float16", "dtype float16"),
    ({"torch_dtype": "torch.float16"}, "float16", "torch_dtype float16"),
    ({"torch_dtype": "float32"}, "bfloat16", "torch_dtype float32, which vLLM casts"),
    ({"torch_dtype": "float8_e4m3fn"}, "bfloat16", "torch_dtype float8_e4m3fn, which vLLM casts"),
    ({"torch_dtype": "float16", "model_type": "glm4"}, "bfloat16", "torch_dtype float16, which vLLM casts"),
    ({"torch_dtype": None}, "bfloat16", ""),
    ({}, "bfloat16", ""),
]
QUANTIZED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
    ({"quant_method": "awq", "w_bit": 4}, "int4"),
    ({"quant_method": "gptq", "bits": 4}, "int4"),
    ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
    ({"quant_method": "fp8", "weight_block_size": None}, "fp8"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
    ({"quant_method": "fbgemm_fp8"}, "fp8"),
    (compressed(group_0=("float", 8, "channel", True)), "fp8"),
    (compressed(group_0=("float", 8, "block", True)), "fp8_block"),
    (compressed(group_0=("int", 4, "group", False), group_1=("int", 4, "channel", False)), "int4"),
    (compressed(group_0=("int", 8, "channel", True)), "int8"),
    ({"quant_method": "gptq", "bits": 8}, "int8_weights"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb_4bit"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8_weights"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
    ({"quant_method": "modelopt", "quant_algo": "MXFP8"}, "mxfp8"),
    (compressed(group_0=("float", 4, "group", True)), "nvfp4"),
    (compressed(group_0=("float", 4, "group", False)), "nvfp4_weights"),
    (compressed(group_0=("float", 8, "channel", False)), "fp8_weights"),
]
UNREAD: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gguf"}, "quant_method gguf is not read"),
    ({"quant_method": "gptq", "bits": 3}, "3 bits in groups of 128 are not read"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 48}, "4 bits in groups of 48"),
    ({"bits": 4}, "quant_method that is not named is not read"),
    ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo W4A8_AWQ is not read"),
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "without quantized_layers"),
    (compressed(group_0=("int", 2, "group", False)), "int of 2 bits"),
    (compressed(), "config_groups is missing"),
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": None}}}, "without weights"),
]


@pytest.mark.parametrize(("config", "dtype", "source"), PLAIN)
def test_plain_formats(tmp_path: Path, config: dict[str, Any], dtype: str, source: str) -> None:
    model = load_model(written(tmp_path, **config))
    assert (model.dtype, model.dtype_source) == (dtype, source)
    engine = engine_config(model=str(tmp_path), gpu="h100-sxm", dtype="auto")
    notes = plan_memory(engine).notes
    assert (f"engine.dtype auto: {dtype} (by {source})" in notes) == bool(source)
    assert resolve_precision(engine, load_gpu("h100-sxm"), model).weights == dtype


@pytest.mark.parametrize(("quantization", "dtype"), QUANTIZED)
def test_quantised_formats(tmp_path: Path, quantization: dict[str, Any], dtype: str) -> None:
    model = load_model(written(tmp_path, torch_dtype="float16", quantization_config=quantization))
    assert (model.dtype, model.dtype_source) == (dtype, f"quantization_config {quantization['quant_method']}")
    assert model.notes == ()


@pytest.mark.parametrize(("quantization", "told"), UNREAD)
def test_formats_that_are_not_known_are_refused_by_name(
    tmp_path: Path, quantization: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        load_model(written(tmp_path, torch_dtype="float16", quantization_config=quantization))


def test_what_lies_beside_the_config_is_read(tmp_path: Path) -> None:
    """ModelOpt before 0.31 wrote a file of its own."""
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    model = load_model(written(tmp_path))
    assert (model.dtype, model.kv_dtype) == ("fp8", "fp8")
    found = resolve_precision(
        engine_config(model=str(tmp_path), gpu="h100-sxm", dtype="auto"), load_gpu("h100-sxm"), model
    )
    assert (found.kv, found.kv_bytes) == ("fp8", 1)


@pytest.mark.parametrize(
    ("quantization", "formats"),
    [
        ({"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.0.self_attn.q_proj"]}, {"qkv"}),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.0.self_attn*"]}, {"qkv", "out"}),
        (compressed(group_0=("int", 4, "group", False)) | {"ignore": ["re:.*layers.0.mlp.*"]}, {"up", "down"}),
        ({"quant_method": "awq", "modules_to_not_convert": ["model.layers.0"]}, {"qkv", "out", "up", "down"}),
    ],
)
def test_modules_that_are_left_out_stay_in_16_bits(
    tmp_path: Path, quantization: dict[str, Any], formats: set[str]
) -> None:
    model = load_model(written(tmp_path, quantization_config=quantization))
    (first, one), (second, others) = model.layers
    assert (one, others) == (1, 31)
    assert first.format_of == dict.fromkeys(formats, "bfloat16")
    assert second.formats == ()


def test_each_module_has_the_format_that_is_listed_for_it(tmp_path: Path) -> None:
    listed = {
        f"model.layers.{layer}.mlp.{name}": {"quant_algo": "W4A16_NVFP4", "group_size": 16}
        for layer in range(32)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    listed |= {f"model.layers.{layer}.self_attn.o_proj": {"quant_algo": "FP8"} for layer in range(32)}
    told = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed}
    model = load_model(written(tmp_path, quantization_config=told))
    ((kind, _),) = model.layers
    assert (model.dtype, kind.format_of) == ("nvfp4_weights", {"out": "fp8", "qkv": "bfloat16"})


def test_a_quantised_text_decoder_within_a_larger_model(tmp_path: Path) -> None:
    nested = {"model_type": "llava", "text_config": SHAPE | {"torch_dtype": "float16"}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert load_model(str(tmp_path)).dtype == "float16"
    (tmp_path / "config.json").write_text(json.dumps({**nested, "quantization_config": {"quant_method": "awq"}}))
    assert load_model(str(tmp_path)).dtype == "int4"


def test_auto_is_charged_and_kept_as_what_it_is(tmp_path: Path) -> None:
    """The same weights, KV blocks and step times as with the format named; other formats say that they differ."""
    model = written(tmp_path, torch_dtype="float16", quantization_config={"quant_method": "awq", "bits": 4})
    plans, costs = [], []
    for dtype in ("auto", "int4", "bfloat16"):
        engine = engine_config(model=model, gpu="h100-sxm", dtype=dtype, max_model_len=8192)
        plans.append(plan_memory(engine))
        costs.append(build_step_cost(engine, LatencyConfig()).decode_run_ns(4, 4000, 3).tolist())
    assert plans[0].weights_bytes == plans[1].weights_bytes < 0.5 * plans[2].weights_bytes
    assert plans[0].num_gpu_blocks == plans[1].num_gpu_blocks
    assert costs[0] == costs[1] < costs[2]
    told = (
        "the checkpoint is in int4 (by quantization_config awq); engine.dtype bfloat16 is taken, auto would follow it"
    )
    assert [told in plan.notes for plan in plans] == [False, False, True]


def test_blocks_of_fp8_take_a_scale_each(tmp_path: Path) -> None:
    block = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    engine = engine_config(model=written(tmp_path, quantization_config=block), gpu="h100-sxm", dtype="auto")
    gpu, model = load_gpu("h100-sxm"), load_model(str(tmp_path))
    found = resolve_precision(engine, gpu, model)
    assert (found.weights, found.activations, found.gemm_flops) == ("fp8_block", "bfloat16", gpu.fp8_flops)
    assert found.linear_bytes == 1 + 4 / 16384
    for kind in ("profile", "roofline"):
        run_ns = build_step_cost(engine, LatencyConfig(kind=kind)).decode_run_ns(1, 100, 1)  # type: ignore[arg-type]
        plain = engine.model_copy(update={"dtype": "bfloat16"})
        assert run_ns[0] < build_step_cost(plain, LatencyConfig(kind=kind)).decode_run_ns(1, 100, 1)[0]  # type: ignore[arg-type]


def test_presets_have_the_format_that_they_are_published_in() -> None:
    assert {name: model.dtype for name, model in MODELS.items() if model.dtype != "bfloat16"} == {
        **dict.fromkeys(("minimax-m2.5", "deepseek-v3", "deepseek-r1", "deepseek-v3.2", "kimi-k2"), "fp8_block"),
        **dict.fromkeys(("gpt-oss-20b", "gpt-oss-120b"), "mxfp4"),
        "kimi-k2.5": "int4_g32",
    }
    engine = engine_config(model="llama-2-7b", gpu="h100-sxm", dtype="auto")
    assert plan_memory(engine).notes == plan_memory(engine.model_copy(update={"dtype": "bfloat16"})).notes


@pytest.mark.parametrize(
    ("given", "meant"), [("awq", "int4"), ("GPTQ", "int4"), ("fp16", "float16"), ("half", "float16")]
)
def test_other_names_of_formats_get_the_one_to_write(given: str, meant: str) -> None:
    engine = {"model": "llama-2-7b", "gpu": "h100-sxm", "dtype": given}
    with pytest.raises(InputError, match=f"`engine.dtype` is the text '{given}'; .*did you mean `{meant}`\\?"):
        load({"name": "x", "workload": {}, "engine": engine})


def test_fp8_is_fp8_as_the_checkpoint_has_it() -> None:
    """MiniMax-M2.5 is published in FP8 with a scale per block, and stays so under ``dtype: fp8``; Llama is not."""
    gpu = load_gpu("h100-sxm")
    for name, weights in (("minimax-m2.5", "fp8_block"), ("llama-3.1-8b", "fp8")):
        found = resolve_precision(engine_config(model=name, gpu="h100-sxm", dtype="fp8"), gpu, MODELS[name])
        assert (found.weights, found.notes) == (weights, ())
    auto = resolve_precision(
        engine_config(model="minimax-m2.5", gpu="h100-sxm", dtype="auto"), gpu, MODELS["minimax-m2.5"]
    )
    assert auto.weights == "fp8_block"
