"""The result contract: keys, values by hand, verdicts, determinism."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from results_records import MS, make_record, random_record

import sim
from sim.results.context import Price, RunContext
from sim.results.record import NOT_YET, RunRecord, Status
from sim.results.results import Results
from sim.results.summary import TIMING_KEYS, build_summary

TOP_KEYS = [
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *(
        f"{statistic}_{metric}_ms"
        for metric in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "median", "std", "p50", "p90", "p95", "p99")
    ),
]
SECTIONS = [
    "counts",
    "load",
    "queue",
    "kv",
    "preemptions",
    "utilization",
    "error",
    "cost",
    "speculative",
    "slo",
    "tenants",
    "classes",
    "replicas",
    "run",
]


class FixedWork:
    """Every row of steps: 1 GFLOP and 2 MB per token."""

    peak_flops = 1e12
    peak_bandwidth = 1e9

    def _tokens(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        return columns["num_prefill_tokens"] + columns["num_decodes"] * columns["num_steps"]

    def total_flops(self, columns: dict[str, np.ndarray]) -> float:
        return 1e9 * float(self._tokens(columns).sum())

    def total_bytes(self, columns: dict[str, np.ndarray]) -> float:
        return 2e6 * float(self._tokens(columns).sum())

    def is_compute_bound(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        return columns["num_prefill_tokens"] > 1_000_000


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def empty_record() -> RunRecord:
    """One request, rejected on arrival; no step."""
    record = make_record()
    record.requests = {name: column[2:3] for name, column in record.requests.items()}
    record.steps = {name: column[:0] for name, column in record.steps.items()}
    record.itl_ns = record.itl_weight = np.empty(0, dtype=np.int64)
    return record


def test_contract_keys_in_order() -> None:
    summary = build_summary(make_record(), RunContext())
    assert list(summary) == TOP_KEYS + SECTIONS
    for key in ("seed", "version", "profile_hash", "steps", "simulated_s", "cpu_s"):
        assert key in summary["run"]


def test_headline_by_hand() -> None:
    summary = build_summary(make_record(), RunContext())
    assert summary["duration"] == 0.14
    assert (summary["completed"], summary["failed"]) == (3, 1)
    assert (summary["total_input_tokens"], summary["total_output_tokens"]) == (214, 9)
    assert summary["request_throughput"] == pytest.approx(3 / 0.14)
    assert summary["output_throughput"] == pytest.approx(9 / 0.14)
    assert summary["total_token_throughput"] == pytest.approx(223 / 0.14)
    assert summary["median_ttft_ms"] == 20.0
    assert summary["p99_itl_ms"] == 10.0
    assert summary["request_goodput"] is None
    assert summary["slo"] is None


def test_counts_add_up() -> None:
    record = random_record(1)
    record.requests["status"] = np.arange(40) % len(Status)
    counts = build_summary(record, RunContext())["counts"]
    assert counts.pop("attempts") == 40
    assert counts.pop("submitted") == 40 == sum(counts.values())
    assert set(counts) == {"completed", "rejected", "timed_out", "failed", "cancelled"}


def test_statistics_without_samples_are_null_and_nothing_is_nan() -> None:
    summary = build_summary(empty_record(), RunContext(slo={"ttft_p95_ms": 1.0}))
    assert all(summary[key] is None for key in TOP_KEYS if key.endswith("_ms"))
    assert summary["request_throughput"] is None
    assert summary["slo"]["met"] is False, "nothing completed, so no limit is met"
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("seed", range(5))
def test_only_json_types_and_no_nan(seed: int) -> None:
    summary = build_summary(random_record(seed), RunContext(slo={"tpot_p99_ms": 20.0}, work=FixedWork()))
    assert {type(leaf) for leaf in leaves(summary)} <= {int, float, str, bool, type(None)}
    json.dumps(summary, allow_nan=False)


def test_littles_law_in_the_queue_section() -> None:
    queue = build_summary(random_record(7), RunContext())["queue"]
    assert queue["mean_in_system"] == pytest.approx(queue["lambda_w_in_system"], rel=1e-9)
    assert queue["mean_waiting"] == pytest.approx(queue["lambda_w_waiting"], rel=1e-9)


def test_queue_waiting_counts_those_never_scheduled_until_their_end() -> None:
    record = make_record()
    record.requests["status"][2] = Status.TIMED_OUT
    record.requests["finish_ns"][2] = 70 * MS
    queue = build_summary(record, RunContext())["queue"]
    assert queue["mean_waiting"] == pytest.approx((10 + 40) / 140)


def test_utilization_by_hand() -> None:
    use = build_summary(make_record(), RunContext(work=FixedWork()))["utilization"]
    assert use["busy_fraction"] == pytest.approx(101 / 280)
    assert (use["steps"], use["empty_steps"]) == (8, 1)
    assert use["mean_batch_size"] == pytest.approx((1 + 2 + 3 * 1 + 3 * 1) / 8)
    assert use["seat_efficiency"] == pytest.approx(9 / (1 + 2 + 3 + 0 + 3))
    tokens = 100 + 34 + 1 + 3 + 32
    assert use["mfu"] == pytest.approx(tokens * 1e9 / (1e12 * 0.28))
    assert use["mfu_when_busy"] == pytest.approx(tokens * 1e9 / (1e12 * 0.101))
    assert use["memory_bandwidth"] == pytest.approx(tokens * 2e6 / (1e9 * 0.28))
    assert use["compute_bound_fraction"] == 0.0


def test_kv_is_averaged_over_time_with_idle_as_empty() -> None:
    kv = build_summary(make_record(), RunContext())["kv"]
    # replica 0: 7 blocks for 20 ms, 10 for 25 ms, 8 for 15 ms, idle for 40 ms, 5 for 40 ms; replica 1: none
    assert kv["mean_usage"] == pytest.approx((7 * 20 + 10 * 25 + 8 * 15 + 5 * 40) / 140 / 200)
    assert kv["max_usage"] == 0.1
    assert kv["prefix_cache_hit_rate"] == pytest.approx(48 / 214)


def test_preemptions_and_recompute_tax() -> None:
    section = build_summary(make_record(), RunContext())["preemptions"]
    assert section["total"] == 1
    assert section["recomputed_tokens"] == 7
    assert section["computed_tokens"] == 100 + 35 + 3 + 3 * 32
    assert section["recompute_tax"] == pytest.approx(7 / 234)


def test_cost_says_whose_price() -> None:
    assert "usd" not in build_summary(make_record(), RunContext())["cost"]
    cost = build_summary(make_record(), RunContext(price=Price(3.6, "a list")))["cost"]
    assert cost["gpu_hours"] == pytest.approx(4 * 0.14 / 3600)
    assert cost["usd_per_million_tokens"] == pytest.approx(4 * 0.14 * 0.001 / 223 * 1e6)
    assert cost["price_source"] == "a list"


def test_slo_verdicts() -> None:
    results = Results(make_record(), RunContext(slo={"ttft_p95_ms": 33.5, "tpot_p99_ms": 9.0}))
    slo = results.summary["slo"]
    assert slo["limits"]["ttft_p95_ms"] == {"value": 33.5, "limit": 33.5, "met": True}
    assert slo["limits"]["tpot_p99_ms"]["met"] is False
    assert slo["met"] is False
    assert not results.slo_met
    assert Results(make_record()).slo_met
    notes = results.summary["run"]["notes"]
    assert any("1 that did not complete" in note for note in notes)
    assert "1 rejected; the first, request c: prompt of 9000 tokens exceeds max_model_len 4096" in notes


def test_class_slo_counts_and_replaces_the_scenarios_in_goodput() -> None:
    record = make_record([{"ttft_p99_ms": 20.0, "itl_mean_ms": 9.0}, {"ttft_p99_ms": 40.0}])
    summary = build_summary(record, RunContext(slo={"ttft_p99_ms": 1000.0}))
    classes = summary["slo"]["classes"]
    assert classes["chat"]["limits"]["ttft_p99_ms"]["met"] is True
    assert classes["chat"]["limits"]["itl_mean_ms"] == {"value": 10.0, "limit": 9.0, "met": False}
    assert classes["batch"]["met"] is True
    assert summary["slo"]["met"] is False
    assert summary["request_goodput"] == pytest.approx(1 / 0.14)
    assert summary["tenants"]["acme"]["slo"] == {"chat": classes["chat"]}
    assert summary["tenants"]["acme"]["goodput_share"] == 0.0


def test_gaps_between_tokens_are_judged_by_class() -> None:
    summary = build_summary(make_record([{"itl_p99_ms": 9.0}, {"itl_p99_ms": 9.0}]), RunContext())
    classes = summary["slo"]["classes"]
    assert classes["chat"]["limits"]["itl_p99_ms"] == {"value": 10.0, "limit": 9.0, "met": False}
    assert classes["batch"]["limits"]["itl_p99_ms"] == {"value": None, "limit": 9.0, "met": True}  # one token, no gap
    assert (summary["classes"]["chat"]["p99_itl_ms"], summary["classes"]["batch"]["p99_itl_ms"]) == (10.0, None)
    assert summary["tenants"]["acme"]["p50_itl_ms"] == 10.0


def test_requests_that_did_not_complete_miss_their_slo() -> None:
    """Row 2, of chat, was rejected: three of four are good, two of three of its class."""
    summary = build_summary(make_record(), RunContext(slo={"ttft_p99_ms": 1000.0, "max_rejected": 1.0}))
    assert summary["slo"]["attainment"] == 0.75
    assert summary["classes"]["chat"]["goodput_share"] == pytest.approx(2 / 3)
    assert summary["classes"]["batch"]["goodput_share"] == 1.0
    assert summary["request_goodput"] == pytest.approx(3 / 0.14)


def test_where_nothing_completed_nothing_is_good() -> None:
    record = make_record()
    record.requests["status"][:] = Status.REJECTED
    record.requests["finish_ns"][:] = NOT_YET
    summary = build_summary(record, RunContext(slo={"ttft_p99_ms": 1000.0}))
    assert summary["slo"]["attainment"] == 0.0
    assert {entry["goodput_share"] for entry in summary["classes"].values()} == {0.0}


def test_tenants_and_replicas_add_up_to_the_run() -> None:
    summary = build_summary(random_record(3), RunContext(slo={"ttft_p95_ms": 200.0}))
    for section in (summary["tenants"].values(), summary["classes"].values(), summary["replicas"]):
        assert sum(each["total_output_tokens"] for each in section) == summary["total_output_tokens"]
    assert sum(each["request_goodput"] for each in summary["tenants"].values()) == pytest.approx(
        summary["request_goodput"]
    )
    assert sum(each["steps"] for each in summary["replicas"]) == summary["run"]["steps"]


def test_same_record_same_bytes_but_for_timing_keys() -> None:
    first, second = Results(random_record(5)), Results(random_record(5), RunContext(wall_s=3.0))
    second.record.cpu_s = 99.0
    assert first.summary_json != second.summary_json
    for results in (first, second):
        for key in TIMING_KEYS:
            del results.summary["run"][key]
    assert first.summary_json == second.summary_json


def test_requests_frame_follows_the_contract() -> None:
    frame = Results(make_record()).requests
    assert list(frame["request_id"]) == ["a", "b<script>", "c", "d"]
    assert list(frame["status"]) == ["completed", "completed", "rejected", "completed"]
    assert frame["reason"][2].startswith("prompt of 9000")
    assert frame["reason"].isna().tolist() == [True, True, False, True]
    assert frame["replica"].isna().tolist() == [False, False, True, False]
    assert frame["ttft_ms"].tolist()[:2] == [20.0, 35.0]
    assert frame["tpot_ms"].isna().tolist() == [False, True, True, False]
    assert frame["queue_ms"][1] == 10.0
    assert np.isnan(frame["e2el_ms"][2])
    assert Results(random_record(0)).requests["request_id"][3] == "3"


def test_a_request_that_never_arrived_has_no_times() -> None:
    record = make_record()
    record.requests["status"][2] = Status.CANCELLED
    record.requests["arrival_ns"][2] = record.requests["finish_ns"][2] = NOT_YET
    results = Results(record)
    assert np.isnan(results.requests["arrival_s"][2])
    assert results.summary["counts"]["cancelled"] == 1
    assert results.summary["queue"]["arrival_rate"] == pytest.approx(2 / 0.1), "at 0, 10 and 100 ms"


@pytest.mark.parametrize(("scale", "is_beyond"), [(1.0, False), (0.3, True)])
def test_steps_shorter_than_the_datasheet_allows_are_told(scale: float, is_beyond: bool) -> None:
    """A scale or a fit can ask for what no such GPU does: the shares stay as they come out, and a note says why."""
    workload = {"requests": 8, "arrival": {"process": "burst"}}
    workload |= {key: {"dist": "fixed", "value": 64} for key in ("input_tokens", "output_tokens")}
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm"}
    told = sim.simulate({"name": "x", "workload": workload, "engine": engine, "latency": {"time_scale": scale}}).summary
    notes = [note for note in told["run"]["notes"] if "of the datasheet's rate while busy" in note]
    assert (told["utilization"]["memory_bandwidth_when_busy"] > 1.0) is is_beyond
    assert bool(notes) is is_beyond
    assert all(note.startswith("bandwidth ") and "latency.time_scale and latency.fit" in note for note in notes)
