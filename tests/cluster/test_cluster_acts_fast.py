"""Runs with acts and impatient clients, fast and reference: equal to the last digit.

``FAST_FORWARD_EXAMPLES`` sets the number of random scenarios (the default is a short version).
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from cluster_runs import ENGINE, lengths, run_with, scenario
from test_cluster_acts import BURST, ENGINES, LATENCIES, random_acts

from sim.cluster.acts import Act
from sim.results.context import RunContext
from sim.results.summary import build_summary

EXAMPLES = int(os.environ.get("FAST_FORWARD_EXAMPLES", "40"))
ROUTERS = ["round_robin", "least_outstanding", "least_kv", "prefix_affinity"]
POLICIES = ["fcfs", "fcfs", "fcfs", "priority", "sjf", "srtf", "fair"]


def random_case(rng: random.Random) -> tuple[dict[str, Any], list[Act]]:
    """A scenario without its stepping, and what happens to it."""
    engine = {**ENGINE, **ENGINES[rng.choice(["sync", "async"])], "policy": rng.choice(POLICIES)}
    replicas = rng.randint(1, 3)
    arrival = rng.choice([BURST, {"process": "poisson", "rate": 2.0}, {"process": "closed_loop", "concurrency": 6}])
    prompts, outputs = [rng.randint(1, 150) for _ in range(7)], [rng.randint(1, 20) for _ in range(5)]
    workload = lengths(prompts, outputs, requests=40, arrival=arrival)
    if rng.random() < 0.5:
        workload["patience_s"] = rng.choice([4.0, 12.3])
    if arrival["process"] == "poisson" and rng.random() < 0.5:
        workload["sessions"] = {"turns": 2, "think_time_s": 1.0}
    if rng.random() < 0.5:
        workload["prefix"] = {"groups": 2, "tokens": 40}
    document = scenario(
        workload,
        engine=engine,
        latency=rng.choice(LATENCIES),
        cluster={"replicas": replicas, "router": rng.choice(ROUTERS)},
        seed=rng.randint(0, 5),
    )
    return document, random_acts(rng, replicas, 40) if rng.random() < 0.85 else []


def outcome(document: dict[str, Any], acts: list[Act], stepping: str) -> dict[str, Any]:
    record, lines = run_with(acts, {**document, "engine": {**document["engine"], "stepping": stepping}})
    summary = build_summary(record, RunContext())
    del summary["run"]["cpu_s"]
    requests = {name: column.tolist() for name, column in record.requests.items()}
    return {"lines": lines, **requests, "reasons": record.reasons, **summary}


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_fast_equals_the_reference(seed: int) -> None:
    document, acts = random_case(random.Random(seed))
    reference, fast = (outcome(document, acts, stepping) for stepping in ("reference", "fast"))
    for ours, theirs in zip(fast["lines"], reference["lines"], strict=False):
        assert ours == theirs
    for name, expected in reference.items():
        assert fast[name] == expected, name
