"""Engines whose steps cost what the built-in profiles say, for the tests of equality, and their costs kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sim.cluster.deployment import Deployment, resolve_deployment
from sim.latency.base import StepCost
from sim.latency.profile import operator_tables
from sim.latency.profile.file import Device, Profile
from sim.latency.profile.predict import Predictor
from sim.scenario.loader import LoadedScenario

PROFILED: list[tuple[dict[str, Any], list[float | None]]] = [
    ({}, [None, 0.0, 9.9, 10.2, 40.0]),
    ({"tensor_parallel_size": 2}, [None, 6.0]),
    ({"model": "llama-3.1-8b", "gpu": "l40s"}, [None]),
    ({"model": "mixtral-8x7b", "gpu": "h100-sxm", "tensor_parallel_size": 2}, [None, 7.5]),
    ({"model": "qwen3-30b-a3b", "gpu": "b200-sxm", "enforce_eager": True}, [None, 0.0]),
]
"""What an engine of Llama-2-7B on an A100 is changed to, dense and with experts, and the host's milliseconds beside it:
the profile's, none, about what the accelerator takes for one request or two, far more."""

COSTLY = [
    "model",
    "gpu",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "all2all_backend",
    "moe_backend",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "dtype",
    "kv_cache_dtype",
    "enforce_eager",
    "enable_expert_parallel",
    "speculative",
    "stepping",
]
"""All that a step cost takes of an engine, and the stepper: each makes tables of its own,
which some are filled in as they are asked for."""


@pytest.fixture(scope="module", autouse=True)
def kept_costs() -> Iterator[None]:
    """Within a module a profile is prepared once, not for each run."""
    predictors: dict[str, Predictor] = {}

    def prepared(profile: Profile, device: Device) -> Predictor:
        if profile.name not in predictors:
            predictors[profile.name] = Predictor(profile, device)
        return predictors[profile.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator_tables, "Predictor", prepared)
        yield


class Deployments:
    """What scenarios' engines are resolved to, with the step costs of profiles kept."""

    def __init__(self) -> None:
        self._costs: dict[str, StepCost] = {}

    def of(self, loaded: LoadedScenario) -> Deployment:
        """Resolve the engine of ``loaded``."""
        engine, latency = loaded.scenario.engine, loaded.scenario.latency
        key = f"{[getattr(engine, name) for name in COSTLY]} {latency}"
        deployment = resolve_deployment(engine, latency, loaded.base_dir, cost=self._costs.get(key))
        if latency.kind == "profile":
            self._costs[key] = deployment.cost
        return deployment


def profile_latency(host_overhead_ms: float | None) -> dict[str, Any]:
    """A scenario's ``latency``: the built-in profile of its GPU."""
    latency: dict[str, Any] = {"kind": "profile"}
    return latency if host_overhead_ms is None else {**latency, "host_overhead_ms": host_overhead_ms}
