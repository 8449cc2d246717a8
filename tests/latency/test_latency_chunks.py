"""Prefill chunks after cached tokens: a longer one is never cheaper, and one token is a decode."""

from __future__ import annotations

import numpy as np
import pytest
from engines import engine_config

from sim.latency.base import StepShape
from sim.latency.build import build_step_cost
from sim.latency.gpus import load_gpu
from sim.latency.models import load_model
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.integers import finer, rising
from sim.latency.profile.library import builtin_names, find_profile
from sim.latency.uniform import reshaped
from sim.scenario.schema import LatencyConfig

CHUNKS = [*range(1, 40), *range(40, 600, 37), *range(600, 8193, 411)]
PRIORS = (0, 1, 16, 300, 5_000, 100_000)


def profile_cost(gpu: str, model: str, tp: int) -> ProfileCost:
    engine = engine_config(
        model=model, gpu=gpu, tensor_parallel_size=tp, max_model_len=131072, max_num_batched_tokens=8192
    )
    cost = build_step_cost(engine, LatencyConfig(kind="profile"))
    assert isinstance(cost, ProfileCost)
    return cost


def chunks(num: int, size: int, prior: int, decodes: int = 0, context: int = 0) -> StepShape:
    return StepShape(
        num_prefills=num,
        num_prefill_tokens=num * size,
        prefill_context_tokens=num * (prior + size),
        prefill_attention_pairs=num * size * (2 * prior + size),
        num_decodes=decodes,
        decode_context_tokens=decodes * context,
        num_sampled=num + decodes,
    )


@pytest.mark.parametrize("gpu", builtin_names())
@pytest.mark.parametrize(("model", "tp"), [("llama-3.1-8b", 1), ("qwen3-32b", 4)])
def test_a_longer_chunk_is_never_cheaper_and_one_token_is_a_decode(gpu: str, model: str, tp: int) -> None:
    cost = profile_cost(gpu, model, tp)
    for prior in PRIORS:
        for num, decodes in ((1, 0), (3, 0), (1, 16)):
            times = [cost.gpu_ns(chunks(num, size, prior, decodes, 1000)) for size in CHUNKS]
            assert times == sorted(times), f"{num} chunks after {prior} tokens, {decodes} decodes beside"
        if prior >= 5_000:
            decode = StepShape(num_decodes=1, decode_context_tokens=prior + 1, num_sampled=1)
            assert cost.gpu_ns(chunks(1, 1, prior)) == pytest.approx(cost.gpu_ns(decode), rel=0.02)


@pytest.mark.parametrize("prior", [300, 5_000, 100_000])
def test_more_prior_tokens_are_never_cheaper(prior: int) -> None:
    cost = profile_cost("h100-sxm", "llama-3.1-8b", 1)
    for size in (1, 32, 512, 4096):
        assert cost.gpu_ns(chunks(1, size, prior)) <= cost.gpu_ns(chunks(1, size, prior + prior // 10))


def test_a_prompt_without_prior_tokens_takes_what_the_table_says() -> None:
    cost = profile_cost("h100-sxm", "llama-3.1-8b", 1)
    sizes = np.array([64.0, 512.0, 1024.0, 4096.0])
    for size, layer_ns in zip(sizes, cost.operators.prefill_ns(1, sizes), strict=True):
        attention = cost.breakdown(chunks(1, int(size), 0))["prefill_attention"]
        assert attention == pytest.approx(32 * layer_ns, rel=0.03)


def test_recorded_steps_are_charged_the_same() -> None:
    cost = profile_cost("a100-80gb-sxm", "llama-3.1-8b", 1)
    shapes = [chunks(2, size, prior) for size in (1, 7, 500) for prior in (0, 16, 9_000)]
    names = ("prefill_attention_pairs", "prefill_context_tokens", "num_prefill_tokens")
    columns = [np.array([getattr(shape, name) for shape in shapes]) for name in names]
    assert cost.prefill_attentions_ns(2, *columns).tolist() == [
        cost.breakdown(shape)["prefill_attention"] for shape in shapes
    ]


def test_knots_are_made_finer_without_repeats() -> None:
    assert finer([1, 3, 16, 20]) == [1, 2, 3, 6, 9, 12, 16, 17, 18, 19, 20]


def test_falls_of_a_curve_are_taken_out() -> None:
    assert rising(np.array([3.0, 5.0, 4.0, 6.0])).tolist() == [3.0, 4.5, 4.5, 6.0]
    assert rising(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("gpu", ["a100-80gb-sxm", "h100-sxm", "l40s"])
def test_one_token_of_a_prompt_among_decodes_is_another_decode(gpu: str) -> None:
    """Attention kernels tell batches apart by their longest query: FlashAttention-2's are slow for decodes beside one
    of several tokens."""
    cost = profile_cost(gpu, "llama-3.1-8b", 1)
    among = cost.gpu_ns(StepShape(1, 1, 257, 513, 128, 128_000, 129))
    decodes = cost.gpu_ns(StepShape(num_decodes=129, decode_context_tokens=128_257, num_sampled=129))
    assert among == pytest.approx(decodes, rel=0.1)
    assert cost.breakdown(StepShape(1, 1, 257, 513, 128, 128_000, 129))["decode_attention"] < decodes


@pytest.mark.parametrize("gpu", ["a100-80gb-sxm", "h100-sxm"])
def test_a_window_of_one_token_has_a_time(gpu: str) -> None:
    config = engine_config(model="mistral-7b", gpu=gpu, max_model_len=1024, max_num_batched_tokens=2048)
    model = reshaped(load_model("mistral-7b"), sliding_window=1)
    cost = ProfileCost(find_profile(None, load_gpu(gpu)), model, load_gpu(gpu), config)
    one, many = (cost.gpu_ns(StepShape(num_decodes=n, decode_context_tokens=n, num_sampled=n)) for n in (1, 64))
    assert 0 < one < many
