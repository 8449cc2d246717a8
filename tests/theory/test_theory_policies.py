"""What scheduling theory says of one server with known service times, seen in the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from theory_runs import STEP_NS, STEP_S, single_server, waits_ns

from policies.registry import POLICIES
from sim.results.results import Results

VARIED = {"dist": "lognormal", "mean": 6.0, "cv": 2.0, "max": 400}
"""High variance: most requests are short, a few are very long."""
NON_PREEMPTIVE = ("fcfs", "priority", "sjf", "throughput", "hybrid", "fair", "deadline", "packed", "adaptive")


def run(policy: str | dict[str, Any], seed: int, **more: Any) -> Results:
    return single_server(requests=400, output=VARIED, rate=0.8 / (6 * STEP_S), seed=seed, policy=policy, **more)


def mean_e2el_ns(results: Results) -> float:
    columns = results.record.requests
    return float((columns["finish_ns"] - columns["arrival_ns"]).mean())


@pytest.mark.parametrize("seed", range(4))
def test_srtf_has_the_least_mean_time_in_system_of_all(seed: int) -> None:
    """Shortest remaining processing time is optimal on every sample path (Schrage 1968). Recomputation costs
    nothing here: whatever a request had computed fits the one step that gives its next token."""
    means = {name: mean_e2el_ns(run(name, seed)) for name in POLICIES}
    assert min(means, key=lambda name: means[name]) == "srtf"
    assert all(means["srtf"] <= mean for mean in means.values())
    assert means["srtf"] < means["sjf"] < means["fcfs"]


@pytest.mark.parametrize("seed", range(4))
def test_srtf_is_schrages_rule_to_the_nanosecond(seed: int) -> None:
    """The least sum there can be, found by a tiny simulation of the rule itself at step boundaries."""
    results = run("srtf", seed)
    table = results.record.workload
    assert results.summary["preemptions"]["total"] > 0
    assert int(results.record.requests["finish_ns"].sum()) == sum(
        schrage_ends_ns(table.arrival_ns.tolist(), table.output_tokens.tolist())
    )


def schrage_ends_ns(arrivals: list[int], steps: list[int]) -> list[int]:
    """Ends under the rule: at every step boundary the request with the fewest steps left runs."""
    now, nxt, ends = 0, 0, []
    left: list[int] = []
    while left or nxt < len(arrivals):
        if not left:
            now = max(now, arrivals[nxt])
        while nxt < len(arrivals) and arrivals[nxt] <= now:
            left.append(steps[nxt])
            nxt += 1
        left.sort()
        now += STEP_NS
        left[0] -= 1
        if not left[0]:
            left.pop(0)
            ends.append(now)
    return ends


@pytest.mark.parametrize("seed", range(3))
def test_conservation_law(seed: int) -> None:
    """Kleinrock (1965): orders that neither idle nor interrupt leave sum(service * wait) as it is, exactly."""
    sums = {}
    for name in NON_PREEMPTIVE:
        results = run(name, seed)
        assert results.summary["preemptions"]["total"] == 0
        service = results.record.workload.output_tokens * STEP_NS
        sums[name] = sum(int(s) * int(w) for s, w in zip(service, waits_ns(results), strict=True))
    assert len(set(sums.values())) == 1
    # ... while the orders themselves are not the same.
    assert mean_e2el_ns(run("sjf", seed)) < mean_e2el_ns(run("fcfs", seed))


@pytest.mark.parametrize("policy", ["srtf", *NON_PREEMPTIVE])
def test_no_order_changes_when_the_server_is_busy(policy: str) -> None:
    expected, found = run("fcfs", 11), run(policy, 11)
    for name in ("start_ns", "end_ns"):
        np.testing.assert_array_equal(found.record.steps[name], expected.record.steps[name])
