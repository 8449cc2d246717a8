"""Cancellations, crashes, drains and slow replicas at known instants, and what the gateway makes of them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from cluster_runs import ENGINE, SECOND, act, lengths, run_with, scenario, seconds, statuses

from sim.cluster.acts import Act, What
from sim.results.context import RunContext
from sim.results.record import RunRecord, Status
from sim.results.summary import build_summary

BURST: dict[str, Any] = {"process": "burst"}


def every_second(count: int) -> dict[str, Any]:
    return {"requests": count, "arrival": {"process": "constant", "rate": 1.0}}


# --- one kind at a time --------------------------------------------------------------------------


def test_a_cancelled_row_ends_and_one_that_has_not_come_or_is_over_does_not_care() -> None:
    acts = [act(0.5, What.CANCEL, 1), act(2.5, What.CANCEL, 0), act(9.5, What.CANCEL, 2)]
    record, _ = run_with(acts, scenario(lengths([8], [4], **every_second(3))))
    assert statuses(record) == ["cancelled", "completed", "completed"]
    assert seconds(record, "end_ns")[0] == 2.5 + (acts[1].at_ns - 2.5 * SECOND)
    assert record.reasons == {0: "cancelled"}


def test_a_crash_fails_what_is_there_and_the_next_requests_are_served() -> None:
    document = scenario(lengths([8], [4], **every_second(4)), cluster={"replicas": 2})
    record, _ = run_with([act(3.25, What.CRASH, 0)], document)
    assert record.requests["replica"].tolist() == [0, 1, 0, 1]
    assert statuses(record) == ["failed", "completed", "failed", "completed"]
    assert seconds(record, "finish_ns")[0] == -1 / SECOND
    assert record.reasons == {0: "replica 0 crashed at 3.25 s", 2: "replica 0 crashed at 3.25 s"}
    ended = record.steps["end_ns"][record.steps["replica"] == 0]
    assert ended.max() <= 3.25 * SECOND
    summary = build_summary(record, RunContext())
    assert summary["counts"] == {
        "submitted": 4,
        "completed": 2,
        "rejected": 0,
        "timed_out": 0,
        "failed": 2,
        "cancelled": 0,
        "attempts": 4,
    }
    assert "2 failed; the first, request 0: replica 0 crashed at 3.25 s" in summary["run"]["notes"]


def test_a_client_of_a_closed_loop_goes_on_after_a_crash() -> None:
    loop = {"process": "closed_loop", "concurrency": 1, "think_time_s": 0.5}
    record, _ = run_with([act(1.5, What.CRASH, 0)], scenario(lengths([8], [3], requests=2, arrival=loop)))
    assert statuses(record) == ["failed", "completed"]
    assert seconds(record, "arrival_ns") == [0.0, 2.0]


def test_no_request_is_sent_to_a_draining_replica() -> None:
    document = scenario(lengths([8], [3], **every_second(8)), cluster={"replicas": 2})
    record, _ = run_with([act(1.5, What.DRAIN, 0), act(5.5, What.UNDRAIN, 0)], document)
    arrival, replica = seconds(record, "arrival_ns"), record.requests["replica"].tolist()
    chosen = dict(zip(arrival, replica, strict=True))
    assert {chosen[at_s] for at_s in arrival if 1.5 < at_s < 5.5} == {1}
    assert {chosen[at_s] for at_s in arrival if at_s > 5.5} == {0, 1}
    assert set(statuses(record)) == {"completed"}, "what was there goes on"


def test_a_request_that_finds_every_replica_draining_is_rejected() -> None:
    document = scenario(lengths([8], [3], **every_second(4)), cluster={"replicas": 2})
    record, _ = run_with([act(1.5, What.DRAIN, 0), act(1.5, What.DRAIN, 1)], document)
    assert statuses(record)[2:] == ["rejected", "rejected"]
    assert record.requests["replica"].tolist()[2:] == [-1, -1]
    assert record.reasons[2] == "every replica is draining"
    assert build_summary(record, RunContext())["counts"]["rejected"] == 2


def test_an_arrival_at_the_instant_of_a_drain_is_taken_and_one_at_that_of_a_crash_is_served() -> None:
    workload = lengths([8], [2], requests=1, arrival={**BURST, "at_s": 1.0})
    for what in (What.DRAIN, What.CRASH):
        record, _ = run_with([act(1.0, what, 0)], scenario(workload))
        assert statuses(record) == ["completed"]


def test_a_slow_replica_takes_longer_from_the_next_step_on_and_is_as_before_after_it() -> None:
    workload = lengths([8], [6], requests=1, arrival=BURST)
    record, lines = run_with([act(1.5, What.SLOW, 0, 2.0), act(4.5, What.SLOW, 0)], scenario(workload))
    assert [line["time_s"] for line in lines] == [0.0, 1.0, 2.0, 4.0, 6.0, 7.0]
    assert seconds(record, "finish_ns") == [8.0]


def test_ranks_that_step_together_crash_together() -> None:
    engine = {"model": "qwen3-30b-a3b", "gpu": "h100-sxm", "data_parallel_size": 2}
    document = scenario(lengths([8], [9], requests=2, arrival=BURST), engine=engine)
    record, _ = run_with([act(3.5, What.CRASH, 1)], document)
    assert record.requests["replica"].tolist() == [0, 1]
    assert statuses(record) == ["failed", "failed"]
    assert record.steps["end_ns"].max() <= 3.5 * SECOND


# --- anything at any time ------------------------------------------------------------------------

ENGINES: dict[str, dict[str, Any]] = {
    "sync": {},
    "async": {"async_scheduling": True, "num_gpu_blocks_override": 30, "max_num_seqs": 4},
    "pipeline": {"pipeline_parallel_size": 3, "num_gpu_blocks_override": 40},
    "swap": {"preemption": "swap", "swap_space_gib": 1, "num_gpu_blocks_override": 20},
    "static": {"batching": "static", "static_batch_wait_s": 1.0, "max_num_seqs": 4},
    "drafts": {"speculative": {"method": "ngram"}, "async_scheduling": True, "num_gpu_blocks_override": 30},
    "ranks": {"model": "qwen3-30b-a3b", "gpu": "h100-sxm", "data_parallel_size": 2, "num_gpu_blocks_override": 30},
}
LATENCIES: list[dict[str, Any]] = [
    {"kind": "constant", "step_s": 1.0},
    {"kind": "roofline", "host_overhead_ms": 3, "time_scale": 40},
]


def random_acts(rng: random.Random, replicas: int, rows: int) -> list[Act]:
    """Acts at whole seconds and in between."""
    acts = []
    for _ in range(rng.randint(4, 14)):
        at_s = rng.choice([rng.uniform(0, 30), float(rng.randint(0, 30))])
        what = rng.choice([*What, What.CANCEL, What.CANCEL])
        target = rng.randrange(rows if what is What.CANCEL else replicas)
        acts.append(act(at_s, what, target, rng.choice([1.0, 1.37, 3.0])))
    return acts


def check(record: RunRecord, acts: list[Act], groups: int) -> None:
    """Nothing is lost, and no step outlives a crash. ``groups``: replicas that crash together."""
    requests, steps = record.requests, record.steps
    rows, status = requests["row"].tolist(), requests["status"].tolist()
    assert len(set(rows)) == len(rows)
    crashes = {
        (at.at_ns, at.target // groups * groups + rank)
        for at in acts
        if at.what is What.CRASH
        for rank in range(groups)
    }
    cancels = {(at.at_ns, at.target) for at in acts if at.what is What.CANCEL}
    for place, row in enumerate(rows):
        end_ns, tokens = requests["end_ns"][place], requests["output_tokens"][place]
        wanted = min(int(record.workload.output_tokens[row]), 1000 - int(requests["input_tokens"][place]))
        if status[place] == Status.COMPLETED:
            assert tokens == wanted
            assert end_ns == requests["finish_ns"][place]
        else:
            assert tokens < wanted
            assert requests["finish_ns"][place] == -1
        if status[place] == Status.FAILED:
            assert (end_ns, requests["replica"][place]) in crashes
        if status[place] == Status.CANCELLED:
            patience_ns = record.workload.classes[0].patience_ns
            assert (end_ns, row) in cancels or end_ns - requests["arrival_ns"][place] == patience_ns
    for at_ns, replica in crashes:
        mine = steps["replica"] == replica
        cut = (steps["scheduled_ns"] < at_ns) & (steps["end_ns"] > at_ns) & mine
        assert not cut.any()
    for replica in set(steps["replica"].tolist()):
        assert (np.diff(steps["scheduled_ns"][steps["replica"] == replica]) >= 0).all()
    counts = build_summary(record, RunContext())["counts"]
    names = [each.name.lower() for each in Status]
    assert counts["submitted"] == sum(counts[name] for name in names) == counts["attempts"] == len(rows)


@pytest.mark.parametrize("latency", LATENCIES, ids=lambda latency: latency["kind"])
@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_whatever_happens_when(kind: str, latency: dict[str, Any], seed: int) -> None:
    rng = random.Random(f"{kind}-{seed}")
    engine = {**ENGINE, **ENGINES[kind]}
    replicas, groups = rng.randint(1, 3), engine.get("data_parallel_size", 1)
    arrival = rng.choice([BURST, {"process": "poisson", "rate": 2.0}, {"process": "closed_loop", "concurrency": 6}])
    prompts, outputs = [rng.randint(1, 150) for _ in range(7)], [rng.randint(1, 20) for _ in range(5)]
    workload = lengths(prompts, outputs, requests=40, arrival=arrival)
    if rng.random() < 0.5:
        workload["patience_s"] = rng.choice([4.0, 12.3])
    if arrival["process"] == "poisson" and kind != "swap":
        workload["sessions"] = {"turns": 2, "think_time_s": 1.0}
    cluster = {"replicas": replicas, "router": rng.choice(["round_robin", "least_outstanding", "least_kv"])}
    acts = random_acts(rng, replicas * groups, 40)
    record, _ = run_with(acts, scenario(workload, engine=engine, latency=latency, cluster=cluster, seed=seed))
    check(record, acts, groups)
