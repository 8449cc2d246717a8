"""Overload: said where it is and only there, with headroom near what the engine really serves."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import sim
from benchmarks.overload import LOADS as TABLE_LOADS
from benchmarks.overload import SMALL_MIXES as MIXES
from benchmarks.overload import table_row, verdicts
from sim.results.results import Results
from sim.results.terminal import print_summary
from sim.results.wording import overload_sentence
from sim.run import load, run

LOADS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3)
REQUESTS = 1500


def simulated(mix: str, seed: int = 0, requests: int = REQUESTS, **arrival: Any) -> Results:
    traffic, engine = MIXES[mix]
    workload = {**traffic, "requests": requests, "arrival": arrival}
    return run(load({"name": mix, "seed": seed, "workload": workload, "engine": engine}))


def served_of_a_backlog(mix: str) -> float:
    """Requests per second while thousands wait: the capacity, found without ``sim.capacity``."""
    requests = simulated(mix, seed=77, requests=4000, process="constant", rate=1e6).requests
    started = np.sort(requests["scheduled_s"])
    begin, end = started[800], started[3800]
    return int(((requests["finish_s"] > begin) & (requests["finish_s"] <= end)).sum()) / (end - begin)


def test_forty_scenarios_from_half_to_1_3_times_the_capacity() -> None:
    false_alarms, misses, headrooms = [], [], []
    for mix in MIXES:
        capacity = served_of_a_backlog(mix)
        for seed, share in enumerate(LOADS):
            found = simulated(mix, seed, process="poisson", rate=share * capacity).summary["load"]
            headrooms.append(found["headroom"] * found["offered_rate"] / capacity)
            if found["saturated"] and share <= 0.9:
                false_alarms.append((mix, share))
            if not found["saturated"] and share >= 1.1:
                misses.append((mix, share))
    assert len(headrooms) == 40
    assert len(false_alarms) <= 1, false_alarms
    assert len(misses) <= 1, misses
    # Each seed draws a mix of its own, whose mean lengths are some percent off the long-run ones.
    assert np.mean(headrooms) == pytest.approx(1.0, abs=0.04)
    assert max(abs(each - 1.0) for each in headrooms) < 0.15


def test_the_table_of_the_page_counts_wrong_verdicts_on_either_side() -> None:
    """Told 1.6 times what it serves, a mix at 70 % is overloaded; told half of it, none is."""
    served = served_of_a_backlog("few seats")
    more, half = (verdicts(["few seats"], 400, 1, {"few seats": each * served}) for each in (1.6, 0.5))
    assert [bool(more[share]) for share in TABLE_LOADS] == [False, True, True, True, False, False, False]
    assert [bool(half[share]) for share in TABLE_LOADS] == [False] * 4 + [True] * 3
    assert table_row(400, more, 1) == "| 400 | 3 of 4 | 0 of 1 | 0 of 1 | 0 of 1 |"
    assert table_row(1400, half, 1) == "| 1,400 | 0 of 4 | 1 of 1 | 1 of 1 | 1 of 1 |"


@pytest.mark.parametrize("requests", [1000, 3000])
def test_a_saturated_run_says_so_first_and_what_it_is_short_of(requests: int) -> None:
    results = simulated("few seats", requests=requests, process="poisson", rate=30.0)
    found = results.summary["load"]
    assert found["saturated"] is True
    assert found["headroom"] == pytest.approx(served_of_a_backlog("few seats") / 30.0, rel=0.08)
    assert found["offered_rate"] == pytest.approx(30.0, rel=0.05)
    assert found["served_rate"] < found["offered_rate"]
    assert any("overload" in each for each in results.misses)
    screen = io.StringIO()
    print_summary(results.summary, file=screen)
    head = " ".join(screen.getvalue().split("\n\n")[0].split())
    assert "OVERLOAD" in head
    assert "llama-3.1-8b bfloat16 on a100-80gb-sxm TP1, 1 replica, policy fcfs" in head
    assert "seats" in screen.getvalue()


def test_a_queue_that_grows_only_because_of_the_router_is_found() -> None:
    """Everything goes to one of two replicas: on average it fits, says headroom; it does not, says the queue."""
    traffic, engine = MIXES["few seats"]
    workload = {
        **traffic,
        "requests": 2000,
        "arrival": {"process": "poisson", "rate": 1.5 * served_of_a_backlog("few seats")},
        "prefix": {"groups": 1, "tokens": 16},
    }
    cluster = {"replicas": 2, "router": {"name": "prefix_affinity", "overload_slack": 100_000}}
    found = run(load({"name": "one", "workload": workload, "engine": engine, "cluster": cluster})).summary["load"]
    assert found["headroom"] > 1.2
    assert found["saturated"] is True


@pytest.mark.parametrize(
    "arrival", [{"process": "closed_loop", "concurrency": 64}, {"process": "constant", "rate": 1e9}]
)
def test_without_a_rate_there_is_no_overload(arrival: dict[str, Any]) -> None:
    found = simulated("few seats", requests=200, **arrival).summary["load"]
    if arrival["process"] == "closed_loop":
        assert (found["offered_rate"], found["headroom"], found["saturated"]) == (None, None, False)
    else:
        assert found["saturated"] is True


@pytest.mark.parametrize("policy", ["sjf", "srtf", "hybrid", "throughput", "priority"])
def test_an_order_of_admission_changes_no_headroom(policy: str) -> None:
    """Short requests first would serve only those of a backlog; arriving ones are all served in the long run."""
    found = {}
    for name in ("fcfs", policy):
        traffic, engine = MIXES["few seats"]
        workload = {**traffic, "requests": 800, "arrival": {"process": "poisson", "rate": 14.0}}
        found[name] = run(load({"name": name, "workload": workload, "engine": {**engine, "policy": name}})).summary
    assert found["fcfs"]["load"]["headroom"] < 1.5
    assert found[policy]["load"]["headroom"] == pytest.approx(found["fcfs"]["load"]["headroom"], rel=0.01)
    assert found[policy]["load"]["saturated"] is False


@pytest.mark.parametrize("cv", [0.3, 1.0, 1.5])
@pytest.mark.parametrize(
    ("model", "gpu"), [("llama-3.1-8b", "l40s"), ("llama-3.1-8b", "a100-80gb-sxm"), ("qwen3-14b", "h100-sxm")]
)
def test_the_stated_capacity_is_what_a_long_backlog_is_served_at(model: str, gpu: str, cv: float) -> None:
    """Lengths that vary are the hard ones: long answers gather among those that run, with long contexts."""
    length = {"dist": "lognormal", "cv": cv}
    engine = {"model": model, "gpu": gpu, "max_model_len": 8192, "max_num_seqs": 256, "max_num_batched_tokens": 2048}
    found = sim.simulate(
        {
            "name": "backlog",
            "workload": {
                "requests": 8000,
                "arrival": {"process": "poisson", "rate": 2000.0},
                "input_tokens": {**length, "mean": 600, "max": 4000},
                "output_tokens": {**length, "mean": 250, "max": 4000},
            },
            "engine": engine,
            "latency": {"noise": "none"},
        }
    )
    finished_s = np.sort(found.record.requests["finish_ns"]) / 1e9
    begin, end = int(0.3 * len(finished_s)), int(0.85 * len(finished_s))
    served = (end - begin) / (finished_s[end] - finished_s[begin])
    assert found.summary["load"]["capacity"] == pytest.approx(served, rel=0.04)


def test_no_more_is_said_to_have_been_served_than_could_be() -> None:
    """Requests of one length that wait together start together, which the estimate's spread ones do not."""
    lengths = {"input_tokens": {"dist": "fixed", "value": 100}, "output_tokens": {"dist": "fixed", "value": 10}}
    workload = {"requests": 4000, "arrival": {"process": "poisson", "rate": 400}, **lengths}
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_num_seqs": 16}
    load_ = sim.simulate({"name": "x", "workload": workload, "engine": engine}).summary["load"]
    assert load_["served_rate"] > load_["capacity"]
    assert "could be" not in (overload_sentence(load_) or "could be")
    assert "could be" in (overload_sentence({**load_, "served_rate": load_["capacity"] - 1}) or "")
