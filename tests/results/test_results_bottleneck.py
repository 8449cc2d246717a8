"""Each rule of the bottleneck sentence, from a summary that it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim.cli import main
from sim.results.bottleneck import bottleneck, bottleneck_words, busy_words
from sim.results.wording import load_words, overload_sentence
from sim.run import load, run


def summary(**changes: Any) -> dict[str, Any]:
    base = {
        "completed": 1000,
        "mean_queue_ms": 0.0,
        "busy": 0.95,
        "host": 0.05,
        "kv": 0.3,
        "kv_peak": 1.0,
        "preempted": 0,
        "seats": 0.5,
        "compute_bound": 0.1,
        **changes,
    }
    return {
        "completed": base["completed"],
        "counts": {"submitted": 1000},
        "mean_e2el_ms": 1000.0 if base["completed"] else None,
        "queue": {"mean_queue_ms": base["mean_queue_ms"]},
        "kv": {"mean_usage": base["kv"], "max_usage": base["kv_peak"]},
        "preemptions": {"requests": base["preempted"]},
        "utilization": {
            "busy_fraction": base["busy"],
            "host_fraction": base["host"],
            "compute_bound_fraction": base["compute_bound"],
            "seat_usage": base["seats"],
            "adapter_usage": base.get("adapters"),
        },
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"completed": 0}, "nothing completed"),
        ({"preempted": 500}, "KV cache"),
        ({"preempted": 500, "kv_peak": 0.4}, "memory bandwidth"),
        ({"preempted": 5}, "memory bandwidth"),
        ({"kv": 0.95, "mean_queue_ms": 500.0}, "KV cache"),
        ({"kv": 0.95}, "memory bandwidth"),
        ({"seats": 0.97, "kv_peak": 0.02, "mean_queue_ms": 500.0}, "seats"),
        ({"seats": 0.97, "kv_peak": 0.02, "mean_queue_ms": 500.0, "compute_bound": None}, "seats"),
        ({"seats": 0.97, "kv_peak": 0.02, "mean_queue_ms": 500.0, "busy": 0.4, "host": 0.5}, "seats"),
        ({"seats": 0.97, "kv_peak": 0.02}, "memory bandwidth"),
        ({"adapters": 0.9, "mean_queue_ms": 500.0}, "adapter slots"),
        ({"adapters": 0.9}, "memory bandwidth"),
        ({"adapters": 0.7, "mean_queue_ms": 500.0}, "memory bandwidth"),
        ({"seats": 0.85, "kv_peak": 0.02, "mean_queue_ms": 500.0}, "memory bandwidth"),
        ({"seats": 0.97, "mean_queue_ms": 500.0}, "memory bandwidth"),
        ({"seats": 0.97, "kv_peak": 0.02, "mean_queue_ms": 500.0, "compute_bound": 0.9}, "compute"),
        ({"seats": None, "mean_queue_ms": 500.0}, "memory bandwidth"),
        ({"busy": 0.4, "host": 0.5}, "host"),
        ({"busy": 0.3}, "load"),
        ({"busy": 0.5, "mean_queue_ms": 500.0}, "memory bandwidth"),
        ({"compute_bound": 0.9}, "compute"),
        ({"compute_bound": None}, "accelerator"),
    ],
)
def test_rule(changes: dict[str, Any], expected: str) -> None:
    name, sentence = bottleneck(summary(**changes))
    assert name == expected
    assert sentence.endswith(".")


def test_a_run_with_every_seat_taken_says_so_and_its_arrivals_are_those_offered() -> None:
    """12 seats, twice the load they can serve: the run lasts longer than the arrivals, the KV cache stays empty."""
    scenario: dict[str, Any] = {
        "name": "full",
        "workload": {
            "requests": 600,
            "arrival": {"process": "constant", "rate": 25},
            "input_tokens": {"dist": "fixed", "value": 250},
            "output_tokens": {"dist": "uniform", "low": 50, "high": 150},
        },
        "engine": {"model": "llama-3.1-8b", "gpu": "a100-80gb-sxm", "max_num_seqs": 12},
    }
    found = run(load(scenario)).summary
    name, sentence = bottleneck(found)
    assert name == "seats"
    assert "max_num_seqs" in sentence
    assert 0.9 < found["utilization"]["seat_usage"] <= 1
    assert found["queue"]["arrival_rate"] == pytest.approx(25)
    assert 600 / found["duration"] < 13
    assert bottleneck(run(load(scenario | {"engine": scenario["engine"] | {"max_num_seqs": 64}})).summary)[0] != "seats"


def test_busy_and_bottleneck_say_what_they_leave() -> None:
    summary = {"utilization": {"busy_fraction": 1.0}, "load": {"headroom": 1.7}}
    assert busy_words(summary) == "busy 100% (with steps of any size, headroom 1.70)"
    summary["load"] = {"headroom": None}
    assert busy_words(summary) == "busy 100% (with steps of any size)"


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"seats": 0.97, "kv_peak": 0.02, "mean_queue_ms": 500.0}, "more seats would help"),
        ({"preempted": 500}, "more KV memory"),
    ],
)
def test_advice_comes_after_what_was_counted_and_is_marked(changes: dict[str, Any], advice: str) -> None:
    sentence = bottleneck(summary(**changes))[1]
    assert sentence.index("Requests spend") < sentence.index(f"Estimate, not simulated: {advice}")


@pytest.mark.parametrize(
    ("latency", "basis", "is_marked"),
    [
        ({}, "measured", False),
        ({"kind": "roofline"}, "estimated", True),
        ({"kind": "constant", "step_s": 0.03}, "assumed", False),
    ],
)
def test_headroom_by_estimated_step_times_is_marked(latency: dict[str, Any], basis: str, is_marked: bool) -> None:
    """Wherever it is told: load, bottleneck, overload."""
    workload = {
        "requests": 300,
        "arrival": {"process": "poisson", "rate": 30},
        "input_tokens": {"dist": "fixed", "value": 50},
        "output_tokens": {"dist": "fixed", "value": 100},
    }
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_num_seqs": 16}
    told = run(load({"name": "x", "workload": workload, "engine": engine, "latency": latency})).summary
    assert told["load"]["step_times"] == basis
    assert told["load"]["saturated"]
    for words in (bottleneck_words(told), load_words(told["load"]), overload_sentence(told["load"])):
        assert words is not None
        assert ("(estimate)" in words) is is_marked


def test_verdicts_by_estimated_step_times_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the terminal, in the report, and beside the exit code of ``--check-slo``."""
    scenario = tmp_path / "s.yaml"
    scenario.write_text(
        "name: x\n"
        "workload: {requests: 5, arrival: {process: burst}, input_tokens: {dist: fixed, value: 9},"
        " output_tokens: {dist: fixed, value: 9}}\n"
        "engine: {model: llama-3.2-1b, gpu: rtx-4090, max_model_len: 512}\n"
        "slo: {ttft_p95_ms: 5000}\n"
    )
    for kind, is_marked in (("roofline", True), ("constant", False)):
        settings = ["--set", f"latency={{kind: {kind}, step_s: 0.01}}"] if kind == "constant" else []
        with pytest.raises(SystemExit) as exit_info:
            main([str(scenario), "--check-slo", "--out", str(tmp_path / kind), *settings])
        assert exit_info.value.code == 0
        out, err = capsys.readouterr()
        report = (tmp_path / kind / "report.html").read_text()
        assert ("the verdict goes by estimated step times, off by about 25%" in err) is is_marked
        assert ("SLO (estimate)" in out) is is_marked
        assert ("Service-level objectives (estimate)" in report) is is_marked
