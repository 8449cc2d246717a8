"""What other simulators publish of themselves, with the source. Only the first is about a set of ours."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.accuracy_sets import RTX_LLAMA, RTX_QWEN_LINK

SERVINGSIM = "LLMServingSim"
SERVINGSIM_SOURCE = (
    "`bench/examples/RTXPRO6000/*/validation/summary.txt` of casys-kaist/LLMServingSim (commit 030c1bc), with its own"
    " profile and link of that machine"
)

SERVINGSIM_ERRORS: dict[str, dict[str, float]] = {
    RTX_LLAMA: {
        "mean_ttft_ms": -0.040,
        "p50_ttft_ms": -0.086,
        "p90_ttft_ms": -0.044,
        "p99_ttft_ms": -0.020,
        "mean_tpot_ms": -0.010,
        "p50_tpot_ms": -0.000,
        "p90_tpot_ms": 0.005,
        "p99_tpot_ms": 0.006,
        "mean_e2el_ms": -0.018,
        "p50_e2el_ms": -0.012,
        "p90_e2el_ms": -0.018,
        "p99_e2el_ms": -0.016,
    },
    RTX_QWEN_LINK: {
        "mean_ttft_ms": 0.013,
        "p50_ttft_ms": 0.017,
        "p90_ttft_ms": 0.009,
        "p99_ttft_ms": 0.009,
        "mean_tpot_ms": 0.008,
        "p50_tpot_ms": 0.008,
        "p90_tpot_ms": 0.009,
        "p99_tpot_ms": 0.013,
        "mean_e2el_ms": 0.010,
        "p50_e2el_ms": 0.009,
        "p90_e2el_ms": 0.008,
        "p99_e2el_ms": 0.013,
    },
}
"""Signed errors on the same two runs."""


@dataclass(frozen=True)
class Peer:
    """A published figure that is about other sets: no comparison, only the order of magnitude."""

    name: str
    what: str
    source: str


ELSEWHERE = (
    Peer(
        "BLIS (inference-sim)",
        "median error 7-9 % of end-to-end and inter-token latency, 36 experiments, H100, A100, L40S",
        "llm-d blog, 'BLIS: Evolving llm-d at Simulation Speed', 2026",
    ),
    Peer(
        "BLIS (inference-sim)",
        "MAPE 11.8 % of end-to-end latency, 22.8 % of TTFT, 38 experiments",
        "pull request 944 of inference-sim/inference-sim, April 2026",
    ),
    Peer("Vidur", "latency within 9 %, dense models on A100 and H100", "arXiv 2405.05465, abstract, 2024"),
)
