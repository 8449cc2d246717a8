"""FLOPs and bytes of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engines import engine_config

from sim.latency.gpus import GPUS
from sim.latency.models import MODELS
from sim.latency.work import WorkModel


def work(model: str = "llama-2-7b", gpu: str = "a100-80gb-sxm", **engine_settings: Any) -> WorkModel:
    return WorkModel(MODELS[model], GPUS[gpu], engine_config(model=model, gpu=gpu, **engine_settings))


def columns(**given: int | list[int]) -> dict[str, npt.NDArray[np.int64]]:
    names = ("num_prefill_tokens", "num_decodes", "decode_context_tokens", "prefill_context_tokens")
    values: dict[str, int | list[int]] = dict.fromkeys((*names, "prefill_attention_pairs", "num_sampled"), 0)
    return {name: np.atleast_1d(np.array(value, dtype=np.int64)) for name, value in (values | given).items()}


def test_one_decode() -> None:
    model = MODELS["llama-2-7b"]
    step = columns(num_decodes=1, decode_context_tokens=1000, num_sampled=1)
    matrices = model.linear_parameters + model.vocab_size * model.hidden_size
    assert work().flops(step)[0] == 2 * matrices + 4 * 32 * 4096 * 1000
    assert work().bytes(step)[0] == 2 * matrices + 1001 * 512 * 1024


def test_one_prompt() -> None:
    """Causal attention over n tokens: n**2 / 2 query-key pairs, 4 FLOPs per pair and channel."""
    step = columns(num_prefill_tokens=512, prefill_context_tokens=512, prefill_attention_pairs=512 * 512)
    model = MODELS["llama-2-7b"]
    assert work().flops(step)[0] == 2 * 512 * model.linear_parameters + 4 * 32 * 4096 * 512 * 512 / 2


def test_decode_intensity_is_the_group_size() -> None:
    """Attention of a decode: 1 FLOP per byte for MHA, the number of query heads per KV head for GQA (16 bits)."""
    for name, group in (("llama-2-7b", 1), ("llama-3.1-8b", 4), ("llama-3.1-70b", 8)):
        less, more = (columns(num_decodes=1, decode_context_tokens=tokens) for tokens in (0, 1000))
        model = work(name)
        flops = model.flops(more)[0] - model.flops(less)[0]
        assert flops / (model.bytes(more)[0] - model.bytes(less)[0]) == pytest.approx(group)


def test_a_run_of_steps_is_the_sum_of_its_steps() -> None:
    for name in ("llama-2-7b", "mixtral-8x7b"):
        model = work(name)
        run = columns(num_decodes=5, decode_context_tokens=100, num_sampled=5, num_steps=4)
        steps = columns(
            num_decodes=[5] * 4,
            decode_context_tokens=[100, 105, 110, 115],
            num_sampled=[5] * 4,
            prefill_context_tokens=[0] * 4,
            prefill_attention_pairs=[0] * 4,
            num_prefill_tokens=[0] * 4,
        )
        assert model.flops(run)[0] == pytest.approx(model.flops(steps).sum())
        assert model.bytes(run)[0] == pytest.approx(model.bytes(steps).sum())


def test_experts_are_read_as_tokens_choose_them() -> None:
    model, spec = work("mixtral-8x7b"), MODELS["mixtral-8x7b"]
    one = columns(num_decodes=1)
    assert model.flops(one)[0] == 2 * spec.active_linear_parameters
    per_layer = 32 * spec.expert_parameters * 2
    others = 2 * (spec.linear_parameters - 32 * 8 * spec.expert_parameters)
    assert model.bytes(one)[0] == pytest.approx(others + 2 * per_layer + model.kv_bytes_per_token)
    full = columns(num_decodes=4096)
    assert model.bytes(full)[0] == pytest.approx(others + 8 * per_layer + 4096 * model.kv_bytes_per_token)


def test_an_idle_step_does_no_work() -> None:
    for name in ("llama-2-7b", "qwen3-30b-a3b"):
        assert work(name).flops(columns()).tolist() == [0.0]
        assert work(name).bytes(columns()).tolist() == [0.0]


def test_peaks_are_of_the_whole_replica() -> None:
    model = work("llama-3.1-70b", "h100-sxm", dtype="fp8", tensor_parallel_size=4, pipeline_parallel_size=2)
    assert model.peak_flops == 8 * 1978.9e12
    assert model.peak_bandwidth == 8 * 3350e9


def test_replicated_kv_heads_are_counted_on_every_gpu() -> None:
    assert work("llama-3.1-8b", tensor_parallel_size=16).kv_bytes_per_token == 2 * 128 * 1024
    assert work("llama-3.1-8b", tensor_parallel_size=8).kv_bytes_per_token == 128 * 1024
