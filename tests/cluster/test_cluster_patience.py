"""Clients that leave: ``patience_s`` of a workload class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cluster_runs import ENGINE, SECOND, lengths, run_with, scenario, seconds, statuses

import sim
from sim.errors import InputError

ONE_SEAT: dict[str, Any] = {**ENGINE, "max_num_seqs": 1}


def test_a_client_leaves_when_its_patience_is_over() -> None:
    """One seat, three seconds each, all at once: the third is cut after one token, the fourth still waits."""
    workload = lengths([8], [3], requests=4, arrival={"process": "burst"}, patience_s=7.5)
    results = sim.simulate(scenario(workload, engine=ONE_SEAT))
    record, summary = results.record, results.summary
    assert statuses(record) == ["completed", "completed", "cancelled", "cancelled"]
    assert seconds(record, "end_ns") == [3.0, 6.0, 7.5, 7.5]
    assert record.requests["output_tokens"].tolist() == [3, 3, 1, 0]
    assert summary["counts"]["cancelled"] == 2
    assert (summary["completed"], summary["failed"]) == (2, 2)
    assert summary["duration"] == 7.5
    assert summary["mean_e2el_ms"] == 4500.0, "percentiles are over completed requests"
    assert "2 cancelled; the first, request 2: its client left after 7.5 s" in summary["run"]["notes"]
    assert results.requests["status"].tolist()[2:] == ["cancelled", "cancelled"]
    queue = summary["queue"]
    assert queue["mean_in_system"] == pytest.approx((3 + 6 + 7.5 + 7.5) / 7.5)
    assert queue["mean_waiting"] == pytest.approx((0 + 3 + 6 + 7.5) / 7.5)


def test_at_the_very_instant_it_is_in_time() -> None:
    workload = lengths([8], [3], requests=1, arrival={"process": "burst"}, patience_s=3.0)
    assert statuses(run_with([], scenario(workload))[0]) == ["completed"]


def test_its_blocks_are_free_for_the_next_step() -> None:
    """Three usable blocks, two of them taken: the second request can only be admitted when the first has left."""
    engine = {**ENGINE, "num_gpu_blocks_override": 4, "max_model_len": 40}
    classes = [
        {"name": "hasty", **lengths([30], [9], requests=1, arrival={"process": "burst"}, patience_s=1.5)},
        {"name": "calm", **lengths([20], [2], requests=1, arrival={"process": "burst"})},
    ]
    record, lines = run_with([], scenario({"classes": classes}, engine=engine))
    assert statuses(record) == ["cancelled", "completed"]
    assert [(line["time_s"], line["scheduled"]) for line in lines] == [
        (0.0, {"0": 30}),
        (1.0, {"0": 1}),
        (2.0, {"1": 20}),
        (3.0, {"1": 1}),
    ]
    assert [line["finished"] for line in lines] == [[], [], ["0"], []]


def test_patience_is_up_to_the_last_token_at_the_client() -> None:
    """A fifth of a second lies between engine and client: no completed request takes longer than the patience."""
    latency = {"kind": "constant", "step_s": 1.0, "client_overhead_ms": 200}
    burst = {"process": "burst"}
    for patience_s, status in ((3.2, "completed"), (3.1, "cancelled")):
        workload = lengths([8], [3], requests=1, arrival=burst, patience_s=patience_s)
        record, _ = run_with([], scenario(workload, latency=latency))
        assert statuses(record) == [status]
        assert seconds(record, "end_ns") == [patience_s]


def test_a_client_that_has_left_sends_no_further_turns() -> None:
    workload = lengths(
        [8],
        [2, 9],
        requests=6,
        arrival={"process": "constant", "rate": 0.1},
        sessions={"turns": 3, "think_time_s": 1.0},
        patience_s=5.0,
    )
    results = sim.simulate(scenario(workload))
    parent = results.record.workload.parent.tolist()
    sent = results.record.requests["row"].tolist()
    ended = dict(zip(sent, statuses(results.record), strict=True))
    assert "cancelled" in ended.values()
    for row, before in enumerate(parent):
        if before >= 0:
            assert (row in ended) == (ended.get(before) == "completed")
    counts = results.summary["counts"]
    assert counts["submitted"] == counts["completed"] + counts["cancelled"] == len(sent)
    unsent = 6 - len(sent)
    assert any(
        note.startswith(f"{unsent} turns of conversations were not sent") for note in results.summary["run"]["notes"]
    )


def test_a_client_of_a_closed_loop_goes_on() -> None:
    loop = {"process": "closed_loop", "concurrency": 1, "think_time_s": 0.5}
    record, _ = run_with([], scenario(lengths([8], [9, 2], requests=4, arrival=loop, patience_s=4.0)))
    assert len(statuses(record)) == 4
    arrival, end = seconds(record, "arrival_ns"), seconds(record, "end_ns")
    assert arrival[1:] == [at_s + 0.5 for at_s in end[:-1]]
    assert all(after - before <= 4.0 for before, after in zip(arrival, end, strict=True))


def test_a_class_has_its_own_and_a_trace_of_tenants_has_its_classes(tmp_path: Any) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,tenant\n0,8,9,a\n0,8,9,b\n")
    workload = {"trace": {"path": str(trace), "format": "generic"}, "patience_s": 2.5}
    assert statuses(run_with([], scenario(workload))[0]) == ["cancelled", "cancelled"]


def test_endless_patience_changes_nothing_and_none_at_all_is_refused() -> None:
    workload = lengths([8, 20], [3, 7], requests=50, arrival={"process": "poisson", "rate": 1.0})
    plain, endless = (
        run_with([], scenario(workload | more, engine={**ENGINE, "stepping": "reference"}))[0]
        for more in ({}, {"patience_s": 1e9})
    )
    for name, column in plain.requests.items():
        assert np.array_equal(column, endless.requests[name])
    assert plain.steps["end_ns"].tolist() == endless.steps["end_ns"].tolist()
    with pytest.raises(InputError, match="patience_s"):
        run_with([], scenario(workload | {"patience_s": 0}))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_under_overload_first_come_first_served_works_for_clients_that_leave(asynchronous: bool) -> None:
    """One seat, two seconds of work each, one request a second: the queue grows until its head has just less time left
    than it needs. From then on the seat is as busy as ever, and no client gets its last token."""
    engine = {**ONE_SEAT, "async_scheduling": asynchronous}
    workload = lengths([8], [2], requests=200, arrival={"process": "constant", "rate": 1.0}, patience_s=6.0)
    record, _ = run_with([], scenario(workload, engine=engine))
    stay_ns = record.requests["end_ns"] - record.requests["arrival_ns"]
    assert stay_ns.max() == 6 * SECOND
    ends = statuses(record)
    assert set(ends[:5]) == {"completed"}
    assert set(ends[10:]) == {"cancelled"}
    assert record.steps["gpu_ns"].sum() > 195 * SECOND
