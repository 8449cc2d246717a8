"""The command that reads published configs: what it counts, and when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import published_models
from benchmarks.published_models import main, row_of

SHAPE = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "vocab_size": 1000,
    "max_position_embeddings": 16384,
}


def written(folder: Path, name: str, **more: object) -> Path:
    path = folder / f"owner--{name}_config.json"
    path.write_text(json.dumps({**SHAPE, **more}))
    return path


def test_a_config_runs_with_what_lies_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path, "small")
    (tmp_path / "owner--small_hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    row = row_of(path)
    assert row.told.startswith("TP 8, PP 1: TPOT ")
    assert row.billions == pytest.approx(0.0063, rel=0.1)


def test_refusals_and_sizes_that_are_off_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(published_models, "LEAST_RUN", 1)
    written(tmp_path, "odd", model_type="mamba")
    assert main([str(tmp_path), "--check"]) == 1
    assert "refused  /config.json: mamba is not supported: state-space" in capsys.readouterr().out
    written(tmp_path, "small")
    assert main([str(tmp_path), "--check"]) == 0
    assert "1 of 2 run; parameters off by more than 1%: none" in capsys.readouterr().out
    written(tmp_path, "gpt-oss-20b")
    assert main([str(tmp_path), "--check", "--only", "gpt-oss"]) == 1
    assert "(card: 20.91 B)" in capsys.readouterr().out
