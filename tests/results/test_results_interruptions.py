"""Waiting after a preemption: in queue time, in the number that waits, and in a request's phases in the trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sim
from sim.results.interruptions import NOT_YET, Turning, interruptions_of, requeued_ns
from sim.results.phases import phases
from sim.results.results import Results
from sim.results.timeline import trace_events


def columns(*rows: tuple[int, ...], names: str) -> dict[str, Any]:
    return {name: np.array([row[i] for row in rows], dtype=np.int64) for i, name in enumerate(names.split())}


ATTEMPTS = columns((0, 90), (1, 50), (1, 120), (2, 80), names="row end_ns")
"""Request 1 has a second attempt."""


def test_turnings_become_interruptions() -> None:
    turnings = columns(
        (2, 40, Turning.PREEMPTED),
        (0, 10, Turning.PREEMPTED),
        (0, 15, Turning.RESUMED),
        (1, 30, Turning.PREEMPTED),  # its first attempt ends while it waits
        (0, 22, Turning.CAUGHT_UP),
        (0, 30, Turning.PREEMPTED),
        (0, 30, Turning.RESUMED),
        (0, 33, Turning.PREEMPTED),  # before it has caught up
        (0, 60, Turning.RESUMED),
        (1, 100, Turning.PREEMPTED),
        (1, 110, Turning.RESUMED),
        names="row at_ns turning",
    )
    found = interruptions_of(turnings, ATTEMPTS)
    rows = list(zip(*(found[name].tolist() for name in found), strict=True))
    assert list(found) == ["row", "preempted_ns", "left_ns", "caught_up_ns"]
    assert rows == [
        (0, 10, 15, 22),
        (0, 30, 30, NOT_YET),
        (0, 33, 60, NOT_YET),
        (1, 30, 50, NOT_YET),
        (1, 100, 110, NOT_YET),
        (2, 40, 80, NOT_YET),
    ]


def test_waiting_again_is_that_of_the_last_attempt() -> None:
    """Request 1 was first scheduled anew at 70: what it waited before is in the time until then."""
    found = columns(
        (0, 10, 15, 22),
        (0, 33, 60, -1),
        (1, 30, 50, -1),
        (1, 100, 110, -1),
        names="row preempted_ns left_ns caught_up_ns",
    )
    assert requeued_ns(np.arange(3), np.array([5, 70, 0]), found).tolist() == [32, 10, 0]


@pytest.mark.parametrize(
    ("instants", "interruptions", "expected"),
    [
        ((0, 5, 9, 20), [], [("queued", 0, 5), ("prefill", 5, 9), ("decode", 9, 20)]),
        (
            (0, 5, 9, 30),
            [(12, 15, 18)],
            [
                *[("queued", 0, 5), ("prefill", 5, 9), ("decode", 9, 12)],
                *[("waiting again", 12, 15), ("recompute", 15, 18), ("decode", 18, 30)],
            ],
        ),
        (
            (0, 5, 20, 30),  # preempted before its first token
            [(8, 15, 20)],
            [("queued", 0, 5), ("prefill", 5, 8), ("waiting again", 8, 15), ("prefill", 15, 20), ("decode", 20, 30)],
        ),
        (
            (0, 5, 9, 40),  # preempted again before it has caught up
            [(12, 15, -1), (17, 20, 25)],
            [
                *[("queued", 0, 5), ("prefill", 5, 9), ("decode", 9, 12), ("waiting again", 12, 15)],
                *[("recompute", 15, 17), ("waiting again", 17, 20), ("recompute", 20, 25), ("decode", 25, 40)],
            ],
        ),
        (
            (0, 5, 9, 18),  # it ends while it waits
            [(12, 18, -1)],
            [("queued", 0, 5), ("prefill", 5, 9), ("decode", 9, 12), ("waiting again", 12, 18)],
        ),
        ((0, -1, -1, 7), [], [("queued", 0, 7)]),
    ],
)  # fmt: skip
def test_phases_by_hand(instants: tuple[int, int, int, int], interruptions: Any, expected: Any) -> None:
    assert [each for each in phases(*instants, interruptions) if each[2] > each[1]] == expected


def under_pressure(stepping: str) -> Results:
    """Four requests of 200 tokens at their longest, in a pool of 33 blocks of 16: two fit at a time, in the end."""
    scenario = {
        "name": "pressure",
        "workload": {
            "requests": 4,
            "arrival": {"process": "constant", "rate": 1000.0},
            "input_tokens": {"dist": "fixed", "value": 100},
            "output_tokens": {"dist": "fixed", "value": 100},
        },
        "engine": {
            "model": "llama-3.1-8b",
            "gpu": "h100-sxm",
            "max_model_len": 256,
            "num_gpu_blocks_override": 33,
            "enable_prefix_caching": False,
            "stepping": stepping,
        },
        "latency": {"kind": "constant", "step_s": 0.01},
    }
    return sim.simulate(scenario)


@pytest.mark.parametrize("stepping", ["fast", "reference"])
def test_queue_time_includes_waiting_after_a_preemption(stepping: str) -> None:
    results = under_pressure(stepping)
    summary, requests = results.summary, results.requests
    assert summary["preemptions"]["total"] > 0
    evicted = requests[requests["num_preemptions"] > 0]
    first = 1000 * (evicted["scheduled_s"] - evicted["arrival_s"])
    assert (evicted["requeued_ms"] > 0).all()
    assert (evicted["queue_ms"] - first - evicted["requeued_ms"]).abs().max() < 1e-6
    assert (requests[requests["num_preemptions"] == 0]["requeued_ms"] == 0).all()
    queue = summary["queue"]
    assert queue["mean_queue_ms"] == pytest.approx(requests["queue_ms"].mean())
    assert queue["mean_requeued_ms"] == pytest.approx(requests["requeued_ms"].mean())
    assert queue["lambda_w_waiting"] == pytest.approx(queue["mean_waiting"])  # Little's law
    assert queue["mean_time_waiting_s"] == pytest.approx(requests["queue_ms"].mean() / 1000)


def test_the_trace_shows_preemptions_among_the_phases() -> None:
    results = under_pressure("fast")
    events = [event for event in trace_events(results.record)[0] if event.get("cat") == "phase"]
    again = sum(event["dur"] for event in events if event["name"] == "waiting again") / 1000
    assert again == pytest.approx(results.requests["requeued_ms"].sum())
    assert sum(event["name"] == "recompute" for event in events) == results.summary["preemptions"]["total"]
    whole = sum(event["dur"] for event in events) / 1000
    assert whole == pytest.approx(results.requests["e2el_ms"].sum())


@pytest.mark.parametrize("speculative", [None, {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5}])
@pytest.mark.parametrize("stepping", ["fast", "reference"])
def test_gaps_of_a_class_are_those_of_its_requests(stepping: str, speculative: Any) -> None:
    """As many as its tokens but the first, and as long as from first token to last."""
    classes = [
        {
            "name": name,
            "requests": 30,
            "arrival": {"process": "poisson", "rate": 10.0},
            "input_tokens": {"dist": "fixed", "value": tokens},
            "output_tokens": {"dist": "exponential", "mean": 30},
        }
        for name, tokens in (("short", 50), ("long", 900))
    ]
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_model_len": 2048, "stepping": stepping}
    if speculative is not None:
        engine["speculative"] = speculative
    record = sim.simulate({"name": "classes", "workload": {"classes": classes}, "engine": engine}).record
    columns = record.requests
    for index, (values, weights) in enumerate(record.itl_of_classes):
        mine = columns["class_index"] == index
        assert weights.sum() == (columns["output_tokens"][mine] - 1).sum()
        assert (values * weights).sum() == (columns["finish_ns"] - columns["first_token_ns"])[mine].sum()
