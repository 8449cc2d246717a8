"""By default `srtf` and `tiered` weigh output against prompt as the engine's steps do, and are no worse than `sjf`.

Near saturation on the built-in workloads: llama-3.1-8b on an H100 with 48 seats, at rates it just cannot hold for ever.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from sim.run import load, run

RATES = {"azure-conv-2023": (14.5, 1500), "sharegpt": (17.5, 1500), "mooncake-conversation": (1.45, 400)}
"""Requests per second and how many of them, by preset."""
SEEDS = (11, 12, 13)


@functools.cache
def means(preset: str, policy: str, weight: int | None = None) -> tuple[float, float]:
    """Mean TTFT and E2E in ms over the seeds."""
    rate, requests = RATES[preset]
    spec: dict[str, Any] = {"name": policy} if weight is None else {"name": policy, "output_weight": weight}
    found = []
    for seed in SEEDS:
        scenario = {
            "name": preset,
            "seed": seed,
            "workload": {"requests": requests, "preset": preset, "arrival": {"process": "poisson", "rate": rate}},
            "engine": {
                **{"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_model_len": 131_072},
                **{"max_num_seqs": 48, "max_num_batched_tokens": 2048, "policy": spec},
            },
        }
        summary = run(load(scenario)).summary
        found.append((summary["mean_ttft_ms"], summary["mean_e2el_ms"]))
    return sum(ttft for ttft, _ in found) / len(found), sum(e2el for _, e2el in found) / len(found)


@pytest.mark.parametrize("preset", RATES)
@pytest.mark.parametrize("policy", ["srtf", "tiered"])
def test_the_default_is_no_worse_than_sjf(policy: str, preset: str) -> None:
    ttft, e2el = means(preset, policy)
    sjf_ttft, sjf_e2el = means(preset, "sjf")
    assert sjf_ttft < 0.8 * means(preset, "fcfs")[0], "near saturation, or the order would not matter"
    assert ttft <= sjf_ttft
    assert e2el <= sjf_e2el


def test_counting_in_steps_is_what_was_worse() -> None:
    """The default before: one output token as much as a step's whole budget of prompt."""
    assert means("mooncake-conversation", "srtf", 2048)[0] > 1.5 * means("mooncake-conversation", "srtf")[0]
