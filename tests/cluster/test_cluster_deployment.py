"""An engine configuration is resolved once a run, and its replicas share what comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_runs import ENGINE, ONE_SECOND, SECOND, lengths, scenario
from engines import engine_config

from sim.cluster.deployment import Deployment, resolve_deployment
from sim.latency import hf_config
from sim.latency.constant import ConstantCost
from sim.latency.lockstep_cost import LockstepCost
from sim.run import load, run
from sim.scenario.schema import LatencyConfig

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
WORKLOAD = lengths([8, 20], [3, 7], requests=20, arrival={"process": "poisson", "rate": 1.0})


def resolved(latency: dict[str, Any] | None = None, **engine: Any) -> Deployment:
    return resolve_deployment(engine_config(**{**ENGINE, **engine}), LatencyConfig(**(latency or ONE_SECOND)))


def test_models_are_read_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    read: list[str] = []
    real = hf_config.read_model_config

    def reading(path: Path) -> Any:
        read.append(path.parent.name)
        return real(path)

    monkeypatch.setattr(hf_config, "read_model_config", reading)
    drafting = {"method": "draft_model", "draft_model": str(tmp_path / "draft")}
    for latency in ({"kind": "roofline"}, {"kind": "profile"}):
        engine = {**ENGINE, "model": str(tmp_path / "target"), "speculative": drafting}
        document = scenario(WORKLOAD, engine=engine, latency=latency, cluster={"replicas": 3})
        loaded = load(document)  # fills in what the engine leaves to its model
        read.clear()
        run(loaded)
        assert sorted(read) == ["draft", "target"]


def test_another_step_cost_needs_no_other_scenario() -> None:
    loaded = load(scenario(WORKLOAD))
    half = replace(resolved(), cost=ConstantCost(SECOND // 2))
    results = run(loaded, deployment=half)
    assert results.record.latency["step_s"] == 0.5
    assert results.summary["utilization"]["mean_step_ms"] == 500
    assert run(loaded).summary["utilization"]["mean_step_ms"] == 1000


def test_what_follows_from_it() -> None:
    plain = resolved(tensor_parallel_size=2, pipeline_parallel_size=2)
    assert (plain.gpus, plain.depth, plain.shape_columns, plain.group_cost, plain.terms) == (4, 2, (), None, None)
    assert plain.work is None
    swapping = resolved(preemption="swap", swap_space_gib=1)
    assert swapping.shape_columns == ("swap_bytes",)
    drafting = resolved({"kind": "profile"}, speculative={"method": "ngram"}, async_scheduling=True)
    assert drafting.shape_columns == ("num_draft_tokens", "verify_attention_pairs")
    assert drafting.terms is not None
    assert drafting.work is not None
    assert (drafting.depth, resolved(async_scheduling=True).depth) == (1, 2)
    ranks = resolved(model="qwen3-30b-a3b", gpu="h100-sxm", data_parallel_size=2)
    assert isinstance(ranks.group_cost, LockstepCost)
    assert ranks.price.usd_per_gpu_hour > 0
