"""``simrun fit``: parameters that were planted into simulated measurements are found again."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.cli import main
from sim.cluster.deployment import resolve_deployment
from sim.errors import InputError
from sim.explore.fit_parameters import Parameter, choose_late, choose_parameters
from sim.explore.fit_result import Fit
from sim.explore.measured_run import KEYS, read_runs
from sim.latency.build import build_step_cost
from sim.latency.fitted import Fitted, load_fit
from sim.latency.models import load_model
from sim.live.observation_file import Observation, RecordFile
from sim.results.results import Results
from sim.run import load, run

STEP = {"step_ms": 6.0, "token_us": 20.0, "client_ms": 12.0}
PROFILE = {
    "matrices": 1.15,
    "attention": 1.2,
    "exposed_step_ms": 0.6,
    "exposed_request_us": 8.0,
    "client_ms": 9.0,
}


def scenario(kind: str | None = "constant", rate: float = 8.0, tokens: int = 400, **more: Any) -> dict[str, Any]:
    latency = {"kind": "constant", "step_s": 0.02} if kind == "constant" else {}
    return {
        "name": f"rate {rate:g}",
        "seed": 3,
        "workload": {
            "requests": 120,
            "arrival": {"process": "poisson", "rate": rate},
            "input_tokens": {"dist": "uniform", "low": tokens // 2, "high": tokens},
            "output_tokens": {"dist": "uniform", "low": 40, "high": 120},
        },
        "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_num_seqs": 64, **more},
        "latency": latency,
    }


def measure(told: dict[str, Any], kind: str, values: dict[str, float]) -> Results:
    """What an engine with these parameters would show."""
    loaded = load(told)
    engine, latency = loaded.scenario.engine, loaded.scenario.latency
    deployment = resolve_deployment(engine, latency, fitted=Fitted(kind, engine.gpu, values))  # type: ignore[arg-type]
    return run(loaded, deployment=deployment)


def result(results: Results, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """As ``vllm bench serve --save-result`` writes it."""
    wanted = (*keys, "completed", "total_input_tokens", "total_output_tokens")
    return {"model_id": "m", "p99.9_ttft_ms": 1.0, **{key: results.summary[key] for key in wanted}}


def record(results: Results, path: Path) -> None:
    """As ``simrun observe`` writes it."""
    rows = results.requests
    table = results.record.workload
    with RecordFile(str(path)) as file:
        file.begin({})
        for row in range(len(table)):
            arrival = int(table.arrival_ns[row])
            outputs = int(table.output_tokens[row])
            first, tpot = float(rows["ttft_ms"].iloc[row]) * 1e6, float(rows["tpot_ms"].iloc[row]) * 1e6
            times = [round(arrival + first + tpot * each) for each in range(outputs)]
            seen = Observation(row, str(row), arrival, int(table.input_tokens[row]), outputs, sent_ns=arrival)
            seen.token_ns, seen.end_ns, seen.output_tokens, seen.status = times, times[-1], outputs, "completed"
            file.add(seen)
        file.end({})


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def simrun(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


@pytest.fixture
def constant_run(tmp_path: Path) -> str:
    return write(tmp_path / "run.json", result(measure(scenario(), "constant", STEP)))


def test_constant_steps_are_found_again(tmp_path: Path) -> None:
    told = [scenario(rate=4.0), scenario(rate=10.0, tokens=1500)]
    files = [write(tmp_path / f"{i}.json", result(measure(each, "constant", STEP))) for i, each in enumerate(told)]
    found = sim.fit(files, told)
    for name, value in STEP.items():
        assert found.values[name] == pytest.approx(value, rel=0.05), name
    assert (found.silent, found.together) == (["late_ms"], [])
    for errors in (*found.after, *(found.left_out or [])):
        assert max(abs(errors[key]) for key in errors if key.startswith(("mean", "p50"))) < 3.0
    assert abs(found.before[0]["mean_tpot_ms"]) > 50


def test_a_record_brings_its_own_workload(tmp_path: Path) -> None:
    """The scenario's traffic is another one; what was sent is in the record."""
    record(measure(scenario(rate=6.0, tokens=1200), "constant", STEP), tmp_path / "seen.jsonl")
    found = sim.fit(tmp_path / "seen.jsonl", scenario(rate=1.0, tokens=100))
    assert found.cases[0].run.source == "simrun observe"
    assert found.values["step_ms"] == pytest.approx(6.0, rel=0.1)
    # Its tokens are evenly spread, so that the tail of ITL contradicts the rest a little.
    assert abs(found.after[0]["mean_e2el_ms"]) < 3.0
    assert found.notes == []


@pytest.mark.parametrize("keys", [("mean_tpot_ms",), ("median_ttft_ms", "mean_e2el_ms"), ("p99_itl_ms", "duration")])
def test_few_keys_suffice(tmp_path: Path, keys: tuple[str, ...]) -> None:
    told = scenario()
    found = sim.fit(write(tmp_path / "few.json", result(measure(told, "constant", STEP), keys)), told)
    assert set(found.after[0]) == set(keys)
    assert all(abs(error) < 2.0 for error in found.after[0].values())


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    """TPOT alone knows nothing of the client; a step and its tokens are one number there."""
    told = scenario(tokens=20)
    found = sim.fit(write(tmp_path / "few.json", result(measure(told, "constant", STEP), ("mean_tpot_ms",))), told)
    assert found.silent == ["client_ms"]
    assert "client_ms" not in found.values
    assert found.together == [["step_ms", "token_us"]]
    assert found.left_out is None


@pytest.fixture(scope="module")
def profile_fit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, Path]:
    told = [scenario(None, 3.0), scenario(None, 25.0), scenario(None, 8.0, 3000)]
    folder = tmp_path_factory.mktemp("profile")
    files = [write(folder / f"{i}.json", result(measure(each, "profile", PROFILE))) for i, each in enumerate(told)]
    return sim.fit(files, list(told), out=folder / "FIT.yaml"), folder


def test_terms_and_host_times_are_found_again(profile_fit: tuple[Fit, Path]) -> None:
    found, _ = profile_fit
    for name, tolerance in (("matrices", 0.08), ("attention", 0.2), ("exposed_step_ms", 0.3), ("client_ms", 0.1)):
        assert found.values[name] == pytest.approx(PROFILE[name], rel=tolerance), name
    assert found.left_out is not None
    for errors in found.left_out:
        assert abs(errors["mean_e2el_ms"]) < 4.0
        assert abs(errors["mean_ttft_ms"]) < 8.0
    assert all(abs(errors["mean_e2el_ms"]) < 1.5 for errors in found.after)


def test_the_file_predicts_another_run(profile_fit: tuple[Fit, Path]) -> None:
    found, folder = profile_fit
    read = load_fit("FIT.yaml", folder)
    assert read.values == found.values
    assert read.fitted_on == found.fitted.fitted_on
    other = scenario(None, 14.0, 900)
    seen = measure(other, "profile", PROFILE).summary
    other["latency"] = {"fit": str(folder / "FIT.yaml")}
    told = sim.simulate(other).summary
    for key in ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"):
        assert told[key] == pytest.approx(seen[key], rel=0.04), key


def test_which_parameters() -> None:
    def asked(**settings: Any) -> set[str]:
        loaded = load(scenario(None, **settings))
        engine, latency = loaded.scenario.engine, loaded.scenario.latency
        cost = build_step_cost(engine, latency)
        return {each.name for each in choose_parameters([(engine, load_model(engine.model))], latency, cost)}

    assert asked() == {"matrices", "attention", "exposed_step_ms", "exposed_request_us", "client_ms"}
    split = asked(model="mixtral-8x7b", tensor_parallel_size=2, async_scheduling=False)
    host = {"host_step_ms", "host_request_us", "client_ms"}
    assert split == {"matrices", "attention", "experts", "all_reduce"} | host
    assert asked(gpu="rtx-4090") == {"matrices", "attention", "exposed_step_ms", "exposed_request_us", "client_ms"}


def test_noise_is_asked_for_where_tails_were_measured() -> None:
    def asked(*figures: str, **latency: Any) -> float | None:
        loaded = load({**scenario(None), "latency": latency}).scenario
        late = choose_late(loaded.engine, loaded.latency, set(figures))
        return None if late is None else late.default

    assert asked("mean_ttft_ms", "p90_ttft_ms", "p99_itl_ms") is None
    assert asked("p99_ttft_ms") == asked("p95_ttft_ms", noise={"client": None}) == 10
    assert asked("p99_ttft_ms", kind="roofline") == 0
    assert asked("p99_ttft_ms", noise="none") is None
    assert asked("p99_ttft_ms", noise={"client": {"share": 0.1, "mean_ms": 3}}) is None


def test_late_clients_are_found_again(tmp_path: Path) -> None:
    """From the figures of one run; then they are in the runs of the file that was written."""
    told = scenario(rate=8.0)
    told["workload"]["requests"] = 1500
    planted = {**STEP, "late_ms": 60.0}
    seen = measure(told, "constant", planted)
    found = sim.fit(write(tmp_path / "noisy.json", result(seen)), told, out=tmp_path / "FIT.yaml")
    for name, tolerance in (("step_ms", 0.05), ("client_ms", 0.35), ("late_ms", 0.35)):
        assert found.values[name] == pytest.approx(planted[name], rel=tolerance), name
    low, high = found.interval(next(each for each in found.parameters if each.name == "late_ms"))
    assert low < 60 < high
    with_fit = {**told, "latency": {**told["latency"], "fit": str(tmp_path / "FIT.yaml")}}
    again = sim.simulate(with_fit).summary
    assert again["p99_ttft_ms"] == pytest.approx(seen.summary["p99_ttft_ms"], rel=0.15)
    quiet = sim.simulate({**with_fit, "latency": {**with_fit["latency"], "noise": "none"}}).summary
    assert quiet["p99_ttft_ms"] < 0.8 * seen.summary["p99_ttft_ms"]


def test_places_and_values() -> None:
    for parameter in (Parameter("matrices", 1.0, 0.4, 2.5, 0.2, True), Parameter("client_ms", 4.0, 0.0, 200.0, 5.0)):
        assert parameter.place(parameter.default) == 0.0
        for value in (parameter.least, 1.7, parameter.most):
            assert parameter.value(parameter.place(value)) == pytest.approx(value)


def test_a_little_other_traffic_is_noted(tmp_path: Path) -> None:
    told = scenario()
    content = result(measure(told, "constant", STEP)) | {"completed": 114}
    notes = sim.fit(write(tmp_path / "other.json", content), told).notes
    assert any("completed is 114 there and 120 in the simulation" in note for note in notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workload.requests": 60}, "120 requests were measured, and the workload has 60 in"),
        ({"workload.input_tokens.high": 900}, "input tokens a request were measured, and the workload has"),
        ({"workload.output_tokens.low": 110}, "output tokens a request were measured, and the workload has"),
        ({"workload.arrival.rate": 2.0}, "arrivals of the workload alone take"),
        ({"workload.arrival.rate": 80.0}, "s with the best parameters in"),
    ],
)
def test_other_traffic_is_refused(
    tmp_path: Path, constant_run: str, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    path, out = write(tmp_path / "scenario.yaml", scenario()), tmp_path / "FIT.yaml"
    sets = [part for key, value in change.items() for part in ("--set", f"{key}={value}")]
    assert simrun("fit", constant_run, "--scenario", path, "--out", str(out), *sets) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert "--save-detailed" in told.err, "the remedy"
    assert told.out == ""
    assert not out.exists()
    # A file with requests brings its own traffic.
    detailed = write(tmp_path / "detailed.json", bench(scenario()))
    assert simrun("fit", detailed, "--scenario", path, "--out", str(out), *sets) == 0


def test_arrivals_at_equal_gaps_leave_nothing_to_chance(tmp_path: Path) -> None:
    """24 s of arrivals in a run of 17: 1.4 times as long, which random gaps of 120 requests might be."""
    told, slower = scenario(rate=8.0), scenario(rate=5.0)
    for each in (told, slower):
        each["workload"]["arrival"]["process"] = "constant"
    path = write(tmp_path / "constant.json", result(measure(told, "constant", STEP)))
    sim.fit(path, told)
    with pytest.raises(InputError, match="arrivals of the workload alone take 24 s"):
        sim.fit(path, slower)


def test_latencies_that_nothing_explains_are_refused(tmp_path: Path) -> None:
    told = scenario()
    content = result(measure(told, "constant", STEP), ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"))
    content["mean_tpot_ms"] *= 40
    with pytest.raises(InputError, match="no parameters within their bounds come near this run"):
        sim.fit(write(tmp_path / "odd.json", content), told)


def test_failed_requests_count_as_sent(tmp_path: Path) -> None:
    told = scenario()
    content = result(measure(told, "constant", STEP)) | {"completed": 90, "failed": 30}
    del content["total_input_tokens"], content["total_output_tokens"]
    sim.fit(write(tmp_path / "failed.json", content), told)


# -- the command ------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, constant_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "scenario.yaml", scenario())
    out = tmp_path / "FIT.yaml"
    assert simrun("fit", constant_run, "--scenario", path, "--out", str(out)) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 or str(tmp_path) in line for line in text.splitlines())
    assert "step_ms" in text
    assert "One run: the error elsewhere is not known" in text
    assert simrun("fit", constant_run, "--scenario", path, "--out", str(out)) == 2
    assert "exists" in capsys.readouterr().err
    assert simrun("fit", constant_run, "--scenario", path, "--out", str(out), "--force", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"]["step_ms"] == pytest.approx(6.0, rel=0.1)
    assert told["about_parameters"]["step_ms"]["default"] == 20.0
    low, high = told["about_parameters"]["step_ms"]["interval"]
    assert low < told["parameters"]["step_ms"] < high
    assert told["errors_percent"]["left_out"] is None
    assert simrun(path, "--set", f"latency.fit={out}", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["mean_tpot_ms"] == pytest.approx(
        json.loads(Path(constant_run).read_text())["mean_tpot_ms"], rel=0.02
    )
    assert any("`latency.step_s` has no effect" in note for note in summary["run"]["notes"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "neither a record of `simrun observe` nor a result"),
        ("[1]", "expected the one JSON object"),
        ("{}", "none of the figures"),
        ('{"mean_ttft_ms": 0}', "none of the figures"),
        ('{"mean_ttft_ms": "fast"}', "mean_ttft_ms must be a number of 0 or more, found 'fast'"),
        ('{"mean_ttft_ms": -1, "p99_itl_ms": 2}', "mean_ttft_ms must be a number of 0 or more, found -1"),
        ('{"mean_ttft_ms": NaN, "p99_itl_ms": Infinity}', "none of the figures"),
        ('{"mean_ttft_ms": 4}\n{"mean_ttft_ms": "fast"}', "result 2 of 2 (--append-result): mean_ttft_ms must be"),
        ('{"duration": 240.0}', "say nothing of any parameter"),
        ('{"record": "simrun-observe", "format": 1}\n{"end": true}\n', "no request completed"),
    ],
)
def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    path = write(tmp_path / "scenario.yaml", scenario(rate=0.5))
    assert simrun("fit", str(tmp_path / "bad.json"), "--scenario", path) == 2
    assert message in capsys.readouterr().err


def test_every_problem_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = [str(tmp_path / name) for name in ("a.json", "b.json", "s.yaml")]
    assert simrun("fit", *missing[:2], "--scenario", missing[2]) == 2
    told = capsys.readouterr().err
    assert all(each in told for each in missing)
    with pytest.raises(InputError) as error:
        sim.fit(missing[:2], missing[2])
    assert len(error.value.problems) == 3


def test_scenarios_that_do_not_go_together(constant_run: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one for each measured run in order: 2 for 1 runs"):
        sim.fit(constant_run, [scenario(), scenario()])
    with pytest.raises(InputError, match=r"engine\.gpu: one fit is of one, .* a100-80gb-sxm, h100-sxm"):
        sim.fit([constant_run] * 2, [scenario(), scenario(gpu="a100-80gb-sxm")])
    with pytest.raises(InputError, match=r"latency\.kind: one fit is of one, .* constant, profile"):
        sim.fit([constant_run] * 2, [scenario(), scenario(None)])
    with pytest.raises(InputError, match="give at least one measured run"):
        sim.fit([], scenario())
    sim.fit(constant_run, scenario(), out=tmp_path / "FIT.yaml")
    with pytest.raises(InputError, match="a fit starts from defaults"):
        sim.fit(constant_run, scenario(), overrides=[f"latency.fit={tmp_path / 'FIT.yaml'}"])


def test_without_scipy(constant_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match="pip install"):
        sim.fit(constant_run, scenario())


def bench(told: dict[str, Any]) -> dict[str, Any]:
    """As ``vllm bench serve --save-detailed`` writes it."""
    results = measure(told, "constant", STEP)
    table, rows = results.record.workload, results.requests
    outputs = table.output_tokens.tolist()
    gaps = [[tpot / 1e3] * (count - 1) for tpot, count in zip(rows["tpot_ms"].tolist(), outputs, strict=True)]
    return result(results) | {
        "input_lens": table.input_tokens.tolist(),
        "output_lens": outputs,
        "ttfts": (rows["ttft_ms"] / 1e3).tolist(),
        "itls": gaps,
        "start_times": (table.arrival_ns / 1e9).tolist(),
        "errors": [""] * len(outputs),
    }


def test_appended_results_are_a_run_each(tmp_path: Path) -> None:
    told = [scenario(rate=4.0), scenario(rate=10.0, tokens=1500)]
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(json.dumps(bench(each)) for each in told))
    found = sim.fit(path, told)
    assert [case.run.file for case in found.cases] == [f"{path}, result 1", f"{path}, result 2"]
    assert found.values["step_ms"] == pytest.approx(STEP["step_ms"], rel=0.05)
    assert found.left_out is not None


def test_a_result_without_start_times_has_the_arrivals_of_the_scenario(tmp_path: Path) -> None:
    told = scenario()
    document = bench(told)
    del document["start_times"]
    (run,) = read_runs(write(tmp_path / "old.json", document))
    assert run.measured is None
    assert run.figures["mean_ttft_ms"] == pytest.approx(document["mean_ttft_ms"])
    assert run.figures["duration"] == document["duration"]
    assert any("since 0.15" in note for note in run.notes)
    found = sim.fit(tmp_path / "old.json", told)
    assert found.values["step_ms"] == pytest.approx(STEP["step_ms"], rel=0.1)


def test_bundled_tokens_leave_itl_out(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    record(measure(scenario(), "constant", STEP), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[1:-1]:
        line["token_s"] = line["token_s"][::2]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (read,) = read_runs(str(path))
    assert not any(key.endswith("_itl_ms") for key in read.figures)
    assert any("several at a time" in note for note in read.notes)
