"""What an engine leaves to its model and GPU is filled in as vLLM's API server does, once, and said where it is new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sim
from sim.latency.engine_defaults import (
    FORMER,
    batch_defaults,
    memory_share,
    notes_on_changed_defaults,
    resolve_engine,
)
from sim.latency.gpus import GPUS
from sim.latency.models import MODELS
from sim.run import load
from sim.scenario.resolved import resolved_yaml
from sim.scenario.schema import EngineConfig, EngineSection

WORKLOAD: dict[str, Any] = {
    "requests": 5,
    "arrival": {"process": "burst"},
    "input_tokens": {"dist": "fixed", "value": 100},
    "output_tokens": {"dist": "fixed", "value": 10},
}


def resolved(**engine: Any) -> tuple[EngineConfig, list[str]]:
    return resolve_engine(EngineSection(**{"model": "llama-3.1-8b", "gpu": "h100-sxm", **engine}))


def sizes(**engine: Any) -> tuple[int, int, int]:
    filled, _ = resolved(**engine)
    return filled.max_model_len, filled.max_num_seqs, filled.max_num_batched_tokens


@pytest.mark.parametrize(
    ("gpu", "version", "expected"),
    [
        ("a100-40gb-sxm", "0.32.0", (2048, 256)),
        ("a100-80gb-sxm", "0.32.0", (2048, 256)),
        ("l40s", "0.32.0", (2048, 256)),
        ("rtx-4090", "0.32.0", (2048, 256)),
        ("rtx-pro-6000", "0.32.0", (8192, 1024)),
        ("h100-sxm", "0.32.0", (8192, 1024)),
        ("h200-sxm", "0.32.0", (8192, 1024)),
        ("b200-sxm", "0.32.0", (16384, 1024)),
        ("b200-sxm", "0.28", (16384, 1024)),
        ("b200-sxm", "0.27.1", (8192, 1024)),
        ("h100-sxm", "0.9.0", (8192, 1024)),
    ],
)
def test_budget_and_seats_by_gpu_and_version(gpu: str, version: str, expected: tuple[int, int]) -> None:
    assert batch_defaults(GPUS[gpu], version) == expected
    assert sizes(gpu=gpu, vllm_version=version) == (131072, expected[1], expected[0])


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({"max_model_len": 4}, (4, 1024, 4096)),  # 1,024 seats of four tokens
        ({"max_model_len": 4, "max_num_seqs": 2}, (4, 2, 8)),
        ({"max_num_batched_tokens": 500}, (131072, 500, 500)),
        ({"max_num_batched_tokens": 5000}, (131072, 1024, 5000)),
        ({"max_num_seqs": 9000}, (131072, 9000, 8192)),  # refused by the check, as by vLLM
        ({"enable_chunked_prefill": False}, (131072, 1024, 131072)),
        ({"enable_chunked_prefill": False, "max_model_len": 100}, (100, 1024, 8192)),
        ({"model": "qwen3-8b"}, (40960, 1024, 8192)),
        ({"model": "Qwen/Qwen2.5-7B-Instruct"}, (32768, 1024, 8192)),
    ],
)
def test_what_depends_on_what_was_given(engine: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert sizes(**engine) == expected


@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(sorted(GPUS)),
    st.none() | st.integers(1, 300_000),
    st.none() | st.integers(1, 300_000),
    st.none() | st.integers(1, 3000),
    st.booleans(),
)
def test_given_values_stay_and_defaults_start(
    model: str, gpu: str, length: int | None, budget: int | None, seats: int | None, chunked: bool
) -> None:
    given_ = {"max_model_len": length, "max_num_batched_tokens": budget, "max_num_seqs": seats}
    engine, notes = resolved(model=model, gpu=gpu, enable_chunked_prefill=chunked, **given_)
    assert all(value is None or getattr(engine, key) == value for key, value in given_.items())
    if seats is None:
        assert engine.max_num_seqs <= engine.max_num_batched_tokens
    if budget is None:
        assert engine.max_num_batched_tokens <= engine.max_num_seqs * engine.max_model_len
        assert chunked or engine.max_num_batched_tokens >= engine.max_model_len
    new = [key for key in FORMER if given_.get(key) is None and getattr(engine, key) != FORMER[key]]
    assert notes == []
    felt = notes_on_changed_defaults(engine, longest=10**9, most_running=10**9, most_tokens=10**9, share_used=1.0)
    assert len(felt) == bool(new)
    assert all(f"{key} {getattr(engine, key)} (was {FORMER[key]})" in felt[0] for key in new)
    assert notes_on_changed_defaults(engine, longest=1, most_running=0, most_tokens=0, share_used=0.0) == []
    assert resolve_engine(engine) == (engine, [])


@pytest.mark.parametrize(
    ("version", "expected"), [("0.9.0", 0.9), ("0.19.1", 0.9), ("0.20.0", 0.92), ("0.32.0", 0.92), ("0.32", 0.92)]
)
def test_the_share_of_memory_by_version(version: str, expected: float) -> None:
    assert memory_share(version) == expected
    engine, _ = resolved(vllm_version=version)
    assert engine.gpu_memory_utilization == expected
    notes = notes_on_changed_defaults(engine, longest=0, most_running=0, most_tokens=0, share_used=0.91)
    assert any("gpu_memory_utilization 0.92" in note for note in notes) == (expected == 0.92)
    assert resolved(vllm_version=version, gpu_memory_utilization=0.7)[0].gpu_memory_utilization == 0.7


@pytest.mark.parametrize(
    ("given_", "is_noted"),
    [
        ({}, True),
        ({"max_num_seqs": 8}, False),
        ({"gpu_memory_utilization": 0.92}, False),
        ({"num_gpu_blocks_override": 50000}, False),
        ({"kv_cache_memory_bytes": 1 << 35}, False),
    ],
)
def test_a_share_is_noted_where_the_cache_is_fuller_than_the_former_one(given_: dict[str, Any], is_noted: bool) -> None:
    sizes_ = {"max_model_len": 4096, "max_num_seqs": 256, "max_num_batched_tokens": 2048}
    workload = {"requests": 300, "arrival": {"process": "closed_loop", "concurrency": 256}}
    workload |= {"input_tokens": {"dist": "fixed", "value": 1000}, "output_tokens": {"dist": "fixed", "value": 3000}}
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm", **sizes_, **given_}
    notes = sim.simulate({"name": "x", "workload": workload, "engine": engine}).summary["run"]["notes"]
    assert any("gpu_memory_utilization 0.92 (was 0.9)" in note for note in notes) is is_noted


def test_keys_left_out_and_null_are_not_taken_for_a_choice() -> None:
    engine, _ = resolved(max_num_seqs=None, max_model_len=4096)
    assert engine.model_fields_set == {"model", "gpu", "max_model_len"}


def test_overrides_are_put_in_before_anything_is_filled_in() -> None:
    document = {"name": "x", "workload": WORKLOAD, "engine": {"model": "llama-3.1-8b", "gpu": "a100-80gb-sxm"}}
    loaded = load(document)
    again = load(loaded, ["engine.gpu=b200-sxm", "engine.model=qwen3-8b"]).scenario.engine
    assert (again.max_model_len, again.max_num_seqs, again.max_num_batched_tokens) == (40960, 1024, 16384)


@pytest.mark.parametrize(
    ("dtype", "given_", "expected", "noted"),
    [
        ("float16", {}, "float16", True),
        ("bfloat16", {}, "bfloat16", False),
        ("bfloat16", {"dtype": "auto"}, "bfloat16", True),
        ("float16", {"dtype": "bfloat16"}, "bfloat16", False),
    ],
)
def test_the_checkpoints_format(dtype: str, given_: dict[str, Any], expected: str, noted: bool, tmp_path: Path) -> None:
    tiny = Path(__file__).parents[2] / "scenarios" / "data" / "tiny-llama" / "config.json"
    config = json.loads(tiny.read_text(encoding="utf-8")) | {"torch_dtype": dtype}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    engine, notes = resolved(
        model=str(tmp_path),
        max_model_len=4096,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.9,
        **given_,
    )
    assert engine.dtype == expected
    assert [note.startswith(f"engine.dtype auto: {dtype}") for note in notes] == [True] * noted


def changed(document: dict[str, Any], *overrides: str) -> list[str]:
    notes = sim.simulate(load(document, overrides)).summary["run"]["notes"]
    return [note.partition("change this run: ")[2] for note in notes if "defaults" in note]


def test_a_run_that_a_changed_default_changes_says_so() -> None:
    """Each of the three by itself, from the first value on that the former default would have cut."""
    burst = {"requests": 300, "arrival": {"process": "burst"}}
    burst |= {key: {"dist": "fixed", "value": 6} for key in ("input_tokens", "output_tokens")}
    document = {"name": "x", "workload": burst, "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm"}}
    assert changed(document) == ["max_num_seqs 1024 (was 256)"]
    assert changed(document, "workload.requests=256") == []
    assert changed(document, "engine.max_num_seqs=1024") == [], "given: no default"
    few = (document, "workload.requests=2")
    assert changed(*few, "workload.input_tokens.value=1024") == []
    assert changed(*few, "workload.input_tokens.value=1025") == ["max_num_batched_tokens 8192 (was 2048)"]
    long = ("engine.max_num_batched_tokens=2048", "workload.requests=1")
    assert changed(document, *long, "workload.input_tokens.value=4090") == []
    assert changed(document, *long, "workload.input_tokens.value=4091") == ["max_model_len 131072 (was 4096)"]
    keys = {"requests": 60, "input_tokens.value": 1, "output_tokens.value": 99}
    lengths = [f"workload.{key}={value}" for key, value in keys.items()]
    smaller = (document, *lengths, "engine.max_num_batched_tokens=32")
    assert changed(*smaller) == ["max_num_seqs 32 (was 256)"], "no more seats than a step has tokens"
    assert changed(*smaller, "workload.requests=3") == []


def test_the_note_changes_nothing_but_itself() -> None:
    """With the former values written out, a run without the note is the same, but for the places at which step costs
    are tabulated; a run with it is not."""
    former = tuple(f"engine.{key}={value}" for key, value in FORMER.items())
    burst = {"requests": 300, "arrival": {"process": "burst"}}
    burst |= {key: {"dist": "fixed", "value": 6} for key in ("input_tokens", "output_tokens")}
    document = {"name": "x", "workload": burst, "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm"}}
    for requests, is_same in ((250, True), (300, False)):
        now, before = (
            sim.simulate(load(document, (f"workload.requests={requests}", *given))).summary for given in ((), former)
        )
        assert (now["mean_e2el_ms"] == pytest.approx(before["mean_e2el_ms"], rel=1e-3)) is is_same


def test_a_run_repeats_what_was_taken() -> None:
    document = {"name": "x", "workload": WORKLOAD, "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm"}}
    results = sim.simulate(document)
    assert not [note for note in results.summary["run"]["notes"] if "defaults" in note], (
        "a small run does not feel them"
    )
    text = resolved_yaml(load(document).scenario)
    for line in (
        "max_model_len: 131072",
        "max_num_seqs: 1024",
        "max_num_batched_tokens: 8192",
        "dtype: bfloat16",
        "utilization: 0.92",
    ):
        assert line in text
    setup = results.summary["run"]["setup"]
    assert {key: setup[key] for key in FORMER if key in setup} == {
        "max_model_len": 131072,
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 8192,
    }


@pytest.mark.parametrize(
    ("model", "gpu", "block_size"),
    [
        *(("llama-3.1-8b", "h100-sxm", 16), ("deepseek-v3", "h200-sxm", 16), ("deepseek-v3", "b200-sxm", 32)),
        *(("deepseek-v3.2", "h200-sxm", 64), ("glm-5", "b200-sxm", 64)),
    ],
)
def test_blocks_are_no_smaller_than_the_kernels_take(model: str, gpu: str, block_size: int) -> None:
    section = EngineSection.model_validate({"model": model, "gpu": gpu})
    assert resolve_engine(section)[0].block_size == block_size
    told = EngineSection.model_validate({"model": model, "gpu": gpu, "block_size": 128})
    assert resolve_engine(told)[0].block_size == 128
