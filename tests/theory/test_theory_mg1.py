"""Mean waits of a single server against Pollaczek-Khinchine: W = lambda E[S^2] / (2 (1 - rho))."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from theory_runs import STEP_NS, STEP_S, interval, lindley_waits_ns, single_server, waits_ns

from sim.scenario.schema import WorkloadConfig
from sim.workload.build_table import build_workload

SEEDS = range(20)
STUDENT_T = 3.8834
"""0.9995 quantile of Student's t with 19 degrees of freedom: two-sided 99.9 %."""
REQUESTS = {0.3: 400, 0.6: 600, 0.9: 1500}
LENGTHS: dict[str, dict[str, Any]] = {
    "fixed": {"dist": "fixed", "value": 3},
    "exponential": {"dist": "exponential", "mean": 3.0},
    "lognormal": {"dist": "lognormal", "mean": 3.0, "cv": 1.0},
}


def lognormal_probabilities(mean: float, cv: float) -> list[float]:
    """P(1), P(2), ... of a lognormal rounded to the nearest whole number, at least 1."""
    sigma = math.sqrt(math.log(1 + cv**2))
    mu = math.log(mean) - sigma**2 / 2

    def below(x: float) -> float:
        return 0.5 * math.erfc((mu - math.log(x)) / (sigma * math.sqrt(2)))

    return [below(1.5), *(below(k + 0.5) - below(k - 0.5) for k in range(2, 2000))]


def moments(name: str) -> tuple[float, float]:
    """E[S] and E[S^2] of the whole number of steps of a request."""
    if name == "fixed":
        return 3.0, 9.0
    if name == "exponential":  # rounded up it is geometric with success probability 1 / mean
        p = 1 / 3.0
        return 1 / p, (2 - p) / p**2
    probabilities = lognormal_probabilities(3.0, 1.0)
    return (
        math.fsum(k * p for k, p in enumerate(probabilities, 1)),
        math.fsum(k * k * p for k, p in enumerate(probabilities, 1)),
    )


def pollaczek_khinchine_s(name: str, load: float) -> tuple[float, float]:
    """Arrivals per second that give ``load``, and the mean wait in seconds."""
    first, second = moments(name)
    rate = load / (first * STEP_S)
    return rate, rate * second * STEP_S**2 / (2 * (1 - load))


@pytest.mark.parametrize("load", REQUESTS)
@pytest.mark.parametrize("name", LENGTHS)
def test_mean_wait_is_pollaczek_khinchines(name: str, load: float) -> None:
    rate, expected_s = pollaczek_khinchine_s(name, load)
    means = []
    for seed in SEEDS:
        results = single_server(requests=REQUESTS[load], output=LENGTHS[name], rate=rate, seed=seed)
        table, waits = results.record.workload, waits_ns(results)
        # Request by request, the very numbers of the queue that the formula is about.
        np.testing.assert_array_equal(waits, lindley_waits_ns(table.arrival_ns, table.output_tokens * STEP_NS))
        np.testing.assert_array_equal(
            results.record.requests["finish_ns"], table.arrival_ns + waits + table.output_tokens * STEP_NS
        )
        means.append(float(waits.mean()) / 1e9)
    low, high = interval(np.array(means), STUDENT_T)
    assert low <= expected_s <= high


@pytest.mark.parametrize("name", LENGTHS)
def test_long_workloads_come_close_to_the_formula(name: str) -> None:
    """The engine's waits being Lindley's, the workload alone decides: long enough for a narrow interval."""
    rate, expected_s = pollaczek_khinchine_s(name, 0.9)
    means = []
    for seed in SEEDS:
        workload = WorkloadConfig.model_validate(
            {
                "requests": 100_000,
                "arrival": {"process": "poisson", "rate": rate},
                "input_tokens": {"dist": "fixed", "value": 8},
                "output_tokens": LENGTHS[name],
            }
        )
        table = build_workload(workload, seed, Path("."))
        means.append(float(lindley_waits_ns(table.arrival_ns, table.output_tokens * STEP_NS).mean()) / 1e9)
    low, high = interval(np.array(means), STUDENT_T)
    assert low <= expected_s <= high
    assert (high - low) / expected_s < 0.25
