"""Speculative decoding, fast and reference: the same decisions, requests, steps, gaps and drafts, whatever happens.

``FAST_FORWARD_EXAMPLES`` sets the number of random scenarios (the default is a short version).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from acted_runs import assert_same, classes, clusters, latencies, outcome, patiences, pressed, some_acts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine_fast_forward import NO_SHRINK

from sim.cluster.simulate import simulate_cluster
from sim.engine.variants.drafts_fast import FastDrafts
from sim.run import load

EXAMPLES = int(os.environ.get("FAST_FORWARD_EXAMPLES", "40"))
LARGE: dict[str, Any] = {"model": "llama-3.1-70b", "gpu": "h100-sxm", "tensor_parallel_size": 4}


def speculative() -> st.SearchStrategy[dict[str, Any]]:
    """A draft model, or n-grams; few drafts and many; never, at times and always right."""
    rates = st.sampled_from([0.0, 0.3, 0.8, 1.0])
    models = st.sampled_from([{"method": "draft_model", "draft_model": "llama-3.2-1b"}, {"method": "ngram"}])
    return st.builds(
        lambda model, drafts, rate: {**model, "num_speculative_tokens": drafts, "acceptance": rate},
        models,
        st.integers(1, 5),
        rates,
    )


@settings(max_examples=EXAMPLES, deadline=None, phases=NO_SHRINK, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    workload=classes(),
    engine=pressed(),
    drafts=speculative(),
    latency=latencies(),
    cluster=clusters(2),
)
def test_fast_drafts_equal_the_reference(
    data: st.DataObject,
    workload: dict[str, Any],
    engine: dict[str, Any],
    drafts: dict[str, Any],
    latency: dict[str, Any],
    cluster: dict[str, Any],
) -> None:
    acts, patience_ns = data.draw(some_acts(cluster["replicas"])), data.draw(patiences())
    lengths: dict[str, Any] = {
        "max_model_len": data.draw(st.sampled_from([100, 450, 1024])),
        "max_num_batched_tokens": data.draw(st.sampled_from([64, 512, 512, 2048])),
    }
    if drafts["method"] == "ngram":
        lengths["async_scheduling"] = False
    scenario = {
        "name": "random",
        "seed": data.draw(st.integers(0, 5)),
        "workload": workload,
        "cluster": cluster,
        "engine": {**LARGE, **engine, **lengths, "speculative": drafts},
        "latency": latency,
    }
    assert_same(*(outcome(scenario, stepping, acts, patience_ns) for stepping in ("reference", "fast")))


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
    reference, fast = (outcome(scenario, stepping) for stepping in ("reference", "fast"))
    assert_same(reference, fast)
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
    assert_same(*(outcome(scenario, stepping) for stepping in ("reference", "fast")))
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
    assert_same(*(outcome(scenario, stepping) for stepping in ("reference", "fast")))
    assert late
