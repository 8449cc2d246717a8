"""Ranks that step together, fast and reference: the same decisions, requests, steps and gaps, whatever happens to them.

``FAST_FORWARD_EXAMPLES`` sets the number of random scenarios (the default is a short version).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from acted_runs import assert_same, classes, clusters, latencies, outcome, patiences, pressed, some_acts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine_fast_forward import NO_SHRINK

from sim.cluster.acts import Act, What
from sim.engine.variants.lockstep_fast import FastGroup, FastRank
from sim.results.record import Status
from sim.run import load, run

EXAMPLES = int(os.environ.get("FAST_FORWARD_EXAMPLES", "40"))
MOE: dict[str, Any] = {"model": "qwen3-30b-a3b", "gpu": "h100-sxm", "enable_expert_parallel": True}


@settings(max_examples=EXAMPLES, deadline=None, phases=NO_SHRINK, suppress_health_check=list(HealthCheck))
@given(data=st.data(), workload=classes(), engine=pressed(), latency=latencies(), cluster=clusters(2))
def test_fast_ranks_equal_the_reference(
    data: st.DataObject,
    workload: dict[str, Any],
    engine: dict[str, Any],
    latency: dict[str, Any],
    cluster: dict[str, Any],
) -> None:
    dp = data.draw(st.sampled_from([2, 4]))
    acts, patience_ns = data.draw(some_acts(dp * cluster["replicas"])), data.draw(patiences())
    scenario = {
        "name": "random",
        "seed": data.draw(st.integers(0, 5)),
        "workload": workload,
        "cluster": cluster,
        "engine": {**MOE, **engine, "data_parallel_size": dp},
        "latency": latency,
    }
    assert_same(*(outcome(scenario, stepping, acts, patience_ns) for stepping in ("reference", "fast")))


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


@pytest.mark.parametrize(("more", "is_fast"), [({}, True), ({"long_prefill_token_threshold": 200}, False)])
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
    scenario["workload"]["arrival"]["rate"] = 100.0
    acts = [Act(10**9, What.CRASH, 1)]
    reference, fast = (outcome(scenario, stepping, acts) for stepping in ("reference", "fast"))
    assert_same(reference, fast)
    assert fast is not None
    lost_on = set()
    for replica, status in zip(fast.columns["request_replica"], fast.columns["request_status"], strict=True):
        if status == Status.FAILED:
            lost_on.add(replica)
    assert len(lost_on) > 1
    assert lost_on <= {0, 1, 2, 3}
