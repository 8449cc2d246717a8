"""Runs in which both steppings once differed: requests at an empty step's end, conversations of a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_engine_fast_forward import assert_same

from sim.run import load, run


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_follow_up_at_the_instant_of_an_empty_steps_end(stages: int) -> None:
    """The host takes as long as a stage, and clients ask again at once: a batch ends, the request comes, and the step
    formed then has it."""
    workload = {
        "requests": 60,
        "arrival": {"process": "closed_loop", "concurrency": 7},
        "input_tokens": {"dist": "values", "values": [20, 250, 90, 33]},
        "output_tokens": {"dist": "values", "values": [9, 40, 2, 25, 1]},
    }
    engine = {"model": "llama-3.2-1b", "gpu": "a100-80gb-sxm", "pipeline_parallel_size": stages}
    scenario: dict[str, Any] = {"name": "ties", "workload": workload, "engine": engine}
    for latency in ({"kind": "roofline"}, {"kind": "constant", "step_s": 0.01}):
        assert_same({**scenario, "latency": latency})


def chats(path: Path) -> dict[str, Any]:
    """Six conversations of four turns; each prompt is all of what was said before and 100 tokens more."""
    turns = [(5 * turn + 0.4 * chat, 800 + 150 * turn, 50, f"s{chat}") for chat in range(6) for turn in range(4)]
    lines = ["arrival_s,input_tokens,output_tokens,session", *(",".join(map(str, turn)) for turn in sorted(turns))]
    path.write_text("\n".join(lines) + "\n")
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "block_size": 16}
    return {"name": "chats", "workload": {"trace": {"path": str(path), "format": "generic"}}, "engine": engine}


def test_turns_of_a_traces_conversations_find_those_before(tmp_path: Path) -> None:
    """A turn of 800 + 150 t tokens finds the whole blocks of the 800 + 150 (t - 1) and 50 tokens before it; the last
    of them was never computed."""
    scenario = chats(tmp_path / "chats.csv")
    assert_same(scenario)
    requests = run(load(scenario)).record.requests
    found = sorted(set(zip(requests["input_tokens"].tolist(), requests["num_cached_tokens"].tolist(), strict=True)))
    assert found == [(800, 0), (950, 848), (1100, 992), (1250, 1136)]
