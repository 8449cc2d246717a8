"""How often a run is called overloaded that is not, and the other way round: the table of ``docs/load.md``.

    python -m benchmarks.overload [--seeds 4] [--requests 800 3000] [--only MIX]

Seven mixes of traffic and engine. What each serves in the long run is found without ``sim.capacity``, from a backlog of
which the middle part counts; then requests arrive (Poisson) at shares of that. A run draws lengths of its own, so that
its own mix may be some percent lighter or heavier than the long run's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from sim.results.results import Results
from sim.run import load, run

LOADS = (0.5, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3)
REQUESTS = (800, 3000)
BACKLOG = 8000
BACKLOG_SEED = 77
A100: Mapping[str, Any] = MappingProxyType({"model": "llama-3.1-8b", "gpu": "a100-80gb-sxm", "max_model_len": 8192})
Mix = tuple[dict[str, Any], dict[str, Any]]
"""Keys of ``workload`` and of ``engine``."""


def _lognormal(mean: float, cv: float = 1.0, longest: int | None = None) -> dict[str, Any]:
    return {"dist": "lognormal", "mean": mean, "cv": cv, **({} if longest is None else {"max": longest})}


def _exponential(mean: float) -> dict[str, Any]:
    return {"dist": "exponential", "mean": mean}


def _fixed(value: int) -> dict[str, Any]:
    return {"dist": "fixed", "value": value}


SMALL_MIXES: Mapping[str, Mix] = MappingProxyType(
    {
        "few seats": (
            {"input_tokens": _lognormal(300), "output_tokens": _exponential(50)},
            {**A100, "max_num_seqs": 16},
        ),
        "equal lengths": (
            {"input_tokens": _fixed(300), "output_tokens": _fixed(50)},
            {**A100, "max_num_seqs": 64},
        ),
        "long prompts": ({"input_tokens": _lognormal(3000), "output_tokens": _fixed(2)}, {**A100}),
        "little KV": (
            {"input_tokens": _lognormal(600), "output_tokens": _lognormal(60)},
            {**A100, "num_gpu_blocks_override": 1200},
        ),
        "shared prompts": (
            {"input_tokens": _fixed(1200), "output_tokens": _exponential(40), "prefix": {"groups": 3, "tokens": 1000}},
            {**A100, "max_num_seqs": 32},
        ),
    }
)
MIXES: Mapping[str, Mix] = MappingProxyType(
    {
        **SMALL_MIXES,
        "256 seats": (
            {"input_tokens": _lognormal(600, 1.0, 4000), "output_tokens": _lognormal(250, 1.0, 4000)},
            {**A100, "max_num_seqs": 256},
        ),
        "TP 4, long answers": (
            {"input_tokens": _lognormal(1000, 0.5, 4000), "output_tokens": _lognormal(300, 0.5, 2000)},
            {"model": "llama-3.1-70b", "gpu": "h100-sxm", "tensor_parallel_size": 4}
            | {"max_model_len": 8192, "max_num_seqs": 256, "max_num_batched_tokens": 2048},
        ),
    }
)


def simulated(mix: str, seed: int, requests: int, **arrival: Any) -> Results:
    """One run of so many requests of that mix."""
    traffic, engine = MIXES[mix]
    workload = {**traffic, "requests": requests, "arrival": arrival}
    return run(load({"name": mix, "seed": seed, "workload": workload, "engine": engine}))


def served_of_a_backlog(mix: str) -> float:
    """Requests per second while thousands wait, from 30 to 85 % of the ends: no estimate of ``sim.capacity``."""
    ended = np.sort(simulated(mix, BACKLOG_SEED, BACKLOG, process="constant", rate=1e6).requests["finish_s"].to_numpy())
    begin, end = int(0.3 * BACKLOG), int(0.85 * BACKLOG)
    return float((end - begin) / (ended[end] - ended[begin]))


def verdicts(mixes: Sequence[str], requests: int, seeds: int, served: Mapping[str, float]) -> dict[float, list[str]]:
    """By share of what is served: the runs with the wrong verdict, as mix and seed."""
    wrong: dict[float, list[str]] = {share: [] for share in LOADS}
    for mix in mixes:
        for share in LOADS:
            for seed in range(seeds):
                found = simulated(mix, seed, requests, process="poisson", rate=share * served[mix]).summary["load"]
                if found["saturated"] != (share > 1.0):
                    wrong[share].append(f"{mix}, seed {seed}: headroom {found['headroom']:.2f}")
    return wrong


def table_row(requests: int, wrong: Mapping[float, Sequence[str]], runs: int) -> str:
    """The line of the page: false alarms below what is served, misses above."""
    below = [share for share in LOADS if share < 1.0]
    false = sum(len(wrong[share]) for share in below)
    missed = " | ".join(f"{len(wrong[share])} of {runs}" for share in LOADS if share > 1.0)
    return f"| {requests:,} | {false} of {len(below) * runs} | {missed} |"


def main() -> None:
    """Print the table, and which runs were wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--requests", type=int, nargs="+", default=list(REQUESTS))
    parser.add_argument("--only", choices=list(MIXES))
    arguments = parser.parse_args()
    mixes = [arguments.only] if arguments.only else list(MIXES)
    served = {mix: served_of_a_backlog(mix) for mix in mixes}
    print("| requests | false alarms at 50, 70, 80, 90 % | missed at 110 % | at 120 % | at 130 % |")
    print("|---|---|---|---|---|", flush=True)
    for requests in arguments.requests:
        wrong = verdicts(mixes, requests, arguments.seeds, served)
        print(table_row(requests, wrong, len(mixes) * arguments.seeds))
        for share, runs in wrong.items():
            for each in runs:
                print(f"<!-- {share:.0%}: {each} -->", flush=True)


if __name__ == "__main__":
    main()
