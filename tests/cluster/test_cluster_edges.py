"""Runs at the edge: nothing that runs, steps after the last token, and how far a run has got."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster_runs import ENGINE, SECOND, lengths, scenario

import sim
from sim.cluster import gateway
from sim.run import load, run

H100: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_model_len": 32}
KINDS: dict[str, dict[str, Any]] = {
    "plain": H100,
    "drafts": {**H100, "speculative": {"method": "ngram", "num_speculative_tokens": 2}},
    "swap": {**H100, "preemption": "swap"},
    "ranks": {**H100, "model": "qwen3-30b-a3b", "tensor_parallel_size": 2, "data_parallel_size": 2},
    "stages": {**H100, "pipeline_parallel_size": 2},
}


@pytest.mark.parametrize("stepping", ["fast", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_when_all_requests_are_rejected_there_are_results_all_the_same(
    kind: str, stepping: str, tmp_path: Path
) -> None:
    workload = lengths([40, 50], [4], requests=3, arrival={"process": "constant", "rate": 2.0})
    workload["input_tokens"] = {"dist": "lognormal", "mean": 300, "cv": 0.3}
    document = scenario(workload, engine={**KINDS[kind], "stepping": stepping}, latency={"kind": "roofline"})
    results = sim.simulate(document)
    results.write(tmp_path / "out")
    counts = results.summary["counts"]
    assert (counts["submitted"], counts["rejected"], counts["completed"]) == (3, 3, 0)
    assert results.summary["utilization"]["steps"] == 0
    assert len(list((tmp_path / "out").iterdir())) == 6


@pytest.mark.parametrize("stepping", ["fast", "reference"])
@pytest.mark.parametrize(
    "engine",
    [
        {},
        {"async_scheduling": True},
        {"async_scheduling": True, "speculative": {"method": "ngram", "num_speculative_tokens": 4, "acceptance": 0.9}},
    ],
    ids=["sync", "async", "drafts"],
)
def test_accelerators_are_never_busier_than_always(engine: dict[str, Any], stepping: str) -> None:
    """The host takes no time, so they are busy from the first arrival on; an engine that schedules ahead computes a
    step more than it needs, after the last token."""
    workload = lengths(
        [10], [4, 6], requests=3, arrival={"process": "burst"}, max_tokens={"dist": "fixed", "value": 99}
    )
    document = scenario(
        workload,
        engine={**ENGINE, **engine, "stepping": stepping},
        latency={"kind": "roofline", "host_overhead_ms": 0},
        cluster={"replicas": 2},
    )
    summary = sim.simulate(document).summary
    for each in summary["replicas"]:
        assert each["busy_fraction"] <= 1
    assert max(each["busy_fraction"] for each in summary["replicas"]) > 0.995
    assert summary["utilization"]["busy_fraction"] <= 1
    steps = sim.simulate(document).record.steps
    assert summary["run"]["simulated_s"] == steps["end_ns"].max() / SECOND


@pytest.mark.parametrize("stepping", ["fast", "reference"])
@pytest.mark.parametrize("router", ["round_robin", "least_outstanding"])
def test_progress_tells_how_far_the_run_has_got(stepping: str, router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "PROGRESS_INTERVAL_S", 0.0)
    workload = lengths([10, 30], [4, 6], requests=2000, arrival={"process": "poisson", "rate": 2.0})
    engine = {**ENGINE, "async_scheduling": True, "stepping": stepping}
    told: list[tuple[int, int, int]] = []
    cluster = {"replicas": 2, "router": router}
    results = run(load(scenario(workload, engine=engine, cluster=cluster)), progress=lambda *now: told.append(now))
    assert len(told) > 3
    assert [ended for ended, _, _ in told] == sorted(ended for ended, _, _ in told)
    instants = [now_ns for _, _, now_ns in told]
    assert instants == sorted(instants)
    last_ns = results.record.requests["finish_ns"].max()
    assert 0.8 * last_ns < instants[-1] <= last_ns
