"""Whole runs of several outputs of one prompt, and of tenants whose caches are isolated."""

from __future__ import annotations

from typing import Any

import pytest
from engine_runs import simulate

CACHED: dict[str, Any] = {"enable_prefix_caching": True, "block_size": 16, "async_scheduling": False}
BOTH = pytest.mark.parametrize("stepping", ["fast", "reference"])


def burst(**more: Any) -> dict[str, Any]:
    return {
        "requests": 1,
        "arrival": {"process": "burst"},
        "input_tokens": {"dist": "fixed", "value": 40},
        "output_tokens": {"dist": "fixed", "value": 8},
        **more,
    }


@BOTH
def test_outputs_hold_the_full_blocks_of_their_prompt_once(stepping: str) -> None:
    """40 tokens are two full blocks and a half: 2 + 4 blocks for four outputs, 4 x 3 for four requests."""
    outputs = simulate(burst(n=4), stepping=stepping, **CACHED)
    apart = simulate(burst(requests=4), stepping=stepping, **CACHED)
    assert [run.lines[0]["free_blocks"] for run in (outputs, apart)] == [1000 - 6, 1000 - 12]
    assert outputs.plan[0] == (0.0, {"0": 40, "1": 8, "2": 8, "3": 8})
    assert outputs.results.summary["completed"] == 4
    assert outputs.results.summary["total_input_tokens"] == 160


@BOTH
def test_the_outputs_of_a_prompt_go_to_one_replica(stepping: str) -> None:
    workload = burst(requests=6, n=3, arrival={"process": "constant", "rate": 1.0})
    for router in ("round_robin", "least_outstanding", "power_of_two"):
        cluster = {"replicas": 2, "router": router}
        requests = simulate(workload, cluster=cluster, stepping=stepping, **CACHED).results.requests
        assert requests["parent"].tolist() == [prompt for prompt in range(6) for _ in range(3)]
        by_prompt = requests.groupby("parent")["replica"]
        assert (by_prompt.nunique() == 1).all()
        if router == "round_robin":
            assert by_prompt.first().tolist() == [0, 1] * 3


@BOTH
@pytest.mark.parametrize(("isolation", "hits"), [("none", [0, 48, 48, 48]), ("tenant", [0, 48, 0, 48])])
def test_tenants_find_no_blocks_of_each_other(stepping: str, isolation: str, hits: list[int]) -> None:
    classes = [
        burst(name=f"c{at}", tenant=tenant, arrival={"process": "burst", "at_s": 100.0 * at})
        for at, tenant in enumerate(["a", "a", "b", "b"])
    ]
    for entry in classes:
        entry["input_tokens"] = {"dist": "fixed", "value": 60}
    workload = {"classes": classes, "prefix": {"groups": 1, "tokens": 50}}
    run = simulate(workload, stepping=stepping, cache_isolation=isolation, **CACHED)
    assert run.results.record.requests["num_cached_tokens"].tolist() == hits
