"""Results of other load generators: a simulation written as each of them would have, read back, and predicted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.errors import InputError
from sim.explore.measured_run import MeasuredRun, read_runs
from sim.live.measured import Measured, figures, read_measured
from sim.live.observation_file import Observation
from sim.live.validate import validate
from sim.run import load

SCENARIO: dict[str, Any] = {
    "name": "known",
    "seed": 5,
    "workload": {
        "requests": 60,
        "arrival": {"process": "poisson", "rate": 30.0},
        "input_tokens": {"dist": "lognormal", "mean": 150, "cv": 1.0, "max": 900},
        "output_tokens": {"dist": "uniform", "low": 1, "high": 40},
    },
    "engine": {"model": "llama-3.1-8b", "gpu": "a100-80gb-sxm", "max_model_len": 1024, "enable_prefix_caching": False},
    "latency": {"kind": "constant", "step_s": 0.01},
}
CAPPED = {**SCENARIO, "workload": {**SCENARIO["workload"], "arrival": {"process": "burst", "max_concurrency": 6}}}


def as_seen(scenario: dict[str, Any]) -> list[Observation]:
    """What a client sees of the simulated engine, an event per token."""
    record = sim.simulate(scenario).record
    columns = {name: record.requests[name].tolist() for name in ("arrival_ns", "first_token_ns", "finish_ns")}
    found = []
    for row, (sent, first, last) in enumerate(zip(*columns.values(), strict=True)):
        tokens = int(record.workload.output_tokens[row])
        seen = Observation(row, f"r{row}", sent, int(record.workload.input_tokens[row]), max_tokens=tokens)
        seen.sent_ns, seen.end_ns, seen.output_tokens, seen.status = sent, last, tokens, "completed"
        seen.token_ns = [first + (last - first) * k // max(1, tokens - 1) for k in range(tokens)]
        found.append(seen)
    return found


def seconds(ns: int | None) -> float:
    """On a clock that began an hour before."""
    return 3600.0 + (ns or 0) / 1e9


def gaps(seen: Observation) -> list[int]:
    return [later - before for before, later in zip(seen.token_ns, seen.token_ns[1:], strict=False)]


def sglang(rows: list[Observation], cap: int | None = 6, **more: Any) -> str:
    result = {
        "tag": None,
        "backend": "sglang",
        "dataset_name": "random",
        "request_rate": float("inf"),
        "max_concurrency": cap,
        "duration": 9.0,
        "completed": len(rows),
        "total_input_tokens": sum(each.input_tokens for each in rows),
        "total_output_tokens": sum(each.output_tokens for each in rows),
        "total_throughput": 70.0,
        "mean_e2e_latency_ms": 50.0,
        "p99_e2e_latency_ms": 80.0,
        "mean_ttft_ms": 20.0,
        "mean_tpot_ms": 10.0,
        "input_lens": [each.input_tokens for each in rows],
        "output_lens": [each.output_tokens for each in rows],
        "ttfts": [(each.token_ns[0] - (each.sent_ns or 0)) / 1e9 for each in rows],
        "itls": [[gap / 1e9 for gap in gaps(each)] for each in rows],
        "errors": ["" for _ in rows],
    }
    return json.dumps({key: value for key, value in {**result, **more}.items() if value != "absent"}) + "\n"


def guidellm(rows: list[Observation]) -> str:
    def request(each: Observation) -> dict[str, Any]:
        timings = {
            "request_start": seconds(each.sent_ns),
            "first_token_iteration": seconds(each.token_ns[0]),
            "last_token_iteration": seconds(each.token_ns[-1]),
            "token_iterations": each.output_tokens,
            "request_end": seconds(each.end_ns),
        }
        told = {"request_id": each.request_id, "info": {"timings": timings, "status": "completed"}}
        return told | {"prompt_tokens": each.input_tokens, "output_tokens": each.output_tokens}

    requests = {"successful": [request(each) for each in rows], "incomplete": [], "errored": []}
    totals = {"request_totals": {"successful": len(rows), "total": len(rows)}}
    return json.dumps({"metadata": {"version": 2}, "benchmarks": [{"requests": requests, "metrics": totals}]})


def inference_perf(rows: list[Observation]) -> str:
    def request(each: Observation) -> dict[str, Any]:
        metrics = {"output_tokens": each.output_tokens, "output_token_times": [seconds(ns) for ns in each.token_ns]}
        info = {"request_metrics": {"text": {"input_tokens": each.input_tokens}}, "response_metrics": metrics}
        return {"start_time": seconds(each.sent_ns), "end_time": seconds(each.end_ns), "info": info, "error": None}

    return json.dumps([request(each) for each in rows])


def aiperf(rows: list[Observation], chunks: bool = True) -> str:
    def record(each: Observation) -> dict[str, Any]:
        start_ns = 1_759_813_207_000_000_000 + (each.sent_ns or 0)
        metadata = {"x_request_id": each.request_id, "request_start_ns": start_ns, "benchmark_phase": "profiling"}
        first_ns, whole_ns = each.token_ns[0] - (each.sent_ns or 0), (each.end_ns or 0) - (each.sent_ns or 0)
        metrics = {
            "input_sequence_length": {"value": each.input_tokens, "unit": "tokens"},
            "output_sequence_length": {"value": each.output_tokens, "unit": "tokens"},
            "time_to_first_token": {"value": first_ns / 1e6, "unit": "ms"},
            "request_latency": {"value": whole_ns / 1e9, "unit": "s"},
        }
        if chunks:
            metrics["inter_chunk_latency"] = {"value": [gap / 1e6 for gap in gaps(each)], "unit": "ms"}
        return {"metadata": metadata, "metrics": metrics, "error": None}

    return "".join(json.dumps(record(each)) + "\n" for each in rows)


def written(folder: Path, text: str) -> str:
    path = folder / "result"
    path.write_text(text)
    return str(path)


def measured(folder: Path, text: str) -> Measured:
    return read_measured(written(folder, text))


def run_of(folder: Path, text: str) -> MeasuredRun:
    (run,) = read_runs(written(folder, text))
    return run


def refused(folder: Path, text: str, read: Callable[[str], object] = read_measured) -> str:
    with pytest.raises(InputError) as caught:
        read(written(folder, text))
    return "\n".join(str(problem) for problem in caught.value.problems)


TOOLS: list[tuple[str, Callable[[list[Observation]], str], dict[str, Any], bool]] = [
    ("SGLang's bench_serving", sglang, CAPPED, True),
    ("guidellm", guidellm, SCENARIO, False),
    ("inference-perf", inference_perf, SCENARIO, True),
    ("AIPerf", aiperf, SCENARIO, True),
    ("AIPerf", lambda rows: aiperf(rows, chunks=False), SCENARIO, False),
]


@pytest.mark.parametrize(("tool", "write", "scenario", "has_gaps"), TOOLS)
def test_what_a_tool_writes_of_a_simulation_is_predicted_without_error(
    tool: str, write: Callable[[list[Observation]], str], scenario: dict[str, Any], has_gaps: bool, tmp_path: Path
) -> None:
    rows = as_seen(scenario)
    found = measured(tmp_path, write(rows))
    assert found.source == tool
    assert len(found.completed) == 60
    document = validate(load(scenario), found, "result").document()
    errors = {key: told["error_percent"] for key, told in document["metrics"].items()}
    # The clocks' last digits are lost in seconds.
    assert max(abs(errors[key]) for key in errors if "_itl_" not in key) < 1e-2
    assert (errors["mean_itl_ms"] is not None) == has_gaps
    assert any("ITL is not compared" in note for note in document["notes"]) != has_gaps
    run = run_of(tmp_path, write(rows))
    assert run.measured is not None
    assert ("mean_itl_ms" in run.figures) == has_gaps
    assert run.counts["completed"] == 60


def test_when_sglang_sent_requests_follows_from_its_cap(tmp_path: Path) -> None:
    rows = as_seen(CAPPED)
    found = measured(tmp_path, sglang(rows))
    sent = [(each.sent_ns or 0) - (rows[0].sent_ns or 0) for each in rows]
    assert max(abs((each.sent_ns or 0) - at) for each, at in zip(found.observations, sent, strict=True)) < 1000
    assert len(set(sent)) > 20
    at_once = measured(tmp_path, sglang(rows, cap=None))
    assert {each.sent_ns for each in at_once.completed} == {0}
    assert "follow from max_concurrency (none: all at once)" in at_once.notes[1]


def test_sglang_at_a_rate_is_for_a_fit_alone(tmp_path: Path) -> None:
    text = sglang(as_seen(CAPPED), request_rate=8.0)
    told = refused(tmp_path, text)
    assert "SGLang's bench_serving writes no start times, and with a request_rate of 8.0 nothing says when" in told
    run = run_of(tmp_path, text)
    assert run.measured is None
    assert run.source == "SGLang's bench_serving, without requests"
    assert run.figures["mean_e2el_ms"] == 50.0
    assert run.figures["total_token_throughput"] == 70.0
    assert run.counts["failed"] == 0


def test_sglang_without_details(tmp_path: Path) -> None:
    text = sglang(as_seen(CAPPED), ttfts="absent", itls="absent", errors="absent")
    assert "Run it with --output-details" in refused(tmp_path, text)
    assert run_of(tmp_path, text).figures["mean_ttft_ms"] == 20.0
    several = read_runs(written(tmp_path, text * 3))
    assert [run.file.rpartition(", ")[2] for run in several] == [f"result {place} of 3" for place in (1, 2, 3)]


def edited(text: str, edit: Callable[[Any], None]) -> str:
    document = json.loads(text)
    edit(document)
    return json.dumps(document)


def fail_sglang(document: Any) -> None:
    document["errors"][4], document["output_lens"][4], document["ttfts"][4] = "x\nTimeoutError", 0, 0.0
    document["output_lens"][5], document["ttfts"][5], document["itls"][5] = 0, 0.0, []
    document["input_lens"][6] = 0


def fail_guidellm(document: Any) -> None:
    requests = document["benchmarks"][0]["requests"]
    broken = requests["successful"].pop(4)
    broken["info"]["error"] = "TimeoutError"
    requests["errored"].append(broken)
    requests["successful"][4]["output_tokens"] = 0
    requests["successful"][5]["prompt_tokens"] = 0
    document["benchmarks"][0]["metrics"]["request_totals"]["successful"] -= 1


def fail_inference_perf(document: Any) -> None:
    document[4]["error"] = {"error_type": "HTTP Error 504", "error_msg": "TimeoutError"}
    document[5]["info"]["response_metrics"]["output_tokens"] = 0
    document[6]["info"]["request_metrics"]["text"]["input_tokens"] = 0


def fail_aiperf(document: Any) -> None:
    document[4]["error"] = {"code": 499, "type": "X", "message": "TimeoutError"}
    document[4]["metrics"] = {"error_isl": {"value": 550, "unit": "tokens"}}
    del document[5]["metrics"]["output_sequence_length"]
    document[6]["metrics"]["input_sequence_length"]["value"] = 0


@pytest.mark.parametrize(
    ("write", "fail"),
    [
        (sglang, fail_sglang),
        (guidellm, fail_guidellm),
        (inference_perf, fail_inference_perf),
        (lambda rows: "[" + aiperf(rows).strip().replace("\n", ",") + "]", fail_aiperf),
    ],
)
def test_requests_that_failed_are_counted_and_left_out(
    write: Callable[[list[Observation]], str], fail: Callable[[Any], None], tmp_path: Path
) -> None:
    text = edited(write(as_seen(CAPPED)), fail)
    if fail is fail_aiperf:
        text = "\n".join(json.dumps(each) for each in json.loads(text))
    found = measured(tmp_path, text)
    assert len(found.completed) == 57
    assert figures(found)["failed"] == 3
    reasons = [each.reason for each in found.observations if each.status == "failed"]
    assert "TimeoutError" in reasons
    assert "3 of 60 requests did not complete; left out" in "\n".join(run_of(tmp_path, text).notes)


def test_a_report_of_guidellm_with_several_benchmarks(tmp_path: Path) -> None:
    rows = as_seen(SCENARIO)
    reports = [json.loads(guidellm(rows[:count])) for count in (10, 20)]
    text = json.dumps({"benchmarks": [report["benchmarks"][0] for report in reports]})
    found = measured(tmp_path, text)
    assert len(found.completed) == 20
    assert "holds 2 runs of guidellm: the last one is compared" in found.notes[-1]
    assert [run.counts["completed"] for run in read_runs(written(tmp_path, text))] == [10, 20]


def test_a_sample_of_guidellms_requests_is_no_load(tmp_path: Path) -> None:
    text = edited(
        guidellm(as_seen(SCENARIO)),
        lambda document: document["benchmarks"][0]["metrics"]["request_totals"].update(successful=400),
    )
    told = refused(tmp_path, text)
    assert "a report of guidellm with 60 of its 400 successful requests: the load of the others would" in told
    assert told == refused(tmp_path, text, read_runs)


def test_requests_of_older_guidellm(tmp_path: Path) -> None:
    def rename(document: Any) -> None:
        for each in document["benchmarks"][0]["requests"]["successful"]:
            timings = each.pop("info")["timings"]
            each |= {"start_time": timings["request_start"], "end_time": timings["request_end"]}
            each |= {name: timings[f"{name[:-5]}_iteration"] for name in ("first_token_time", "last_token_time")}

    new = guidellm(as_seen(SCENARIO))
    assert figures(measured(tmp_path, edited(new, rename))) == figures(measured(tmp_path, new))


def test_a_summary_of_inference_perf(tmp_path: Path) -> None:
    successes = {
        "count": 40,
        "latency": {
            "request_latency": {"mean": 2.0, "median": 1.5, "p90": 3.0, "p95": None, "p99.9": 9.0},
            "time_to_first_token": {"mean": 0.5, "p99": 0.75},
            "time_per_output_token": {"mean": 0.0125},
            "inter_token_latency": {"mean": 0.004},
        },
        "throughput": {"requests_per_sec": 2.0, "output_tokens_per_sec": 100.0, "total_tokens_per_sec": 900.0},
        "prompt_len": {"mean": 400.0},
        "output_tokens": {"total": 2000.0},
    }
    text = json.dumps({"load_summary": {"count": 42}, "successes": successes, "failures": {"count": 2}})
    run = run_of(tmp_path, text)
    assert run.figures == {
        "mean_e2el_ms": 2000.0,
        "median_e2el_ms": 1500.0,
        "p90_e2el_ms": 3000.0,
        "mean_ttft_ms": 500.0,
        "p99_ttft_ms": 750.0,
        "mean_tpot_ms": 12.5,
        "request_throughput": 2.0,
        "output_throughput": 100.0,
        "total_token_throughput": 900.0,
        "duration": 20.0,
    }
    assert run.counts == {"completed": 40, "failed": 2, "total_input_tokens": 16_000, "total_output_tokens": 2000}
    assert "report.request_lifecycle.per_request: true" in refused(tmp_path, text)


def test_tokens_of_one_chunk_are_one_event(tmp_path: Path) -> None:
    rows = as_seen(SCENARIO)
    for each in rows:
        each.token_ns = [instant for instant in each.token_ns[::2] for _ in range(2)][: each.output_tokens]
    found = measured(tmp_path, inference_perf(rows))
    assert [len(each.token_ns) for each in found.completed] == [-(-each.output_tokens // 2) for each in rows]
    assert "mean_itl_ms" not in run_of(tmp_path, inference_perf(rows)).figures


def test_statistics_of_aiperf(tmp_path: Path) -> None:
    document = {
        "schema_version": "1.4",
        "request_latency": {"unit": "ms", "avg": 900.0, "p50": 800.0, "p90": 1200.0, "p99": 1500.0},
        "time_to_first_token": {"unit": "us", "avg": 50_000.0},
        "inter_token_latency": {"unit": "ms", "avg": 12.0, "p25": 11.0},
        "inter_chunk_latency": {"unit": "ms", "avg": 13.0},
        "request_throughput": {"unit": "requests/sec", "avg": 2.5},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 150.0},
        "benchmark_duration": {"unit": "sec", "avg": 40.0},
        "request_count": {"unit": "requests", "avg": 100.0},
        "error_request_count": {"unit": "requests", "avg": 3.0},
        "input_sequence_length": {"unit": "tokens", "avg": 512.0},
        "total_osl": {"unit": "tokens", "avg": 6000.0},
    }
    run = run_of(tmp_path, json.dumps(document))
    assert run.figures == {
        "mean_e2el_ms": 900.0,
        "p50_e2el_ms": 800.0,
        "p90_e2el_ms": 1200.0,
        "p99_e2el_ms": 1500.0,
        "mean_ttft_ms": 50.0,
        "mean_tpot_ms": 12.0,
        "mean_itl_ms": 13.0,
        "request_throughput": 2.5,
        "output_throughput": 150.0,
        "duration": 40.0,
    }
    assert run.counts == {"completed": 100, "failed": 3, "total_input_tokens": 51_200, "total_output_tokens": 6000}
    assert "requests are in profile_export.jsonl, beside this file" in refused(tmp_path, json.dumps(document))


def test_the_warm_up_of_aiperf_is_left_out(tmp_path: Path) -> None:
    lines = aiperf(as_seen(SCENARIO)).splitlines()
    text = "\n".join(line.replace("profiling", "warmup") if row < 10 else line for row, line in enumerate(lines))
    found = measured(tmp_path, text)
    assert len(found.observations) == 50
    assert "AIPerf: 10 requests of its warm-up are left out" in found.notes


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return edit


SUCCESSFUL = ("benchmarks", 0, "requests", "successful", 3)


@pytest.mark.parametrize(
    ("write", "edit", "told"),
    [
        (sglang, change("ttfts", 3, to="soon"), "request 3: ttfts must hold seconds, found 'soon'"),
        (sglang, change("itls", 3, to=7), "request 3: itls must hold lists of seconds, found 7"),
        (sglang, change("output_lens", 3, to=2.5), "request 3: output_lens must be a whole number, found 2.5"),
        (sglang, change("errors", to=[]), "whose lists are not of one length"),
        (guidellm, change(*SUCCESSFUL, to="x"), "request 3: not of the form that the tool writes"),
        (guidellm, change(*SUCCESSFUL, "prompt_tokens", to=None), "request 3: input tokens must be a whole number"),
        (
            guidellm,
            change(*SUCCESSFUL, "info", "timings", "request_start", to=None),
            "request 3: start must be seconds, found None",
        ),
        (
            guidellm,
            change(*SUCCESSFUL, "info", "timings", "first_token_iteration", to=1.0),
            "request 3: its times run backwards",
        ),
        (inference_perf, change(3, "start_time", to="now"), "request 3: start_time must be seconds, found 'now'"),
        (
            inference_perf,
            change(3, "info", "response_metrics", "output_token_times", to=[]),
            "request 3: no output_token_times: measure with streaming",
        ),
    ],
)
def test_values_that_cannot_be_are_named(
    write: Callable[[list[Observation]], str], edit: Callable[[Any], None], told: str, tmp_path: Path
) -> None:
    assert told in refused(tmp_path, edited(write(as_seen(CAPPED)), edit))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (change("metrics", "time_to_first_token", "unit", to="weeks"), "unknown unit 'weeks' (known: ms, s, "),
        (change("metrics", "time_to_first_token", "value", to=-1), "time_to_first_token must be a time, found -1"),
        (lambda line: line["metrics"].pop("time_to_first_token"), "no time_to_first_token: measure with --streaming"),
        (change("metadata", "request_start_ns", to="x"), "request_start_ns must be a whole number, found 'x'"),
    ],
)
def test_records_of_aiperf_that_cannot_be_are_named(edit: Callable[[Any], None], told: str, tmp_path: Path) -> None:
    lines = aiperf(as_seen(SCENARIO)).splitlines()
    lines[3] = edited(lines[3], edit)
    assert f"request 3: {told}" in refused(tmp_path, "\n".join(lines))


@pytest.mark.parametrize("text", ["", "Metric,avg\nTTFT,3\n", "benchmarks:\n- requests: {}\n", "7", '[{"a": 1}]'])
def test_a_file_of_no_known_kind_names_all_kinds(text: str, tmp_path: Path) -> None:
    told = refused(tmp_path, text)
    assert "SGLang's bench_serving, guidellm, inference-perf or AIPerf" in told
    assert told == refused(tmp_path, text, read_runs)
