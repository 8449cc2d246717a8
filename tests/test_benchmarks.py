"""The speed benchmark: its scenarios are valid, it measures a whole process, and it misses targets out loud."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.speed_workloads import Workload, scenario_of, workloads
from sim.run import load


@pytest.mark.parametrize("workload", workloads(), ids=lambda workload: workload.name)
def test_scenarios_are_valid_at_every_scale(workload: Workload, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    for scale in (1.0, 0.01, 1e-9):
        scenario = load(scenario_of(workload, scale, str(trace))).scenario
        assert not scenario.outputs.report
        assert not scenario.outputs.trace
        if scenario.workload.trace is None:
            assert scenario.workload.requests == max(1, round(scale * workload.scenario["workload"]["requests"]))
    assert load(scenario_of(workload, 1.0, str(trace), all_outputs=True)).scenario.outputs.trace


def test_a_small_run_is_measured_and_misses_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    """Few requests cannot pay for the imports, so the target is missed, which only ``--check`` punishes."""
    assert speed.main(["--only", "b", "--scale", "0.005", "--check"]) == 1
    printed = capsys.readouterr()
    row = next(line for line in printed.out.splitlines() if line.startswith("| B: "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    cpu_s, simulation_s = float(cells[2].split()[0]), float(cells[8])
    assert cells[1] == "500"
    assert 0 < simulation_s < cpu_s
    assert float(cells[3].replace(",", "")) == pytest.approx(500 / cpu_s, rel=0.02)
    assert cells[5].startswith("no")
    assert "B: run 1 of 1" in printed.err


def test_without_its_trace_e_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "TRACE", tmp_path / "none.csv.gz")
    assert speed.main(["--only", "E", "--profile"]) == 0
    assert "E: not run: needs the Azure conversation trace (--trace)" in capsys.readouterr().out


def test_a_trace_beside_the_project_is_taken_without_being_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    monkeypatch.setattr(speed, "TRACE", trace)
    assert speed.main(["--only", "E"]) == 0
    printed = capsys.readouterr().out
    assert "not run" not in printed
    assert any(line.startswith("| E: ") for line in printed.splitlines())


@pytest.mark.parametrize(
    "arguments", [["--only", "G"], ["--scale", "0"], ["--repeat", "0"], ["--trace", "no such file"]], ids=" ".join
)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        speed.main(arguments)
    assert stop.value.code == 2


def test_a_failed_run_says_why() -> None:
    with pytest.raises(speed.RunFailed, match=r"exit 2: (?s:.*)no-such-model"):
        speed.measure(json.loads('{"engine": {"model": "no-such-model", "gpu": "h100-sxm"}}'))


def test_self_times_are_of_the_innermost_function() -> None:
    stacks = "main (cli.py:1);run (run.py:5);step (run.py:9) 30\nmain (cli.py:1) 10\nrun (run.py:5) 50\n 10\n"
    shares = speed.self_times(stacks)
    outside = (0.1, speed.OUTSIDE_PYTHON)
    assert shares == [(0.5, "run (run.py:5)"), (0.3, "step (run.py:9)"), (0.1, "main (cli.py:1)"), outside]
    assert speed.by_file(shares) == [(0.8, "run.py"), (0.1, "cli.py"), outside]


def test_targets_hold_speed_and_memory() -> None:
    workload = Workload("X", "", {}, least_rate=100, most_bytes=2e9)
    for cpu_s, peak_bytes, missed in [
        (10.0, 2_000_000_000, []),
        (12.5, 1, ["-20.0% in speed"]),
        (1.0, 3_000_000_000, ["+50.0% in memory"]),
        (20.0, 2_500_000_000, ["-50.0% in speed", "+25.0% in memory"]),
    ]:
        run = speed.Run(requests=1000, cpu_s=cpu_s, simulation_s=0.5, peak_bytes=peak_bytes)
        assert speed.misses(workload, run) == missed
