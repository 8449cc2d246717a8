"""FP8 matrices: which kernel is taken for how many rows on H100 and H200, and whose inputs come in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engines import engine_config

from sim.latency.gpus import load_gpu
from sim.latency.models import load_model
from sim.latency.profile.all_reduce import quantises_apart
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.gemm_kernels import few_rows_ns, has_wide_kernel, is_dispatched, many_rows_ns
from sim.latency.profile.library import find_profile
from sim.scenario.schema import CompilationConfig, EngineConfig, PassConfig

FUSE = CompilationConfig(pass_config=PassConfig(fuse_allreduce_rms=True))


def engine(gpu: str = "h200-sxm", tp: int = 2, **settings: Any) -> EngineConfig:
    told = {"model": "llama-3.1-70b", "dtype": "fp8", **settings}
    return engine_config(gpu=gpu, tensor_parallel_size=tp, **told)


def built_in(config: EngineConfig) -> ProfileCost:
    gpu = load_gpu(config.gpu_name)
    return ProfileCost(find_profile(None, gpu), load_model(config.model), gpu, config)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_only_fp8_with_one_scale_on_hopper_is_dispatched_by_rows() -> None:
    assert is_dispatched("fp8", "9.0")
    assert not is_dispatched("fp8", "10.0")
    assert not is_dispatched("fp8_block", "9.0")
    assert not is_dispatched("fp8", None)


def test_17_to_47_rows_take_what_was_measured_there() -> None:
    rows = np.array([16.0, 17.0, 32.0, 47.0, 48.0])
    found = few_rows_ns(rows, np.array([30.0, 36.0, 34.0, 33.0, 40.0]), np.full(5, 30.0))
    assert found.tolist() == [30.0, 36.0, 34.0, 33.0, 30.0]


@pytest.mark.parametrize(
    ("depth", "has_wide", "times"),
    [
        (8192, True, [10.0, 15.0, 18.0, 36.0]),
        (8192, False, [10.0, 15.0, 20.0, 40.0]),
        (3584, False, [10.0, 14.0, 18.0, 36.0]),
    ],
)
def test_more_rows_than_4096_keep_their_kernels_rate(depth: int, has_wide: bool, times: list[float]) -> None:
    """At 10 ns for 4,096 rows, 6,144 take 15 until another kernel takes over at 8,192."""
    rows, measured = np.array([4096.0, 6144.0, 8192.0, 16384.0]), np.array([10.0, 14.0, 18.0, 36.0])
    assert many_rows_ns(rows, measured, 10.0, depth, has_wide=has_wide).tolist() == times


@pytest.mark.parametrize(("version", "has_it"), [("0.10.2", False), ("0.20.0", True), ("0.32.0", True)])
def test_the_large_tile_is_of_later_versions(version: str, has_it: bool) -> None:
    config = engine(vllm_version=version)
    assert has_wide_kernel(config) is has_it
    assert built_in(config).operators.has_wide_gemm is has_it


def test_a_batch_of_32_takes_longer_than_one_of_48_on_an_h200() -> None:
    """As InferenceX's steps do; 16-bit matrices never do."""
    fp8, plain = built_in(engine()), built_in(engine(dtype="bfloat16"))
    assert fp8.tokens_ns(32) > 1.04 * fp8.tokens_ns(48)
    assert fp8.tokens_ns(32) > 1.1 * fp8.tokens_ns(16)
    assert plain.tokens_ns(32) <= plain.tokens_ns(48)


def test_a_chunk_of_7400_tokens_is_not_of_the_large_tile() -> None:
    """8,192 tokens take another kernel than 8,191, and less time per token."""
    new, old = built_in(engine(gpu="h100-sxm")), built_in(engine(gpu="h100-sxm", vllm_version="0.10.2"))
    assert new.tokens_ns(8192) < new.tokens_ns(8191)
    assert old.tokens_ns(8192) > old.tokens_ns(8191)
    assert old.tokens_ns(7400) == pytest.approx(new.tokens_ns(7400), rel=0.02)


# --- inputs in 8 bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({}, False),
        ({"enforce_eager": True}, True),
        ({"vllm_version": "0.10.2"}, False),
        ({"vllm_version": "0.10.2", "compilation_config": FUSE}, True),
        ({"vllm_version": "0.11.1", "compilation_config": FUSE}, False),
    ],
)
def test_when_quantising_is_a_kernel_of_its_own(settings: dict[str, Any], apart: bool) -> None:
    assert quantises_apart(engine(**settings)) is apart


def test_inputs_in_8_bits_save_what_quantising_takes() -> None:
    """3 us of starting, and three bytes an element at 70 % of the bandwidth: 63 us for 8,192 by 8,192 on an H200, where
    aiconfigurator's tables say 49 for the quantising and 14 for finding the scale."""
    ops = built_in(engine()).operators
    rows = np.array([4.0, 8192.0])
    saved = ops.linear_ns(rows, 5120, 8192) - ops.linear_ns(rows, 5120, 8192, is_ready=True)
    assert saved.tolist() == pytest.approx([3_029, 62_919], rel=0.01)
    plain = built_in(engine(dtype="bfloat16")).operators
    assert np.array_equal(plain.linear_ns(rows, 5120, 8192), plain.linear_ns(rows, 5120, 8192, is_ready=True))


def test_where_the_all_reduce_is_one_kernel_with_the_norm_that_quantises_too() -> None:
    """Of 64 tokens a norm leaves 8 bits, of 8,192 it does not: more than the fused kernel takes at TP 8."""
    ops = built_in(engine("b200-sxm", 8, vllm_version="0.10.2", compilation_config=FUSE)).operators
    assert ops.is_normed_ready(np.array([64.0, 8192.0])).tolist() == [True, False]
    compiled = built_in(engine("b200-sxm", 8)).operators
    assert compiled.is_normed_ready(np.array([64.0, 8192.0])).tolist() == [True, True]


@pytest.mark.parametrize(("gpu", "kernels"), [("h200-sxm", 1), ("l40s", 0)])
def test_queries_are_made_8_bits_for_a_cache_of_8_bits(gpu: str, kernels: int) -> None:
    """A kernel in each of 32 layers on GPUs whose attention multiplies in 8 bits."""
    plain = built_in(engine(gpu, 1, model="llama-3.1-8b"))
    fp8 = built_in(engine(gpu, 1, model="llama-3.1-8b", kv_cache_dtype="fp8"))
    tokens = np.array([64.0])
    more = float(fp8.token_terms_ns(tokens)["elementwise"][0] - plain.token_terms_ns(tokens)["elementwise"][0])
    assert more == pytest.approx(32 * kernels * 3_234, rel=0.01)
