"""When things happen: the timeline of an engine, synchronous, one step ahead, and in a pipeline."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from engine_runs import Run, arrivals, backlog, busy_steps, simulate

SYNC: dict[str, Any] = {"async_scheduling": False}
ASYNC: dict[str, Any] = {"async_scheduling": True}


def roofline(host_ms: float) -> dict[str, Any]:
    return {"kind": "roofline", "host_overhead_ms": host_ms}


# --- one request ---------------------------------------------------------------------------------


def test_sync_schedules_when_the_step_before_has_ended() -> None:
    run = simulate(backlog([8], [3]), **SYNC)
    assert run.plan == [(0.0, {"0": 8}), (1.0, {"0": 1}), (2.0, {"0": 1})]
    assert run.seconds("scheduled_ns") == [0.0]
    assert run.seconds("first_token_ns") == [1.0]
    assert run.seconds("finish_ns") == [3.0]


def test_async_schedules_one_step_ahead() -> None:
    """Step 1 at the instant of step 0, step n + 2 at the end of step n; tokens come when they do in sync mode."""
    run = simulate(backlog([8], [4]), **ASYNC)
    assert run.plan == [(0.0, {"0": 8}), (0.0, {"0": 1}), (1.0, {"0": 1}), (2.0, {"0": 1}), (3.0, {})]
    assert run.seconds("first_token_ns") == [1.0]
    assert run.seconds("finish_ns") == [4.0]
    steps = busy_steps(run)
    assert steps["start_ns"].tolist() == [0, 10**9, 2 * 10**9, 3 * 10**9]


def test_async_computes_one_step_too_many_when_the_end_is_not_known_in_advance() -> None:
    workload = {**backlog([8], [2]), "max_tokens": {"dist": "fixed", "value": 10}}
    assert simulate(workload, **SYNC).plan == [(0.0, {"0": 8}), (1.0, {"0": 1})]
    run = simulate(workload, **ASYNC)
    assert run.plan == [(0.0, {"0": 8}), (0.0, {"0": 1}), (1.0, {"0": 1})]
    assert run.seconds("finish_ns") == [2.0]
    assert run.results.record.requests["output_tokens"].tolist() == [2]
    assert run.results.summary["duration"] == 2.0
    assert run.results.summary["run"]["simulated_s"] == 3.0


def test_an_idle_engine_starts_at_the_instant_of_an_arrival() -> None:
    run = simulate(arrivals((0.25, 8, 1), (7.125, 8, 1)), **SYNC)
    assert run.plan == [(0.25, {"0": 8}), (7.125, {"1": 8})]
    assert run.seconds("finish_ns") == [1.25, 8.125]


# --- what joins which step ------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "joins", "first_token"), [(SYNC, 1, 2.0), (ASYNC, 2, 3.0)])
def test_an_arrival_during_step_n(mode: dict[str, Any], joins: int, first_token: float) -> None:
    """It joins step n + 1 in sync mode, n + 2 in async mode, which is formed at the end of step n all the same."""
    run = simulate(arrivals((0.0, 8, 6), (0.5, 9, 2)), **mode)
    (step,) = [line["step"] for line in run.lines if line["scheduled"].get("1") == 9]
    assert step == joins
    assert run.seconds("scheduled_ns")[1] == 1.0
    assert run.seconds("first_token_ns")[1] == first_token


@pytest.mark.parametrize(("mode", "joins"), [(SYNC, 1), (ASYNC, 2)])
def test_an_arrival_at_the_instant_of_a_step_is_in_it(mode: dict[str, Any], joins: int) -> None:
    run = simulate(arrivals((0.0, 8, 6), (1.0, 9, 2), (1.0, 10, 2)), **mode)
    assert run.lines[joins]["time_s"] == 1.0
    assert run.lines[joins]["scheduled"] == {"0": 1, "1": 9, "2": 10}


def test_arrivals_of_one_instant_start_together() -> None:
    for mode in (SYNC, ASYNC):
        assert simulate(arrivals((2.0, 8, 1), (2.0, 9, 1)), **mode).plan[0] == (2.0, {"0": 8, "1": 9})


# --- ends ----------------------------------------------------------------------------------------


def test_sync_frees_before_the_next_step() -> None:
    run = simulate(backlog([16, 16], [2, 4]), **SYNC)
    assert [line["finished"] for line in run.lines] == [[], [], ["0"], []]
    assert [line["free_blocks"] for line in run.lines] == [998, 996, 998, 998]


def test_async_frees_one_step_later() -> None:
    """Step 2 is formed while the last token of request 0 is in flight: its blocks are not free yet."""
    run = simulate(backlog([16, 16], [2, 4]), **ASYNC)
    assert run.plan[:4] == [
        (0.0, {"0": 16, "1": 16}),
        (0.0, {"0": 1, "1": 1}),
        (1.0, {"1": 1}),
        (2.0, {"1": 1}),
    ]
    assert [line["finished"] for line in run.lines] == [[], [], [], ["0"], []]
    assert [line["free_blocks"] for line in run.lines] == [998, 996, 996, 998, 998]
    assert run.seconds("finish_ns") == [2.0, 4.0]


def test_a_seat_is_taken_again_by_the_step_after_the_end_is_known() -> None:
    workload = backlog([8, 9], [2, 1])
    assert simulate(workload, max_num_seqs=1, **SYNC).plan == [(0.0, {"0": 8}), (1.0, {"0": 1}), (2.0, {"1": 9})]
    run = simulate(workload, max_num_seqs=1, **ASYNC)
    assert run.plan == [(0.0, {"0": 8}), (0.0, {"0": 1}), (1.0, {}), (2.0, {"1": 9}), (2.0, {})]


# --- empty steps ---------------------------------------------------------------------------------


def a_request_that_yields_to_itself(latency: dict[str, Any] | None = None) -> Run:
    """Three usable blocks. Request 0, the less urgent, is first in the running pass and needs a third block while
    request 1 holds the last one: it is its own victim, which ends the pass, and the step schedules nothing."""
    rows: dict[str, Any] = arrivals((0.0, 7, 3), (0.001, 3, 3))
    rows["classes"][0]["priority"] = 5
    settings: dict[str, Any] = {"num_gpu_blocks_override": 4, "block_size": 4, "max_model_len": 12}
    return simulate(rows, latency=latency, policy="priority", **settings, **SYNC)


def test_an_empty_step_alone_takes_the_constant_step() -> None:
    run = a_request_that_yields_to_itself()
    assert run.plan == [
        (0.0, {"0": 7}),
        (1.0, {"0": 1, "1": 3}),
        (2.0, {}),
        (3.0, {"1": 1}),
        (4.0, {"1": 1}),
        (5.0, {"0": 9}),
    ]
    assert [line["preempted"] for line in run.lines] == [[], [], ["0"], [], [], []]
    assert [line["free_blocks"] for line in run.lines] == [1, 0, 2, 2, 1, 0]
    assert run.seconds("finish_ns") == [6.0, 5.0]
    assert run.results.record.requests["num_recomputed_tokens"].tolist() == [8, 0]


def test_an_empty_step_alone_takes_the_host_time_of_the_roofline() -> None:
    lines = a_request_that_yields_to_itself(roofline(250.0)).lines
    (empty,) = [index for index, line in enumerate(lines) if not line["scheduled"]]
    assert lines[empty + 1]["time_s"] - lines[empty]["time_s"] == pytest.approx(0.25, abs=1e-9)


def test_an_empty_step_with_a_batch_in_flight_waits_for_it() -> None:
    run = simulate(backlog([8], [1]), **ASYNC)
    assert run.plan == [(0.0, {"0": 8}), (0.0, {})]
    assert run.seconds("finish_ns") == [1.0]
    late = simulate(arrivals((0.0, 8, 1), (0.25, 8, 1)), **ASYNC)
    assert late.plan == [(0.0, {"0": 8}), (0.0, {}), (1.0, {"1": 8}), (1.0, {})]


# --- the accelerator and the host ----------------------------------------------------------------


@pytest.mark.parametrize(("host_ms", "depth"), [(1.0, "sync"), (1.0, "async"), (400.0, "sync"), (400.0, "async")])
def test_host_time_is_added_in_sync_and_hidden_in_async(host_ms: float, depth: str) -> None:
    run = simulate(backlog([100, 90], [20, 20]), latency=roofline(host_ms), async_scheduling=depth == "async")
    steps, host_ns = busy_steps(run), round(host_ms * 1e6)
    scheduled, start, end = (steps[name].tolist() for name in ("scheduled_ns", "start_ns", "end_ns"))
    assert set(steps["host_ns"].tolist()) == {host_ns}
    assert start[0] == host_ns
    assert [e - s for s, e in zip(start, end, strict=True)] == steps["gpu_ns"].tolist()
    if depth == "sync":
        assert all(s == at + host_ns for at, s in zip(scheduled, start, strict=True))
        assert scheduled[1:] == end[:-1]
    elif host_ms == 1.0:  # shorter than a step: the accelerator never waits
        assert start[1:] == end[:-1]
        assert scheduled[2:] == end[:-2]
    else:  # longer than a step: the host is what all wait for
        assert all(b - a == host_ns for a, b in itertools.pairwise(start))
    gpu_alone = sum(steps["gpu_ns"].tolist())
    total = round(run.results.summary["duration"] * 1e9)
    expected = {"sync": gpu_alone + 20 * host_ns, "async": host_ns + gpu_alone}
    if depth == "sync" or host_ms == 1.0:
        assert total == expected[depth]


def test_pipeline_parallelism_keeps_two_batches_in_flight() -> None:
    """Two stages: batch 1 enters the first stage when batch 0 leaves it; a request is in one batch at a time."""
    run = simulate(
        backlog([64, 64], [6, 6]),
        latency=roofline(0.0),
        pipeline_parallel_size=2,
        max_num_batched_tokens=64,
        max_num_seqs=2,
    )
    filled = [line for line in run.lines if line["scheduled"]]
    assert [line["scheduled"] for line in filled[:4]] == [{"0": 64}, {"1": 64}, {"0": 1}, {"1": 1}]
    steps = busy_steps(run)
    scheduled, start, end, gpu = (steps[name].tolist() for name in ("scheduled_ns", "start_ns", "end_ns", "gpu_ns"))
    assert [e - s for s, e in zip(start, end, strict=True)][:2] == [2 * gpu[0], 2 * gpu[1]]
    assert start[1] == start[0] + gpu[0]
    assert scheduled[:2] == [0, 0]
    assert all(at >= before for at, before in zip(scheduled[2:], end[:-2], strict=True))  # two, and never three
    assert all(b < e for b, e in zip(start[1:], end[:-1], strict=True))  # they overlap


def test_a_pipeline_computes_a_prompts_chunks_one_behind_the_other() -> None:
    run = simulate(
        backlog([128], [2]), latency=roofline(0.0), pipeline_parallel_size=2, max_num_batched_tokens=64, max_num_seqs=4
    )
    filled = [line for line in run.lines if line["scheduled"]]
    assert [(line["time_s"], line["scheduled"]) for line in filled[:2]] == [(0.0, {"0": 64}), (0.0, {"0": 64})]
    assert filled[2]["scheduled"] == {"0": 1}
    assert filled[2]["time_s"] == run.seconds("first_token_ns")[0]


# --- arrivals that follow ends -------------------------------------------------------------------


def test_closed_loop_releases_one_request_per_end_after_the_think_time() -> None:
    workload = backlog([8] * 6, [3, 1, 2, 2, 4, 1])
    workload["arrival"] = {"process": "closed_loop", "concurrency": 2, "think_time_s": 0.5}
    run = simulate(workload, **SYNC)
    arrival, finish = run.seconds("arrival_ns"), run.seconds("finish_ns")
    assert arrival[:2] == [0.0, 0.0]
    assert sorted(arrival[2:]) == sorted(end + 0.5 for end in sorted(finish)[:4])
    events = sorted([(at, 1) for at in arrival] + [(at, -1) for at in finish])
    assert max(itertools.accumulate(change for _, change in events)) == 2


def test_a_turn_follows_the_end_of_the_turn_before_it_and_carries_the_conversation() -> None:
    workload = backlog([10] * 3, [4, 2, 3])
    workload["sessions"] = {"turns": 3, "think_time_s": 2.5}
    run = simulate(workload, **SYNC)
    arrival, finish = run.seconds("arrival_ns"), run.seconds("finish_ns")
    assert arrival == [0.0, finish[0] + 2.5, finish[1] + 2.5]
    outputs = run.results.record.requests["output_tokens"].tolist()
    assert run.results.record.requests["input_tokens"].tolist() == [
        10,
        10 + outputs[0] + 10,
        10 + outputs[0] + 10 + outputs[1] + 10,
    ]


# --- several replicas ----------------------------------------------------------------------------


def test_a_router_sees_the_steps_that_end_at_the_instant_of_an_arrival() -> None:
    rows = arrivals((0.0, 8, 2), (0.0, 8, 5), (2.0, 8, 1))
    run = simulate(rows, cluster={"replicas": 2, "router": "least_outstanding"}, **SYNC)
    assert run.results.record.requests["replica"].tolist() == [0, 1, 0]
    assert run.seconds("scheduled_ns")[2] == 2.0


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_simultaneous_steps_come_in_the_order_of_replicas_every_time(mode: dict[str, Any]) -> None:
    workload = {**backlog([8] * 30, [3, 1, 4, 1, 5, 9, 2, 6]), "arrival": {"process": "constant", "rate": 2.0}}
    cluster = {"replicas": 4, "router": {"name": "power_of_two"}}
    first, second = (simulate(workload, cluster=dict(cluster), **mode) for _ in range(2))
    assert first.lines == second.lines
    order = [(line["time_s"], line["replica"], line["step"]) for line in first.lines]
    assert order == sorted(order)
    for replica in range(4):
        assert [line["step"] for line in first.lines if line["replica"] == replica] == list(
            range(sum(line["replica"] == replica for line in first.lines))
        )


# --- the decisions stream ------------------------------------------------------------------------


def test_a_line_of_decisions() -> None:
    run = simulate(backlog([40, 8, 8], [2, 3, 3]), max_num_batched_tokens=50, max_num_seqs=3, **SYNC)
    assert run.lines[0] == {
        "step": 0,
        "time_s": 0.0,
        "replica": 0,
        "scheduled": {"0": 40, "1": 8, "2": 2},
        "preempted": [],
        "finished": [],
        "free_blocks": 1000 - 3 - 1 - 1,
    }
    assert list(run.lines[0]) == ["step", "time_s", "replica", "scheduled", "preempted", "finished", "free_blocks"]
    # The running pass in the order of admission, decodes and the rest of a prompt alike.
    assert list(run.lines[1]["scheduled"].items()) == [("0", 1), ("1", 1), ("2", 6)]
    assert run.lines[2]["finished"] == ["0"]


def test_preempted_are_in_the_order_of_preemption() -> None:
    """The last admitted goes first; those that go wait at the front, the last to go first."""
    run = simulate(
        backlog([8, 4, 4], [9, 3, 3]),
        block_size=4,
        num_gpu_blocks_override=5,
        max_model_len=20,
        max_num_seqs=3,
        **SYNC,
    )
    assert run.lines[0]["scheduled"] == {"0": 8, "1": 4, "2": 4}
    # Request 0 grows into the block of request 2; request 1 cannot grow and is then itself the last.
    assert run.lines[1] == {**run.lines[1], "scheduled": {"0": 1}, "preempted": ["2", "1"], "free_blocks": 1}
    assert [line["preempted"] for line in run.lines[2:] if line["preempted"]] == []
    resumed = [name for line in run.lines[2:] for name, tokens in line["scheduled"].items() if tokens > 1]
    assert resumed == ["1", "2"]
