"""L = lambda W in every run, whatever its traffic and settings: from the summary and from the requests."""

from __future__ import annotations

from typing import Any

import pytest

import sim

ENGINE: dict[str, Any] = {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "max_model_len": 600}
OPEN: dict[str, Any] = {
    "requests": 150,
    "arrival": {"process": "poisson", "rate": 30.0},
    "input_tokens": {"dist": "uniform", "low": 10, "high": 400},
    "output_tokens": {"dist": "lognormal", "mean": 40, "cv": 1, "max": 150},
}
CLOSED = {**OPEN, "arrival": {"process": "closed_loop", "concurrency": 7, "think_time_s": 0.05}}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "late first arrival": {"workload": {**OPEN, "arrival": {"process": "burst", "at_s": 12.5}}},
    "closed loop": {"workload": CLOSED},
    "sessions": {"workload": {**OPEN, "sessions": {"turns": 3, "think_time_s": 0.3}}},
    "replicas": {"cluster": {"replicas": 3, "router": "power_of_two"}},
    "pressure": {"engine": {**ENGINE, "num_gpu_blocks_override": 60}},
    "rejected": {"engine": {**ENGINE, "max_model_len": 250}},
    "static": {"engine": {**ENGINE, "batching": "static", "max_num_seqs": 8}},
    "swap": {"engine": {**ENGINE, "num_gpu_blocks_override": 60, "preemption": "swap"}},
    "srtf": {"engine": {**ENGINE, "policy": "srtf", "max_num_seqs": 4}},
    "constant, synchronous": {
        "engine": {**ENGINE, "async_scheduling": False},
        "latency": {"kind": "constant", "step_s": 0.02},
    },
    "pipeline": {"engine": {**ENGINE, "pipeline_parallel_size": 2}},
}


def time_average(comings: list[float], goings: list[float]) -> float:
    """Mean number present from the first coming to the last going, by adding up rectangles."""
    events = sorted([(at, 1) for at in comings] + [(at, -1) for at in goings])
    area, present, last = 0.0, 0, events[0][0]
    for at, change in events:
        area += present * (at - last)
        present, last = present + change, at
    assert present == 0
    return area / (events[-1][0] - events[0][0])


@pytest.mark.parametrize("name", RUNS)
def test_littles_law(name: str) -> None:
    scenario = {"name": name, "workload": OPEN, "engine": ENGINE, **RUNS[name]}
    results = sim.simulate(scenario)
    queue, done = results.summary["queue"], results.requests.query("status == 'completed'")
    assert len(done) >= 20
    if name == "rejected":
        assert results.summary["counts"]["rejected"] > 0
    if name in ("pressure", "swap", "srtf"):
        assert results.summary["preemptions"]["total"] > 0

    assert queue["mean_in_system"] == pytest.approx(queue["lambda_w_in_system"], rel=1e-9)
    assert queue["mean_waiting"] == pytest.approx(queue["lambda_w_waiting"], rel=1e-9, abs=1e-12)

    window_s = done["finish_s"].max() - results.requests["arrival_s"].min()
    assert results.summary["duration"] == pytest.approx(window_s, rel=1e-9)
    in_system = time_average(done["arrival_s"].tolist(), done["finish_s"].tolist())
    if name != "rejected":  # a rejected first or last arrival moves the window's ends
        assert queue["mean_in_system"] == pytest.approx(in_system, rel=1e-6)
    assert queue["mean_in_system"] == pytest.approx(done["e2el_ms"].sum() / 1e3 / window_s, rel=1e-6)
    per_second = queue["lambda_w_in_system"] / queue["mean_time_in_system_s"]
    assert per_second * window_s == pytest.approx(len(done), rel=1e-9)
    first_to_last = done["arrival_s"].max() - done["arrival_s"].min()
    if first_to_last == 0:
        assert queue["arrival_rate"] is None, "all at one instant"
    elif name != "rejected":
        assert queue["arrival_rate"] * first_to_last == pytest.approx(len(done) - 1, rel=1e-9)
    assert queue["mean_waiting"] == pytest.approx(done["queue_ms"].sum() / 1e3 / window_s, rel=1e-6, abs=1e-9)
