"""``engine.vllm_version``: what it takes, and what it says where it takes none."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from sim.run import load, run
from sim.scenario.vllm_version import DEFAULT_VERSION, version_of, version_problem


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.32.0", (0, 32, 0)), ("v0.15", (0, 15, 0)), ("0.10.1.post1", (0, 10, 1)), ("0.14.0rc2", (0, 14, 0))],
)
def test_versions_are_read_as_numbers(text: str, numbers: tuple[int, int, int]) -> None:
    assert version_of(text) == numbers
    assert version_problem(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [("0.8.5", "older than 0.9.0"), ("0.33.0", "newer than 0.32.0"), ("latest", "not a version of vLLM such as")],
)
def test_other_versions_are_refused(text: str, says: str) -> None:
    assert says in (version_problem(text) or "")


def test_versions_order_as_numbers_not_as_text() -> None:
    assert version_of("0.9.2") < version_of("0.10.0") < version_of("0.32.0")


@pytest.mark.parametrize("version", ["0.9.0", "0.15.1", "0.23.0"])
def test_a_version_selects_no_decisions(version: str) -> None:
    """With the pool and step times stated, every step is that of the default version: under preemption, chunks and
    shared prompts."""
    workload = {
        "requests": 60,
        "arrival": {"process": "poisson", "rate": 40},
        "input_tokens": {"dist": "uniform", "low": 20, "high": 400},
        "output_tokens": {"dist": "uniform", "low": 10, "high": 90},
        "prefix": {"groups": 3, "tokens": 64},
    }
    engine: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "num_gpu_blocks_override": 120}
    engine |= {"max_model_len": 1024, "max_num_seqs": 16, "max_num_batched_tokens": 256}
    told = []
    for each in (version, DEFAULT_VERSION):
        stream = io.StringIO()
        document = {"name": "x", "workload": workload, "engine": {**engine, "vllm_version": each}}
        summary = run(load({**document, "latency": {"kind": "constant", "step_s": 0.01}}), decisions=stream).summary
        assert summary["preemptions"]["total"] > 0
        told.append([json.loads(line) for line in stream.getvalue().splitlines()])
    assert told[0] == told[1]
    assert len(told[0]) > 100
