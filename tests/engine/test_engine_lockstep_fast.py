"""Ranks that step together on the fast engine; ``test_engine_fast_forward.py`` has the random runs."""

from __future__ import annotations

from typing import Any

import pytest
from test_engine_fast_forward import assert_same
from windowed_model import windowed_model

from sim.cluster.acts import Act, What
from sim.engine.variants.lockstep_fast import FastGroup, FastRank
from sim.results.record import Status
from sim.run import load, run

MOE: dict[str, Any] = {"model": "qwen3-30b-a3b", "gpu": "h100-sxm", "enable_expert_parallel": True}


def chats(**more: Any) -> dict[str, Any]:
    """A scenario of steady traffic on four ranks."""
    workload = {
        "requests": 120,
        "arrival": {"process": "poisson", "rate": 20.0},
        "input_tokens": {"dist": "lognormal", "mean": 300, "cv": 1, "max": 2000},
        "output_tokens": {"dist": "lognormal", "mean": 60, "cv": 1, "max": 500},
    }
    engine = {**MOE, "data_parallel_size": 4, **more}
    return {"name": "chats", "workload": workload, "engine": engine, "cluster": {"router": "vllm_dp"}}


@pytest.mark.parametrize(
    ("more", "is_fast"),
    [
        ({}, True),
        ({"long_prefill_token_threshold": 200}, False),
        ({"model": windowed_model(4096, has_experts=True)}, False),
        ({"model": windowed_model(4096, has_experts=True), "enable_prefix_caching": False}, True),
        ({"model": windowed_model(150, has_experts=True)}, False),
    ],
)
def test_ranks_are_fast_where_the_engine_is_known(
    more: dict[str, Any], is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    formed = []
    form = FastRank.form
    monkeypatch.setattr(FastRank, "form", lambda self, now_ns: formed.append(now_ns) or form(self, now_ns))
    record = run(load(chats(**more))).record
    num_busy = int((record.steps["num_sampled"] > 0).sum())
    assert (len(formed) >= num_busy) == is_fast == bool(formed)


def test_nothing_in_simpy_happens_for_steps_that_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    timers = []
    monkeypatch.setattr(FastGroup, "_on_timer", lambda self, event: timers.append(event))
    record = run(load(chats())).record
    assert not timers
    assert record.requests["finish_ns"].min() > 0


def test_a_crash_takes_the_whole_group() -> None:
    """At 1 s all of its four ranks lose their requests; the other deployment goes on."""
    scenario = {**chats(), "cluster": {"replicas": 2, "router": "round_robin"}}
    scenario["workload"]["arrival"] = {"process": "poisson", "rate": 60.0}
    acts = [Act(10**9, What.CRASH, 1)]
    columns = assert_same(scenario, acts).columns
    ends = zip(columns["replica"], columns["status"], strict=True)
    lost_on = {replica for replica, status in ends if status == Status.FAILED}
    assert len(lost_on) > 1
    assert lost_on <= {0, 1, 2, 3}
