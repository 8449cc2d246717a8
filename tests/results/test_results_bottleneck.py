"""Each rule of the bottleneck sentence, from a summary that it is about."""

from __future__ import annotations

from typing import Any

import pytest

from sim.results.bottleneck import bottleneck


def summary(**changes: Any) -> dict[str, Any]:
    base = {
        "completed": 1000,
        "mean_queue_ms": 0.0,
        "busy": 0.95,
        "host": 0.05,
        "kv": 0.3,
        "kv_peak": 1.0,
        "preempted": 0,
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
