"""Whole runs, fast and reference: the same decisions at the same instants, the same requests, the same summary.

``FAST_FORWARD_EXAMPLES`` sets the number of random scenarios (the default is a short version).
"""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np
from engine_profiled import PROFILED, Deployments, kept_costs, profile_latency
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from windowed_model import windowed_model

from policies.registry import POLICIES, PREDICTORS, ROUTERS
from sim.errors import InputError, SimulationError
from sim.run import load, run

EXAMPLES = int(os.environ.get("FAST_FORWARD_EXAMPLES", "40"))
COSTS = kept_costs
DEPLOYMENTS = Deployments()
NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)

LENGTHS = st.one_of(
    st.builds(lambda value: {"dist": "fixed", "value": value}, st.integers(1, 120)),
    st.builds(lambda mean: {"dist": "exponential", "mean": mean, "max": 400}, st.integers(2, 80)),
    st.builds(lambda mean: {"dist": "lognormal", "mean": mean, "cv": 1.0, "max": 400}, st.integers(2, 80)),
)
ARRIVALS = st.one_of(
    st.builds(lambda rate: {"process": "poisson", "rate": rate}, st.sampled_from([2.0, 20.0, 200.0])),
    st.builds(lambda rate: {"process": "constant", "rate": rate}, st.sampled_from([1.0, 10.0])),
    st.just({"process": "burst"}),
    st.builds(
        lambda clients, think: {"process": "closed_loop", "concurrency": clients, "think_time_s": think},
        st.integers(1, 12),
        st.sampled_from([0.0, 0.03]),
    ),
)
MODELS = st.sampled_from(["llama-2-7b", "llama-2-7b", "llama-2-7b", windowed_model(120), windowed_model(500)])
LATENCIES = st.sampled_from(
    [
        {"kind": "constant", "step_s": 0.01},
        {"kind": "roofline"},
        {"kind": "roofline", "host_overhead_ms": 0.0},
        {"kind": "roofline", "host_overhead_ms": 40.0},  # host-bound: longer than the accelerator's step
    ]
)


SHARING: list[dict[str, Any]] = [
    {"name": "fair", "shares": True},
    {"name": "tiered", "shares": {"premium": 0.5, "standard": 0.8, "budget": 1.0}},
]
"""Policies that share out a step's tokens, whose running requests are scheduled by rank."""


@st.composite
def traffic(draw: st.DrawFn) -> dict[str, Any]:
    """One workload class."""
    arrival = draw(ARRIVALS)
    workload: dict[str, Any] = {
        "requests": draw(st.integers(1, 60)),
        "arrival": arrival,
        "input_tokens": draw(LENGTHS),
        "output_tokens": draw(LENGTHS),
    }
    if draw(st.booleans()):
        workload["prefix"] = {"groups": draw(st.integers(1, 3)), "tokens": draw(st.integers(1, 80))}
    if draw(st.integers(0, 3)) == 0:
        workload["max_tokens"] = {"dist": "fixed", "value": draw(st.sampled_from([30, 500]))}
    if arrival["process"] != "closed_loop" and draw(st.integers(0, 3)) == 0:
        workload["sessions"] = {"turns": draw(st.integers(2, 4)), "think_time_s": draw(st.sampled_from([0.0, 0.2]))}
    elif arrival["process"] != "closed_loop" and draw(st.integers(0, 3)) == 0:
        workload["n"] = draw(st.integers(2, 4))
    return workload


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    """One class, or several with tenants, tiers, priorities and deadlines."""
    first = draw(traffic())
    if first["arrival"]["process"] == "closed_loop" or draw(st.booleans()):
        return first
    classes = []
    for index, tier in enumerate(["premium", "standard", "budget"]):
        each = first if index == 0 else draw(traffic().filter(lambda w: w["arrival"]["process"] != "closed_loop"))
        deadline = draw(st.sampled_from([None, 0.5]))
        classes.append({**each, "name": tier, "tenant": tier, "priority": index, "deadline_s": deadline})
    return {"classes": classes}


@st.composite
def engines(draw: st.DrawFn) -> dict[str, Any]:
    """An engine under more or less pressure, at times a baseline."""
    budget = draw(st.sampled_from([64, 512, 2048]))
    engine: dict[str, Any] = {
        "model": draw(MODELS),
        "gpu": "a100-80gb-sxm",
        "max_model_len": 1024,
        "num_gpu_blocks_override": draw(st.sampled_from([70, 120, 3000])),
        "max_num_seqs": draw(st.sampled_from([2, 8, 64])),
        "max_num_batched_tokens": budget,
        "block_size": draw(st.sampled_from([8, 16])),
        "enable_prefix_caching": draw(st.booleans()),
        "cache_isolation": draw(st.sampled_from(["none", "tenant"])),
        "async_scheduling": draw(st.booleans()),
        "policy": draw(st.sampled_from([*sorted(POLICIES), *SHARING])),
        "predictor": draw(st.sampled_from(sorted(PREDICTORS))),
    }
    variant = draw(st.sampled_from(["", "", "", "", "static", "wait", "swap", "contiguous", "pipeline", "cap"]))
    engine |= {
        "": {},
        "static": {"batching": "static"},
        "wait": {"batching": "static", "static_batch_wait_s": 0.3},
        "swap": {"preemption": "swap"},
        "contiguous": {"kv": "contiguous"},
        "pipeline": {"pipeline_parallel_size": 2},
        "cap": {"max_prefill_tokens_per_step": 50, "long_prefill_token_threshold": 40},
    }[variant]
    return engine


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    """A whole scenario."""
    engine, latency = draw(engines()), draw(LATENCIES)
    if draw(st.booleans()):
        change, host_ms = draw(st.sampled_from(PROFILED))
        engine, latency = {**engine, **change}, profile_latency(draw(st.sampled_from(host_ms)))
    return {
        "name": "random",
        "seed": draw(st.integers(0, 5)),
        "workload": draw(workloads()),
        "cluster": {
            "replicas": draw(st.integers(1, 4)),
            "router": draw(st.sampled_from(sorted(ROUTERS))),
        },
        "engine": engine,
        "latency": latency,
        "slo": {"ttft_p95_ms": 500, "itl_p99_ms": 100},
    }


def outcome(scenario: dict[str, Any], stepping: str) -> tuple[list[str], dict[str, Any], dict[str, list[int]]]:
    """Decisions, summary without its timing keys, and request columns."""
    stream = io.StringIO()
    loaded = load({**scenario, "engine": {**scenario["engine"], "stepping": stepping}})
    try:
        results = run(loaded, decisions=stream, deployment=DEPLOYMENTS.of(loaded))
    except SimulationError as error:
        return stream.getvalue().splitlines(), {"error": str(error)[:40]}, {}
    summary = json.loads(results.summary_json)
    for key in ("cpu_s", "wall_s"):
        del summary["run"][key]
    return stream.getvalue().splitlines(), summary, {k: v.tolist() for k, v in results.record.requests.items()}


@settings(max_examples=EXAMPLES, deadline=None, phases=NO_SHRINK)
@given(scenario=scenarios())
def test_fast_forward_equals_the_reference(scenario: dict[str, Any]) -> None:
    try:
        reference = outcome(scenario, "reference")
    except InputError:
        return  # a combination that is refused
    fast = outcome(scenario, "fast")
    for line, (theirs, ours) in enumerate(zip(reference[0], fast[0], strict=False)):
        assert ours == theirs, f"line {line}"
    assert len(fast[0]) == len(reference[0])
    assert fast[2] == reference[2]
    assert fast[1] == reference[1]


def test_jumps_are_taken() -> None:
    """A run that fast-forward is made for takes far fewer rows than steps."""
    workload = {
        "requests": 50,
        "arrival": {"process": "constant", "rate": 1.0},
        "input_tokens": {"dist": "fixed", "value": 100},
        "output_tokens": {"dist": "fixed", "value": 200},
    }
    results = run(load({"name": "jumps", "workload": workload, "engine": {"model": "llama-2-7b", "gpu": "h100-sxm"}}))
    rows = results.record.steps["num_steps"]
    assert len(rows) < 0.2 * int(np.sum(rows))
