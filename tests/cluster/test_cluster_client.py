"""What lies between a client and the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import simulate
from sim.results.results import Results

SCENARIO = """
name: client
workload:
  requests: 20
  arrival: {arrival}
  input_tokens: {{dist: fixed, value: 100}}
  output_tokens: {{dist: fixed, value: 5}}
engine: {{model: llama-3.1-8b, gpu: a100-80gb-sxm}}
latency: {latency}
"""


def run(tmp_path: Path, latency: str, arrival: str = "{process: poisson, rate: 20}") -> Results:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO.format(latency=latency, arrival=arrival), encoding="utf-8")
    return simulate(path)


def test_it_is_part_of_ttft_and_e2e_alone(tmp_path: Path) -> None:
    plain = run(tmp_path, "{kind: constant, step_s: 0.02}").summary
    seen = run(tmp_path, "{kind: constant, step_s: 0.02, client_overhead_ms: 7}").summary
    for name in ("mean", "p99"):
        assert seen[f"{name}_ttft_ms"] == pytest.approx(plain[f"{name}_ttft_ms"] + 7)
        assert seen[f"{name}_e2el_ms"] == pytest.approx(plain[f"{name}_e2el_ms"] + 7)
    for key in ("mean_tpot_ms", "p99_itl_ms"):
        assert seen[key] == plain[key]
    assert seen["queue"]["mean_queue_ms"] == plain["queue"]["mean_queue_ms"]
    assert seen["run"]["latency"]["client_overhead_ms"] == 7


def test_a_closed_loop_waits_for_it(tmp_path: Path) -> None:
    loop = "{process: closed_loop, concurrency: 1}"
    plain = run(tmp_path, "{kind: constant, step_s: 0.02}", loop).summary
    seen = run(tmp_path, "{kind: constant, step_s: 0.02, client_overhead_ms: 7}", loop).summary
    assert seen["duration"] == pytest.approx(plain["duration"] + 20 * 0.007)


def test_profiles_have_a_stated_figure_and_estimates_none(tmp_path: Path) -> None:
    assert run(tmp_path, "{kind: profile}").summary["run"]["latency"]["client_overhead_ms"] == 4
    assert run(tmp_path, "{kind: roofline}").summary["run"]["latency"]["client_overhead_ms"] == 0
