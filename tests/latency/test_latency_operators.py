"""Single terms of the roofline against arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import engine_config

from sim.latency.base import StepShape
from sim.latency.gpus import GPUS, GpuSpec
from sim.latency.layer_kinds import Mlp
from sim.latency.models import MODELS
from sim.latency.operators import slower_of
from sim.latency.roofline import RooflineCost

A100 = GPUS["a100-80gb-sxm"]


def make(hardware: GpuSpec = A100, **engine_settings: Any) -> RooflineCost:
    engine = engine_config(**({"model": "llama-2-7b", "gpu": hardware.name} | engine_settings))
    return RooflineCost(MODELS[engine.model], hardware, engine)


def test_decode_attention_reads_the_kv_cache() -> None:
    """Another 1,000,000 tokens of context at 512 KiB each, at 0.75 of 2,039 GB/s."""
    less, more = (StepShape(num_decodes=64, decode_context_tokens=n, num_sampled=64) for n in (10_000, 1_010_000))
    milliseconds = (make().gpu_ns(more) - make().gpu_ns(less)) / 1e6
    assert milliseconds == pytest.approx(1e6 * 512 * 1024 / (0.75 * 2039e9) * 1e3, rel=1e-5)


def test_grouped_queries_and_tensor_parallelism_divide_the_kv_traffic() -> None:
    full = make().operators.attention_times()[0].context_s
    assert make(model="llama-3.1-8b").operators.attention_times()[0].context_s == pytest.approx(full / 4)
    assert make(tensor_parallel_size=4).operators.attention_times()[0].context_s == pytest.approx(full / 4)
    replicated = make(model="llama-3.1-8b", tensor_parallel_size=16).operators.attention_times()[0].context_s
    assert replicated == pytest.approx(
        make(model="llama-3.1-8b", tensor_parallel_size=8).operators.attention_times()[0].context_s
    )


def test_causal_attention_of_a_long_prompt() -> None:
    """n**2 / 2 query-key pairs, 4 FLOPs per pair and channel, 32 layers of 4,096 channels, half of 312 TFLOP/s."""
    n = 32_768
    shapes = [
        StepShape(num_prefills=1, num_prefill_tokens=n, prefill_context_tokens=n, prefill_attention_pairs=pairs)
        for pairs in (0, n * n)
    ]
    cost = make(max_num_batched_tokens=n)
    context_s = n * 512 * 1024 / (0.75 * 2039e9)
    flops = 4 * 32 * 4096 * n * n / 2
    seconds = (cost.gpu_ns(shapes[1]) - cost.gpu_ns(shapes[0])) / 1e9
    assert seconds == pytest.approx(flops / (0.5 * 312e12) - context_s, rel=1e-5)


def test_all_reduces_of_a_pass() -> None:
    """The pass of REQUIREMENTS E14 (21.5 ms as a ring of 4 at 300 GB/s) at 0.7 of the link, 64 latencies of 8 us,
    and the embedding's all-reduce on top."""
    shape = StepShape(num_prefills=16, num_prefill_tokens=16 * 512, num_sampled=0)
    cost = make(tensor_parallel_size=4)
    ring_s = 1.5 * 4 * (1 << 30) / 300e9 / 0.7
    assert cost.breakdown(shape)["all_reduce"] == pytest.approx(ring_s + 64 * 8e-6, rel=1e-9)
    doubled = make(replace(A100, nvlink_bandwidth=600e9), tensor_parallel_size=4)
    saved_s = (cost.gpu_ns(shape) - doubled.gpu_ns(shape)) / 1e9
    assert saved_s == pytest.approx(ring_s / 2 * 65 / 64, rel=1e-5)


def test_lm_head_grows_with_sampled_rows() -> None:
    """256 rows against 32,000 x 4,096 16-bit weights and six passes over the logits, by hand."""
    weights, activations = 32_000 * 4096 * 2, 256 * (32_000 + 4096) * 2
    memory_s = (weights + activations) / (0.82 * 2039e9)
    compute_s = 2 * 256 * 32_000 * 4096 / (0.72 * 312e12)
    sampler_s = 256 * 32_000 * 24 / (0.7 * 2039e9) + 50e-6
    expected = (memory_s**4 + compute_s**4) ** 0.25 + 2e-6 + sampler_s
    assert make().operators.head_s(np.array([256.0]))[0] == pytest.approx(expected, rel=1e-9)


def test_one_mlp_by_hand() -> None:
    """Two GEMMs of 11,008 x 4,096 (gate and up in one) at one token: weights over bandwidth, plus two starts."""
    traffic = (2 * 11_008 * 4096 * 2 + (2 * 11_008 + 4096) * 2) + (11_008 * 4096 * 2 + (11_008 + 4096) * 2)
    operators = make().operators
    ((kind, _),) = operators.model.kinds
    seconds = operators.mlp_s(np.array([1.0]), kind, Mlp(width=11_008))[0]
    assert seconds == pytest.approx(traffic / (0.82 * 2039e9) + 4e-6, rel=1e-6)


def test_experts_run_at_the_rate_of_grouped_gemms() -> None:
    """Many tokens, all 8 experts of a Mixtral layer: 2 of them per token, half of the peak."""
    tokens = 16_384
    model = MODELS["mixtral-8x7b"]
    flops = 2 * tokens * 2 * model.expert_parameters
    ((kind, _),) = model.kinds
    seconds = make(GPUS["h100-sxm"], model="mixtral-8x7b").operators.experts_s(np.array([float(tokens)]), kind)[0]
    assert seconds == pytest.approx(flops / (0.5 * 989.4e12), rel=0.01)


def test_no_tokens_take_no_time() -> None:
    operators = make(tensor_parallel_size=2, pipeline_parallel_size=2, model="mixtral-8x7b").operators
    zero = np.array([0.0])
    for term in (operators.layers_s, operators.embedding_s, operators.send_receive_s, operators.head_s):
        assert term(zero).tolist() == [0.0]


def test_the_corner_of_the_roofline_is_rounded_by_a_fifth() -> None:
    compute, memory = np.array([1.0, 1.0, 1e-9]), np.array([1.0, 1e-9, 1.0])
    assert slower_of(compute, memory).tolist() == pytest.approx([2**0.25, 1.0, 1.0])
