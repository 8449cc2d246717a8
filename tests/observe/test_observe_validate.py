"""``simrun validate`` on records whose truth is known."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.cli import main
from sim.errors import InputError
from sim.live.bench_results import BENCH_LISTS
from sim.live.measured import figures, read_measured
from sim.live.observation_file import Observation, RecordFile
from sim.live.prompts import shared_segments
from sim.live.validate import COMPARED, error_percent, table_of, validate
from sim.results.results import Results
from sim.run import load
from sim.workload.build_table import build_workload

SCENARIO = """\
name: known
seed: 5
workload:
  requests: 200
  arrival: {process: gamma, rate: 30.0, cv: 2.0}
  input_tokens: {dist: lognormal, mean: 150, cv: 1.0, max: 900}
  output_tokens: {dist: uniform, low: 1, high: 40}
  classes:
    - {name: chat, share: 2, priority: 0, tenant: a, tier: gold, prefix: {groups: 3, tokens: 64}}
    - {name: batch, share: 1, priority: 5, tenant: b, deadline_s: 9}
engine:
  model: llama-3.1-8b
  gpu: a100-80gb-sxm
  policy: priority
  max_num_seqs: 6
  max_num_batched_tokens: 256
  num_gpu_blocks_override: 120
  max_model_len: 1024
latency: {kind: constant, step_s: 0.01}
"""


def simrun(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "known.yaml"
    path.write_text(SCENARIO)
    return str(path)


def as_observed(scenario: str) -> list[Observation]:
    """What a client would have seen of the simulated engine, token by token, from the recorder's own columns."""
    results: Results = sim.simulate(scenario)
    table, columns = results.record.workload, results.record.requests
    segments = shared_segments(table)
    found = []
    for row in range(len(table)):
        info = table.classes[table.class_index[row]]
        first, finish = int(columns["first_token_ns"][row]), int(columns["finish_ns"][row])
        count, deadline = int(columns["output_tokens"][row]), int(table.deadline_ns[row])
        sent = int(table.arrival_ns[row])
        found.append(
            Observation(
                row=row,
                request_id=table.request_id(row),
                due_ns=sent,
                input_tokens=int(table.input_tokens[row]),
                max_tokens=count,
                priority=int(table.priority[row]),
                class_name=info.name,
                tenant=info.tenant,
                tier=info.tier,
                deadline_ns=None if deadline < 0 else deadline,
                segments=segments[row],
                sent_ns=sent,
                token_ns=[first + (finish - first) * k // max(1, count - 1) for k in range(count)],
                end_ns=finish + 1_000_000,  # a stream ends after its last token
                output_tokens=count,
                status="completed",
            )
        )
    return found


def write(path: Path, observations: list[Observation]) -> str:
    with RecordFile(str(path)) as record:
        record.begin({"requests": len(observations)})
        for each in observations:
            record.add(each)
        record.end({})
    return str(path)


def exact(keys: tuple[str, ...]) -> list[str]:
    """All figures but those of ITL: between the first and the last, the record above has its tokens evenly spread."""
    return [key for key in keys if "_itl_" not in key]


def test_a_record_made_of_a_simulation_is_predicted_without_error(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = write(tmp_path / "measured.jsonl", as_observed(scenario))
    assert simrun("validate", measured, "--scenario", scenario, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    errors = {key: document["metrics"][key]["error_percent"] for key in exact(COMPARED)}
    assert set(errors.values()) == {0.0}
    assert document["metrics"]["p99_ttft_ms"]["measured"] > 100  # there is a queue, so order matters
    assert document["counts"]["measured"] == document["counts"]["predicted"]
    assert document["counts"]["measured"]["completed"] == 200


def test_itl_too_where_no_step_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "calm.yaml"
    path.write_text(SCENARIO.replace("num_gpu_blocks_override: 120", "num_gpu_blocks_override: 9000"))
    measured = write(tmp_path / "measured.jsonl", as_observed(str(path)))
    assert simrun("validate", measured, "--scenario", str(path), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {document["metrics"][key]["error_percent"] for key in COMPARED} == {0.0}


def test_priorities_prefixes_and_lengths_of_the_record_count(scenario: str, tmp_path: Path) -> None:
    observations = as_observed(scenario)
    loaded = load(scenario)
    own = build_workload(loaded.scenario.workload, 5, loaded.base_dir, 1024)
    made = table_of(sorted(observations, key=lambda each: (each.sent_ns or 0, each.row)))
    assert made.arrival_ns.tolist() == (own.arrival_ns - own.arrival_ns[0]).tolist()
    for name in ("input_tokens", "output_tokens", "priority", "deadline_ns", "segment_end_tokens"):
        assert getattr(made, name).tolist() == getattr(own, name).tolist(), name
    assert {(info.name, info.tenant, info.tier) for info in made.classes} == {
        ("chat", "a", "gold"),
        ("batch", "b", "b"),
    }
    for each in observations:
        each.segments = []
    changed = validate(load(scenario), read_measured(write(tmp_path / "plain.jsonl", observations)), "plain.jsonl")
    assert changed.results.summary["kv"]["prefix_cache_hits"] == 0


def test_errors_have_a_sign_and_a_base() -> None:
    assert error_percent(10.0, 12.0) == pytest.approx(20.0)
    assert error_percent(10.0, 8.0) == pytest.approx(-20.0)
    assert error_percent(0.0, 0.0) == 0.0
    assert error_percent(0.0, 1.0) is None
    assert error_percent(None, 1.0) is None


def test_a_slower_engine_than_predicted_shows(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = write(tmp_path / "measured.jsonl", as_observed(scenario))
    assert simrun("validate", measured, "--scenario", scenario, "--set", "latency.step_s=0.005") == 0
    text = capsys.readouterr().out
    assert "known, simulated, against" in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert any(line.startswith("E2E p99, ms") and "-" in line.split()[-2] for line in text.splitlines())


def test_failed_requests_are_left_out_and_counted(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    observations = as_observed(scenario)
    for each in observations[::10]:
        each.status, each.reason, each.token_ns, each.output_tokens = "failed", "HTTP 503: busy", [], 0
    measured = write(tmp_path / "measured.jsonl", observations)
    assert simrun("validate", measured, "--scenario", scenario, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["measured"]["completed"] == document["counts"]["predicted"]["completed"] == 180
    assert document["counts"]["measured"]["failed"] == 20
    assert document["left_out"] == {"HTTP 503: busy": 20}
    assert any("20 of 200 requests did not complete" in note for note in document["notes"])


def test_nothing_completed_is_said_with_the_reason(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    observations = as_observed(scenario)[:3]
    for each in observations:
        each.status, each.reason = "failed", "cannot connect"
    measured = write(tmp_path / "measured.jsonl", observations)
    assert simrun("validate", measured, "--scenario", scenario) == 2
    assert "no request completed, so there is nothing to compare; 3 of 3: cannot connect" in capsys.readouterr().err


def test_out_gets_both_files(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = write(tmp_path / "measured.jsonl", as_observed(scenario))
    out = tmp_path / "deep" / "out"
    assert simrun("validate", measured, "--scenario", scenario, "--out", str(out)) == 0
    assert "validation.json, requests.csv" in capsys.readouterr().out
    assert json.loads((out / "validation.json").read_text())["scenario"] == "known"
    head, *rows = (out / "requests.csv").read_text().splitlines()
    names = head.split(",")
    assert len(rows) == 200
    for row in rows:
        cells = dict(zip(names, row.split(","), strict=True))
        assert cells["measured_ttft_ms"] == cells["predicted_ttft_ms"]
        assert cells["measured_e2el_ms"] == cells["predicted_e2el_ms"]


def test_a_disk_that_fills_leaves_the_files_of_before(scenario: str, tmp_path: Path) -> None:
    measured = write(tmp_path / "measured.jsonl", as_observed(scenario))
    out = tmp_path / "out"
    assert simrun("validate", measured, "--scenario", scenario, "--out", str(out)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    program = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        f"from sim.cli import main; main(['validate', {measured!r}, '--scenario', {scenario!r}, '--out', {str(out)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"simrun: cannot write --out {out}: {os.strerror(errno.EFBIG)}\n")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_bundled_tokens_are_told(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    observations = as_observed(scenario)
    for each in observations:
        each.token_ns = [each.token_ns[0], each.token_ns[-1]]
    measured = write(tmp_path / "measured.jsonl", observations)
    assert simrun("validate", measured, "--scenario", scenario, "--json") == 0
    assert any(
        "of the tokens came together with the one before" in note
        for note in json.loads(capsys.readouterr().out)["notes"]
    )


# --- vllm bench serve ------------------------------------------------------------------------


def bench(observations: list[Observation], start_s: float = 5000.25) -> dict[str, Any]:
    """The same requests as ``vllm bench serve --save-result --save-detailed`` writes them."""
    return {
        "date": "20261121-090000",
        "backend": "vllm",
        "model_id": "meta-llama/Llama-3.1-8B",
        "duration": 1.0,
        "completed": len(observations),
        "input_lens": [each.input_tokens for each in observations],
        "output_lens": [each.output_tokens for each in observations],
        "ttfts": [(each.token_ns[0] - (each.sent_ns or 0)) / 1e9 for each in observations],
        "itls": [
            [(b - a) / 1e9 for a, b in zip(each.token_ns, each.token_ns[1:], strict=False)] for each in observations
        ],
        "start_times": [start_s + (each.sent_ns or 0) / 1e9 for each in observations],
        "generated_texts": ["" for _ in observations],
        "errors": ["" for _ in observations],
    }


FCFS = ("engine.policy=fcfs", "engine.enable_prefix_caching=false")


def test_a_result_of_vllm_bench_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fcfs.yaml"
    text = SCENARIO.replace("policy: priority", "policy: fcfs\n  enable_prefix_caching: false")
    path.write_text(text)
    result = tmp_path / "result.json"
    result.write_text(json.dumps(bench(as_observed(str(path)))))
    assert simrun("validate", str(result), "--scenario", str(path), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["source"] == "vllm bench serve"
    # start_times are seconds since the machine's start: their last digits are lost.
    assert max(abs(document["metrics"][key]["error_percent"]) for key in exact(COMPARED)) < 1e-3
    assert any("no shared prompts and no priorities" in note for note in document["notes"])


def test_failed_requests_of_vllm_bench_are_left_out(scenario: str, tmp_path: Path) -> None:
    document = bench(as_observed(scenario))
    document["errors"][7] = "Traceback (most recent call last):\n  File x\nTimeoutError: late\n"
    document["output_lens"][7], document["ttfts"][7], document["itls"][7] = 0, 0.0, []
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document))
    measured = read_measured(str(path))
    assert len(measured.completed) == 199
    assert measured.observations[7].reason == "TimeoutError: late"
    assert figures(measured)["failed"] == 1


@pytest.mark.parametrize(
    "odd", [{}, {"start_times": 0.0}, {"start_times": None, "ttfts": None, "itls": None}, {"ttfts": float("nan")}]
)
def test_what_else_a_failed_request_holds_does_not_matter(scenario: str, tmp_path: Path, odd: dict[str, Any]) -> None:
    """One that was never sent has a start of 0, which is no instant of the run."""
    document = bench(as_observed(scenario))
    whole = figures(read_measured(write_json(tmp_path / "whole.json", document)))
    document["errors"][7], document["output_lens"][7] = "refused", 0
    for key, value in odd.items():
        document[key][7] = value
    measured = read_measured(write_json(tmp_path / "result.json", document))
    assert len(measured.completed) == 199
    assert figures(measured)["duration"] == pytest.approx(whole["duration"], rel=0.05)


def test_a_request_without_text_and_without_reason_has_failed(scenario: str, tmp_path: Path) -> None:
    """vLLM's benchmark keeps the reason phrase of an answer, which HTTP/2 does not have."""
    document = bench(as_observed(scenario))
    document["output_lens"][3], document["ttfts"][3], document["itls"][3] = 0, 0.0, []
    measured = read_measured(write_json(tmp_path / "result.json", document))
    assert measured.observations[3].status == "failed"
    assert "no reason is given" in (measured.observations[3].reason or "")


def test_pieces_count_where_output_lens_is_zero(scenario: str, tmp_path: Path) -> None:
    document = bench(as_observed(scenario))
    pieces = 1 + len(document["itls"][3])
    document["output_lens"][3] = 0
    measured = read_measured(write_json(tmp_path / "result.json", document))
    assert (len(measured.completed), measured.observations[3].output_tokens) == (200, pieces)
    assert any("1 of 200 requests completed with output_lens 0" in note for note in measured.notes)


def test_the_last_of_appended_results_is_compared(scenario: str, tmp_path: Path) -> None:
    documents = [bench(as_observed(scenario)), bench(as_observed(scenario)[:50])]
    documents[0]["request_rate"] = float("inf")
    path = tmp_path / "all.json"
    path.write_text("\n".join(json.dumps(each) for each in documents))
    assert "Infinity" in path.read_text()
    measured = read_measured(str(path))
    assert len(measured.completed) == 50
    assert any("holds 2 results" in note for note in measured.notes)
    (path.with_name("one.json")).write_text(json.dumps(documents[0], indent=1))
    assert len(read_measured(str(path.with_name("one.json"))).completed) == 200


def test_a_result_without_start_times_names_the_version(scenario: str, tmp_path: Path) -> None:
    document = bench(as_observed(scenario))
    del document["start_times"]
    with pytest.raises(InputError) as error:
        read_measured(write_json(tmp_path / "old.json", document))
    message = error.value.problems[0].message
    assert "since vLLM 0.15" in message
    assert "--save" not in message, "those flags were given"


def write_json(path: Path, document: Any) -> str:
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ttfts", "soon", "request 2: ttfts must hold seconds, found 'soon'"),
        ("ttfts", None, "request 2: ttfts must hold seconds, found None"),
        ("ttfts", float("nan"), "request 2: ttfts must hold seconds, found nan"),
        ("ttfts", -1.0, "request 2: its times run backwards"),
        ("itls", 0.1, "request 2: itls must hold a list of seconds, found 0.1"),
        ("itls", ["a"], "request 2: itls must hold seconds, found 'a'"),
        ("itls", [1e10], "request 2: itls must hold seconds, found 10000000000.0"),
        ("start_times", 1e300, "request 2: start_times must hold seconds, found 1e+300"),
        ("input_lens", 10**30, "request 2: input_lens must hold whole numbers, found 1000"),
        ("input_lens", 12.0, "request 2: input_lens must hold whole numbers, found 12.0"),
        ("output_lens", True, "request 2: output_lens must hold whole numbers, found True"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_odd_values_of_vllm_bench_are_told_with_their_key(
    scenario: str, tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    document = bench(as_observed(scenario))
    document[key][2] = value
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError) as error:
        read_measured(str(path))
    assert [problem.message[: len(expected)] for problem in error.value.problems] == [expected]


# --- files that are not ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "neither a record"),
        ("hello\n", "neither a record"),
        ("[1, 2]", "expected the one JSON object"),
        ('{"ttfts": []}', "--save-detailed"),
        (
            json.dumps({key: [] for key in BENCH_LISTS}),
            "nothing",
        ),
        ('{"a": 1}\n{"b": 2}\n', "--append-result"),
        ('{"record": "simrun-observe", "format": 9}\n', "a record of format 9; this version reads 1"),
        ('{"record": "simrun-observe", "format": 1}\n{"row": 1}\n', ":2: status must be one of"),
        ('{"record": "simrun-observe", "format": 1}\nnonsense\n{"end": true}\n', ":2: not JSON"),
        (
            '{"record": "simrun-observe", "format": 1}\n{"row": 0, "status": "completed", "token_s": [], '
            '"input_tokens": 1, "max_tokens": 1, "output_tokens": 1}\n',
            "a completed request needs",
        ),
        (
            '{"record": "simrun-observe", "format": 1}\n{"row": 0, "status": "completed", "token_s": [2.0, 1.0], '
            '"sent_s": 0.5, "input_tokens": 1, "max_tokens": 1, "output_tokens": 2}\n',
            "run backwards",
        ),
        (
            '{"record": "simrun-observe", "format": 1}\n{"row": 0, "status": "completed", "token_s": ["x"], '
            '"sent_s": 0.5, "input_tokens": 1, "max_tokens": 1, "output_tokens": 2}\n',
            "token_s must be seconds",
        ),
        (
            '{"record": "simrun-observe", "format": 1}\n'
            + 2
            * '{"row": 7, "status": "failed", "token_s": [], "input_tokens": 1, "max_tokens": 1, "output_tokens": 0}\n',
            ":3: row 7 is in line 2 already",
        ),
        ('{"record": "simrun-observe", "format": 1}\n' + "[" * 100_000 + "\n", ":2: maximum recursion depth"),
        ("[" * 100_000, "neither a record"),
    ],
)
def test_other_files_are_exit_2_with_the_line(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    path = tmp_path / "measured.jsonl"
    path.write_text(content)
    assert simrun("validate", str(path), "--scenario", scenario) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_every_problem_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    argv = ["--scenario", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "file")]
    assert simrun("validate", str(tmp_path / "gone.jsonl"), *argv) == 2
    error = capsys.readouterr().err
    for expected in ("no such scenario file", "gone.jsonl: cannot be read", "--out"):
        assert expected in error


def test_a_record_cut_off_by_a_kill_is_used_as_far_as_it_goes(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(write(tmp_path / "measured.jsonl", as_observed(scenario)))
    text = path.read_text()
    path.write_text(text[: len(text) - 400])
    assert simrun("validate", str(path), "--scenario", scenario, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["measured"]["completed"] == 199
    assert any("its last line was cut off" in note for note in document["notes"])
    assert any("was broken off after 199 of 200 requests" in note for note in document["notes"])


def test_line_ends_of_other_alphabets_end_no_line(scenario: str, tmp_path: Path) -> None:
    observations = as_observed(scenario)
    observations[3].tenant = "a\u2028b\u0085c"
    path = Path(write(tmp_path / "measured.jsonl", observations))
    path.write_text(
        "".join(json.dumps(json.loads(line), ensure_ascii=False) + "\n" for line in path.read_text().splitlines()),
        encoding="utf-8",
    )
    found = read_measured(str(path))
    assert (len(found.completed), found.observations[3].tenant, found.notes) == (200, "a\u2028b\u0085c", [])


def test_every_line_is_in_the_file_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "measured.jsonl"
    with RecordFile(str(path)) as record:
        record.begin({"requests": 2})
        for row in range(2):
            record.add(Observation(row, str(row), 0, 5, 5, reason="none came"))
            assert json.loads(path.read_text().splitlines()[-1])["row"] == row


def test_an_observation_reads_back_to_the_nanosecond() -> None:
    seen = Observation(
        *(3, "id", 123_456_789, 17, 5, -2, "c", "t", "g", 9_000_000_001, 4, [(1, 16), (7, 17)]),
        sent_ns=86_400_123_456_789,
        token_ns=[86_400_123_456_790, 86_401_999_999_999],
        end_ns=86_402_000_000_001,
        output_tokens=2,
        status="completed",
        http_status=200,
        finish_reason="length",
    )
    assert Observation.from_json(json.loads(json.dumps(seen.to_json()))) == seen
