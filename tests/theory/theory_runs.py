"""One seat, equal steps: the engine as a single server whose service times are whole steps.

A prompt that fits one step takes ``output_tokens`` steps: the prefill step gives the first token and every
decode step one more. An idle engine starts a step at the instant of an arrival; a busy one forms the next
step when the one before it ends, and that is where a request leaves and the next one enters. So this is
exactly a G/G/1 queue with service ``output_tokens * STEP_NS``, with nothing lost to step boundaries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import sim
from sim.results.results import Results

IntColumn = npt.NDArray[np.int64]

STEP_NS = 10_000_000
STEP_S = STEP_NS / 1e9


def single_server(
    *,
    requests: int,
    output: dict[str, Any],
    rate: float,
    seed: int,
    policy: str | dict[str, Any] = "fcfs",
    replicas: int = 1,
    router: str = "round_robin",
) -> Results:
    """Poisson arrivals at ``rate`` per second to engines that run one request at a time, synchronously."""
    scenario = {
        "name": "single server",
        "seed": seed,
        "workload": {
            "requests": requests,
            "arrival": {"process": "poisson", "rate": rate},
            "input_tokens": {"dist": "fixed", "value": 8},
            "output_tokens": output,
        },
        "cluster": {"replicas": replicas, "router": router},
        "engine": {
            "model": "llama-2-7b",
            "gpu": "a100-80gb-sxm",
            "num_gpu_blocks_override": 2048,
            "max_model_len": 16384,
            "max_num_batched_tokens": 16384,
            "max_num_seqs": 1,
            "async_scheduling": False,
            "enable_prefix_caching": False,
            "policy": policy,
            "stepping": "reference",
        },
        "latency": {"kind": "constant", "step_s": STEP_S},
    }
    return sim.simulate(scenario)


def waits_ns(results: Results) -> IntColumn:
    """From arrival to the first step, by request."""
    columns = results.record.requests
    waits: IntColumn = columns["scheduled_ns"] - columns["arrival_ns"]
    return waits


def lindley_waits_ns(arrival_ns: IntColumn, service_ns: IntColumn) -> IntColumn:
    """Waits of a first-come first-served single server: W[n+1] = max(0, W[n] + S[n] - A[n+1]) (Lindley 1952)."""
    steps = service_ns[:-1] - np.diff(arrival_ns)
    walk = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(steps)])
    waits: IntColumn = walk - np.minimum.accumulate(walk)
    return waits


def interval(samples: npt.NDArray[np.float64], student_t: float) -> tuple[float, float]:
    """Two-sided confidence interval of the mean of independent ``samples``."""
    half = student_t * float(samples.std(ddof=1)) / len(samples) ** 0.5
    mean = float(samples.mean())
    return mean - half, mean + half
