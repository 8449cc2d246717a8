"""Without chunked prefill a step's budget bounds a request, so that vLLM starts only where it reaches max_model_len."""

from __future__ import annotations

from typing import Any

import pytest

import sim
from sim.errors import InputError

DATA: dict[str, Any] = {
    "name": "x",
    "workload": {
        "requests": 6,
        "arrival": {"process": "poisson", "rate": 4},
        "input_tokens": {"dist": "fixed", "value": 40},
        "output_tokens": {"dist": "fixed", "value": 60},
    },
    "engine": {
        "model": "llama-2-7b",
        "gpu": "a100-80gb-sxm",
        "max_model_len": 64,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "enable_chunked_prefill": False,
    },
    "latency": {"kind": "constant", "step_s": 0.01},
}


def test_a_budget_below_the_longest_request_is_refused_at_the_key_that_was_written() -> None:
    with pytest.raises(InputError) as caught:
        sim.simulate(DATA, overrides=["engine.max_num_batched_tokens=63"])
    (problem,) = caught.value.problems
    assert problem.file == "--set engine.max_num_batched_tokens=63"
    assert problem.message.startswith("`engine.max_num_batched_tokens` (63) is below `engine.max_model_len` (64)")


def test_a_budget_that_is_left_out_reaches_it() -> None:
    engine = {**DATA["engine"], "max_model_len": 4000, "max_num_batched_tokens": None}
    results = sim.simulate({**DATA, "engine": engine})
    assert results.summary["total_output_tokens"] == 6 * 60


def test_outputs_that_are_cut_are_noted() -> None:
    results = sim.simulate(DATA)
    assert results.summary["total_output_tokens"] == 6 * 24
    assert "max_model_len (64) cuts 6 outputs short" in results.summary["run"]["notes"]


def test_nothing_is_noted_where_outputs_fit() -> None:
    results = sim.simulate(DATA, overrides=["engine.enable_chunked_prefill=true", "engine.max_model_len=4096"])
    assert results.summary["total_output_tokens"] == 6 * 60
    assert not [note for note in results.summary["run"]["notes"] if "max_model_len" in note]


def test_conversations_end_before_a_turn_that_cannot_run() -> None:
    """The second prompt would have 40 + 3 + 40 tokens."""
    overrides = ["workload.output_tokens.value=3", "workload.sessions={turns: 3, think_time_s: 1}"]
    summary = sim.simulate(DATA, overrides=overrides).summary
    assert summary["counts"]["rejected"] == 0
    assert summary["counts"]["completed"] == summary["counts"]["submitted"] == 6
    assert "class default: some conversations end early, at max_model_len (64)" in summary["run"]["notes"]


def test_prompts_that_fill_a_step_are_refused_with_the_key_to_raise() -> None:
    with pytest.raises(InputError) as caught:
        sim.simulate(DATA, overrides=["workload.input_tokens.value=64"])
    (problem,) = caught.value.problems
    assert "`engine.max_model_len`, for prompt and output, is 64" in problem.message
