"""Several single servers behind a router."""

from __future__ import annotations

import numpy as np
import pytest
from theory_runs import STEP_NS, STEP_S, IntColumn, lindley_waits_ns, single_server, waits_ns

from sim.results.results import Results

MEAN = 4.0
LOAD = 0.8
OUTPUT = {"dist": "exponential", "mean": MEAN}


def run(router: str, seed: int, replicas: int = 2) -> Results:
    rate = replicas * LOAD / (MEAN * STEP_S)
    return single_server(requests=1000, output=OUTPUT, rate=rate, seed=seed, replicas=replicas, router=router)


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", "power_of_two"])
def test_each_replica_is_a_single_server_of_what_it_was_given(router: str) -> None:
    results = run(router, seed=5, replicas=3)
    columns, table = results.record.requests, results.record.workload
    for replica in range(3):
        mine = columns["replica"] == replica
        assert mine.sum() > 100
        np.testing.assert_array_equal(
            waits_ns(results)[mine],
            lindley_waits_ns(table.arrival_ns[mine], table.output_tokens[mine] * STEP_NS),
        )


def test_round_robin_deals_in_turn() -> None:
    replica = run("round_robin", seed=5, replicas=3).record.requests["replica"]
    np.testing.assert_array_equal(replica, np.arange(1000) % 3)


def test_the_more_a_router_knows_the_shorter_the_wait() -> None:
    """Random split > round robin (Erlang-2 gaps) > shortest queue > one queue for all (M/G/2)."""
    waits: dict[str, list[float]] = {"random": [], "round_robin": [], "least_outstanding": [], "one_queue": []}
    for seed in range(6):
        for router in ("round_robin", "least_outstanding"):
            waits[router].append(float(waits_ns(run(router, seed)).mean()))
        table = run("round_robin", seed).record.workload
        service = table.output_tokens * STEP_NS
        first = np.random.default_rng(seed).random(len(table)) < 0.5
        split = [lindley_waits_ns(table.arrival_ns[part], service[part]) for part in (first, ~first)]
        waits["random"].append(float(np.concatenate(split).mean()))
        waits["one_queue"].append(float(np.mean(shared_queue_waits_ns(table.arrival_ns, service, servers=2))))
    means = {name: float(np.mean(values)) for name, values in waits.items()}
    assert means["random"] > means["round_robin"] > means["least_outstanding"] > means["one_queue"]
    assert all(a > b for a, b in zip(waits["round_robin"], waits["one_queue"], strict=True))


def shared_queue_waits_ns(arrival_ns: IntColumn, service_ns: IntColumn, servers: int) -> list[int]:
    """First come, first served by whichever of the servers is free first (Kiefer and Wolfowitz 1955)."""
    free_at, waits = [0] * servers, []
    for arrival, service in zip(arrival_ns.tolist(), service_ns.tolist(), strict=True):
        free_at.sort()
        start = max(arrival, free_at[0])
        waits.append(start - arrival)
        free_at[0] = start + service
    return waits
