"""LoRA adapters: their bytes worked by hand, and what they add to a step."""

from __future__ import annotations

from typing import Any

import pytest
from engines import engine_config

from sim.latency.base import StepShape
from sim.latency.build import build_step_cost
from sim.latency.lora import LoraCost, lora_bytes
from sim.latency.memory import plan_engine
from sim.latency.models import load_model
from sim.scenario.schema import LatencyConfig


def test_a_slot_of_llama_8b_by_hand() -> None:
    hidden, kv, mlp, vocabulary, rank = 4096, 1024, 14336, 128256, 16
    layer = 3 * hidden + (hidden + 2 * kv)  # query, key and value
    layer += hidden + hidden  # output
    layer += 2 * hidden + 2 * mlp  # gate and up
    layer += mlp + hidden  # down
    outer = 2 * (vocabulary + hidden)
    assert lora_bytes(load_model("llama-3.1-8b"), rank, 1) == 2 * rank * (32 * layer + outer)


def test_a_slot_on_two_gpus_keeps_one_side_of_each_matrix_whole() -> None:
    hidden, kv, mlp, vocabulary, rank = 4096, 1024, 14336, 128256, 16
    layer = 3 * hidden + (hidden + 2 * kv) // 2 + hidden // 2 + hidden + 2 * hidden + mlp + mlp // 2 + hidden
    outer = 2 * (vocabulary // 2 + hidden)
    assert lora_bytes(load_model("llama-3.1-8b"), rank, 2) == 2 * rank * (32 * layer + outer)


def test_experts_have_adapters_of_their_own() -> None:
    mixtral, dense = load_model("mixtral-8x7b"), load_model("llama-3.1-8b")
    assert lora_bytes(mixtral, 16, 1) > 4 * lora_bytes(dense, 16, 1)


def config(**more: Any) -> Any:
    return engine_config(model="llama-3.1-8b", gpu="a100-80gb-sxm", **more)


@pytest.mark.parametrize("max_loras", [1, 4])
def test_slots_take_memory_from_the_kv_cache(max_loras: int) -> None:
    without = plan_engine(config()).memory
    plan = plan_engine(config(enable_lora=True, max_loras=max_loras, max_lora_rank=64)).memory
    slots = max_loras * lora_bytes(load_model("llama-3.1-8b"), 64, 1)
    assert plan.lora_bytes == slots
    assert without.available_kv_bytes - plan.available_kv_bytes == slots
    assert plan.weights_bytes - without.weights_bytes == slots


PLAIN = {"num_decodes": 32, "decode_context_tokens": 32000, "num_sampled": 32}


@pytest.mark.parametrize("kind", ["profile", "roofline"])
def test_adapters_add_to_steps_that_have_some(kind: Any) -> None:
    latency = LatencyConfig(kind=kind)
    plain = build_step_cost(config(), latency)
    cost = build_step_cost(config(enable_lora=True, max_loras=4), latency)
    assert isinstance(cost, LoraCost)
    assert cost.gpu_ns(StepShape(**PLAIN)) == plain.gpu_ns(StepShape(**PLAIN))
    assert cost.step_ns(*([0] * 4), 32, 32000, 32) == plain.gpu_ns(StepShape(**PLAIN))
    one, four = (StepShape(**PLAIN, num_loras=count, num_lora_tokens=32) for count in (1, 4))
    assert plain.gpu_ns(one) < cost.gpu_ns(one) < cost.gpu_ns(four)
    # 8 small kernels in each of 32 layers start, and four adapters of 84 MB are read.
    assert 0.5e6 < cost.lora_ns(four) < 1.5e6
    loaded = StepShape(**PLAIN, num_loras=1, num_lora_tokens=32, num_lora_loads=1, lora_load_bytes=84 << 20)
    assert cost.gpu_ns(loaded) - cost.gpu_ns(one) == cost.load_ns(loaded) > 1e6
    terms = cost.breakdown(loaded)
    assert sum(terms.values()) * (1e9 if kind == "roofline" else 1) == pytest.approx(cost.gpu_ns(loaded), rel=1e-3)
    assert cost.describe()["lora"]["max_lora_rank"] == 16  # type: ignore[index]


def test_eager_engines_launch_the_small_kernels_too() -> None:
    shape = StepShape(**PLAIN, num_loras=1, num_lora_tokens=32)
    graphs, eager = (
        build_step_cost(config(enable_lora=True, enforce_eager=is_eager), LatencyConfig(kind="roofline"))
        for is_eager in (False, True)
    )
    assert isinstance(graphs, LoraCost)
    assert isinstance(eager, LoraCost)
    assert eager.lora_ns(shape) > 4 * graphs.lora_ns(shape)
