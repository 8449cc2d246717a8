"""``simrun models``: presets in a table, and the layers of one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.cli import main
from sim.explore.models_command import kv_bytes, state_bytes, weight_bytes
from sim.latency.models import MODELS


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as done:
        main(["models", *argv])
    out, err = capsys.readouterr()
    assert (done.value.code, err) == (0, "")
    return out


def test_a_model_is_told_by_kind_of_layer(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "gpt-oss-120b")
    assert "18 x 64 heads of 64, 8 KV heads, window 128 + 4 of 128 experts of 2880" in out
    assert "keeps 2,048 bytes of each token" in out
    assert "73,728 bytes for each token, 16 bits" in out
    assert "mxfp4 (quantization_config mxfp4 of openai/gpt-oss-120b)" in out
    assert "states" not in out
    out = told(capsys, "qwen3.5-27b")
    assert "48 x gated delta net of 48 heads of 128 x 128 + MLP of 17408" in out
    assert "states       153,944,064 bytes for each request" in out


def test_json_has_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    one = json.loads(told(capsys, "--json", "deepseek-v3.2"))
    assert one["kv_bytes_per_token"] == 61 * (576 * 2 + 132)
    assert [each["count"] for each in one["layers"]] == [3, 58]
    assert len(json.loads(told(capsys, "--json"))) == len(MODELS)


def test_a_config_is_told_as_a_preset_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    config = {"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 512, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "2 x 4 heads of 16, 4 KV heads + MLP of 128" in told(capsys, str(tmp_path))


def test_sizes() -> None:
    """Llama 3.1 8B: 32 layers of 2 x 8 x 128 in 16 bits, 8.03 billion weights of two bytes."""
    model = MODELS["llama-3.1-8b"]
    assert (kv_bytes(model), state_bytes(model)) == (32 * 4096, 0)
    assert weight_bytes(model) == 2 * model.num_parameters
    assert weight_bytes(MODELS["gpt-oss-20b"]) / 1e9 == pytest.approx(13.76, rel=0.01), "the repository's size"


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["models", "llama-9"])
    assert done.value.code == 2
    assert "neither a model preset nor an existing config.json" in capsys.readouterr().err
