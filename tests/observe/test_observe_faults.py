"""``simrun observe`` against a server that behaves, and against one that does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from observe_fake_server import MODEL, Fault, Handler, Plan, free_url, serving

from sim.cli import main

pytest.importorskip("aiohttp")

SCENARIO = """\
name: replayed
seed: 3
workload:
  requests: {requests}
  arrival: {{process: constant, rate: {rate}}}
  input_tokens: {{dist: uniform, low: 5, high: 60}}
  output_tokens: {{dist: uniform, low: 2, high: 6}}
  prefix: {{groups: 2, tokens: 20}}
  priority: 2
  tenant: shop
engine: {{model: llama-2-7b, gpu: a100-80gb-sxm, policy: {policy}}}
"""


def simrun(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def scenario(folder: Path, requests: int = 8, rate: float = 200.0, policy: str = "fcfs") -> str:
    path = folder / "replayed.yaml"
    path.write_text(SCENARIO.format(requests=requests, rate=rate, policy=policy))
    return str(path)


def record(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]:
    """First line, requests by row, last line."""
    first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    last = rest.pop() if rest and "end" in rest[-1] else None
    return first, sorted(rest, key=lambda line: int(line["row"])), last


def observe(folder: Path, url: str, *argv: str, **shape: Any) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and the requests of the record."""
    out = folder / "measured.jsonl"
    code = simrun("observe", scenario(folder, **shape), "--url", url, "--out", str(out), *argv)
    return code, record(out)[1]


def test_every_request_is_sent_as_the_workload_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan()
    with serving(plan) as url:
        code, lines = observe(tmp_path, url + "/v1/", policy="priority")
    assert code == 0
    captured = capsys.readouterr()
    # A busy machine makes this client late, which it says.
    assert [line for line in captured.err.splitlines() if "this client" not in line] == []
    assert "8 of 8 requests completed" in captured.out
    assert max(map(len, captured.out.splitlines()[:-1])) <= 80
    assert [line["status"] for line in lines] == ["completed"] * 8
    by_row = {body["vllm_xargs"]["class_name"]: body for body in plan.bodies}
    assert set(by_row) == {"default"}
    for number, line in enumerate(lines):
        assert line["due_s"] == pytest.approx(number / 200, abs=1e-9)
        assert line["sent_s"] >= line["due_s"]
        assert line["first_token_s"] > line["sent_s"]
        assert line["last_token_s"] == line["token_s"][-1]
        assert len(line["token_s"]) == line["output_tokens"] == line["max_tokens"]
        assert line["http_status"] == 200
        assert line["finish_reason"] == "length"
    sent = sorted(len(body["prompt"]) for body in plan.bodies)
    assert sent == sorted(line["input_tokens"] for line in lines)
    for body in plan.bodies:
        assert body["model"] == MODEL
        assert body["ignore_eos"] is True
        assert body["stream_options"] == {"include_usage": True}
        assert body["priority"] == 2
        assert body["vllm_xargs"]["tenant"] == "shop"
        assert all(1000 <= each < 30000 for each in body["prompt"])


def test_prompts_share_what_the_workload_shares_and_nothing_else(tmp_path: Path) -> None:
    plan = Plan(step_s=0)
    with serving(plan) as url:
        _, lines = observe(tmp_path, url, requests=30)
    groups = {line["segments"][0][0] for line in lines}
    assert len(groups) == 2
    beginnings = {tuple(body["prompt"][:5]) for body in plan.bodies}
    assert len(beginnings) == 2
    own = [tuple(body["prompt"][20:]) for body in plan.bodies if len(body["prompt"]) > 20]
    assert len(set(own)) == len(own) > 10


def test_a_salt_repeats_the_prompts_and_another_run_does_not(tmp_path: Path) -> None:
    prompts = []
    for argv in (["--salt", "a"], ["--salt", "a"], []):
        plan = Plan(step_s=0)
        with serving(plan) as url:
            observe(tmp_path, url, *argv, "--force")
        prompts.append({tuple(body["prompt"]) for body in plan.bodies})
    assert prompts[0] == prompts[1]
    assert not prompts[0] & prompts[2]


def test_priorities_are_kept_back_where_the_engine_ignores_them(tmp_path: Path) -> None:
    plan = Plan()
    with serving(plan) as url:
        observe(tmp_path, url, policy="fcfs")
    assert not any("priority" in body for body in plan.bodies)


def test_openai_only_and_chat_send_text_and_no_extensions(tmp_path: Path) -> None:
    plan = Plan()
    with serving(plan) as url:
        code, lines = observe(tmp_path, url, "--openai-only", "--endpoint", "chat")
    assert code == 0
    for body in plan.bodies:
        assert set(body) == {
            *("model", "messages", "max_completion_tokens", "temperature", "stream", "stream_options"),
        }
    for line in lines:
        assert len(line["token_s"]) == line["output_tokens"]  # the first event of a chat holds a role and no token


def test_counts_come_from_usage_not_from_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Plan(bundle=4)) as url:
        code, lines = observe(tmp_path, url)
    assert code == 0
    assert sum(line["output_tokens"] for line in lines) > sum(len(line["token_s"]) for line in lines)
    assert all(line["output_tokens"] == line["max_tokens"] for line in lines)


def test_the_key_goes_into_the_header_and_not_into_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    plan = Plan()
    with serving(plan) as url:
        observe(tmp_path, url)
    assert {each["Authorization"] for each in plan.headers} == {"Bearer sk-secret"}
    assert "sk-secret" not in (tmp_path / "measured.jsonl").read_text()


def test_a_password_in_the_address_is_neither_kept_nor_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Plan()) as url:
        assert observe(tmp_path, url.replace("//", "//me:hidden@"))[0] == 0
    assert record(tmp_path / "measured.jsonl")[0]["url"] == url
    assert observe(tmp_path, free_url().replace("//", "//me:hidden@"), "--force")[0] == 1
    assert "hidden" not in (tmp_path / "measured.jsonl").read_text() + capsys.readouterr().err


def test_a_key_that_no_header_can_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    argv = ("--url", free_url(), "--out", str(tmp_path / "measured.jsonl"))
    assert simrun("observe", scenario(tmp_path), *argv) == 2
    error = capsys.readouterr().err
    assert "OPENAI_API_KEY holds a line break" in error
    assert "sk-secret" not in error


def test_a_list_of_models_of_another_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(models=[])
    plan.model_list = {"data": 5}
    with serving(plan) as url:
        argv = ("--url", url, "--out", str(tmp_path / "measured.jsonl"))
        assert simrun("observe", scenario(tmp_path), *argv) == 2
    assert "lists no models under /v1/models; name" in capsys.readouterr().err


def http_error(status: int, document: Any) -> Fault:
    return lambda handler, body: handler.answer(status, document)


def dies_at_once(handler: Handler, body: dict[str, Any]) -> None:
    handler.reset()


def dies_midway(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.tokens(body, 1)
    time.sleep(0.05)  # what has arrived is lost as well, once a reset has
    handler.reset()


def closes_midway(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.tokens(body, 1)
    handler.chunk(b"")


def writes_garbage(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.chunk(b"data: {not json}\n\n")
    handler.end_stream(body)


def writes_bytes(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.chunk(b"data: \xff\xfe\n\n")
    handler.end_stream(body)


def writes_a_list(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.chunk(b'data: {"choices": ["x"]}\n\n')
    handler.end_stream(body)


def reports_an_error(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.event({"error": {"message": "EngineCore died", "code": 500}})
    handler.end_stream(body)


def says_nothing(handler: Handler, body: dict[str, Any]) -> None:
    time.sleep(1.5)
    handler.reset()


def counts_nonsense(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.tokens(body, 2)
    handler.event({"choices": [], "usage": {"prompt_tokens": "many"}})
    handler.chunk(b"data: [DONE]\n\n")
    handler.chunk(b"")


def counts_more_than_there_is(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.tokens(body, 2)
    handler.event({"choices": [], "usage": {"prompt_tokens": 10**30, "completion_tokens": 10**30}})
    handler.chunk(b"data: [DONE]\n\n")
    handler.chunk(b"")


def reports_an_error_as_it_once_was(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.event({"object": "error", "message": "EngineCore died", "code": 500})
    handler.end_stream(body)


def generates_nothing(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}})
    handler.chunk(b"data: [DONE]\n\n")
    handler.chunk(b"")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (http_error(400, {"error": {"message": "max_tokens is too large"}}), "HTTP 400: max_tokens is too large"),
        (http_error(404, {"detail": "Not Found"}), "HTTP 404: Not Found"),
        (http_error(429, b"slow down"), "HTTP 429: slow down"),
        (http_error(503, b""), "HTTP 503: Service Unavailable"),
        (
            lambda handler, body: handler.answer(200, {"choices": []}),
            "does not stream: it answered with application/json",
        ),
        (dies_at_once, "connection"),
        (dies_midway, "after 1 events"),
        (closes_midway, "the stream ended without [DONE], after 1 events"),
        (writes_garbage, "malformed stream: not JSON: '{not json}'"),
        (writes_bytes, "malformed stream: not UTF-8"),
        (writes_a_list, "malformed stream: choices is not a list of objects"),
        (reports_an_error, "the server reported: EngineCore died"),
        (says_nothing, "timed out after 0.7 s"),
        (counts_nonsense, "usage holds no token counts"),
        (counts_more_than_there_is, "usage holds no token counts"),
        (reports_an_error_as_it_once_was, "the server reported: EngineCore died"),
        (generates_nothing, "no token came"),
    ],
)
def test_a_failed_request_is_in_the_record_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Fault, reason: str
) -> None:
    with serving(Plan(faults={3: fault})) as url:
        code, lines = observe(tmp_path, url, "--timeout", "0.7", rate=40.0)
    assert code == 1
    assert len(lines) == 8
    failed = [line for line in lines if line["status"] != "completed"]
    assert len(failed) == 1
    assert failed[0]["status"] == "failed"
    assert reason in failed[0]["reason"]
    assert failed[0]["sent_s"] is not None
    assert failed[0]["end_s"] is not None
    captured = capsys.readouterr()
    assert "1 of 8 requests did not complete" in captured.err
    assert f"1 x {failed[0]['reason']}" in captured.err
    assert "7 of 8 requests completed" in captured.out
    assert "Traceback" not in captured.err


def test_what_follows_the_end_of_a_stream_does_not_matter(tmp_path: Path) -> None:
    def talks_on(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.tokens(body, body["max_tokens"])
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": body["max_tokens"]}}
        handler.chunk(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\ndata: what else\n\n".encode())
        handler.chunk(b"")

    with serving(Plan(faults={3: talks_on})) as url:
        code, lines = observe(tmp_path, url)
    assert (code, {line["status"] for line in lines}) == (0, {"completed"})


def test_answers_of_other_lengths_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stops_by_itself(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.tokens(body, 1)
        handler.end_stream({**body, "max_tokens": 1})

    with serving(Plan(faults={3: stops_by_itself})) as url:
        code, lines = observe(tmp_path, url)
    assert code == 0
    asked, got = (sum(line[key] for line in lines) for key in ("max_tokens", "output_tokens"))
    told = f"1 of 8 answers are not as long as the workload's ({got} tokens in all, not {asked})"
    assert told in capsys.readouterr().err


def test_no_usage_is_a_failure_not_a_guess(tmp_path: Path) -> None:
    with serving(Plan(usage=False)) as url:
        code, lines = observe(tmp_path, url)
    assert code == 1
    assert {line["reason"] for line in lines} == {
        "the stream held no usage: the server does not know stream_options.include_usage"
    }


def test_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = free_url()
    started = time.monotonic()
    code, lines = observe(tmp_path, url, rate=0.1)
    assert time.monotonic() - started < 20  # it does not wait for the arrivals of a server that is not there
    assert code == 1
    assert len(lines) == 8
    assert {(line["status"], line["reason"], line["sent_s"]) for line in lines} == {
        ("failed", f"cannot connect: Connection refused ({url})", None)
    }
    assert "8 of 8 requests did not complete" in capsys.readouterr().err


def test_a_server_that_dies_midway_fails_those_after_it(tmp_path: Path) -> None:
    plan = Plan(step_s=0.025)
    with serving(plan) as url:

        def dies(handler: Handler, body: dict[str, Any]) -> None:
            plan.dead = True
            handler.server.shutdown()
            handler.server.server_close()
            handler.reset()

        plan.faults[4] = dies
        code, lines = observe(tmp_path, url, requests=12, rate=20.0)
    assert code == 1
    assert len(lines) == 12
    statuses = [line["status"] for line in lines]
    assert statuses[0] == "completed"
    assert set(statuses[4:]) == {"failed"}
    assert "cannot connect: Connection refused" in {line["reason"] for line in lines[5:]}
    assert any("in the middle of the stream, after" in (line["reason"] or "") for line in lines[:4])


def test_a_model_that_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(models=["a", "b"])
    with serving(plan) as url:
        code, lines = observe(tmp_path, url, "--model", "c")
    assert code == 1
    assert plan.bodies == []
    assert {line["reason"] for line in lines} == {"the server does not serve the model 'c'; it serves a, b"}


def test_a_server_without_a_list_of_models_needs_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(models=[])
    with serving(plan) as url:
        argv = ["observe", scenario(tmp_path), "--url", url, "--out", str(tmp_path / "measured.jsonl")]
        assert simrun(*argv) == 2
        assert "lists no models under /v1/models (HTTP 404); name the one to ask for by --model" in (
            capsys.readouterr().err
        )
        assert not (tmp_path / "measured.jsonl").exists()
        assert simrun(*argv, "--model", "mine") == 0
    assert {body["model"] for body in plan.bodies} == {"mine"}


def test_an_earlier_record_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "measured.jsonl"
    out.write_text("precious\n")
    argv = ["observe", scenario(tmp_path), "--out", str(out), "--url"]
    with serving(Plan()) as url:
        assert simrun(*argv, url) == 2
        assert "--force" in capsys.readouterr().err
        assert out.read_text() == "precious\n"
        assert simrun(*argv, url, "--force") == 0
    assert len(record(out)[1]) == 8


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--url", "localhost:8000"], "expected the address of a server"),
        (["--url", "http://h:99999"], "expected the address of a server"),
        (["--url", "http://h/?a=b"], "without what follows ?"),
        (["--url", "http://h", "--token-ids", "5"], "expected LOW:HIGH"),
        (["--url", "http://h", "--token-ids", "9:3"], "expected LOW:HIGH"),
        (["--url", "http://h", "--token-ids", "0:3000000000"], "none beyond 2**31"),
        (["--url", "http://h", "--rate-scale", "2"], "--format and --rate-scale are about a trace"),
        (["--url", "http://h", "--format", "azure"], "--format and --rate-scale are about a trace"),
        (["--url", "http://h", "--timeout", "0"], "--timeout"),
        (["--url", "http://h", "--timeout", "nan"], "--timeout"),
        (["--url", "http://h", "--trace", "x.csv"], "one of the two"),
        (["--url", "http://h", "--set", "workload.requests=x"], "workload.requests"),
        (["--url", "http://h", "--endpoint", "embeddings"], "--endpoint"),
        ([], "--url"),
    ],
)
def test_bad_input_is_exit_2_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    out = tmp_path / "measured.jsonl"
    assert simrun("observe", scenario(tmp_path), "--out", str(out), *argv) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not out.exists()


def test_a_missing_library_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    argv = ["observe", scenario(tmp_path), "--url", "http://127.0.0.1:1", "--out", str(tmp_path / "m.jsonl")]
    assert simrun(*argv) == 2
    assert capsys.readouterr().err == (
        "simrun: observe needs aiohttp; install it with: pip install 'simrun-llm[live]'\n"
    )


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,request_id,priority\n10.0,7,3,a,0\n10.1,9,2,b,-1\n")
    out = tmp_path / "measured.jsonl"
    plan = Plan()
    with serving(plan) as url:
        assert simrun("observe", "--trace", str(trace), "--url", url, "--out", str(out), "--rate-scale", "2") == 0
    first, lines, last = record(out)
    assert [(line["request_id"], line["due_s"], line["input_tokens"]) for line in lines] == [
        ("a", 0.0, 7),
        ("b", 0.05, 9),
    ]
    assert [body.get("priority") for body in plan.bodies] == [None, -1]
    assert first["requests"] == 2
    assert first["server_version"] == "0.32.0"
    assert last is not None
    assert last["counts"] == {"completed": 2, "failed": 0, "cancelled": 0}


def test_conversations_follow_the_real_end_and_share_their_prompts(tmp_path: Path) -> None:
    path = tmp_path / "talk.yaml"
    path.write_text(
        "name: talk\nworkload:\n  requests: 6\n  arrival: {process: constant, rate: 100}\n"
        "  input_tokens: {dist: fixed, value: 20}\n  output_tokens: {dist: fixed, value: 5}\n"
        "  sessions: {turns: 3, think_time_s: 0.05}\nengine: {model: llama-2-7b, gpu: a100-80gb-sxm}\n"
    )
    out = tmp_path / "measured.jsonl"
    plan = Plan()
    with serving(plan) as url:
        assert simrun("observe", str(path), "--url", url, "--out", str(out)) == 0
    lines = record(out)[1]
    prompts = {len(body["prompt"]): [] for body in plan.bodies}
    for body in plan.bodies:
        prompts[len(body["prompt"])].append(tuple(body["prompt"]))
    assert sorted(prompts) == [20, 45, 70]
    assert {each[:45] for each in prompts[70]} == set(prompts[45])
    assert {each[:20] for each in prompts[45]} == set(prompts[20])
    assert len(set(prompts[20])) == 2
    ends = {(line["input_tokens"], line["segments"][0][0]): line for line in lines}
    for (length, content), line in ends.items():
        if length > 20:
            before = ends[length - 25, content]
            assert line["due_s"] == pytest.approx(before["end_s"] + 0.05, abs=0.02)
            assert line["sent_s"] >= before["end_s"] + 0.05


@pytest.mark.parametrize(
    "arrival", ["{process: closed_loop, concurrency: 3}", "{process: poisson, rate: 1000, max_concurrency: 3}"]
)
def test_no_more_requests_are_under_way_than_may_be(tmp_path: Path, arrival: str) -> None:
    plan = Plan(step_s=0.005)
    with serving(plan) as url:
        code, lines = observe(tmp_path, url, "--set", f"workload.arrival={arrival}", requests=12)
    assert code == 0
    assert len(lines) == 12
    events = sorted([(line["sent_s"], 1) for line in lines] + [(line["end_s"], -1) for line in lines])
    level, most = 0, 0
    for _, change in events:
        level += change
        most = max(most, level)
    assert most == 3


def test_a_closed_loop_that_ends_by_time_leaves_nothing_over(tmp_path: Path) -> None:
    loop = ("--set", "workload.arrival={process: closed_loop, concurrency: 2}", "--set", "workload.requests=null")
    with serving(Plan(step_s=0.01)) as url:
        code, lines = observe(tmp_path, url, *loop, "--set", "workload.duration_s=0.5")
    assert code == 0
    assert 10 < len(lines) < 100
    assert record(tmp_path / "measured.jsonl")[2]["not_sent"] == 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--trace", "gone.csv"], "simrun: --trace: no such file"),
        (["--trace", "t.csv", "--format", "bogus"], "simrun: --format is the text 'bogus'"),
        (["--trace", "t.csv", "--rate-scale", "-1"], "simrun: --rate-scale is -1"),
        (["--trace", "t.csv"], "t.csv:2:"),
        (["--trace", "t.csv", "--set", "engine.policy=sjf"], "--set and --seed change a scenario"),
    ],
)
def test_a_bad_trace_is_told_in_the_words_of_the_options(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("arrival_s,input_tokens,output_tokens\nsoon,1,1\n")
    assert simrun("observe", *argv, "--url", free_url(), "--out", "m.jsonl") == 2
    assert expected in capsys.readouterr().err
    assert not Path("m.jsonl").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_keeps_what_was_seen(tmp_path: Path, number: signal.Signals, code: int) -> None:
    out = tmp_path / "measured.jsonl"
    plan = Plan(step_s=0.02)
    with serving(plan) as url:
        argv = ["observe", scenario(tmp_path, requests=400, rate=20.0), "--url", url, "--out", str(out)]
        process = started(argv, out, 5)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert "interrupted" in stderr
    assert "never sent" in stderr
    assert "Traceback" not in stderr
    _, lines, last = record(out)
    assert last is not None
    assert last["counts"]["completed"] >= 4
    assert last["not_sent"] == 400 - len(lines)
    assert {line["reason"] for line in lines if line["status"] == "cancelled"} <= {"interrupted"}


def test_a_kill_keeps_all_that_had_ended(tmp_path: Path) -> None:
    out = tmp_path / "measured.jsonl"
    with serving(Plan()) as url:
        argv = ["observe", scenario(tmp_path, requests=400, rate=50.0), "--url", url, "--out", str(out)]
        process = started(argv, out, 8)
        process.kill()
        process.wait(timeout=20)
    _, lines, last = record(out)
    assert last is None
    assert len(lines) >= 7
    assert {line["status"] for line in lines} == {"completed"}


def interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(argv: list[str], out: Path, num_lines: int) -> subprocess.Popen[str]:
    """The command in a process of its own, once its record has that many lines."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "sim.cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=interruptible,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if out.exists() and out.read_text().count("\n") >= num_lines:
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no {num_lines} lines: {process.communicate()}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_and_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Plan()) as url:
        assert simrun("observe", scenario(tmp_path), "--url", url, "--out", "/dev/full") == 1
    captured = capsys.readouterr()
    assert "cannot write --out /dev/full" in captured.err
    assert "Traceback" not in captured.err
