"""How often intervals cover what they are of, where the mean wait is known; ``benchmarks/coverage.py`` has more."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from theory_runs import STEP_NS, STEP_S, lindley_waits_ns, single_server

from sim.results.steady import half_width_ms
from sim.seed_intervals import SeedLoads, interval, notes
from sim.uncertainty import headline

STEPS = 10
GROUPS = 100
SEEDS = 5


def ttfts_ms(load: float, requests: int, seed: int) -> npt.NDArray[np.float64]:
    """Of a run of one seat with equal outputs: the wait, and one step (``test_theory_mg1`` holds engines to it)."""
    gaps = np.random.default_rng([seed, requests]).exponential(STEPS * STEP_NS / load, requests)
    arrival = np.cumsum(gaps).astype(np.int64)
    waits = lindley_waits_ns(arrival, np.full(requests, STEPS * STEP_NS))
    ttfts: npt.NDArray[np.float64] = (waits + STEP_NS) / 1e6
    return ttfts


def endless_mean_ms(load: float) -> float:
    """Pollaczek and Khinchine: at 50 % load 50 ms of waiting and a step of 10 ms."""
    return 1e3 * STEP_S * (load * STEPS / (2 * (1 - load)) + 1)


@pytest.mark.parametrize(
    ("load", "requests", "statistic", "endless_is_covered"),
    [
        (0.5, 400, "mean", True),
        (0.8, 2500, "mean", True),  # worth 100 requests that know nothing of each other
        (0.95, 400, "mean", False),  # worth 1
        (0.8, 2500, "p99", True),
        (0.95, 400, "p99", False),
    ],
)
def test_five_seeds_cover_runs_of_their_length_and_endless_ones_where_they_are_long_enough(
    load: float, requests: int, statistic: str, endless_is_covered: bool
) -> None:
    def of(run: npt.NDArray[np.float64]) -> float:
        return float(run.mean() if statistic == "mean" else np.percentile(run, 99))

    values = [of(ttfts_ms(load, requests, seed)) for seed in range(GROUPS * SEEDS)]
    spans = [interval(values[start : start + SEEDS], None, [], ()) for start in range(0, len(values), SEEDS)]
    finite = float(np.mean(values))
    endless = endless_mean_ms(load) if statistic == "mean" else of(ttfts_ms(load, 1_000_000, 0)[10_000:])
    assert 0.87 <= np.mean([each.low <= finite <= each.high for each in spans]) <= 0.99
    covered = float(np.mean([each.low <= endless <= each.high for each in spans]))
    assert covered >= 0.85 if endless_is_covered else covered <= 0.7


@pytest.mark.parametrize(("load", "told"), [(0.5, "endless run's p99"), (0.95, "endless run's mean, p95 and p99")])
def test_the_note_names_the_statistics_that_are_not_covered(load: float, told: str) -> None:
    for group in range(2):
        summaries = [
            single_server(
                requests=200,
                output={"dist": "fixed", "value": STEPS},
                rate=load / (STEPS * STEP_S),
                seed=group * SEEDS + seed,
            ).summary
            for seed in range(SEEDS)
        ]
        found = " ".join(notes([headline(each) for each in summaries], None, 0.0, SeedLoads.of(summaries)))
        assert told in found


@pytest.mark.parametrize(
    ("load", "requests", "statistic", "least"),
    [(0.5, 2000, "mean", 0.9), (0.8, 5000, "mean", 0.9), (0.8, 5000, "p95", 0.85), (0.5, 10_000, "p99", 0.9)],
)
def test_batch_means_of_one_run_cover_the_long_run(load: float, requests: int, statistic: str, least: float) -> None:
    """Enough relaxations (requests (1 - load)^2 times the share beyond the statistic >= 5), so that they are given."""
    endless = endless_mean_ms(load)
    if statistic != "mean":
        endless = float(np.percentile(ttfts_ms(load, 1_000_000, 0)[10_000:], float(statistic[1:])))
    hits: list[Any] = []
    for seed in range(150):
        run = ttfts_ms(load, requests, seed)[requests // 20 :] * 1e6
        width = half_width_ms(run, statistic)
        if width is not None:
            value = run.mean() if statistic == "mean" else np.percentile(run, float(statistic[1:]))
            hits.append(abs(value / 1e6 - endless) <= width)
    assert len(hits) > 75
    assert np.mean(hits) >= least
