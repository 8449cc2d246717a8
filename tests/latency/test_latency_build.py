"""From scenario sections to a latency model."""

from __future__ import annotations

import pytest

from sim.errors import InputError
from sim.latency.base import StepShape
from sim.latency.build import build_step_cost, build_work_model
from sim.scenario.schema import EngineConfig, LatencyConfig

ENGINE = EngineConfig(model="llama-2-7b", gpu="a100-80gb-sxm")


def test_constant() -> None:
    cost = build_step_cost(ENGINE, LatencyConfig(kind="constant", step_s=0.05))
    assert (cost.kind, cost.gpu_ns(StepShape())) == ("constant", 50_000_000)
    assert build_work_model(ENGINE, LatencyConfig(kind="constant", step_s=0.05)) is None


def test_constant_without_its_time_is_refused() -> None:
    with pytest.raises(InputError, match=r"latency\.step_s"):
        build_step_cost(ENGINE, LatencyConfig(kind="constant"))


def test_roofline_is_the_default() -> None:
    cost = build_step_cost(ENGINE, LatencyConfig(host_overhead_ms=3.0))
    assert cost.kind == "roofline"
    assert cost.host_ns(StepShape(num_decodes=7)) == 3_000_000
    assert build_work_model(ENGINE, LatencyConfig()) is not None


def test_profiles_are_refused_with_what_to_use() -> None:
    with pytest.raises(InputError, match="use roofline"):
        build_step_cost(ENGINE, LatencyConfig(kind="profile", profile="a100-80gb-sxm"))


def test_names_and_splits_are_checked() -> None:
    with pytest.raises(InputError) as error:
        build_step_cost(EngineConfig(model="llama-2-7b", gpu="gtx", tensor_parallel_size=5), LatencyConfig())
    assert len(error.value.problems) == 3
