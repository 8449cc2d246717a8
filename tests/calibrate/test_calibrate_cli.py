"""The command line: what it prints, its exit codes, and one clear line for whatever is wrong."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import FakeTorch

from gpu_calibrate import cli
from gpu_calibrate.commands import calibration, cublas, kernel_checks, selftest
from gpu_calibrate.commands.calibration import Calibration, profile_of
from gpu_calibrate.commands.compare import compare, predicted_rows
from gpu_calibrate.commands.plots import PLOTS
from gpu_calibrate.device import cuda
from gpu_calibrate.device.base import DeviceError, Prepared
from gpu_calibrate.device.simulated import SimulatedDevice
from gpu_calibrate.plan.grid import QUICK_S, plan
from gpu_calibrate.timing.store import Store
from sim.errors import InputError
from sim.latency.profile.cost import HOST_STEP_NS
from sim.latency.profile.file import Gate, Profile, load_profile, save_profile
from sim.latency.profile.library import builtin_names


def gpu_calibrate(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def measured(folder: Path, device: SimulatedDevice, name: str) -> Profile:
    with Store(folder / f"{name}.partial.jsonl", device.facts) as store:
        calibration = Calibration(device, plan(device.gpu, QUICK_S), store, 1e9)
        calibration.measure()
        return profile_of(calibration, name, "gpu-calibrate run")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiles")
    save_profile(measured(folder, SimulatedDevice(), "a"), folder / "a.json.gz")
    save_profile(measured(folder, SimulatedDevice(seed=5), "b"), folder / "b.json.gz")
    save_profile(measured(folder, SimulatedDevice(bandwidth_share=0.4), "slow"), folder / "slow.json")
    return folder


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[SimulatedDevice]:
    """`gpu-calibrate run` meets this device instead of a GPU."""
    devices = [SimulatedDevice()]
    monkeypatch.setattr(cuda, "open_device", lambda gpu: devices[0])
    monkeypatch.setattr(calibration, "cuda_extras", lambda *_: [("host", lambda: HOST)])
    return devices


HOST = {"step_ns": 250_000.0, "request_ns": 900.0, "origin": "test"}


def test_help_is_there_at_once() -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "gpu_calibrate.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert time.perf_counter() - started < 5.0, "nothing heavy is imported; on a quiet machine 0.15 s"
    for command in ("run", "check", "show", "import", "compare", "doctor", "selftest"):
        assert f"\n  {command} " in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom gpu_calibrate import cli\n"
        "try:\n    cli.main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'pydantic', 'torch', 'cupy', 'rich', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--out", "x.json"], "needs torch"),
        (["run", "--out", "no/such/folder/x.json"], "there is no folder no/such/folder"),
        (["run", "--out", "."], "a folder"),
        (["run", "--out", "x.json", "--only", "gem"], "--only gem: no such operator; known are gemm"),
        (["selftest", "--part", "kernel"], "--part kernel: no such part; there are kernels, ladder"),
        (["selftest"], "needs torch"),
        (["selftest", "--table", "--out", "nowhere"], "no such folder"),
        (["show", "nothing.json"], "cannot read the profile"),
        (["check", "nothing.json"], "cannot read the profile"),
        (["compare", "h200-sxm", "nothing.json"], "cannot read the profile"),
        (["import", "--from", "elsewhere", "--gpu", "h200_sxm", "--out", "x.json"], "unknown source 'elsewhere'"),
        (["run"], "Missing option '--out'"),
        (["measure"], "No such command 'measure'"),
        (["run", "--out", "x.json", "--budget", "0"], "0.0 is not in the range"),
        (["run", "--out", "x.json", "--budget", "nan"], "--budget nan: give the seconds"),
        (["compare", "nothing.json", "nobody.json"], "nobody.json: cannot read the profile"),
        (["show", "h200-sxm", "--plots", "/dev/null"], "--plots /dev/null: a file, not a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(cuda, "gpu_present", lambda: True)
    assert gpu_calibrate(*arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("arguments", [["run", "--out", "x.json"], ["selftest"]], ids=" ".join)
def test_without_a_gpu_that_is_said_before_torch_is_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("gpu_calibrate.device.state.subprocess.run", _missing)
    monkeypatch.setattr("gpu_calibrate.device.state.count_gpus", lambda: 0)
    assert gpu_calibrate(*arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("gpu-calibrate: no NVIDIA GPU or no driver is on this machine; ")
    assert told.count("\n") == 1
    assert "torch" not in told


def test_a_file_that_is_no_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert gpu_calibrate("show", str(path)) == 2
    assert f"{path}: not a profile" in capsys.readouterr().err


def test_a_run_writes_a_profile_and_cleans_up(
    simulated: list[SimulatedDevice], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.json.gz"
    assert gpu_calibrate("run", "--quick", "--out", str(out)) == 0
    captured = capsys.readouterr()
    assert "median held-out error" in captured.out
    assert "points, about" in captured.err
    profile = load_profile(out)
    assert profile.name == "mine"
    assert profile.host is not None
    assert profile.host.step_ns == HOST_STEP_NS, "the floor that was measured is under what engines take"
    assert "250 us a step, 0.90 us a request" in profile.host.origin
    assert profile.host.eager_launch_ns == 6500
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json.gz"]


def test_only_some_operators_is_no_whole_profile(
    simulated: list[SimulatedDevice], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gemm.json"
    assert gpu_calibrate("run", "--quick", "--only", "gemm", "--out", str(out), "--name", "few") == 1
    assert "gate complete failed: without prefill_attention, decode_attention" in capsys.readouterr().err
    assert set(load_profile(out, allow_failed_gates=True).operators) == {"gemm"}


def test_an_interrupt_keeps_and_says_how_to_go_on(
    simulated: list[SimulatedDevice], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(SimulatedDevice):
        __slots__ = ()

        def replay(self, order: Sequence[Prepared]) -> list[float]:
            if self.replays > 1000:
                raise KeyboardInterrupt
            return super().replay(order)

    simulated[0] = Interrupted()
    out = tmp_path / "mine.json"
    assert gpu_calibrate("run", "--quick", "--out", str(out)) == 130
    message = capsys.readouterr().err
    assert "points are kept in" in message
    assert "the same command" in message
    assert not out.exists()
    simulated[0] = SimulatedDevice()
    assert gpu_calibrate("run", "--quick", "--out", str(out)) == 0
    again = load_profile(out)
    fresh_replays = simulated[0].replays
    simulated[0] = SimulatedDevice()
    assert gpu_calibrate("run", "--quick", "--out", str(out), "--fresh") == 0
    assert simulated[0].replays > fresh_replays
    assert set(load_profile(out).operators) == set(again.operators)


def test_a_failing_gpu_is_exit_code_1(
    simulated: list[SimulatedDevice], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(SimulatedDevice):
        __slots__ = ()

        def replay(self, order: Sequence[Prepared]) -> list[float]:
            raise DeviceError("the GPU failed while timing: CUDA error")

    simulated[0] = Failing()
    assert gpu_calibrate("run", "--quick", "--out", str(tmp_path / "x.json")) == 1
    assert "CUDA error" in capsys.readouterr().err


def test_when_nothing_can_be_timed(
    simulated: list[SimulatedDevice], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated[0] = SimulatedDevice(failing=frozenset({"sampling"}))
    assert gpu_calibrate("run", "--quick", "--only", "sampling", "--out", str(tmp_path / "x.json")) == 1
    assert "nothing could be timed: sampling is not simulated" in capsys.readouterr().err


def test_check_passes_the_good_and_fails_the_bad(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_calibrate("check", str(files / "a.json.gz")) == 0
    good = capsys.readouterr().out
    assert "\nfit to predict from" in good
    assert "gemm random_points" in good
    assert gpu_calibrate("check", str(files / "slow.json")) == 1
    bad = capsys.readouterr().out
    assert "FAILED  copy bandwidth" in bad
    assert "\nNOT fit to predict from: copy bandwidth: " in bad


def edited(files: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    document = json.loads(gzip.decompress((files / "a.json.gz").read_bytes()))
    change(document)
    path = folder / "edited.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_profile_without_what_every_step_needs_is_not_fit(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(files, tmp_path, lambda document: document["operators"].pop("decode_attention"))
    assert gpu_calibrate("check", path) == 1
    shown = capsys.readouterr().out
    assert "FAILED  operators: missing: decode_attention" in shown
    assert "MISSED" not in shown
    assert "\nNOT fit to predict from: operators: missing: decode_attention\n" in shown


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_profiles_are_fit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_calibrate("check", name) == 0
    shown = capsys.readouterr().out
    assert shown.count("passed  operators: gemm, prefill and decode attention are there") == 1
    assert shown.endswith("\nfit to predict from\n")


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ({"measurements": [1]}, "TypeError"),
        ({"measurements": [{"point": 5, "interval": None, "throttle": []}]}, "TypeError"),
        ({"measurements": [], "extras": {"mixed": 5}}, "TypeError"),
    ],
)
def test_measurements_that_cannot_be_read_are_told(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], details: dict[str, Any], told: str
) -> None:
    path = edited(files, tmp_path, lambda document: document["details"].update(details))
    assert gpu_calibrate("check", path) == 2
    assert f"are not as `gpu-calibrate run` writes them ({told}: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_profile_of_an_unknown_gpu(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = edited(files, tmp_path, lambda document: document["device"].update(gpu="h2000"))
    assert gpu_calibrate(command, path) == 2
    assert f"{path}: device.gpu: no such GPU 'h2000'; known are a100" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["show", "h200-sxm"]], ids=["help", "show"])
def test_standard_output_to_a_full_disk(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "gpu_calibrate.cli", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    told = f"gpu-calibrate: cannot write its output: {os.strerror(errno.ENOSPC)}\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_closed_standard_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert gpu_calibrate("show", "h200-sxm") == 1
    assert capsys.readouterr().err == "gpu-calibrate: cannot write standard output: it is closed\n"


def test_show_prints_tables_and_draws(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "plots"
    assert gpu_calibrate("show", str(files / "a.json.gz"), "--plots", str(folder)) == 0
    shown = capsys.readouterr().out
    for words in ("share of the datasheet's FLOP/s over M", "share of the copy bandwidth", "gates", "simulated_gemm"):
        assert words in shown
    assert {path.stem for path in folder.iterdir()} == set(PLOTS)
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000 for path in folder.iterdir())
    (tmp_path / "file").write_text("")
    assert gpu_calibrate("show", str(files / "a.json.gz"), "--plots", str(tmp_path / "file" / "deeper")) == 1
    assert "cannot write" in capsys.readouterr().err


def test_built_in_profiles_are_shown_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_calibrate("show", "h200-sxm", "--plots", str(tmp_path)) == 0
    assert "NVIDIA H200" in capsys.readouterr().out


def test_compare_tells_repeats_from_other_cards(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, slow = (
        load_profile(files / name, allow_failed_gates=True) for name in ("a.json.gz", "b.json.gz", "slow.json")
    )
    same = compare(a, b)[-1]
    assert same.median_difference < 0.005
    rows = {row.operator: row for row in compare(a, slow)}
    assert rows["decode_attention"].median_ratio > 1.05
    assert rows["sampling"].worst[0].ratio > 1.5
    assert rows["all"].num_points == sum(row.num_points for name, row in rows.items() if name != "all")
    assert gpu_calibrate("compare", str(files / "a.json.gz"), str(files / "slow.json")) == 0
    shown = capsys.readouterr().out
    assert "median B/A" in shown
    assert "Largest differences" in shown
    assert gpu_calibrate("compare", "--predicted", str(files / "a.json.gz"), "h200-sxm") == 0
    assert "gemm" in capsys.readouterr().out


def test_profiles_without_a_common_point(files: Path) -> None:
    a = load_profile(files / "a.json.gz")
    gemm, decode = (a.model_copy(update={"operators": {n: a.operators[n]}}) for n in ("gemm", "decode_attention"))
    with pytest.raises(InputError, match="no point in common"):
        compare(gemm, decode)
    with pytest.raises(InputError, match="can say nothing"):
        predicted_rows(gemm, decode)


def test_doctor_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_calibrate.device.state.subprocess.run", _missing)
    assert gpu_calibrate("doctor") == 1
    shown = capsys.readouterr().out
    assert "BAD  driver: nvidia-smi does not answer" in shown
    assert "not fit to be measured" in shown


def _missing(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError("nvidia-smi")


def test_an_import_states_its_errors(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def import_profile(source: str, **options: Any) -> Profile:
        asked.update(options, source=source)
        return load_profile(files / "a.json.gz").model_copy(update={"errors": {}})

    monkeypatch.setattr("gpu_calibrate.importers.import_profile", import_profile)
    out = tmp_path / "x.json"
    arguments = ["--from", "vidur", "--gpu", "a100_sxm", "--version", "1", "--path", "tables", "--out", str(out)]
    assert gpu_calibrate("import", *arguments) == 0
    assert (asked["source"], asked["gpu"], asked["engine"], asked["version"]) == ("vidur", "a100_sxm", "vllm", "1")
    assert asked["path"] == Path("tables")
    assert load_profile(out).errors["gemm"]["held_out_curves"].num_points > 0
    assert "median held-out error: decode_attention" in capsys.readouterr().out


def test_an_import_without_attention_is_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Vidur's tables of layers have no attention: the file is there to look at, and says what it lacks."""
    shape = "n_head,n_kv_head,n_embd,n_expanded_embd,use_gated_mlp,num_tokens,tp,gpu"
    layers = ("input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "mlp_up_proj", "mlp_act")
    columns = ",".join(f"{layer}_ms" for layer in (*layers, "mlp_down_proj", "add"))
    times = "0.03,0.5,0.04,0.4,2.0,0.06,1.0,0.02"
    (tmp_path / "mlp.csv").write_text(f"{shape},{columns}\n64,8,8192,28672,True,512,2,a100,{times}\n")
    out = tmp_path / "x.json"
    arguments = ["--from", "vidur", "--gpu", "a100", "--path", str(tmp_path), "--out", str(out)]
    assert gpu_calibrate("import", *arguments) == 1
    told = "missing: prefill_attention, decode_attention"
    assert f"gpu-calibrate: gate operators failed: {told}\n" in capsys.readouterr().err
    gate = Gate(name="operators", passed=False, detail=told)
    assert load_profile(out, allow_failed_gates=True).gates == (gate,)
    assert gpu_calibrate("check", str(out)) == 1
    shown = capsys.readouterr().out
    assert "MISSING    decode_attention random_points" in shown
    assert "not known  gemm random_points" in shown
    assert shown.endswith(f"\nNOT fit to predict from: operators: {told}\n")
    with pytest.raises(InputError, match="gate operators failed"):
        load_profile(out)


def test_unforeseen_errors_are_one_line(
    simulated: list[SimulatedDevice],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(cuda, "open_device", broken)
    assert gpu_calibrate("run", "--out", str(tmp_path / "x.json")) == 1
    assert "internal error, a bug: ZeroDivisionError: surprise" in capsys.readouterr().err
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "--out", str(tmp_path / "x.json")])


# -- the self-test's table --------------------------------------------------------------------------


def test_before_any_part_every_row_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_calibrate("selftest", "--table", "--out", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    rows = selftest.table(tmp_path)
    assert shown.count("not yet measured") == len(rows) == 14
    assert (tmp_path / "selftest.md").read_text() == shown
    assert len(json.loads((tmp_path / "selftest.json").read_text())["rows"]) == 14


@pytest.mark.parametrize("content", ['{"checked": [', "{}", '{"wrong": 5}'], ids=["cut off", "empty", "odd"])
def test_results_of_parts_that_cannot_be_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "kernels.json").write_text(content)
    assert gpu_calibrate("selftest", "--table", "--out", str(tmp_path)) == 2
    assert f"--out {tmp_path}: a result there is not as this version's parts write it" in capsys.readouterr().err


def test_a_part_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selftest.write_part(tmp_path, "kernels", {"seconds": 1})

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        selftest.write_part(tmp_path, "kernels", {"seconds": 2})
    assert selftest.read_part(tmp_path, "kernels") == {"seconds": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.json"]


def test_the_page_has_every_row_of_the_table(tmp_path: Path) -> None:
    """One table for the H200, one for the A100, each row with the command that fills it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "calibration.md").read_text(encoding="utf-8")
    for line in selftest.table_lines(selftest.table(tmp_path)):
        assert page.count(line) == 2, line


def test_each_row_names_parts_that_there_are(tmp_path: Path) -> None:
    rows = selftest.table(tmp_path)
    assert {part for row in rows for part in row.parts} == set(selftest.PARTS)
    repeated = next(row for row in rows if row.what.startswith("two calibrations"))
    assert repeated.command == "gpu-calibrate selftest --part calibrate --part repeat"


def test_without_cupy_the_cross_check_says_that_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", FakeTorch())
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu_calibrate("selftest", "--part", "cublas", "--out", str(tmp_path)) == 0
    assert "| skipped: measuring needs CuPy: pip install 'simrun-llm[gpu-cu13]'" in capsys.readouterr().out
    assert gpu_calibrate("selftest", "--out", str(tmp_path)) == 2, "nothing else can do without"
    with pytest.raises(InputError, match="needs CuPy"):
        selftest.on_device("ladder", None)


@pytest.mark.parametrize(("torch_ns", "met"), [(1.0, True), (1.1, True), (1.3, False), (0.8, False)])
def test_torch_and_cupy_should_agree(tmp_path: Path, torch_ns: float, met: bool) -> None:
    shapes = [{"n": 1, "k": 1, "m": 1, "torch_ns": ns, "cupy_ns": 1.0} for ns in (1.0, torch_ns)]
    selftest.write_part(tmp_path, "cublas", {"shapes": shapes, "failures": []})
    row = next(row for row in selftest.table(tmp_path) if row.parts == ("cublas",))
    assert (row.met, "over 2 shapes" in row.value) == (met, True)
    assert "| GEMM, float16: m x n x k | torch, us | CuPy, us | torch over CuPy |" in selftest.markdown(tmp_path, "x")
    selftest.write_part(tmp_path, "cublas", {"shapes": shapes, "failures": ["gemm: no cuBLAS"]})
    row = next(row for row in selftest.table(tmp_path) if row.parts == ("cublas",))
    assert (row.met, row.value.endswith("; gemm: no cuBLAS")) == (False, True)


def test_the_cross_check_on_the_simulated_device() -> None:
    record = cublas.time_cublas(SimulatedDevice())
    assert cublas.ratios(record) == pytest.approx([1.0] * len(cublas.SHAPES), rel=0.01)
    for point in cublas.cublas_points():
        least = SimulatedDevice().true_ns(point[0])
        assert least > 50_000, "long enough that launching it one by one is hidden"


def ladder(best: float) -> dict[str, Any]:
    copy = 4.0e12
    shares = {"paged_attention_naive": 0.05, "paged_attention_gqa": best - 0.1, "paged_attention_split_kv": best}
    rungs = [
        {"kernel": kernel, "batch": batch, "context": 1, "bytes": size, "ns": size / (share * copy) * 1e9}
        for kernel, share in shares.items()
        for batch, size in ((1, 67_000_000), (2, 1_000_000_000))
    ]
    return {"rungs": rungs, "copy_bytes_per_s": copy, "failures": []}


def test_the_table_is_filled_from_its_parts(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selftest.write_part(tmp_path, "kernels", {"checked": [{"op": "x", "error": 0.4}], "wrong": [], "skipped": 0})
    selftest.write_part(tmp_path, "ladder", ladder(0.85))
    record = {"seconds": 250.0, "settings_before": "700 W", "settings_after": "700 W"}
    selftest.write_part(tmp_path, "calibrate", record)
    (tmp_path / selftest.FIRST).write_bytes((files / "a.json.gz").read_bytes())
    (tmp_path / selftest.SECOND).write_bytes((files / "b.json.gz").read_bytes())
    rows = {row.what: row for row in selftest.table(tmp_path)}
    assert rows["kernels against float64 on the GPU"].met
    assert rows["`split_kv`/`gqa` decode, 32q/8kv heads of 128, bf16, more than 256 MB of KV"].value.startswith("85.0%")
    assert rows["two calibrations, two processes"].met
    assert rows["held-out error of GEMM"].met
    assert rows["mixed whole-layer steps"].met is None
    assert rows["whole default run"].value.startswith("250 s")
    assert rows["prefill attention that is charged"].met is False, "a simulated kernel is none that engines run"
    assert gpu_calibrate("selftest", "--table", "--out", str(tmp_path)) == 1
    shown = capsys.readouterr().out
    assert "| `paged_attention_split_kv` | 85.0%, 1.13x |" in shown
    assert "Against aiconfigurator" in shown
    assert "**missed**" in shown


def test_what_is_missed_is_marked(tmp_path: Path) -> None:
    wrong = [{"op": "rotary", "shape": {}, "reason": "KernelError: 3 times the tolerated error"}]
    selftest.write_part(tmp_path, "kernels", {"checked": [], "wrong": wrong, "skipped": 2})
    selftest.write_part(tmp_path, "ladder", ladder(0.55))
    rows = {row.what: row for row in selftest.table(tmp_path)}
    assert rows["kernels against float64 on the GPU"].met is False
    assert "rotary: KernelError" in rows["kernels against float64 on the GPU"].value
    assert [row.met for what, row in rows.items() if "decode, 32q" in what] == [False, False]


def test_kernels_to_check_are_all_there_and_planned() -> None:
    from gpu_calibrate.launches.kernels import FILES
    from gpu_calibrate.launches.plans import plan as plan_kernel

    shapes = kernel_checks.kernel_shapes()
    assert {op for op, _ in shapes} == set(FILES)
    for op, shape in shapes:
        plan_kernel(op, **shape)
    split = [shape for op, shape in shapes if op == "paged_attention_split_kv"]
    assert {shape["head_size"] for shape in split} == {64, 80, 96, 128, 256}
    assert {shape["kv_dtype"] for shape in split} == {"auto", "fp8"}


def test_kernels_that_are_wrong_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_calibrate.launches import float64, launch

    monkeypatch.setattr(launch, "prepare", lambda op, **shape: op)

    def verdict(op: str) -> float:
        if op == "rotary":
            raise ValueError("wrong")
        return 0.5

    monkeypatch.setattr(float64, "check", verdict)
    found = kernel_checks.check_kernels()
    assert {each["op"] for each in found["wrong"]} == {"rotary"}
    assert len(found["checked"]) > 40
    ticks = iter([0.0, *[float(n) for n in range(200)]])
    late = kernel_checks.check_kernels(limit_s=3.0, clock=lambda: next(ticks))
    assert late["skipped"] > 40


def test_a_calibration_is_taken_up_again_after_a_failed_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def fake_run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        if len(commands) == 3:
            (tmp_path / "x.json").write_text("")
            return subprocess.CompletedProcess(command, 0, "", "done")
        return subprocess.CompletedProcess(command, 1, "", "the GPU failed")

    monkeypatch.setattr(selftest.subprocess, "run", fake_run)
    record = selftest.run_calibration(tmp_path / "x.json", ["--gpu", "l40s"], lambda text: None)
    assert record["returncode"] == 0
    assert ["--fresh" in command for command in commands] == [True, False, False]
    assert all("l40s" in command for command in commands)
