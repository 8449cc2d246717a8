"""The workloads of ``benchmarks.speed`` and what each has to reach."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The standard library only, see ``speed``.

TRACE_LENGTH = 19_366
"""Requests in the Azure conversation trace of 2023."""

Scenario = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A scenario and what it has to reach."""

    name: str
    what: str
    scenario: Scenario
    least_rate: float
    """Requests per CPU-second."""
    most_bytes: float | None = None
    """Peak resident memory."""


def _fixed(tokens: int) -> Scenario:
    return {"dist": "fixed", "value": tokens}


def _lognormal(mean: int) -> Scenario:
    return {"dist": "lognormal", "mean": mean, "cv": 1.0}


def _scenario(requests: int, rate: float, lengths: tuple[Scenario, Scenario], replicas: int, **engine: Any) -> Scenario:
    return {
        "workload": {
            "requests": requests,
            "arrival": {"process": "poisson", "rate": rate},
            "input_tokens": lengths[0],
            "output_tokens": lengths[1],
        },
        "cluster": {"replicas": replicas, "router": "round_robin"},
        "engine": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", **engine},
    }


def workloads() -> list[Workload]:
    """All of them, in order. The path of E's trace is left open."""
    short = _fixed(200), _fixed(150)
    trace = {
        "workload": {"trace": {"path": None, "format": "azure", "rate_scale": 4.0}},
        "cluster": {"replicas": 4},
        "engine": {
            "model": "llama-3.1-8b",
            "gpu": "a100-80gb-sxm",
            "max_model_len": 16_384,
            "num_gpu_blocks_override": 6_000,
            "policy": "srtf",
        },
    }
    # 100,000 requests within ten seconds: batches full, hundreds waiting, preemption.
    full = {
        policy: _scenario(100_000, 10_000.0, short, 100, num_gpu_blocks_override=2_000, policy=policy)
        for policy in ("fcfs", "hybrid")
    }
    light = _scenario(100_000, 4.0, (_fixed(512), _fixed(128)), 1)
    spread = _scenario(100_000, 3_000.0, (_lognormal(200), _lognormal(150)), 100)
    return [
        Workload("A", "1 replica, 512 in / 128 out, 4/s", light, 20_000),
        Workload("B", "100 replicas, 200/150, 167/s", _scenario(100_000, 167.0, short, 100), 20_000),
        Workload("C", "as B, lognormal lengths, 3,000/s", spread, 12_000),
        Workload("D", "100 replicas, 200/150, 1,000/s", _scenario(1_000_000, 1_000.0, short, 100), 1_000_000 / 60, 2e9),
        Workload("E", "Azure conversations at 4x, 4 replicas, srtf", trace, 8_000),
        Workload("F fcfs", "B within 10 s, 2,000 KV blocks", full["fcfs"], 8_000),
        Workload("F hybrid", "B within 10 s, 2,000 KV blocks", full["hybrid"], 8_000),
    ]


def scenario_of(workload: Workload, scale: float, trace: str | None, *, all_outputs: bool = False) -> Scenario:
    """The scenario to run: ``scale`` times the requests at the same rate."""
    scenario = deepcopy(workload.scenario)
    scenario["name"] = workload.name
    scenario["outputs"] = {"report": all_outputs, "trace": all_outputs}
    traffic = scenario["workload"]
    if "trace" in traffic:
        traffic["trace"]["path"] = None if trace is None else str(Path(trace).resolve())
        if scale != 1:
            traffic["trace"]["limit"] = max(1, round(scale * TRACE_LENGTH))
    else:
        traffic["requests"] = max(1, round(scale * traffic["requests"]))
    return scenario
