"""``simrun`` from the outside: exit codes, streams, files."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.cli import main
from sim.errors import InputError, SimulationError
from sim.progress import ProgressBar

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
  gpu_memory_utilization: 0.9
slo: {ttft_p95_ms: 100000}
"""
FILES = {
    *("summary.json", "requests.parquet", "steps.parquet", "scenario.resolved.yaml", "report.html", "trace.json.gz"),
}


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


def without_timing(summary: dict[str, Any]) -> dict[str, Any]:
    for key in ("cpu_s", "wall_s"):
        del summary["run"][key]
    return summary


def test_a_run_prints_a_summary_within_80_columns(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun(scenario) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "step times    measured, profile a100-80gb-sxm" in captured.out
    assert "error         about " in captured.out
    assert "40 of 40 completed" in captured.out
    assert max(map(len, captured.out.splitlines())) <= 80


def test_json_alone_on_stdout_and_the_same_from_run_and_library(
    scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simrun(scenario, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert simrun("run", "--json", scenario) == 0
    second = json.loads(capsys.readouterr().out)
    assert without_timing(first) == without_timing(second)
    assert without_timing(sim.simulate(scenario).summary) == first
    assert first["utilization"]["mfu"] > 0
    assert first["cost"]["usd_per_million_tokens"] > 0


def test_seed_and_set_reach_the_run(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun("--json", "--seed", "9", "--set", "workload.requests=7", scenario) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["run"]["seed"] == 9
    assert summary["counts"]["submitted"] == 7
    assert without_timing(sim.simulate(scenario, overrides=["workload.requests=7"], seed=9).summary) == without_timing(
        summary
    )


def test_out_gets_all_files(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert simrun(scenario, "--out", str(out)) == 0
    assert {path.name for path in out.iterdir()} == FILES
    assert "report.html" in capsys.readouterr().out
    assert simrun(str(out / "scenario.resolved.yaml"), "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert without_timing(again) == without_timing(json.loads((out / "summary.json").read_text()))


def test_decisions_file_counts_every_token(scenario: str, tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    assert simrun(scenario, "--json", "--decisions", str(path)) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"step", "time_s", "replica", "scheduled", "preempted", "finished", "free_blocks"} <= set(lines[0])
    assert {name for line in lines for name in line["scheduled"]} == {str(i) for i in range(40)}
    assert [each.name for each in tmp_path.iterdir() if "part" in each.name] == []


def test_check_slo(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun(scenario, "--check-slo") == 0
    capsys.readouterr()
    assert simrun(scenario, "--check-slo", "--set", "slo.ttft_p95_ms=0.001") == 3
    assert "SLO missed: ttft_p95_ms" in capsys.readouterr().err
    assert simrun(scenario, "--set", "slo.ttft_p95_ms=0.001") == 0
    capsys.readouterr()
    assert simrun(scenario, "--check-slo", "--set", "slo=null") == 0
    assert "nothing to check" in capsys.readouterr().err


def test_bad_input_is_exit_2_with_every_problem(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    argv = [scenario, "--set", "engine.max_num_seq=1", "--set", "workload.requests=-1"]
    argv += ["--out", str(tmp_path / "file"), "--decisions", str(tmp_path / "no" / "x.jsonl")]
    assert simrun(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for expected in ("max_num_seqs", "workload.requests", "--out", "--decisions"):
        assert expected in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["missing.yaml"], "no such scenario file"),
        (["x.yaml", "--jsno"], "'--json'"),
        (["x.yaml", "--seed", "-1"], "--seed"),
        (["x.yaml", "y.yaml"], "unexpected extra argument"),
        (["--out"], "requires an argument"),
    ],
)
def test_usage_errors_are_exit_2(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun(*argv) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_without_permission(scenario: str, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert simrun(scenario, "--out", str(locked)) == 2


def raising(error: BaseException) -> Any:
    def run(*_: object, **__: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (SimulationError("block 7 leaked by request 3"), 1, "simrun: the simulation failed: block 7 leaked"),
        (InputError("trace line 3"), 2, "simrun: trace line 3"),
        (KeyError("x"), 1, "KeyError: 'x' (run with SIMRUN_TRACEBACK=1"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "simrun: interrupted"),
    ],
)
def test_failures_are_one_line(
    scenario: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    expected: str,
) -> None:
    monkeypatch.delenv("SIMRUN_TRACEBACK", raising=False)
    monkeypatch.setattr("sim.run.run", raising(error))
    out, decisions = tmp_path / "out", tmp_path / "d.jsonl"
    assert simrun(scenario, "--out", str(out), "--decisions", str(decisions)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip().startswith("simrun:")
    assert expected in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["tiny.yaml"]


def test_traceback_on_request(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMRUN_TRACEBACK", "1")
    monkeypatch.setattr("sim.run.run", raising(KeyError("x")))
    with pytest.raises(KeyError):
        main([scenario])


@pytest.mark.parametrize("command", ["schema", "policies", "models", "gpus"])
def test_listings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun(command) == 0
    out = capsys.readouterr().out
    expected = {"schema": "draft-07", "policies": "fcfs", "models": "llama-2-7b", "gpus": "h100-sxm"}[command]
    assert expected in out
    if command == "schema":
        assert json.loads(out)["$schema"].startswith("http://json-schema.org/draft-07")
    else:
        assert max(map(len, out.splitlines())) <= 80


def test_columns_of_the_models_do_not_run_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun("models") == 0
    head, *rows, _, _, _ = capsys.readouterr().out.splitlines()
    assert {len(row.split()) for row in rows} == {len(head.split())}
    scout = next(row for row in rows if row.startswith("llama-4-scout"))
    assert scout.split()[-5:] == ["107.8B", "chunk:36+full:12", "bfloat16", "192.0K", "10M"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun("--version") == 0
    assert capsys.readouterr().out == f"simrun {sim.__version__}\n"


def test_version_is_the_distributions() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert sim.__version__ == project["version"]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from sim.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'matplotlib', 'rich', 'pydantic', 'simpy', 'ruamel.yaml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for expected in ("--check-slo", "--decisions", "policies", "Exit codes"):
        assert expected in done.stdout


def test_a_run_needs_neither_pandas_nor_matplotlib(scenario: str, tmp_path: Path) -> None:
    program = (
        "import sys; from sim.cli import main\n"
        f"try: main([{scenario!r}, '--out', {str(tmp_path / 'o')!r}])\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "print(sorted({'pandas', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, None)])
def test_a_process_starts_no_threads_for_matrices_unless_told(given: dict[str, str], expected: str | None) -> None:
    code = (
        "import os, sys; from sim.cli import main\n"
        "try: main(['--version'])\n"
        "finally: print(os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    plain = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**plain, **given})
    assert done.stdout.splitlines()[-1] == str(expected)


def test_ctrl_c_is_130_and_leaves_nothing(scenario: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "sim.cli", scenario, "--set", "workload.requests=2000000", "--set"]
    argv += ["workload.arrival.rate=5", "--out", str(tmp_path / "o"), "--decisions", str(tmp_path / "d.jsonl")]
    process = subprocess.Popen(
        argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    deadline = time.monotonic() + 120  # on a busy machine it may take long to get there
    while not list(tmp_path.glob("d.jsonl.*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    has_begun = bool(list(tmp_path.glob("d.jsonl.*")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert has_begun
    assert process.returncode == 130
    assert out == ""
    assert err.strip().splitlines()[-1] == "simrun: interrupted"
    assert "Traceback" not in err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["tiny.yaml"]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_only_on_a_terminal_and_only_after_a_while() -> None:
    quiet, pipe, shown = Screen(), io.StringIO(), Screen()
    for file, quiet_s in ((quiet, 60.0), (pipe, 0.0), (shown, 0.0)):
        with ProgressBar(file, quiet_s) as bar:
            bar(1, 10, 2_000_000_000)
            bar(5, 10, 4_000_000_000)
    assert quiet.getvalue() == pipe.getvalue() == ""
    assert "requests" in shown.getvalue()


def test_simulate_takes_a_dictionary_and_says_what_is_wrong_with_it() -> None:
    document: dict[str, Any] = {
        "name": "from-python",
        "workload": {
            "requests": 5,
            "arrival": {"process": "burst"},
            "input_tokens": {"dist": "fixed", "value": 32},
            "output_tokens": {"dist": "fixed", "value": 4},
        },
        "engine": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm"},
        "latency": {"kind": "constant", "step_s": 0.01},
    }
    results = sim.simulate(document, overrides=["workload.requests=6"])
    assert results.summary["completed"] == 6
    assert len(results.requests) == 6
    assert results.requests["output_tokens"].eq(4).all()
    assert document["workload"]["requests"] == 5, "the caller's dictionary is left alone"
    with pytest.raises(InputError, match="modl"):
        sim.simulate({**document, "engine": {"modl": "x"}})


def test_simulate_takes_what_was_loaded_and_overrides_it_too(scenario: str) -> None:
    from sim.checks.loading import load_scenario

    loaded = load_scenario(scenario)
    expected = without_timing(sim.simulate(scenario, overrides=["workload.requests=8"], seed=4).summary)
    for given in (loaded, loaded.scenario):
        assert without_timing(sim.simulate(given, overrides=["workload.requests=8"], seed=4).summary) == expected
        assert sim.simulate(given).summary["completed"] == 40
    with pytest.raises(InputError, match="dotted"):
        sim.simulate(loaded, overrides=["nonsense"])


def test_help_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["-h"], ["run", "--help"]):
        assert simrun(*argv) == 0
        out = capsys.readouterr().out
        assert "--check-slo" in out
        assert max(map(len, out.splitlines())) <= 80


def test_decisions_to_a_device_are_written_directly(scenario: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert simrun(scenario, "--decisions", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()


def test_places_that_cannot_be_written(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun(scenario, "--out", "", "--decisions", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert "--out: give the name of a folder" in err
    assert "a folder; give a file's name" in err


def test_a_class_slo_missed_is_named(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun(scenario, "--check-slo", "--set", "workload.slo={e2el_p99_ms: 0.001}") == 3
    assert "SLO missed: e2el_p99_ms of class" in capsys.readouterr().err


needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
NO_SPACE = os.strerror(errno.ENOSPC)


@needs_full_device
def test_decisions_to_a_full_disk(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun(scenario, "--decisions", "/dev/full") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"simrun: cannot write --decisions /dev/full: {NO_SPACE}\n"


@needs_full_device
@pytest.mark.parametrize("argv", [["--json"], [], None], ids=["json", "tables", "a listing"])
def test_standard_output_to_a_full_disk(scenario: str, argv: list[str] | None) -> None:
    command = ["models"] if argv is None else [scenario, *argv]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sim.cli", *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, f"simrun: cannot write standard output: {NO_SPACE}\n")


@needs_full_device
def test_help_to_a_full_disk_is_no_bug() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sim.cli", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, f"simrun: cannot write its output: {NO_SPACE}\n")


@pytest.mark.parametrize("option", ["--out", "--decisions"])
def test_a_disk_that_fills_on_the_way(option: str, scenario: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    program = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        f"from sim.cli import main; main([{scenario!r}, {option!r}, {str(target)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    shown = f"{option} {target}" if option == "--decisions" else str(target)
    assert done.stderr.startswith(f"simrun: cannot write {shown}: {os.strerror(errno.EFBIG)}")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny.yaml"]


def test_a_closed_standard_output(scenario: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert simrun(scenario) == 1
    assert capsys.readouterr().err == "simrun: cannot write standard output: it is closed\n"


@pytest.mark.parametrize("arguments", [None, ["--help"], ["schema"]])
def test_a_reader_that_has_gone_is_no_error(scenario: str, arguments: list[str] | None) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "sim.cli", *(arguments or [scenario, "--json"])],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_killed_run_leaves_a_part_that_the_next_one_removes(scenario: str, tmp_path: Path) -> None:
    decisions = tmp_path / "d.jsonl"
    long_run = [scenario, "--set", "workload.requests=2000000", "--set", "workload.arrival.rate=5"]
    argv = [sys.executable, "-m", "sim.cli", *long_run, "--decisions", str(decisions)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120

    def parts() -> list[str]:
        return [each.name for each in tmp_path.iterdir() if each.name.endswith(".part")]

    while not parts() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    mine = tmp_path / "d.jsonl.mine.part.txt"
    mine.write_text("kept")
    assert simrun(scenario, "--decisions", str(decisions)) == 0
    assert parts() == [f"d.jsonl.{process.pid}.part"], "a run under way keeps its part"
    process.kill()
    process.wait()
    assert parts() == [f"d.jsonl.{process.pid}.part"]
    assert simrun(scenario, "--decisions", str(decisions)) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["d.jsonl", mine.name, "tiny.yaml"]


@pytest.mark.parametrize(
    ("body", "option", "message"),
    [
        (
            "def rank(self, request, now_ns): return request.nothing",
            "engine.policy=mine:Mine",
            "mine.py:7: AttributeError",
        ),
        ("def rank(self, request, now_ns): return float('nan')", "engine.policy=mine:Mine", "ranked request 0 NaN"),
        ("def choose(self, request, replicas, now_ns): return -1", "cluster.router=mine:Mine", "chose replica -1 of 1"),
    ],
)
def test_mistakes_in_a_users_own_code_are_told_as_theirs(tmp_path: Path, body: str, option: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom policies.base import Policy\n@dataclass(kw_only=True)\n"
        f"class Mine(Policy):\n    name = 'mine'\n    summary = 'x'\n    {body}\n"
    )
    scenario = Path(__file__).parents[1] / "scenarios" / "quickstart.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "sim.cli", str(scenario), "--set", option],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "bug in simrun" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
