"""``simrun fit`` on a live vLLM server: observe twice, fit on the first, predict the second.

A tiny model on CPUs whose scheduler takes its time, so that steps are longer than what a shared machine does to a
client: ``latency.kind: constant`` is fitted to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import ROOT, SLOW_FILE, vllm_server
from slow_scheduler import SLOW_STEP_S
from tiny_llama import write_tiny_llama

from sim.cli import main
from sim.live.vllm_args import SCHEDULER_CLS, serve_command
from sim.run import load

SCENARIO = """\
name: {name}
workload:
  requests: {requests}
  arrival: {{process: poisson, rate: {rate}}}
  input_tokens: {{dist: uniform, low: 16, high: 256}}
  output_tokens: {{dist: uniform, low: 16, high: 40}}
engine:
  model: {root}/scenarios/data/tiny-llama/config.json
  gpu: l40s
  block_size: 32
  max_model_len: 512
  max_num_seqs: 16
  max_num_batched_tokens: 512
  num_gpu_blocks_override: 257
  async_scheduling: false
  enforce_eager: true
  policy: sjf                     # the plugin's scheduler runs it, and can be slowed down
  predictor: max_tokens
latency: {{kind: constant, step_s: 0.2}}
"""
"""A step of 0.2 s is a guess that is wrong by far."""
WITHIN_PERCENT = {"mean_ttft_ms": 50.0, "mean_tpot_ms": 25.0, "mean_e2el_ms": 25.0}
"""A step is 50 ms of sleep and some milliseconds of a machine that others use too; the guess is off by
several hundred per cent."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    for name, requests, rate in (("first", 50, 2), ("second", 60, 4)):
        text = SCENARIO.format(name=name, requests=requests, rate=rate, root=ROOT)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    command = serve_command(load(folder / "first.yaml"), str(write_tiny_llama(folder / "model")), as_module=True)
    arguments = ["slow_scheduler.SlowScheduler" if word == SCHEDULER_CLS else word for word in command.argv[1:]]
    arguments += ["--load-format", "dummy", "--served-model-name", "tiny"]
    slow = folder / "slow"
    slow.touch()
    environment = {**command.environment, SLOW_FILE: str(slow), "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    with vllm_server(arguments, environment, folder / "server.log") as address:
        yield address


def simrun(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_fit_on_one_run_predicts_the_next(url: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, out = (str(folder / name) for name in ("first.yaml", "second.yaml", "FIT.yaml"))
    assert simrun("observe", first, "--url", url, "--out", str(folder / "warm.jsonl"), "--limit", "10") == 0
    for scenario in (first, second):
        assert simrun("observe", scenario, "--url", url, "--out", scenario.replace("yaml", "jsonl")) == 0
    capsys.readouterr()
    measured = first.replace("yaml", "jsonl")
    assert simrun("fit", measured, "--scenario", first, "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert 1e3 * SLOW_STEP_S <= found["parameters"]["step_ms"] + 5 < 100
    errors = {}
    for told in ("null", out):
        argv = [second.replace("yaml", "jsonl"), "--scenario", second, "--set", f"latency.fit={told}", "--json"]
        assert simrun("validate", *argv) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        errors[told] = {key: abs(metrics[key]["error_percent"]) for key in WITHIN_PERCENT}
    for key, error in errors[out].items():
        assert error < WITHIN_PERCENT[key], (key, errors)
        assert error < errors["null"][key] / 3, (key, errors)
