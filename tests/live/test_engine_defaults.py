"""What an engine leaves out is what vLLM's own code takes: seats and budget by GPU, the longest context by config."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sim.latency.engine_defaults import memory_share, resolve_engine
from sim.latency.gpus import GPUS
from sim.latency.hf_config import read_model_config
from sim.latency.models import MODELS
from sim.scenario.schema import EngineConfig, EngineSection

TINY = Path(__file__).resolve().parents[2] / "scenarios" / "data" / "tiny-llama"
DEVICE_NAMES = {"a100-40gb-sxm": "NVIDIA A100-SXM4-40GB", "a100-80gb-sxm": "NVIDIA A100-SXM4-80GB"}
"""As the driver says it, where the name decides; of others only that they are no A100."""


def theirs(monkeypatch: pytest.MonkeyPatch, engine: EngineSection, max_model_len: int) -> tuple[int, int]:
    """Token budget and seats as vLLM's API server sets them on that GPU."""
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext

    gpu = GPUS[engine.gpu]
    platform = SimpleNamespace(
        get_device_total_memory=lambda: gpu.memory_bytes,
        get_device_name=lambda: DEVICE_NAMES.get(gpu.name, f"NVIDIA {gpu.name.upper()}"),
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    monkeypatch.setattr(arg_utils, "current_platform", platform)
    told = arg_utils.EngineArgs(
        model=str(TINY),
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        enable_chunked_prefill=engine.enable_chunked_prefill,
    )
    model = SimpleNamespace(max_model_len=max_model_len, is_multimodal_model=False, is_mm_prefix_lm=False)
    parallel = SimpleNamespace(use_batched_dp_moe=False)
    told._set_default_max_num_seqs_and_batched_tokens_args(UsageContext.OPENAI_API_SERVER, model, parallel)
    return told.max_num_batched_tokens, told.max_num_seqs


@pytest.mark.parametrize("gpu", GPUS)
def test_seats_and_budget_are_vllms(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(gpu)
    for _ in range(200):
        engine = EngineSection(
            model=rng.choice(sorted(MODELS)),
            gpu=gpu,
            max_model_len=rng.choice([None, None, rng.randint(1, 40), rng.randint(1, 200_000)]),
            max_num_seqs=rng.choice([None, None, rng.randint(1, 3000)]),
            max_num_batched_tokens=rng.choice([None, None, rng.randint(1, 40_000)]),
            enable_chunked_prefill=rng.random() < 0.7,
        )
        ours, _ = resolve_engine(engine)
        assert isinstance(ours, EngineConfig)
        taken = theirs(monkeypatch, engine, ours.max_model_len)
        assert (ours.max_num_batched_tokens, ours.max_num_seqs) == taken, engine


def test_the_share_of_memory_is_vllms() -> None:
    from vllm.engine.arg_utils import EngineArgs

    assert EngineArgs(model=str(TINY)).gpu_memory_utilization == memory_share()


BASE: dict[str, Any] = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64},
    **{"num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 4096},
    **{"rope_theta": 10000.0, "torch_dtype": "bfloat16"},
}
LONG = {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama3": {
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 512,
        }
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
    "longrope": {
        **{"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 1024},
        **{"rope_scaling": {"type": "longrope", **LONG}, "pad_token_id": 0},
    },
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "another key": {"max_seq_length": 2048},
    "the last word": {"model_max_length": 9000},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_longest_context_is_vllms(name: str, tmp_path: Path) -> None:
    from vllm.config import ModelConfig

    (tmp_path / "config.json").write_text(json.dumps(BASE | CONFIGS[name]), encoding="utf-8")
    stated = ModelConfig(model=str(tmp_path), skip_tokenizer_init=True)
    ours = read_model_config(tmp_path / "config.json")
    assert ours.default_context == stated.max_model_len
    longest = ours.longest_context
    assert ModelConfig(model=str(tmp_path), skip_tokenizer_init=True, max_model_len=longest).max_model_len == longest
    with pytest.raises(ValueError, match="is greater than the derived max_model_len"):
        ModelConfig(model=str(tmp_path), skip_tokenizer_init=True, max_model_len=longest + 1)
