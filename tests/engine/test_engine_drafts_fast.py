"""Speculative decoding on the fast engine; ``test_engine_fast_forward.py`` has the random runs."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import random_runs
from test_engine_fast_forward import assert_same

from sim.cluster.simulate import simulate_cluster
from sim.engine.variants.drafts_fast import FastDrafts
from sim.run import load

LARGE: dict[str, Any] = {"model": "llama-3.1-70b", "gpu": "h100-sxm", "tensor_parallel_size": 4}


def chats(**more: Any) -> dict[str, Any]:
    """A scenario of steady traffic."""
    workload = {
        "requests": 200,
        "arrival": {"process": "poisson", "rate": 10.0},
        "input_tokens": {"dist": "lognormal", "mean": 300, "cv": 1, "max": 2000},
        "output_tokens": {"dist": "lognormal", "mean": 100, "cv": 1, "max": 500},
    }
    drafts = {"method": "draft_model", "draft_model": "llama-3.2-1b", "num_speculative_tokens": 3, "acceptance": 0.8}
    return {"name": "chats", "workload": workload, "engine": {**LARGE, "speculative": drafts, **more}}


@pytest.mark.parametrize(
    ("more", "is_fast"),
    [
        ({}, True),
        ({"policy": "srtf"}, False),
        ({"long_prefill_token_threshold": 200}, False),
        ({"max_num_batched_tokens": 256}, False),
    ],
)
def test_each_future_is_worked_out_once(more: dict[str, Any], is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []
    join = FastDrafts.join
    monkeypatch.setattr(FastDrafts, "join", lambda self, each, at: joined.append(each.row) or join(self, each, at))
    record = simulate_cluster(load(chats(**more)))
    assert sorted(joined) == (list(range(200)) if is_fast else [])
    assert record.num_restarts == 0


def test_short_blocks_start_the_run_anew() -> None:
    scenario = chats(num_gpu_blocks_override=260)
    scenario["workload"]["arrival"] = {"process": "burst"}
    assert_same(scenario)
    record = simulate_cluster(load(scenario))
    assert record.num_restarts == 1
    assert record.requests["num_preemptions"].sum() > 0


def test_sums_of_long_runs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the sums is used again for later attempts."""
    forgotten = []
    forget = FastDrafts._forget
    monkeypatch.setattr(FastDrafts, "_forget", lambda self, row: forgotten.append(row) or forget(self, row))
    scenario = chats(max_model_len=200)
    for name in ("input_tokens", "output_tokens"):
        scenario["workload"][name] = {"dist": "uniform", "low": 60, "high": 150}
    assert_same(scenario)
    assert len(forgotten) > 1


def test_requests_at_the_longest_length_lose_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts count as computed until they are rejected: so close to ``max_model_len`` there is no room for more."""
    late = []
    join = FastDrafts.join

    def spy(self: FastDrafts, request: Any, attempt: int) -> None:
        join(self, request, attempt)
        late.extend(np.flatnonzero(np.array(request.future.formed[1:]) == 0).tolist())

    monkeypatch.setattr(FastDrafts, "join", spy)
    scenario = chats(max_model_len=200)
    scenario["engine"]["speculative"]["acceptance"] = 0.2
    scenario["workload"]["input_tokens"] = {"dist": "fixed", "value": 150}
    assert_same(scenario)
    assert late


def test_drafts_of_heads_are_followed_where_no_prefix_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random runs; a prefix that two requests share is found without its last block, which the reference knows."""
    joined = []
    join = FastDrafts.join
    monkeypatch.setattr(FastDrafts, "join", lambda self, each, at: joined.append(each.row) or join(self, each, at))
    num_followed = num_shared = 0
    for seed in range(24):
        rng = Random(f"heads/{seed}")
        scenario = random_runs.drafts(rng, f"heads {seed}")
        speculative = scenario["engine"]["speculative"]
        speculative.pop("draft_model", None)
        speculative["method"] = rng.choice(["eagle", "eagle3"])
        joined.clear()
        assert_same(scenario)
        record = simulate_cluster(load(scenario))
        num_followed += bool(joined) and not record.num_restarts
        is_shared = scenario["engine"].get("enable_prefix_caching", True) and "prefix" in scenario["workload"]
        assert not (is_shared and joined)
        num_shared += is_shared
    assert num_followed > 5
    assert num_shared > 0
