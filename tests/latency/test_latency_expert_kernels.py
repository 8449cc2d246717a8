"""Which kernel multiplies the experts: by vLLM's version, how they are spread, and what a scenario asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engines import engine_config

from sim.checks.all_checks import check_all
from sim.checks.loading import load_data
from sim.errors import InputError
from sim.latency.gpus import load_gpu
from sim.latency.models import load_model
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.expert_kernels import expert_backend
from sim.latency.profile.library import find_profile
from sim.scenario.schema import EngineConfig

DATA: dict[str, Any] = {
    "name": "x",
    "workload": {
        "requests": 10,
        "arrival": {"process": "poisson", "rate": 1},
        "input_tokens": {"dist": "fixed", "value": 100},
        "output_tokens": {"dist": "fixed", "value": 10},
    },
    "engine": {"model": "minimax-m2.5", "gpu": "h200-sxm", "tensor_parallel_size": 4, "max_model_len": 8192},
}
TOKENS = np.array([4.0, 64.0, 8192.0])


def engine(gpu: str = "h200-sxm", tp: int = 4, version: str = "0.16.0", **settings: Any) -> EngineConfig:
    return engine_config(
        model="minimax-m2.5", gpu=gpu, tensor_parallel_size=tp, vllm_version=version, dtype="fp8", **settings
    )


def built_in(config: EngineConfig) -> ProfileCost:
    gpu = load_gpu(config.gpu_name)
    return ProfileCost(find_profile(None, gpu), load_model(config.model), gpu, config)


def routed_us(config: EngineConfig) -> list[float]:
    return [each / 1e3 for each in built_in(config).operators.routed_ns(TOKENS)]


@pytest.mark.parametrize(
    ("settings", "capability", "weights", "backend"),
    [
        ({}, "9.0", "fp8_block", "flashinfer_cutlass"),
        ({}, "9.0", "fp8", None),
        ({}, "10.0", "fp8_block", None),
        ({}, None, "fp8_block", None),
        ({"version": "0.15.1"}, "9.0", "fp8_block", None),
        ({"version": "0.17.0"}, "9.0", "fp8_block", None),
        ({"moe_backend": "triton"}, "9.0", "fp8_block", "triton"),
        ({"version": "0.32.0", "moe_backend": "triton"}, "10.0", "fp8_block", "triton"),
    ],
)
def test_the_kernel_by_version_and_gpu(
    settings: dict[str, Any], capability: str | None, weights: str, backend: str | None
) -> None:
    assert expert_backend(engine(**settings), capability, weights) == backend


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200-sxm"])
def test_split_experts_on_hopper_are_slower_in_0_16(gpu: str) -> None:
    """FlashInfer's CUTLASS kernel has 256 experts to go through, whatever few tokens choose, and sorts all rows."""
    before, after = routed_us(engine(gpu)), routed_us(engine(gpu, version="0.17.0"))
    assert 1.5 < before[0] / after[0] < 2.2
    assert 1.0 < before[1] / after[1] < 1.2
    assert 1.6 < before[2] / after[2] < 2.0
    assert routed_us(engine(gpu, version="0.17.0", moe_backend="flashinfer_cutlass")) == before
    assert routed_us(engine(gpu, moe_backend="triton")) == after


def test_whole_experts_on_hopper_have_one_kernel() -> None:
    times = [routed_us(engine(version=each, enable_expert_parallel=True)) for each in ("0.16.0", "0.18.0", "0.32.0")]
    assert times[0] == times[1] == times[2]


def test_triton_on_blackwell_where_it_is_asked_for() -> None:
    own = routed_us(engine("b200-sxm", tp=2, version="0.17.0", enable_expert_parallel=True))
    asked = routed_us(engine("b200-sxm", tp=2, version="0.17.0", enable_expert_parallel=True, moe_backend="triton"))
    assert asked[0] > 1.1 * own[0]
    assert asked[2] > 1.6 * own[2]


def test_the_output_says_which_curves_were_followed() -> None:
    cost = built_in(engine())
    asked = {operator for operator, _ in cost.operators.asked}
    assert "moe_cutlass" in asked
    assert "moe" not in asked
    evidence = cost.describe()["evidence"]
    assert isinstance(evidence, dict)
    assert [part["kind"] for part in evidence["experts"]] == ["measured"]


def test_a_share_of_an_expert_is_whole_blocks() -> None:
    """1,536 columns over 8 GPUs are 192 each: vLLM stops at start, whole experts it takes."""
    with pytest.raises(InputError) as caught:
        check_all(load_data(DATA, ["engine.tensor_parallel_size=8"]))
    assert "`engine.tensor_parallel_size`: 8 GPUs with a share of every expert have 192" in str(caught.value)
    for overrides in (["engine.tensor_parallel_size=8", "engine.enable_expert_parallel=true"], []):
        check_all(load_data(DATA, overrides))


@pytest.mark.parametrize(
    ("overrides", "because"),
    [
        (["engine.model=llama-3.1-8b"], "llama-3.1-8b has no experts"),
        (["engine.model=qwen3-30b-a3b"], "it chooses among kernels of experts in FP8 with a scale per block"),
        (["latency={kind: roofline}"], "it belongs to `kind: profile`"),
        (["engine.enable_expert_parallel=true"], "profile h200-sxm has no curves of that kernel"),
        (["engine.gpu=b200-sxm", "engine.moe_backend=flashinfer_cutlass"], "profile b200-sxm has no curves"),
        ([], None),
        (["engine.gpu=b200-sxm"], None),
        (["engine.moe_backend=flashinfer_cutlass"], None),
        (["engine.moe_backend=flashinfer_cutlass", "engine.enable_expert_parallel=true"], None),
    ],
)
def test_a_choice_without_effect_is_noted(overrides: list[str], because: str | None) -> None:
    loaded = load_data(DATA, ["engine.moe_backend=triton", *overrides])
    check_all(loaded)
    found = [note for note in loaded.notes if "moe_backend" in note]
    if because is None:
        assert found == []
    else:
        assert len(found) == 1
        assert f"has no effect: {because}" in found[0]
