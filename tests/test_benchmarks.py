"""The speed benchmark: its scenarios are valid, it measures a whole process, and it misses targets out loud."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed, speed_machine, speed_profile, speed_ratios, speed_runs
from benchmarks.speed_workloads import MOONCAKE, Workload, one_request, scenario_of, workloads
from sim.run import load
from sim.scenario.distributions import PoissonArrival

AZURE_TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
MOONCAKE_TRACE = '{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [3, 4]}\n'


@pytest.mark.parametrize("workload", workloads(), ids=lambda workload: workload.name)
def test_scenarios_are_valid_at_every_scale(workload: Workload, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text(MOONCAKE_TRACE if workload.trace == MOONCAKE else AZURE_TRACE)
    for scale in (1.0, 0.01, 1e-9):
        document = scenario_of(workload, scale, str(trace))
        scenario = load(document).scenario
        assert not scenario.outputs.report
        assert not scenario.outputs.trace
        if scenario.workload.trace is None:
            size = workload.scenario["workload"]["requests"]
            assert scenario.workload.requests == (size if workload.is_fixed_size else max(1, round(scale * size)))
            assert load(one_request(document)).scenario.workload.requests == 1
        else:
            limited = load(one_request(document)).scenario.workload.trace
            assert limited is not None
            assert limited.limit == 1
    assert load(scenario_of(workload, 1.0, str(trace), all_outputs=True)).scenario.outputs.trace


@pytest.mark.parametrize("name", speed_ratios.GROWING)
@pytest.mark.parametrize("replicas", speed_ratios.REPLICAS)
def test_a_routed_workload_grows_at_the_same_load_each(name: str, replicas: int) -> None:
    scenario = load({"name": name, **speed_ratios.GROWING[name](5_000, replicas)}).scenario
    assert scenario.workload.requests == 5_000
    assert scenario.cluster.replicas == replicas
    assert scenario.cluster.router == name
    assert scenario.workload.arrival == PoissonArrival(process="poisson", rate=12.5 * replicas)


def test_a_small_run_is_measured_and_misses_its_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few requests cannot pay for the imports, so the target is missed, which only ``--check`` punishes."""
    file = tmp_path / "found.json"
    assert speed.main(["--only", "b", "--scale", "0.005", "--check", "--json", str(file)]) == 1
    printed = capsys.readouterr()
    row = next(line for line in printed.out.splitlines() if line.startswith("| B: "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    cpu_s, simulation_s = float(cells[2].split()[0]), float(cells[9])
    assert cells[1] == "500"
    assert 0 < simulation_s < cpu_s
    assert float(cells[3].replace(",", "")) == pytest.approx(500 / cpu_s, rel=0.02)
    assert cells[5].startswith("no")
    bar = float(cells[4].split()[0].replace(",", ""))
    assert bar == pytest.approx(20_000 / float(cells[6]), rel=0.02)
    assert "(20,000)" in cells[4]
    assert "missed: 1\n- B: -" in printed.out
    assert "B: run 1 of 1" in printed.err
    document = json.loads(file.read_text())
    assert [(row["name"], row["requests"]) for row in document["rows"]] == [("B", 500)]
    assert document["rows"][0]["requests_per_cpu_s"] == pytest.approx(500 / cpu_s, rel=0.02)
    assert document["ratios"] == document["failed"] == []
    assert len(document["shortfalls"]) == 1


def test_a_row_without_its_trace_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "TRACES", tmp_path)
    assert speed.main(["--only", "E,mooncake", "--profile"]) == 0
    printed = capsys.readouterr().out
    assert "E: not run: needs the Azure conversation trace (--trace)" in printed
    assert "mooncake round_robin: not run: needs Mooncake's trace (--mooncake)" in printed


def test_a_trace_beside_the_project_is_taken_without_being_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "TRACES", tmp_path)
    (tmp_path / "AzureLLMInferenceTrace_conv.csv.gz").write_bytes(gzip.compress(AZURE_TRACE.encode()))
    assert speed.main(["--only", "E"]) == 0
    printed = capsys.readouterr().out
    assert "not run" not in printed
    assert any(line.startswith("| E: ") for line in printed.splitlines())


def test_growth_runs_both_rows_at_both_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 ms of start-up, 1 ms a request on up to 16 replicas, 1.5 ms on 128: growth with replicas only."""

    def measured(label: str, scenario: dict[str, Any], repeat: int) -> tuple[speed_runs.Run, float]:
        requests, replicas = scenario["workload"]["requests"], scenario["cluster"]["replicas"]
        cpu_s = 0.002 + requests * (0.001 if replicas < 128 else 0.0015)
        return speed_runs.Run(requests, cpu_s, cpu_s / 2, 1), 0.0

    monkeypatch.setattr(speed_ratios, "measure_best", measured)
    assert speed.main(["--growth", "--check"]) == 1
    printed = capsys.readouterr().out
    assert "not run" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("CPU per request")]
    assert lines == [
        f"CPU per request of {name} from {ends}, start-up left out: {value} times; at most 1.3: {verdict}"
        for name in ("least_outstanding", "prefix_affinity")
        for ends, value, verdict in (
            ("10,000 to 1,000,000 requests", "1.00", "met"),
            ("8 to 128 replicas", "1.50", "MISSED"),
        )
    ]


def test_growth_is_taken_of_what_the_reference_machine_would_need() -> None:
    """100 requests in 2 s, 1 s of it start-up; 1,000 in 23 s while the machine was twice as slow: 10 and 10.5 ms."""
    start = speed_runs.Run(requests=1, cpu_s=1.0, simulation_s=0.0, peak_bytes=1)
    small = speed_runs.Run(requests=101, cpu_s=2.0, simulation_s=1.0, peak_bytes=1)
    large = speed_runs.Run(requests=1_001, cpu_s=23.0, simulation_s=22.0, peak_bytes=1, slowness=2.0)
    assert speed_ratios.growth("", (small, start), (large, start)).value == pytest.approx(1.05)


def test_the_fixed_loop_does_the_same_each_time() -> None:
    assert speed_machine.fixed_loop(1_000) == speed_machine.fixed_loop(1_000) != speed_machine.fixed_loop(1_001)
    assert 0.1 < speed_machine.slowness() < 100


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--only", "G"], ["--scale", "0"], ["--repeat", "0"], ["--trace", "no such file"]),
        *(["--mooncake", "no such file"], ["--quick", "--growth"]),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        speed.main(arguments)
    assert stop.value.code == 2


def test_a_failed_run_says_why() -> None:
    with pytest.raises(speed_runs.RunFailed, match=r"exit 2: (?s:.*)no-such-model"):
        speed_runs.measure(json.loads('{"engine": {"model": "no-such-model", "gpu": "h100-sxm"}}'))


def test_self_times_are_of_the_innermost_function() -> None:
    stacks = "main (cli.py:1);run (run.py:5);step (run.py:9) 30\nmain (cli.py:1) 10\nrun (run.py:5) 50\n 10\n"
    shares = speed_profile.self_times(stacks)
    outside = (0.1, speed_profile.OUTSIDE_PYTHON)
    assert shares == [(0.5, "run (run.py:5)"), (0.3, "step (run.py:9)"), (0.1, "main (cli.py:1)"), outside]
    assert speed_profile.by_file(shares) == [(0.8, "run.py"), (0.1, "cli.py"), outside]


def test_targets_hold_speed_and_memory() -> None:
    workload = Workload("X", "", {}, least_rate=100, most_bytes=2e9)
    start = speed_runs.Run(requests=1, cpu_s=1.0, simulation_s=0.0, peak_bytes=1)
    for cpu_s, peak_bytes, slowness, missed in [
        (10.0, 2_000_000_000, 1.0, []),
        (12.5, 1, 1.0, ["-20.0% in speed"]),
        (12.5, 1, 1.25, []),
        (12.5, 1, 0.8, ["-36.0% in speed"]),
        (1.0, 3_000_000_000, 1.0, ["+50.0% in memory"]),
        (20.0, 2_500_000_000, 1.0, ["-50.0% in speed", "+25.0% in memory"]),
    ]:
        run = speed_runs.Run(1000, cpu_s, simulation_s=0.5, peak_bytes=peak_bytes, slowness=slowness)
        assert speed.Row(workload, run, 0.0, start).misses == missed
