"""Drawing from the most probable tokens only: which versions sort for it, what that takes, and whose requests do so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from engines import engine_config

from sim.latency.base import StepShape
from sim.latency.build import build_step_cost
from sim.latency.gpus import GPUS
from sim.latency.models import MODELS, load_model
from sim.latency.sampling import core_rate, filter_ns, way_of
from sim.scenario.schema import LatencyConfig

H100 = GPUS["h100-sxm"]
LLAMA_VOCABULARY = 128256


def row_times(rows: list[int], way: str = "sorted", gpu: str = "h100-sxm", vocabulary: int = 131072) -> list[float]:
    times = filter_ns(way, np.array(rows, dtype=np.float64), vocabulary, GPUS[gpu])  # type: ignore[arg-type]
    return [float(each) for each in times]


def step_ns(version: str, sampling: str | None = None, model: str = "llama-3.1-8b", rows: int = 16) -> int:
    engine = engine_config(model=model, gpu="h100-sxm", vllm_version=version, max_model_len=4096)
    cost = build_step_cost(engine, LatencyConfig(kind="profile", sampling=sampling))  # type: ignore[arg-type]
    return cost.gpu_ns(StepShape(num_decodes=rows, decode_context_tokens=rows * 500, num_sampled=rows))


@pytest.mark.parametrize(
    ("version", "way"),
    [
        ("0.9.0", "flashinfer"),
        ("0.11.0", "flashinfer"),
        ("0.11.1", "sorted"),
        ("0.15.1", "sorted"),
        ("v0.16", "sorted"),
        ("0.17.0", "triton"),
        ("0.20.1", "triton"),
        ("0.21.0", "flashinfer"),
        ("0.32.0", "flashinfer"),
    ],
)
def test_each_version_has_its_way(version: str, way: str) -> None:
    assert way_of(version) == way


def test_sorting_takes_what_was_published() -> None:
    slower = 132 * 1.98e9 / core_rate(H100)
    assert slower == pytest.approx(1.0, abs=0.01)
    assert row_times([64]) == pytest.approx([1.057e6], rel=0.01)
    assert row_times([64], vocabulary=32768) == pytest.approx([0.401e6], rel=0.01)


def test_triton_takes_about_what_was_published() -> None:
    """0.306 ms with top-k and 0.459 ms without, of 131,072 logits; 0.126 and 0.239 of 32,768."""
    assert 0.306e6 < row_times([64], "triton")[0] < 0.459e6
    assert 0.126e6 < row_times([64], "triton", vocabulary=32768)[0] < 0.239e6
    assert row_times([64], "triton") == row_times([132], "triton"), "a program per row, as many as there are SMs"
    assert row_times([133], "triton")[0] > row_times([132], "triton")[0]


@pytest.mark.parametrize("vocabulary", [32768, LLAMA_VOCABULARY])
def test_fewer_than_eight_rows_are_sorted(vocabulary: int) -> None:
    few = [1, 4, 7]
    assert row_times(few, "triton", vocabulary=vocabulary) == row_times(few, vocabulary=vocabulary)
    assert row_times([8], "triton", vocabulary=vocabulary) != row_times([8], vocabulary=vocabulary)
    assert row_times([8], "triton", vocabulary=vocabulary) == row_times([9], "triton", vocabulary=vocabulary)


def test_no_rows_and_flashinfer_take_nothing_more() -> None:
    assert row_times([0]) == row_times([0], "triton") == [0.0]
    assert row_times([1, 64, 512], "flashinfer") == [0.0, 0.0, 0.0]


def test_sorting_goes_by_cores_and_clock() -> None:
    assert core_rate(GPUS["a100-80gb-sxm"]) == pytest.approx(108 * 1.41e9, rel=0.01)
    assert core_rate(H100) == pytest.approx(132 * 1.98e9, rel=0.01)
    assert core_rate(GPUS["l40s"]) == pytest.approx(142 * 2.52e9, rel=0.01)
    assert row_times([16], gpu="a100-80gb-sxm")[0] > row_times([16])[0] > row_times([16], gpu="l40s")[0]


def test_a_step_is_longer_by_the_sort_where_the_version_sorts() -> None:
    sort = row_times([16], vocabulary=LLAMA_VOCABULARY)[0]
    assert step_ns("0.15.1") - step_ns("0.32.0") == pytest.approx(sort, abs=2)
    assert 0.35e6 < sort < 0.45e6


def test_plain_sampling_and_models_without_limits_sort_nothing() -> None:
    assert step_ns("0.15.1", "plain") == step_ns("0.32.0") == step_ns("0.32.0", "plain")
    assert step_ns("0.15.1", model="codellama-34b") == step_ns("0.32.0", model="codellama-34b")
    assert step_ns("0.15.1", "top_p", "codellama-34b") > step_ns("0.15.1", model="codellama-34b")


def test_terms_of_a_step_hold_the_sort_as_sampling() -> None:
    engine = engine_config(model="llama-3.1-8b", gpu="h100-sxm", vllm_version="0.15.1", max_model_len=4096)
    cost = build_step_cost(engine, LatencyConfig(kind="profile"))
    shape = StepShape(num_decodes=16, decode_context_tokens=8000, num_sampled=16)
    terms = cost.breakdown(shape)  # type: ignore[attr-defined]
    assert sum(terms.values()) == cost.gpu_ns(shape)
    assert terms["sampling"] > row_times([16], vocabulary=LLAMA_VOCABULARY)[0]
    assert cost.describe()["sampling"] == "top_p, sorted"


@pytest.mark.parametrize(
    ("name", "truncates"),
    [("llama-2-70b", True), ("qwen3-14b", True), ("codellama-34b", False), ("mixtral-8x7b", False)],
)
def test_presets_draw_as_their_generation_config_says(name: str, truncates: bool) -> None:
    assert MODELS[name].truncates_sampling is truncates


@pytest.mark.parametrize(
    ("content", "truncates"),
    [
        ('{"top_p": 0.95}', True),
        ('{"top_k": 20, "top_p": 1.0}', True),
        ('{"top_p": 1.0, "top_k": 0}', False),
        ('{"temperature": 0.6}', False),
        ("[]", False),
        ("{", False),
        (None, False),
    ],
)
def test_a_config_draws_as_the_file_beside_it_says(content: str | None, truncates: bool, tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 8,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content, encoding="utf-8")
    assert load_model(str(tmp_path)).truncates_sampling is truncates
