"""From scenario sections to a latency model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from engines import engine_config

from sim.errors import InputError
from sim.latency.base import StepShape
from sim.latency.build import build_step_cost, build_work_model
from sim.latency.profile import library
from sim.scenario.schema import LatencyConfig

ENGINE = engine_config(model="llama-2-7b", gpu="a100-80gb-sxm")


def test_constant() -> None:
    cost = build_step_cost(ENGINE, LatencyConfig(kind="constant", step_s=0.05))
    assert (cost.kind, cost.gpu_ns(StepShape())) == ("constant", 50_000_000)
    assert build_work_model(ENGINE, LatencyConfig(kind="constant", step_s=0.05)) is None


def test_constant_without_its_time_is_refused() -> None:
    with pytest.raises(InputError, match=r"latency\.step_s"):
        build_step_cost(ENGINE, LatencyConfig(kind="constant"))


def test_a_profile_is_the_default_where_the_gpu_has_one() -> None:
    cost = build_step_cost(ENGINE, LatencyConfig(host_overhead_ms=3.0))
    assert (cost.kind, cost.describe()["profile"]) == ("profile", "a100-80gb-sxm")
    assert cost.host_ns(StepShape(num_decodes=7)) == 3_000_000
    assert build_work_model(ENGINE, LatencyConfig()) is not None


def test_roofline_is_the_default_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert build_step_cost(ENGINE, LatencyConfig(kind="roofline")).kind == "roofline"
    monkeypatch.setattr(library, "BUILTIN", tmp_path)
    assert build_step_cost(ENGINE, LatencyConfig()).kind == "roofline"
    with pytest.raises(InputError, match=r"no built-in profile for a100-80gb-sxm \(there is: none"):
        build_step_cost(ENGINE, LatencyConfig(kind="profile"))


def test_the_smaller_a100_uses_the_larger_ones_curves_at_its_own_bandwidth() -> None:
    small = build_step_cost(ENGINE.model_copy(update={"gpu": "a100-40gb-sxm"}), LatencyConfig())
    shape = StepShape(num_decodes=1, num_sampled=1, decode_context_tokens=100)
    ratio = small.gpu_ns(shape) / build_step_cost(ENGINE, LatencyConfig()).gpu_ns(shape)
    assert 1.2 < ratio < 2039 / 1555


def test_profiles_that_are_not_there_or_of_another_gpu_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'h100-sxm'"):
        build_step_cost(ENGINE, LatencyConfig(profile="h100_sxm"))
    with pytest.raises(InputError, match=r"measured on h100-sxm, but engine\.gpu is a100-80gb-sxm"):
        build_step_cost(ENGINE, LatencyConfig(profile="h100-sxm"))


@pytest.mark.parametrize("kind", ["roofline", "profile"])
def test_a_stated_link_replaces_the_machines(kind: Literal["roofline", "profile"]) -> None:
    shape = StepShape(
        num_prefills=1, num_prefill_tokens=1024, prefill_context_tokens=1024, prefill_attention_pairs=1 << 20
    )
    engine = ENGINE.model_copy(update={"tensor_parallel_size": 2})
    slow, slower = (
        build_step_cost(engine, LatencyConfig(kind=kind, link_bandwidth_gb_s=rate, link_latency_us=50))
        for rate in (16.0, 8.0)
    )
    payload = 1024 * 4096 * 2
    passes = (2 * 32 + 1) * payload
    assert slower.gpu_ns(shape) - slow.gpu_ns(shape) == pytest.approx(passes / 16e9 * 1e9, rel=0.02)
    assert build_step_cost(engine, LatencyConfig(kind=kind)).gpu_ns(shape) < slow.gpu_ns(shape)


def test_names_and_splits_are_checked() -> None:
    with pytest.raises(InputError) as error:
        build_step_cost(engine_config(model="llama-2-7b", gpu="gtx", tensor_parallel_size=5), LatencyConfig())
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"time_scale": 1e9}, r"latency\.time_scale \(1000000000\.0\)"),
        ({"host_overhead_ms": 1e9}, r"latency\.host_overhead_ms \(1000000000\.0\)"),
        ({"kind": "constant", "step_s": 4000.0}, r"4e\+03 s, at most 3600 s are possible; look at latency\.step_s"),
        ({"link_bandwidth_gb_s": 1e-300}, r"latency\.link_bandwidth_gb_s \(1e-300\)"),
        ({"kind": "roofline", "link_bandwidth_gb_s": 1e-20}, r"latency\.link_bandwidth_gb_s \(1e-20\)"),
        ({"link_bandwidth_gb_s": 1.0, "link_latency_us": 1e9}, r"latency\.link_latency_us \(1000000000\.0\)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_steps_beyond_what_a_run_can_count_are_refused(values: dict[str, Any], told: str) -> None:
    engine = engine_config(model="llama-3.1-8b", gpu="a100-80gb-sxm", tensor_parallel_size=2)
    with pytest.raises(InputError, match=rf"^latency: a step of one token would take .*{told}"):
        build_step_cost(engine, LatencyConfig(**values))


@pytest.mark.parametrize("kind", ["roofline", "profile"])
def test_steps_that_take_next_to_nothing_take_a_nanosecond(kind: Literal["roofline", "profile"]) -> None:
    engine = engine_config(model="llama-3.1-8b", gpu="a100-80gb-sxm")
    cost = build_step_cost(engine, LatencyConfig(kind=kind, time_scale=1e-300))
    assert cost.gpu_ns(StepShape(num_decodes=1, decode_context_tokens=1, num_sampled=1)) == 1
