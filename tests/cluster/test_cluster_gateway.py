"""The way in and out: what releases what when requests are refused or time is up, ids, and the check for losses."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.cluster.gateway import Gateway
from sim.errors import InputError, SimulationError
from sim.results.results import Results

ENGINE: dict[str, Any] = {
    "model": "llama-2-7b",
    "gpu": "a100-80gb-sxm",
    "num_gpu_blocks_override": 1001,
    "max_model_len": 1000,
    "async_scheduling": False,
}


def run(workload: dict[str, Any], **sections: Any) -> Results:
    scenario = {
        "name": "gateway",
        "workload": workload,
        "engine": ENGINE,
        "latency": {"kind": "constant", "step_s": 1.0},
        **sections,
    }
    return sim.simulate(scenario)


def requests(inputs: list[int], outputs: list[int], **more: Any) -> dict[str, Any]:
    return {
        "input_tokens": {"dist": "values", "values": inputs},
        "output_tokens": {"dist": "values", "values": outputs},
        **more,
    }


def seconds(results: Results, column: str) -> list[float]:
    return [ns / 1e9 for ns in results.record.requests[column].tolist()]


def closed_loop(concurrency: int, think_time_s: float = 0.5) -> dict[str, Any]:
    return {"process": "closed_loop", "concurrency": concurrency, "think_time_s": think_time_s}


def test_a_refused_request_releases_the_next_of_its_client() -> None:
    results = run(requests([8, 5000, 8, 8], [2, 2, 2, 2], requests=4, arrival=closed_loop(1)))
    counts = results.summary["counts"]
    assert (counts["submitted"], counts["completed"], counts["rejected"]) == (4, 3, 1)
    # 2.0 + 0.5: refused at once; its client thinks for half a second and sends the next.
    assert seconds(results, "arrival_ns") == [0.0, 2.5, 3.0, 5.5]
    reason = results.requests.loc[1, "reason"]
    assert "5000 tokens" in str(reason)


def test_many_refusals_in_a_row_are_no_recursion() -> None:
    results = run(requests([8, *[5000] * 4999], [1], requests=5000, arrival=closed_loop(1, think_time_s=0.0)))
    assert results.summary["counts"]["rejected"] == 4999


def test_a_closed_loop_releases_nothing_at_or_after_its_end() -> None:
    results = run(requests([8], [2], duration_s=7.5, arrival=closed_loop(2)))
    # The next ones would come at 7.5: they were never part of the run.
    assert seconds(results, "arrival_ns") == [0.0, 0.0, 2.5, 2.5, 5.0, 5.0]
    assert results.summary["counts"]["submitted"] == 6


@pytest.mark.parametrize("stepping", ["fast", "reference"])
def test_a_clock_that_would_run_out_ends_the_run(stepping: str) -> None:
    workload = requests([8], [2], requests=8, arrival=closed_loop(1, think_time_s=1e9))
    with pytest.raises(
        SimulationError, match=r"request 5 would arrive after 5e\+09 s, and the clock ends at 4\.6e\+09 s"
    ):
        run(workload, engine={**ENGINE, "stepping": stepping})


def test_more_clients_than_requests_send_them_all_at_once() -> None:
    results = run(requests([8], [2], requests=3, arrival=closed_loop(10)))
    assert seconds(results, "arrival_ns") == [0.0] * 3


def test_a_closed_loop_is_over_the_whole_cluster() -> None:
    results = run(
        requests([8], [3, 1, 2, 4, 1, 2, 3], requests=60, arrival=closed_loop(5)),
        cluster={"replicas": 3, "router": "least_outstanding"},
    )
    events = sorted(
        [(at, 1) for at in seconds(results, "arrival_ns")] + [(at, -1) for at in seconds(results, "finish_ns")]
    )
    assert max(itertools.accumulate(change for _, change in events)) == 5
    assert set(results.record.requests["replica"].tolist()) == {0, 1, 2}


def test_a_conversation_stays_on_its_replica_where_the_router_says_so() -> None:
    workload = requests([20], [5], requests=40, arrival={"process": "poisson", "rate": 0.5}, sessions={"turns": 4})
    table = run(workload, cluster={"replicas": 3, "router": "sticky_session"})
    homes: dict[int, set[int]] = {}
    for session, replica in zip(
        table.record.workload.session.tolist(), table.record.requests["replica"].tolist(), strict=True
    ):
        homes.setdefault(session, set()).add(replica)
    assert len(homes) == 10
    assert all(len(replicas) == 1 for replicas in homes.values())
    assert len(set.union(*homes.values())) == 3
    # A turn finds all full blocks of the conversation before it: 25, 50 and 75 tokens of it in blocks of 16.
    cached = table.record.requests["num_cached_tokens"].tolist()
    turns = [row for row, parent in enumerate(table.record.workload.parent.tolist()) if parent >= 0]
    assert {cached[row] for row in turns} == {16, 48, 64}


def test_ids_of_a_trace_are_the_ids_of_the_results(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,request_id\n3,8,1,zoë\n0,8,1,a b\n0,2000,1,long\n")
    results = run({"trace": {"path": str(trace), "format": "generic"}})
    assert results.requests["request_id"].tolist() == ["a b", "long", "zoë"]
    assert results.requests["status"].tolist() == ["completed", "rejected", "completed"]
    assert "request long" in " ".join(results.summary["run"]["notes"])


def test_a_leaked_block_fails_the_run_and_names_the_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.engine.reference.kv_cache import PrefixKVCache

    real = PrefixKVCache.free

    def forgetful(self: PrefixKVCache, request: Any) -> None:
        if request.request_id != "1":
            real(self, request)

    monkeypatch.setattr(PrefixKVCache, "free", forgetful)
    with pytest.raises(SimulationError, match=r"leaked.*'1': 1"):
        run(
            requests([8], [2], requests=3, arrival={"process": "burst"}),
            engine={**ENGINE, "stepping": "reference"},
        )


def test_a_leak_of_a_request_that_was_cancelled_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.engine.reference.kv_cache import PrefixKVCache

    real = PrefixKVCache.free

    def forgetful(self: PrefixKVCache, request: Any) -> None:
        if request.num_output_tokens == 40:
            real(self, request)

    workload = requests([8], [40], requests=3, arrival={"process": "burst"})
    engine = {**ENGINE, "stepping": "reference", "max_num_seqs": 2}
    patient = run({**workload, "patience_s": 50.0}, engine=engine)
    assert patient.requests["status"].tolist() == ["completed", "completed", "cancelled"]
    monkeypatch.setattr(PrefixKVCache, "free", forgetful)
    with pytest.raises(SimulationError, match=r"leaked.*'2': 2"):
        run({**workload, "patience_s": 50.0}, engine=engine)


def test_a_request_that_never_arrives_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gateway, "_release", lambda self, row, after: None)
    with pytest.raises(SimulationError, match="2 of 4 requests never arrived"):
        run(requests([8], [2], requests=4, arrival=closed_loop(2)))


# --- max_concurrency -----------------------------------------------------------------------------


def capped(cap: int, rate: float = 1.0) -> dict[str, Any]:
    return {"process": "constant", "rate": rate, "max_concurrency": cap}


@pytest.mark.parametrize("stepping", ["fast", "reference"])
def test_a_request_waits_at_its_client_for_a_seat(stepping: str) -> None:
    """Due at 0, 1, 2, 3, 4, 5 s; each takes 3 s, the second 1 s; two at once."""
    workload = requests([8], [3, 1, 3, 3, 3, 3], requests=6, arrival=capped(2))
    results = run(workload, engine={**ENGINE, "stepping": stepping})
    assert seconds(results, "arrival_ns") == [0.0, 1.0, 2.0, 3.0, 5.0, 6.0]
    assert seconds(results, "finish_ns") == [3.0, 2.0, 5.0, 6.0, 8.0, 9.0]
    assert results.requests["ttft_ms"].tolist() == [1000.0] * 6
    assert results.record.notes[-1].startswith("max_concurrency held 2 requests back at their client, 1 s in the mean")


def test_requests_are_sent_in_the_order_in_which_they_were_due() -> None:
    workload = requests([8], [5, 4, 3, 2, 1] * 8, requests=40, arrival=capped(3, rate=1e9))
    arrival = seconds(run(workload), "arrival_ns")
    assert arrival == sorted(arrival)
    assert arrival[3] > arrival[2]


def test_as_many_are_under_way_as_the_cap_and_no_more() -> None:
    results = run(
        requests([8], [3, 1, 2, 4, 1, 2, 3], requests=60, arrival=capped(5, rate=1e9)),
        cluster={"replicas": 3, "router": "least_outstanding"},
    )
    events = sorted(
        [(at, 1) for at in seconds(results, "arrival_ns")] + [(at, -1) for at in seconds(results, "finish_ns")]
    )
    assert max(itertools.accumulate(change for _, change in events)) == 5


def test_a_client_hears_of_an_end_before_it_sends_the_next() -> None:
    latency = {"kind": "constant", "step_s": 1.0, "client_overhead_ms": 500.0}
    results = run(requests([8], [2], requests=3, arrival=capped(1)), latency=latency)
    assert seconds(results, "arrival_ns") == [0.0, 2.5, 5.0]


def test_a_refused_request_gives_its_seat_back() -> None:
    results = run(requests([8, 5000, 8], [3, 1, 1], requests=3, arrival=capped(1)))
    assert seconds(results, "arrival_ns") == [0.0, 3.0, 3.0]
    assert results.summary["counts"]["rejected"] == 1


def test_each_sender_has_seats_of_its_own() -> None:
    each = requests([8], [3], requests=3)
    first = {**each, "name": "a", "arrival": capped(1)}
    second = {**each, "name": "b", "arrival": {"process": "constant", "rate": 1.0}}
    results = run({"classes": [first, second]})
    table = results.record.workload
    of_class = {
        name: [at for at, index in zip(seconds(results, "arrival_ns"), table.class_index, strict=True) if index == k]
        for k, name in enumerate("ab")
    }
    assert of_class == {"a": [0.0, 3.0, 6.0], "b": [0.0, 1.0, 2.0]}


def test_later_turns_of_a_conversation_need_a_seat_too() -> None:
    workload = requests([8], [2], requests=4, sessions={"turns": 2}, arrival=capped(1))
    # The conversations open at 0 and 1; the second one's first turn is due before the first one's second turn.
    assert seconds(run(workload), "arrival_ns") == [0.0, 4.0, 2.0, 6.0]


def test_a_cap_that_is_not_reached_changes_nothing() -> None:
    free, bound = (
        run(requests([8], [2], requests=9, arrival={"process": "poisson", "rate": 0.5, **cap}))
        for cap in ({}, {"max_concurrency": 9})
    )
    assert seconds(free, "arrival_ns") == seconds(bound, "arrival_ns")
    assert free.summary["load"] == bound.summary["load"]
    notes = [note for note in bound.record.notes if note not in free.record.notes]
    assert notes == ["max_concurrency: 9 bounds nothing: its sender has 9 requests in all"]


def test_there_is_no_offered_rate_where_ends_decide_when_requests_are_sent() -> None:
    workload = requests([8], [3], requests=20, arrival=capped(1))
    assert run(workload).summary["load"]["offered_rate"] is None


def test_outputs_of_a_prompt_are_no_seats() -> None:
    with pytest.raises(InputError, match="drop `n` or max_concurrency"):
        run(requests([8], [3], requests=4, n=2, arrival=capped(1)))
