"""``latency.time_scale``: every accelerator time by a factor, nothing else, still whole nanoseconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engines import engine_config

import sim
from sim.latency.base import StepCost, StepShape
from sim.latency.build import build_step_cost
from sim.latency.profile.cost import ProfileCost
from sim.scenario.schema import LatencyConfig

KINDS: list[dict[str, Any]] = [{"kind": "profile"}, {"kind": "roofline"}, {"kind": "constant", "step_s": 0.02}]
SHAPES = {
    "decodes": StepShape(num_decodes=40, decode_context_tokens=40 * 700, num_sampled=40),
    "prefill": StepShape(
        num_prefills=2,
        num_prefill_tokens=1800,
        prefill_context_tokens=2400,
        prefill_attention_pairs=1800 * 3000,
        num_sampled=2,
    ),
    "mixed": StepShape(
        num_prefills=1,
        num_prefill_tokens=512,
        prefill_context_tokens=512,
        prefill_attention_pairs=512 * 512,
        num_decodes=20,
        decode_context_tokens=9000,
        num_sampled=21,
        swap_bytes=1 << 28,
    ),
}


def cost(latency: dict[str, Any], scale: float | None = None, **engine: Any) -> StepCost:
    config = engine_config(model="llama-3.1-8b", gpu="h100-sxm", **engine)
    scaled = latency if scale is None else {**latency, "time_scale": scale}
    return build_step_cost(config, LatencyConfig(**scaled))


@pytest.mark.parametrize("latency", KINDS, ids=lambda each: each["kind"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "engine", [{}, {"enforce_eager": True}, {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}]
)
def test_a_step_takes_the_factor_times_as_long(latency: dict[str, Any], shape: str, engine: dict[str, Any]) -> None:
    plain = cost(latency, **engine).gpu_ns(SHAPES[shape])
    for scale in (0.5, 1.37, 3.0):
        assert cost(latency, scale, **engine).gpu_ns(SHAPES[shape]) == pytest.approx(scale * plain, rel=1e-5)


@pytest.mark.parametrize("latency", KINDS, ids=lambda each: each["kind"])
def test_one_changes_nothing_and_the_host_keeps_its_time(latency: dict[str, Any]) -> None:
    plain, same, slower = cost(latency), cost(latency, 1.0), cost(latency, 1.7)
    for shape in SHAPES.values():
        assert same.gpu_ns(shape) == plain.gpu_ns(shape)
        assert slower.host_ns(shape) == plain.host_ns(shape)


@pytest.mark.parametrize("latency", KINDS, ids=lambda each: each["kind"])
def test_runs_of_decodes_are_the_same_integers_as_single_steps(latency: dict[str, Any]) -> None:
    scaled = cost(latency, 1.37)
    run = scaled.decode_run_ns(33, 33 * 500, 400)
    single = [
        scaled.gpu_ns(StepShape(num_decodes=33, decode_context_tokens=33 * (500 + i), num_sampled=33))
        for i in range(400)
    ]
    assert run.tolist() == single


@pytest.mark.parametrize("scale", [1.0, 1.37])
def test_terms_still_sum_to_the_step(scale: float) -> None:
    profiled = cost({"kind": "profile"}, scale, tensor_parallel_size=2)
    assert isinstance(profiled, ProfileCost)
    plain = cost({"kind": "profile"}, tensor_parallel_size=2)
    assert isinstance(plain, ProfileCost)
    for shape in SHAPES.values():
        terms = profiled.breakdown(shape)
        assert sum(terms.values()) == profiled.gpu_ns(shape)
        for name, ns in plain.breakdown(shape).items():
            assert terms[name] == pytest.approx(scale * ns, rel=1e-4, abs=50)


def test_the_summary_tells_it_and_steps_are_longer() -> None:
    scenario = {
        "name": "scaled",
        "workload": {
            "requests": 20,
            "arrival": {"process": "constant", "rate": 0.5},
            "input_tokens": {"dist": "fixed", "value": 300},
            "output_tokens": {"dist": "fixed", "value": 20},
        },
        "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm", "async_scheduling": False},
    }
    plain = sim.simulate(scenario).summary
    scaled = sim.simulate(scenario, overrides=["latency.time_scale=2.0"]).summary
    assert plain["run"]["latency"]["time_scale"] == 1.0
    assert scaled["run"]["latency"]["time_scale"] == 2.0
    # One request at a time: the accelerator's share of a token doubles, the host's stays.
    host_ms = plain["run"]["latency"]["host_overhead_ms"] + plain["run"]["latency"]["host_overhead_per_request_ms"]
    assert scaled["mean_tpot_ms"] - host_ms == pytest.approx(2 * (plain["mean_tpot_ms"] - host_ms), rel=1e-3)
    assert np.isclose(scaled["utilization"]["mean_step_ms"], 2 * plain["utilization"]["mean_step_ms"], rtol=1e-4)
