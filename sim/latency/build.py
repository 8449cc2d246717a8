"""From a scenario's ``engine`` and ``latency`` sections to a latency model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError
from sim.latency.base import StepCost
from sim.latency.constant import ConstantCost
from sim.latency.kind import latency_kind
from sim.latency.memory import load_model_and_gpu
from sim.latency.profile.library import find_profile
from sim.latency.roofline import RooflineCost
from sim.latency.work import WorkModel

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig, LatencyConfig


def build_step_cost(engine: EngineConfig, latency: LatencyConfig, base_dir: Path | None = None) -> StepCost:
    """The latency model that the scenario asks for.

    Raises InputError for a constant without ``step_s``, an unknown model or GPU, a split that vLLM refuses, and a
    profile that is not there, cannot be used, or is of another GPU.
    """
    kind = latency_kind(engine.gpu, latency)
    if kind == "constant":
        if latency.step_s is None:
            raise InputError("latency.step_s: kind constant needs the time of a step, for example step_s: 0.05")
        return ConstantCost(round(latency.step_s * 1e9))
    model, gpu = load_model_and_gpu(engine, base_dir)
    if kind == "roofline":
        return RooflineCost(model, gpu, engine, host_overhead_ms=latency.host_overhead_ms)
    from sim.latency.profile.cost import ProfileCost

    found = find_profile(latency.profile, gpu, base_dir)
    return ProfileCost(found, model, gpu, engine, host_overhead_ms=latency.host_overhead_ms)


def build_work_model(engine: EngineConfig, latency: LatencyConfig, base_dir: Path | None = None) -> WorkModel | None:
    """FLOPs and bytes of steps, for MFU and bandwidth use; None where step times say nothing of a GPU."""
    if latency_kind(engine.gpu, latency) == "constant":
        return None
    model, gpu = load_model_and_gpu(engine, base_dir)
    return WorkModel(model, gpu, engine)
