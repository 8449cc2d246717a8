"""From a scenario's ``engine`` and ``latency`` sections to a latency model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError
from sim.latency.base import StepCost
from sim.latency.constant import ConstantCost
from sim.latency.memory import load_model_and_gpu
from sim.latency.roofline import RooflineCost
from sim.latency.work import WorkModel

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig, LatencyConfig


def build_step_cost(engine: EngineConfig, latency: LatencyConfig, base_dir: Path | None = None) -> StepCost:
    """The latency model that the scenario asks for.

    Raises InputError for a constant without ``step_s``, an unknown model or GPU, a split that vLLM
    refuses, and for ``profile``, which this version does not read.
    """
    if latency.kind == "constant":
        if latency.step_s is None:
            raise InputError("latency.step_s: kind constant needs the time of a step, for example step_s: 0.05")
        return ConstantCost(round(latency.step_s * 1e9))
    if latency.kind == "profile":
        raise InputError(
            "latency.kind: this version reads no measured profiles; use roofline (an estimate) or constant"
        )
    model, gpu = load_model_and_gpu(engine, base_dir)
    return RooflineCost(model, gpu, engine, host_overhead_ms=latency.host_overhead_ms)


def build_work_model(engine: EngineConfig, latency: LatencyConfig, base_dir: Path | None = None) -> WorkModel | None:
    """FLOPs and bytes of steps, for MFU and bandwidth use; None where step times say nothing of a GPU."""
    if latency.kind == "constant":
        return None
    model, gpu = load_model_and_gpu(engine, base_dir)
    return WorkModel(model, gpu, engine)
