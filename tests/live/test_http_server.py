"""The plugin behind vLLM's HTTP server, with concurrent streaming clients, and the loop of observe and validate.

One server for all, started with what ``simrun vllm-args scenarios/live_smoke.yaml`` prints: four seats, three tiers.
Only its scheduler is a derived one, which a test can slow down: what a test waits for then lasts until it ends it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from http_server import ROOT, SLOW_FILE, metrics, stream, vllm_server, wait_for
from tiny_llama import FIRST_WORD_ID, VOCAB_SIZE, files, write_tiny_llama

from sim.cli import main
from sim.live.vllm_args import SCHEDULER_CLS, serve_command
from sim.run import load

SCENARIO = ROOT / "scenarios/live_smoke.yaml"
MODEL_FOLDER = ROOT / "scenarios/data/tiny-llama"
SEATS = 4
"""``max_num_seqs`` of the scenario."""
MAX_MODEL_LEN = 16_384
BLOCKER_TOKENS = 15_000
"""Of a blocker on a slow server: 750 s at least, longer than all waits of a test together."""
WAIT_S = 120.0
"""For a state that comes and stays. On an idle machine each comes within a second."""


@pytest.fixture(scope="module")
def slow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While it exists the server is slow."""
    return tmp_path_factory.mktemp("slow") / "slow"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, slow_file: Path) -> Iterator[tuple[str, Path]]:
    """Address and log."""
    folder = tmp_path_factory.mktemp("server")
    model = write_tiny_llama(folder / "model")
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = MAX_MODEL_LEN
    (model / "config.json").write_text(json.dumps(config))
    command = serve_command(load(SCENARIO), str(model), as_module=True)
    log = folder / "server.log"
    assert SCHEDULER_CLS in command.argv
    arguments = ["slow_scheduler.SlowScheduler" if word == SCHEDULER_CLS else word for word in command.argv[1:]]
    arguments += ["--load-format", "dummy", "--served-model-name", "tiny"]
    arguments += ["--num-gpu-blocks-override", str(SEATS * BLOCKER_TOKENS // 16 + 100)]  # or blockers get preempted
    arguments += ["--max-model-len", str(MAX_MODEL_LEN)]
    environment = {**command.environment, SLOW_FILE: str(slow_file), "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    with vllm_server(arguments, environment, log) as url:
        yield url, log


@pytest.fixture
def url(server: tuple[str, Path]) -> str:
    """A server without requests."""
    wait_for(server[0], WAIT_S, num_requests_running=0, num_requests_waiting=0)
    return server[0]


@pytest.fixture
def slow_url(url: str, slow_file: Path) -> Iterator[str]:
    """The same, slow until the test ends: blockers outlast it, and its clients get their first tokens apart."""
    slow_file.touch()
    yield url
    slow_file.unlink()


def prompt(number: int, length: int = 8) -> list[int]:
    """Token ids that no other number gives."""
    low = FIRST_WORD_ID
    return [low + (number * 7919 + position * 31) % (VOCAB_SIZE - low) for position in range(length)]


class Client(threading.Thread):
    """Streams one completion; ``first_s`` and ``end_s`` say when its first token came and when it ended."""

    numbers = itertools.count()

    def __init__(self, url: str, max_tokens: int, **hints: Any) -> None:
        super().__init__(daemon=True)
        self.url, self.max_tokens, self.hints = url, max_tokens, hints
        self.number = next(self.numbers)
        self.first_s = self.end_s = 0.0
        self.usage: dict[str, int] = {}
        self.leave = threading.Event()
        """Set to disconnect at the next token."""
        self.started_tokens = threading.Event()

    def run(self) -> None:
        body = {
            **{"model": "tiny", "prompt": prompt(self.number), "max_tokens": self.max_tokens},
            **{"stream_options": {"include_usage": True}, "vllm_xargs": self.hints},
        }
        for event in stream(self.url, body):
            if not self.first_s:
                self.first_s = time.monotonic()
                self.started_tokens.set()
            if event.get("usage"):
                self.usage = event["usage"]
            if self.leave.is_set():
                return
        self.end_s = time.monotonic()


def blockers(url: str) -> list[Client]:
    """Clients of the best tier on every seat, all generating."""
    found = [Client(url, BLOCKER_TOKENS, tier="premium") for _ in range(SEATS)]
    for client in found:
        client.start()
    for client in found:
        assert client.started_tokens.wait(WAIT_S)
    return found


def leave(clients: list[Client]) -> None:
    for client in clients:
        client.leave.set()
    for client in clients:
        client.join(WAIT_S)
        assert not client.is_alive()


def test_the_committed_model_is_the_one_written_here() -> None:
    assert {path.name: path.read_text() for path in MODEL_FOLDER.iterdir()} == files()


def test_the_server_says_which_policy_it_runs(server: tuple[str, Path]) -> None:
    assert "tiered" in server[1].read_text()


def test_waiting_clients_are_served_by_tier_not_by_arrival(slow_url: str) -> None:
    """Sent worst tier first; as seats come free one by one, the best tier goes first, the shortest within it first."""
    seated = blockers(slow_url)
    waiting = []
    for tier, max_tokens in (
        *(("budget", 40), ("budget", 10), ("standard", 40), ("standard", 10), ("premium", 40), ("premium", 10)),
    ):
        client = Client(slow_url, max_tokens, tier=tier)
        client.start()
        waiting.append(client)
        wait_for(slow_url, WAIT_S, num_requests_waiting=len(waiting))
    assert not any(client.first_s for client in waiting)
    for client in seated[:-1]:  # all seats but one stay taken until those that waited are through
        assert client.is_alive()
    leave(seated[-1:])
    for client in waiting:
        client.join(WAIT_S)
        assert not client.is_alive()
    served = sorted(waiting, key=lambda client: client.first_s)
    assert [(client.hints["tier"], client.max_tokens) for client in served] == [
        *(("premium", 10), ("premium", 40), ("standard", 10), ("standard", 40), ("budget", 10), ("budget", 40)),
    ]
    assert all(client.usage["completion_tokens"] == client.max_tokens for client in waiting)
    leave(seated[:-1])


def test_a_client_that_disconnects_frees_its_seat_and_its_blocks(slow_url: str) -> None:
    seated = blockers(slow_url)
    full = wait_for(slow_url, WAIT_S, num_requests_running=SEATS)
    assert full["vllm:kv_cache_usage_perc"] > 0
    late = Client(slow_url, 5, tier="budget")
    late.start()
    wait_for(slow_url, WAIT_S, num_requests_waiting=1)
    leave(seated[:1])
    late.join(WAIT_S)
    assert late.usage["completion_tokens"] == 5
    assert all(client.is_alive() for client in seated[1:])
    leave(seated[1:])
    wait_for(slow_url, WAIT_S, num_requests_running=0, num_requests_waiting=0, kv_cache_usage_perc=0)


def test_a_client_that_disconnects_while_it_waits_leaves_the_queue(slow_url: str) -> None:
    seated = blockers(slow_url)
    connection = http.client.HTTPConnection(urlsplit(slow_url).netloc, timeout=WAIT_S)
    body = {"model": "tiny", "prompt": prompt(next(Client.numbers)), "max_tokens": 5, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    wait_for(slow_url, WAIT_S, num_requests_running=SEATS, num_requests_waiting=1)
    connection.close()
    wait_for(slow_url, WAIT_S, num_requests_running=SEATS, num_requests_waiting=0)
    leave(seated)


def simrun(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_observe_and_validate_end_to_end(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "measured.jsonl")
    before = metrics(url)
    assert simrun("observe", str(SCENARIO), "--url", url, "--out", out) == 0
    capsys.readouterr()
    assert simrun("validate", out, "--scenario", str(SCENARIO), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    measured, predicted = document["counts"]["measured"], document["counts"]["predicted"]
    assert measured == predicted
    assert measured["completed"] == 120
    counted = {
        f"{name}_total": before[f"vllm:{name}_total"] + measured[key]
        for name, key in (("prompt_tokens", "total_input_tokens"), ("generation_tokens", "total_output_tokens"))
    }
    after = wait_for(url, WAIT_S, num_requests_running=0, **counted)
    # What a shared machine does to milliseconds is not asked for; that all figures are there is.
    for key, entry in document["metrics"].items():
        # A client that gets no CPU for a while reads many tokens at once, without time between them.
        assert entry["measured"] > 0 or "itl" in key or "tpot" in key, key
        assert entry["predicted"] > 0, key
    duration = document["metrics"]["duration"]
    assert duration["measured"] > 0.8 * duration["predicted"], "requests are sent at their instants, not sooner"
    # The workload is not the same twice: prompts of another run are not found in the prefix cache, shared ones are.
    hits = after["vllm:prefix_cache_hits_total"] - before["vllm:prefix_cache_hits_total"]
    assert 0 < hits < 0.5 * measured["total_input_tokens"]


def test_observe_over_chat(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chat.jsonl"
    argv = ["observe", str(SCENARIO), "--url", url, "--out", str(out), "--endpoint", "chat", "--limit", "10"]
    assert simrun(*argv) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()[1:-1]]
    assert all(line["output_tokens"] == line["max_tokens"] for line in lines)


def test_what_the_server_refuses_is_in_the_record(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,20000,5\n0.1,10,5\n")
    out = tmp_path / "measured.jsonl"
    argv = ["observe", "--trace", str(trace), "--url", url, "--out", str(out), "--token-ids", f"{FIRST_WORD_ID}:512"]
    assert simrun(*argv) == 1
    assert f"1 x HTTP 400: This model's maximum context length is {MAX_MODEL_LEN} tokens" in capsys.readouterr().err
    assert simrun(*argv, "--force", "--model", "other") == 1
    assert "does not serve the model 'other'; it serves tiny" in capsys.readouterr().err


def test_vllm_bench_results_are_read(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the pinned version's own benchmark writes today, not what it wrote when this was written."""
    import subprocess
    import sys

    import http_server

    code = (
        "import asyncio, sys; from vllm.benchmarks.serve import add_cli_args, main_async; "
        "from vllm.utils.argparse_utils import FlexibleArgumentParser as P; p = P(); add_cli_args(p); "
        "asyncio.run(main_async(p.parse_args(sys.argv[1:])))"
    )
    argv = [
        *("--base-url", url, "--model", "tiny", "--tokenizer", str(MODEL_FOLDER), "--dataset-name", "random"),
        *("--random-input-len", "20", "--random-output-len", "8", "--num-prompts", "12", "--request-rate", "20"),
        *("--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "result.json"),
        *("--ignore-eos", "--disable-tqdm"),
    ]
    environment = {**http_server.ENVIRONMENT, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert simrun("validate", str(tmp_path / "result.json"), "--scenario", str(SCENARIO), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["source"] == "vllm bench serve"
    assert document["counts"]["measured"]["completed"] == result["completed"] == 12
    assert document["counts"]["measured"]["total_output_tokens"] == result["total_output_tokens"] == 96
    for key in ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms"):
        assert document["metrics"][key]["measured"] == pytest.approx(result[key], rel=1e-3), key
