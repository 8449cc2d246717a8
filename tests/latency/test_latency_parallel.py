"""The arithmetic of tensor and pipeline parallelism that courses quote (REQUIREMENTS E14, E15)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.latency.models import MODELS
from sim.latency.parallel import (
    all_reduce_bytes,
    kv_heads_per_gpu,
    parallel_problems,
    pipeline_layers,
    pipeline_utilization,
    plain_transfer_s,
    ring_all_reduce_s,
)

MIB, GIB = 1 << 20, 1 << 30


def test_tensor_parallel_communication_of_one_pass() -> None:
    """TP4, 16 x 512 tokens, hidden 4096, 32 layers, FP16, two all-reduces a layer."""
    each = all_reduce_bytes(16 * 512, 4096, 2)
    assert each == 64 * MIB
    whole = 2 * 32 * each
    assert whole == 4 * GIB
    assert plain_transfer_s(whole, 600e9) * 1e3 == pytest.approx(7.2, abs=0.05)
    assert plain_transfer_s(whole, 32e9) * 1e3 == pytest.approx(134, abs=0.5)
    assert ring_all_reduce_s(whole, 4, 300e9) * 1e3 == pytest.approx(21.5, abs=0.05)
    assert ring_all_reduce_s(whole, 4, 32e9) * 1e3 == pytest.approx(201, abs=0.5)


def test_one_gpu_sends_nothing() -> None:
    assert ring_all_reduce_s(1e9, 1, 1e9) == 0.0


@pytest.mark.parametrize(("batches", "percent"), [(1, 25), (8, 73), (16, 84), (32, 91)])
def test_bubbles_of_one_flush_over_four_stages(batches: int, percent: int) -> None:
    assert round(100 * pipeline_utilization(batches, 4)) == percent


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [(32, 1, [32]), (80, 2, [40, 40]), (30, 4, [7, 8, 8, 7]), (31, 4, [8, 8, 8, 7]), (29, 4, [7, 7, 8, 7])],
)
def test_layers_left_over_go_where_vllm_puts_them(layers: int, stages: int, expected: list[int]) -> None:
    assert pipeline_layers(layers, stages) == expected


@given(layers=st.integers(1, 200), stages=st.integers(1, 16))
def test_every_layer_has_one_stage(layers: int, stages: int) -> None:
    split = pipeline_layers(layers, stages)
    assert (len(split), sum(split)) == (stages, layers)
    assert max(split) - min(split) <= 1
    assert split[-1] == layers // stages


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    assert [kv_heads_per_gpu(8, tp) for tp in (1, 2, 8, 16)] == [8, 4, 1, 1]


@pytest.mark.parametrize(
    ("name", "tp", "pp", "message"),
    [
        ("llama-2-7b", 3, 1, "3 does not divide the 32 attention heads"),
        ("qwen2.5-7b", 7, 1, "neither divides nor is a multiple of the 4 KV heads"),
        ("llama-2-7b", 1, 33, "33 is more than the 32 layers"),
        ("llama-2-7b", 32, 1, None),
        ("llama-3.1-8b", 16, 1, None),
        ("qwen3-30b-a3b", 8, 2, None),
    ],
)
def test_splits_that_vllm_refuses(name: str, tp: int, pp: int, message: str | None) -> None:
    found = "; ".join(str(problem) for problem in parallel_problems(MODELS[name], tp, pp))
    assert (message in found) if message else found == ""


def test_mlp_width_must_divide() -> None:
    """28 GPUs divide the heads of qwen2.5-7b, and 4 KV heads divide them, but not its MLP."""
    assert not parallel_problems(MODELS["llama-2-7b"], 16, 1)
    assert "MLP width 18944" in str(parallel_problems(MODELS["qwen2.5-7b"], 28, 1))
