"""The lanes of a replica in the trace: what the host does beside the accelerator, and copies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from sim.results import timeline
from sim.results.exposed import exposed_host_ns
from sim.results.record import RunRecord
from sim.results.results import Results
from sim.results.timeline import COPIES, HOST, trace_events
from sim.run import load, run

HOST_MS = 3.0


def simulated(**engine: Any) -> Results:
    scenario = {
        "name": "lanes",
        "workload": {
            "requests": 40,
            "arrival": {"process": "poisson", "rate": 12},
            "input_tokens": {"dist": "uniform", "low": 100, "high": 900},
            "output_tokens": {"dist": "uniform", "low": 20, "high": 120},
        },
        "engine": {"model": "llama-3.1-8b", "gpu": "a100-80gb-sxm", **engine},
        "latency": {"kind": "roofline", "host_overhead_ms": HOST_MS},
    }
    if "preemption" in engine:
        scenario["latency"] = {}
    return run(load(scenario))


def all_rows(record: RunRecord) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.argsort(record.steps["scheduled_ns"], kind="stable")


def exposed_ms(results: Results) -> float:
    return int(exposed_host_ns(results.record, all_rows(results.record)).sum()) / 1e6


def test_a_synchronous_engine_exposes_all_host_time() -> None:
    results = simulated(async_scheduling=False)
    host_ms = results.record.steps["host_ns"].sum() / 1e6
    assert (
        exposed_ms(results)
        == pytest.approx(host_ms)
        == pytest.approx(HOST_MS * results.summary["utilization"]["steps"])
    )


@pytest.mark.parametrize("is_async", [False, True])
def test_both_steppers_expose_the_same(is_async: bool) -> None:
    fast, reference = (simulated(async_scheduling=is_async, stepping=name) for name in ("fast", "reference"))
    assert len(fast.record.steps["replica"]) < len(reference.record.steps["replica"])
    assert exposed_ms(fast) == pytest.approx(exposed_ms(reference), abs=1e-6)


def test_an_asynchronous_engine_exposes_host_time_only_where_it_stood_idle() -> None:
    results = simulated(stepping="reference")
    record = results.record
    events = [event for event in trace_events(record)[0] if event.get("cat") == "host"]
    assert len(events) == int((record.steps["host_ns"] > 0).sum())
    kinds = {event["name"].rpartition(", ")[2] for event in events}
    assert {"hidden", "exposed"} <= kinds
    by_hand = 0
    accelerator_free_ns = 0
    for start, scheduled, end, host in zip(
        *(record.steps[name].tolist() for name in ("start_ns", "scheduled_ns", "end_ns", "host_ns")), strict=True
    ):
        if host and accelerator_free_ns < start:
            by_hand += min(host, start - max(scheduled, accelerator_free_ns))
        accelerator_free_ns = end
    assert sum(event["args"]["exposed_ms"] for event in events) == pytest.approx(by_hand / 1e6)
    assert 0 < by_hand / 1e6 < 0.2 * HOST_MS * len(events)


@pytest.mark.parametrize("engine", [{}, {"async_scheduling": False}, {"stepping": "reference"}], ids=str)
def test_slices_of_the_host_do_not_overlap(engine: dict[str, Any]) -> None:
    events, _ = trace_events(simulated(**engine).record)
    slices = [(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") == "host"]
    assert {event["tid"] for event in events if event.get("cat") == "host"} == {HOST}
    assert len(slices) > 10
    assert all(before[1] <= after[0] + 1e-6 for before, after in itertools.pairwise(sorted(slices)))
    names = [event["args"]["name"] for event in events if event.get("name") == "thread_name" and event["pid"] == 1]
    assert names == ["accelerator", "host"]


def test_swapped_kv_is_copied_before_its_step() -> None:
    results = simulated(preemption="swap", num_gpu_blocks_override=200, max_num_seqs=16)
    record = results.record
    copies = [event for event in trace_events(record)[0] if event.get("cat") == "copy"]
    swapped = record.steps["swap_bytes"] > 0
    assert len(copies) == int(swapped.sum()) > 0
    assert {event["tid"] for event in copies} == {COPIES}
    assert sum(event["args"]["bytes"] for event in copies) == int(record.steps["swap_bytes"].sum())
    for event, start, gpu in zip(
        copies, record.steps["start_ns"][swapped], record.steps["gpu_ns"][swapped], strict=True
    ):
        assert event["ts"] == start / 1e3
        assert 0 < event["dur"] * 1e3 < gpu, "part of the step's time"
    seconds = results.summary["utilization"]["step_time_s"]["swap"]
    assert sum(event["dur"] for event in copies) / 1e6 == pytest.approx(seconds)


def test_lanes_of_requests_are_named_once_each() -> None:
    events, left_out = trace_events(simulated().record)
    assert left_out is None
    assert not [event for event in events if event.get("cat") == "cut" or event["name"] == "process_labels"]
    used = {(event["pid"], event["tid"]) for event in events if event.get("cat") == "request"}
    named = [(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name" and event["pid"] > 1]
    assert len(used) > 1
    assert sorted(named) == sorted(used)


def test_a_trace_that_is_cut_says_so_where_it_is_looked_at() -> None:
    record = simulated().record
    events, left_out = trace_events(record, max_steps=10)
    assert left_out is not None
    assert left_out.startswith(f"steps: the first 10 of {len(record.steps['replica']):,} rows, until ")
    (mark,) = [event for event in events if event.get("cat") == "cut"]
    (label,) = [event for event in events if event["name"] == "process_labels"]
    assert mark["name"] == f"trace cut here: {left_out}"
    assert label["args"]["labels"] == f"cut: {left_out}"
    assert mark["ts"] == np.sort(record.steps["scheduled_ns"])[9] / 1000


def test_the_command_says_that_the_trace_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    record = simulated().record
    assert timeline.left_out(record) is None
    monkeypatch.setattr(timeline, "MAX_STEPS", 10)
    said = timeline.left_out(record)
    assert said is not None
    assert said.startswith(f"trace.json.gz is cut: the first 10 of {len(record.steps['replica']):,} rows of steps")
