"""Ranks of one deployment: MoE models in lockstep by hand, dense models as so many engines of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_runs import Run, arrivals, backlog, simulate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.engine.variants.lockstep import DP_SYNC_INTERVAL
from sim.results.record import GROUP_COLUMNS, Status

MOE: dict[str, Any] = {
    "model": "qwen3-30b-a3b",
    "gpu": "h100-sxm",
    "data_parallel_size": 2,
    "enable_expert_parallel": True,
}
SYNC: dict[str, Any] = {**MOE, "async_scheduling": False}
ROOFLINE: dict[str, Any] = {"kind": "roofline", "host_overhead_ms": 0.5}


def of_rank(run: Run, rank: int) -> list[tuple[float, dict[str, int]]]:
    """The plan of one rank."""
    return [(line["time_s"], line["scheduled"]) for line in run.lines if line["replica"] == rank]


def rows_of(run: Run, rank: int) -> dict[str, list[int]]:
    steps = run.results.record.steps
    return {name: column[steps["replica"] == rank].tolist() for name, column in steps.items()}


# --- lockstep by hand ------------------------------------------------------------------------------------


def test_a_rank_without_work_computes_dummy_batches() -> None:
    """Rank 0 has a request of three steps; rank 1 none: it takes part in all three and schedules nothing."""
    run = simulate(backlog([8], [3]), **SYNC)
    assert of_rank(run, 0) == [(0.0, {"0": 8}), (1.0, {"0": 1}), (2.0, {"0": 1})]
    assert of_rank(run, 1) == []
    busy, idle = rows_of(run, 0), rows_of(run, 1)
    second = 10**9
    assert idle["start_ns"] == busy["start_ns"] == [0, second, 2 * second]
    assert idle["gpu_ns"] == busy["gpu_ns"] == [second] * 3
    assert idle["num_prefills"] == idle["num_decodes"] == idle["num_running"] == [0, 0, 0]
    assert [busy["padded_tokens"], idle["padded_tokens"]] == [[8, 1, 1], [8, 1, 1]], "all are padded to the largest"
    assert busy["group_tokens"] == [16, 2, 2]


def test_the_slowest_rank_governs_and_the_others_wait() -> None:
    run = simulate(backlog([1500, 100], [2, 2]), latency={"kind": "profile"}, max_num_batched_tokens=2048, **SYNC)
    long, short = rows_of(run, 0), rows_of(run, 1)
    assert long["gpu_ns"] == short["gpu_ns"]
    assert long["end_ns"] == short["end_ns"]
    assert long["own_ns"][0] > short["own_ns"][0], "a prompt of 1,500 tokens takes longer than one of 100"
    assert long["group_tokens"][0] == 1600, "too many for a CUDA graph: nothing is padded"
    terms = run.results.record.terms
    assert terms is not None
    by_term = terms(run.results.record.steps)
    ranks = run.results.record.steps["replica"]
    assert by_term["waiting"][ranks == 0][0] == 0
    assert by_term["waiting"][ranks == 1][0] == long["own_ns"][0] - short["own_ns"][0]
    assert (sum(by_term.values()) == run.results.record.steps["gpu_ns"]).all()
    for name, times in by_term.items():
        assert (times >= 0).all(), name
        if name in ("experts", "dispatch", "combine"):
            assert (times > 0).all(), "dummies take part in the exchange"


@pytest.mark.parametrize(
    ("at_s", "formed_s", "start_s", "why"),
    [
        (0.5, 1.0, 1.0, "after the first step ranks ask each other for work, so that none is ahead"),
        (1.5, 2.0, 3.0, "its part of the third step was settled when the second was launched"),
        (2.0, 2.0, 3.0, "arrivals of an instant come before the batches of that instant"),
        (2.5, 3.0, 4.0, "the fourth is settled"),
    ],
)
def test_a_request_that_arrives_at_an_idle_rank(at_s: float, formed_s: float, start_s: float, why: str) -> None:
    """Steps of one second; rank 0 is busy throughout, rank 1 gets its first request at ``at_s``."""
    run = simulate(arrivals((0.0, 8, 9), (at_s, 16, 2)), **SYNC)
    assert of_rank(run, 1)[0] == (formed_s, {"1": 16}), why
    rows = rows_of(run, 1)
    assert rows["start_ns"][rows["num_prefills"].index(1)] == start_s * 10**9
    assert run.seconds("first_token_ns")[1] == start_s + 1.0


def test_an_arrival_at_a_busy_rank_joins_its_next_step() -> None:
    run = simulate(arrivals((0.0, 8, 9), (0.0, 9, 9), (1.5, 16, 2)), **SYNC)
    assert of_rank(run, 0)[2] == (2.0, {"0": 1, "2": 16})


def test_async_ranks_are_one_step_ahead_as_a_replica_is() -> None:
    run = simulate(backlog([8, 8], [4, 4]), **MOE)
    alone = [(0.0, {"0": 8}), (0.0, {"0": 1}), (1.0, {"0": 1}), (2.0, {"0": 1}), (3.0, {})]
    assert of_rank(run, 0) == alone
    assert of_rank(run, 1) == [(at, {name.replace("0", "1"): n for name, n in plan.items()}) for at, plan in alone]
    assert run.seconds("first_token_ns") == [1.0, 1.0]
    assert run.seconds("finish_ns") == [4.0, 4.0]


def test_a_rank_with_nothing_to_add_holds_up_the_others() -> None:
    """Rank 1 ends first: vLLM waits for its last batch before the dummy, so that the host shows in that one step."""
    latency = {"kind": "roofline", "host_overhead_ms": 1.0}
    run = simulate(backlog([8, 8], [8, 3]), latency=latency, **MOE)
    steps = rows_of(run, 0)
    gaps = [start - end for end, start in zip(steps["end_ns"], steps["start_ns"][1:], strict=False)]
    assert gaps[:7] == [0, 0, 1_000_000, 0, 0, 0, 0]


# --- until none has work -----------------------------------------------------------------------------------


def test_dummies_go_on_until_ranks_ask_each_other() -> None:
    """All is done at 3 s; the group goes on to its 16th step. What comes meanwhile waits for a step, later nothing."""
    assert DP_SYNC_INTERVAL == 16
    run = simulate(arrivals((0.0, 8, 3), (5.2, 8, 1), (40.3, 8, 1)), **SYNC)
    first_tokens = run.seconds("first_token_ns")
    assert first_tokens[1] == 8.0, "the sixth step runs, the seventh is settled: it is in the eighth"
    assert first_tokens[2] == 41.3, "asleep"
    for at_s in (15.9, 16.1):  # ranks ask each other at the end of the 16th step
        late = simulate(arrivals((0.0, 8, 3), (at_s, 8, 1)), **SYNC)
        assert late.seconds("first_token_ns")[1] == pytest.approx(max(at_s, 16.0) + 1.0)


def test_a_rank_answers_for_the_requests_it_has_seen() -> None:
    """All is done after one step, but a request has come to rank 1, which had answered before. So a new wave begins
    with it at 1 s, after whose first step ranks ask each other; and the next request joins at its end."""
    run = simulate(arrivals((0.0, 8, 1), (0.5, 16, 9), (1.25, 8, 2)), **SYNC)
    assert of_rank(run, 1)[0] == (1.0, {"1": 16})
    assert of_rank(run, 0)[1] == (2.0, {"2": 8})
    rows = rows_of(run, 0)
    assert rows["start_ns"][rows["num_prefills"].index(1, 1)] == 2 * 10**9


def test_steps_for_nobody_are_not_written_down() -> None:
    run = simulate(backlog([8], [3]), **SYNC)
    assert run.results.record.steps["end_ns"].max() == 3 * 10**9
    assert run.results.summary["utilization"]["busy_fraction"] == 1.0


# --- groups and routers -----------------------------------------------------------------------------------------


def test_groups_do_not_wait_for_each_other() -> None:
    cluster = {"replicas": 2}
    run = simulate(backlog([8, 8], [2, 2]), cluster=cluster, **SYNC)
    assert of_rank(run, 0)
    assert of_rank(run, 1)
    assert not of_rank(run, 2)
    assert rows_of(run, 2)["start_ns"] == [], "the second deployment sleeps"
    section = run.results.summary["replicas"]
    assert [(each["deployment"], each["data_parallel_rank"]) for each in section] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert run.results.summary["cost"]["gpus"] == 4


def test_a_router_sees_ranks_as_they_are_now() -> None:
    run = simulate(backlog([8] * 5, [5] * 5), cluster={"router": "vllm_dp"}, **SYNC)
    assert run.results.record.requests["replica"].tolist() == [0, 1, 0, 1, 0]


def test_gpus_of_a_rank() -> None:
    run = simulate(backlog([8] * 2, [2] * 2), tensor_parallel_size=2, **SYNC)
    assert run.results.record.gpus_per_replica == [2, 2]
    assert run.results.summary["cost"]["gpus"] == 4


# --- dense models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stepping", ["fast", "reference"])
def test_ranks_of_a_dense_model_are_engines_of_their_own(stepping: str) -> None:
    workload = {
        "requests": 60,
        "arrival": {"process": "poisson", "rate": 20.0},
        "input_tokens": {"dist": "uniform", "low": 10, "high": 400},
        "output_tokens": {"dist": "uniform", "low": 1, "high": 60},
    }
    shape = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "stepping": stepping, "num_gpu_blocks_override": 120}
    ranks = simulate(workload, latency={"kind": "profile"}, data_parallel_size=3, max_model_len=1000, **shape)
    engines = simulate(workload, latency={"kind": "profile"}, cluster={"replicas": 3}, max_model_len=1000, **shape)
    assert ranks.lines == engines.lines
    assert set(GROUP_COLUMNS).isdisjoint(ranks.results.record.steps)
    for table in ("requests", "steps"):
        one, other = getattr(ranks.results.record, table), getattr(engines.results.record, table)
        assert all(np.array_equal(one[name], other[name]) for name in other)


# --- whatever the workload ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 40), st.integers(1, 12), st.integers(0, 3)),
        min_size=1,
        max_size=10,
    ),
    dp=st.sampled_from([2, 4]),
    asynchronous=st.booleans(),
    blocks=st.integers(16, 40),
    latency=st.sampled_from([{"kind": "constant", "step_s": 0.02}, ROOFLINE]),
    router=st.sampled_from(["round_robin", "vllm_dp", "least_kv"]),
)
def test_nothing_is_lost_and_ranks_step_together(
    rows: list[tuple[int, int, int, int]],
    dp: int,
    asynchronous: bool,
    blocks: int,
    latency: dict[str, Any],
    router: str,
) -> None:
    """A run fails by itself where a request or a block is lost; both steppings are the same and so is every run."""
    workload = arrivals(*((at / 50, prompt, output) for at, prompt, output, _ in sorted(rows)))
    for entry, (*_, slack) in zip(workload["classes"], sorted(rows), strict=True):
        entry["max_tokens"] = {"dist": "fixed", "value": entry["output_tokens"]["values"][0] + slack}
    engine = {
        **MOE,
        "data_parallel_size": dp,
        "async_scheduling": asynchronous,
        "num_gpu_blocks_override": blocks,
        "block_size": 4,
        "max_model_len": 60,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
    }
    cluster = {"replicas": 2, "router": router}
    run = simulate(workload, latency=latency, cluster=cluster, **engine)
    again = simulate(workload, latency=latency, cluster=cluster, **{**engine, "stepping": "fast"})
    assert run.lines == again.lines
    record = run.results.record
    assert (record.requests["status"] == Status.COMPLETED).all()
    keys = [(line["time_s"], line["replica"]) for line in run.lines]
    assert keys == sorted(keys)
    steps = record.steps
    for first in (0, dp):
        ranks = [rows_of(run, first + rank) for rank in range(dp)]
        for name in ("start_ns", "end_ns", "gpu_ns", "group_tokens"):
            assert all(rank[name] == ranks[0][name] for rank in ranks), name
        assert all(after >= before for before, after in zip(ranks[0]["end_ns"], ranks[0]["start_ns"][1:], strict=False))
    assert (steps["own_ns"] <= steps["gpu_ns"]).all()
    assert (steps["scheduled_ns"] <= steps["start_ns"]).all()
    tokens = steps["num_prefill_tokens"] + steps["num_decodes"]
    assert (steps["padded_tokens"] >= tokens).all()
