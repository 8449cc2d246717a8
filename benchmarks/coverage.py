"""How often intervals cover what they are of, on queues that are known: the tables of ``docs/uncertainty.md``.

    python -m benchmarks.coverage [--repeats 40] [--only SYSTEM]

Runs groups of five seeds with equal steps (``latency: constant``), as ``--seeds 5`` does, and compares their intervals
with the mean over all runs of that length, and with a run at least 100 times as long. For one seat and equal outputs
the mean of the long run is also Pollaczek and Khinchine's, which is printed beside it. The last columns are batch means
of single runs (``load.steady.confidence``): how often they are given, and then cover the long run.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import sim
from sim.seed_intervals import SeedLoads, interval, notes
from sim.uncertainty import headline

SEEDS = 5
STEP_S = 0.01
STATISTICS = ("mean", "p95", "p99")
LOADS = (0.5, 0.8, 0.95)
REQUESTS = (300, 3000)
LONG = 300_000
LONG_SEED = 1_000_000


@dataclass(frozen=True, slots=True)
class System:
    """An engine of equal steps."""

    seats: int
    outputs: dict[str, Any]
    steps: float
    """Mean steps of a request."""


SYSTEMS = {
    "one seat, equal outputs": System(1, {"dist": "fixed", "value": 10}, 10.0),
    "one seat, lognormal outputs, cv 2": System(1, {"dist": "lognormal", "mean": 50, "cv": 2, "max": 4000}, 50.0),
    "16 seats, exponential outputs": System(16, {"dist": "exponential", "mean": 50}, 50.0),
}


def summary_of(system: System, load: float, requests: int, seed: int) -> dict[str, Any]:
    """The summary of one run at ``load`` of what the seats can serve."""
    scenario = {
        "name": "coverage",
        "seed": seed,
        "workload": {
            "requests": requests,
            "arrival": {"process": "poisson", "rate": load * system.seats / (system.steps * STEP_S)},
            "input_tokens": {"dist": "fixed", "value": 8},
            "output_tokens": system.outputs,
        },
        "engine": {
            "model": "llama-2-7b",
            "gpu": "a100-80gb-sxm",
            "num_gpu_blocks_override": 8192,
            "max_model_len": 4096,
            "max_num_batched_tokens": 4096,
            "max_num_seqs": system.seats,
            "async_scheduling": False,
            "enable_prefix_caching": False,
        },
        "latency": {"kind": "constant", "step_s": STEP_S, "client_overhead_ms": 0},
    }
    return sim.simulate(scenario).summary


def pollaczek_khinchine_ms(load: float, steps: float) -> float:
    """Mean time to the first token for equal outputs: the wait, and one step. 50 % and 10 steps: 60 ms."""
    return 1e3 * STEP_S * (load * steps / (2 * (1 - load)) + 1)


def coverage(system: System, load: float, requests: int, repeats: int, long: dict[str, Any]) -> list[str]:
    """The cells of one row: finite, long, told short, and batch means, by statistic."""
    summaries = [summary_of(system, load, requests, seed) for seed in range(repeats * SEEDS)]
    groups = [summaries[start : start + SEEDS] for start in range(0, len(summaries), SEEDS)]
    worth = median(each["load"]["relaxations"] for each in summaries)
    told = [" ".join(notes(list(map(headline, group)), None, 0.0, SeedLoads.of(group))) for group in groups]
    cells = [f"{worth:.1f}"]
    for name in STATISTICS:
        key = f"{name}_ttft_ms"
        truth = fmean(each[key] for each in summaries)
        spans = [interval([each[key] for each in group], None, [], ()) for group in groups]
        finite = sum(each.low <= truth <= each.high for each in spans)
        endless = sum(each.low <= long[key] <= each.high for each in spans)
        warned = sum(
            "overloaded" in text or "near saturation" in text or name in text.partition("because")[0] for text in told
        )
        cells.append(f"{finite / repeats:.0%} / {endless / repeats:.0%} / {warned / repeats:.0%}")
    for name in STATISTICS:
        key = f"{name}_ttft_ms"
        steady = [each["load"]["steady"] for each in summaries]
        given = [each for each in steady if each["confidence"]["half_width"][key] is not None]
        hits = sum(abs(each[key] - long[key]) <= each["confidence"]["half_width"][key] for each in given)
        cells.append(f"{len(given) / len(steady):.0%}: {hits / len(given):.0%}" if given else "0%")
    return cells


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=40, help="groups of five seeds in each row")
    parser.add_argument("--only", help="the name of a system, or its beginning")
    arguments = parser.parse_args()
    heads = [f"{each}: finite / long / warned" for each in STATISTICS]
    heads += [f"batch {each}: given, cover" for each in STATISTICS]
    print("| load | requests | worth |", " | ".join(heads), "|")
    print("|---" * (3 + 2 * len(STATISTICS)) + "|")
    for name, system in SYSTEMS.items():
        if arguments.only and not name.startswith(arguments.only):
            continue
        print(f"| **{name}** |" + " |" * (2 + 2 * len(STATISTICS)))
        for load in LOADS:
            long = summary_of(system, load, LONG, LONG_SEED)
            theory = pollaczek_khinchine_ms(load, system.steps) if system.outputs["dist"] == "fixed" else math.nan
            for requests in REQUESTS:
                cells = coverage(system, load, requests, arguments.repeats, long)
                print(f"| {load:.0%} | {requests:,} |", " | ".join(cells), "|", flush=True)
            if not math.isnan(theory):
                print(f"<!-- long mean {long['mean_ttft_ms']:.2f} ms, formula {theory:.2f} ms -->", flush=True)


if __name__ == "__main__":
    main()
