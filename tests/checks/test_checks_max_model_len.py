"""Without chunked prefill a step's budget bounds a request: one number for the checks, the workload and the engine."""

from __future__ import annotations

from typing import Any

import pytest

import sim
from sim.errors import InputError
from sim.scenario.schema import EngineConfig

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
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "enable_chunked_prefill": False,
    },
    "latency": {"kind": "constant", "step_s": 0.01},
}
NOTE = "without chunked prefill a prompt must fit one step: max_model_len is in effect 64 (max_num_batched_tokens)"


@pytest.mark.parametrize(
    ("chunked", "budget", "expected"), [(True, 2048, 4096), (False, 2048, 2048), (False, 8192, 4096)]
)
def test_the_smaller_one_counts_where_prompts_stay_whole(chunked: bool, budget: int, expected: int) -> None:
    engine = EngineConfig(
        model="llama-2-7b", gpu="a100-80gb-sxm", enable_chunked_prefill=chunked, max_num_batched_tokens=budget
    )
    assert engine.max_model_len_in_effect == expected


def test_outputs_that_are_cut_are_noted() -> None:
    results = sim.simulate(DATA)
    assert results.summary["total_output_tokens"] == 6 * 24
    notes = results.summary["run"]["notes"]
    assert "max_model_len (64) cuts 6 outputs short" in notes
    assert [note for note in notes if note.startswith(NOTE)]


def test_nothing_is_noted_where_prompts_may_be_cut() -> None:
    results = sim.simulate(DATA, overrides=["engine.enable_chunked_prefill=true"])
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
    assert "`engine.max_num_batched_tokens`, for prompt and output without chunked prefill, is 64" in problem.message
