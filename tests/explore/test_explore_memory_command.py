"""``simrun memory``: the table, the JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engines import engine_config

from sim.cli import main
from sim.latency.memory import plan_memory

SCENARIO = """
name: memory
workload:
  requests: 1
  arrival: {process: burst}
  input_tokens: {dist: fixed, value: 10}
  output_tokens: {dist: fixed, value: 10}
engine: {model: llama-3.1-8b, gpu: h100-sxm, max_num_seqs: 1024, max_num_batched_tokens: 8192,
         gpu_memory_utilization: 0.95, vllm_version: 0.19.0, max_model_len: 8192}
"""


def exit_code(*arguments: str) -> int:
    """What the command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(["memory", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "memory.yaml"
    path.write_text(SCENARIO, encoding="utf-8")
    return str(path)


def test_the_table_says_what_vllm_would_log(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(scenario) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "llama-3.1-8b on 1 x h100-sxm, as vLLM 0.19.0 plans it (model runner V1). GiB of one GPU:"
    table = {line[:26].strip(): line[26:].split()[0] for line in lines[2:9]}
    assert table == {
        "total": "79.19",
        "requested": "75.23",
        "weights": "14.99",
        "activations": "1.88",
        "outside PyTorch": "0.25",
        "CUDA graphs": "0.00",
        "KV cache": "58.11",
    }
    assert "476,000 tokens" in lines[10]
    assert "58.11x for 8,192 tokens" in lines[12]


def test_json_has_the_bytes(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(scenario, "--json", "--set", "engine.vllm_version=0.20.0") == 0
    document = json.loads(capsys.readouterr().out)
    parts = ("weights", "activation", "non_torch", "graph", "kv_cache")
    assert sum(document[f"{part}_bytes"] for part in parts) == document["requested_bytes"]
    assert document["graph_bytes"] > 0
    assert document["formulas"] == ["activation_bytes", "non_torch_bytes", "graph_bytes"]
    plan = plan_memory(
        engine_config(
            model="llama-3.1-8b",
            gpu="h100-sxm",
            max_num_seqs=1024,
            max_num_batched_tokens=8192,
            max_model_len=8192,
            gpu_memory_utilization=0.95,
            vllm_version="0.20.0",
        )
    )
    assert document["num_gpu_blocks"] == plan.num_gpu_blocks
    assert document["kv_cache_size_tokens"] == plan.logged_kv_tokens


def test_a_stated_pool_and_an_eager_engine(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", "engine.kv_cache_memory_bytes=21474836480", "--set", "engine.enforce_eager=true"]
    assert exit_code(scenario, *sets) == 0
    out = capsys.readouterr().out
    assert "KV cache                    20.00  kv_cache_memory_bytes" in out
    assert "none with enforce_eager" in out
    assert "note: gpu_memory_utilization is without effect" in out


def test_what_does_not_fit_is_refused(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(scenario, "--set", "engine.model=llama-3.1-70b") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "does not fit h100-sxm" in said.err
