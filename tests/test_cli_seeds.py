"""``simrun --seeds`` from the outside: exit codes, streams, files, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.cli import main
from sim.progress import RunsBar
from sim.results.wording import nice_number

SCENARIO = """\
name: tiny
seed: 3
workload:
  requests: 40
  arrival: {process: poisson, rate: 20.0}
  input_tokens: {dist: uniform, low: 20, high: 200}
  output_tokens: {dist: uniform, low: 1, high: 30}
engine:
  model: llama-2-7b
  gpu: a100-80gb-sxm
slo: {ttft_p95_ms: 100000}
"""
LONG = SCENARIO.replace("requests: 40", "requests: 200000").replace("gpu:", "stepping: reference\n  gpu:")


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(SCENARIO)
    return str(path)


def simrun(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_the_table_has_intervals_within_80_columns(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert simrun(scenario, "--seeds", "2", "--jobs", "1", "--seed", "5", "--out", str(out), "--check-slo") == 0
    captured = capsys.readouterr()
    assert max(map(len, captured.out.splitlines())) <= 80
    assert "Mean of 2 seeds, 5 to 6 [low, high]" in captured.out
    assert "seeds.json" in captured.out
    assert captured.err == "simrun: SLO met in 2 of 2 seeds; exit code by the first\n"
    document = json.loads((out / "seeds.json").read_text())
    assert [each["seed"] for each in document["seeds"]] == [5, 6]
    metrics = document["metrics"]["mean_tpot_ms"]
    shown = (nice_number(metrics[name]) for name in ("mean", "low", "high"))
    assert "{} [{}, {}]".format(*shown) in captured.out
    assert json.loads((out / "summary.json").read_text())["run"]["seed"] == 5


def test_one_seed_has_the_profile_s_part_alone(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (scenario, "--seeds", "1", "--json", "--check-slo", "--set", "slo.ttft_p95_ms=0.001")
    assert simrun(*argv) == 3
    captured = capsys.readouterr()
    section = json.loads(captured.out)["intervals"]
    assert section["seeds"] == [3]
    assert section["slo_met_by_seed"] == [False]
    assert section["metrics"]["p99_e2el_ms"]["low"] < section["metrics"]["p99_e2el_ms"]["high"]
    assert "SLO met in 0 of 1 seeds" in captured.err
    assert "SLO missed: ttft_p95_ms" in captured.err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--seeds", "-2"], "--seeds"),
        (["--seeds", "many"], "--seeds"),
        (["--seeds", "2", "--jobs", "0"], "--jobs"),
        (["--jobs", "2"], "give --seeds too"),
        (["--seeds", "2", "--decisions", "x.jsonl"], "--decisions: it is about one run"),
        (["--seeds", "2", "--seed", str(2**63 - 1)], "beyond the largest seed"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    scenario: str, argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simrun(scenario, *argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err.splitlines()[-1]
    assert not Path("x.jsonl").exists()


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def wait_for_children(pid: int, number: int) -> list[int]:
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        found = children(pid)
        if len(found) >= number:
            return found
        time.sleep(0.05)
    raise AssertionError("the workers did not start")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


def start(tmp_path: Path) -> subprocess.Popen[str]:
    path = tmp_path / "long.yaml"
    path.write_text(LONG)
    argv = [sys.executable, "-m", "sim.cli", str(path), "--seeds", "4", "--jobs", "3", "--out", str(tmp_path / "out")]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)


def interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@needs_proc
def test_ctrl_c_ends_every_worker_and_says_what_was_done(tmp_path: Path) -> None:
    process = start(tmp_path)
    workers = wait_for_children(process.pid, 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    # Interrupted inside an import, CPython may end itself by the signal at exit: to a shell that is 130 too.
    assert process.returncode in (130, -signal.SIGINT)
    assert out == ""
    assert err.strip() == "simrun: interrupted: none of the 6 runs had finished"
    assert not [pid for pid in workers if is_running(pid)]
    assert not (tmp_path / "out").exists()


@needs_proc
def test_workers_go_when_the_command_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path)
    workers = wait_for_children(process.pid, 2)
    time.sleep(0.5)  # past the workers' reading of their scenario
    process.kill()
    process.communicate(timeout=60)
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s and any(is_running(pid) for pid in workers):
        time.sleep(0.05)
    assert not [pid for pid in workers if is_running(pid)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_over_runs_is_drawn_on_a_terminal_only() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with RunsBar(stream, quiet_s=0.0) as bar:
            bar(2, 7)
    assert "2/7" in terminal.getvalue()
    assert file.getvalue() == ""
    early = Terminal()
    with RunsBar(early, quiet_s=60.0) as bar:
        bar(2, 7)
    assert early.getvalue() == ""
