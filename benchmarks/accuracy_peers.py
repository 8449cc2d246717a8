"""What other simulators publish of themselves, with the source. Only LLMServingSim's is about runs of ours."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.accuracy_sets import RTX_LLAMA, RTX_QWEN_LINK
from benchmarks.accuracy_single import RTX4090_LLAMA, RTX_MOE_LINK

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
    RTX4090_LLAMA: {
        **{"mean_ttft_ms": 0.006, "p50_ttft_ms": 0.008, "p90_ttft_ms": 0.006, "p99_ttft_ms": 0.003},
        **{"mean_tpot_ms": 0.002, "p50_tpot_ms": 0.002, "p90_tpot_ms": 0.002, "p99_tpot_ms": 0.009},
        **{"mean_e2el_ms": 0.005, "p50_e2el_ms": 0.009, "p90_e2el_ms": 0.002, "p99_e2el_ms": 0.004},
    },
    RTX_MOE_LINK: {
        **{"mean_ttft_ms": -0.136, "p50_ttft_ms": -0.218, "p90_ttft_ms": -0.109, "p99_ttft_ms": -0.010},
        **{"mean_tpot_ms": -0.017, "p50_tpot_ms": -0.016, "p90_tpot_ms": -0.008, "p99_tpot_ms": -0.005},
        **{"mean_e2el_ms": -0.022, "p50_e2el_ms": -0.020, "p90_e2el_ms": -0.018, "p99_e2el_ms": -0.018},
    },
}
"""Signed errors on the same runs, by the name of the set, or of the run where a set has several."""


@dataclass(frozen=True)
class Peer:
    """A published figure that is about other sets: no comparison, only the order of magnitude."""

    name: str
    what: str
    source: str


ELSEWHERE = (
    Peer(
        "AISimulate",
        "mean TPOT 2.8 %, mean TTFT 13.5 % off: one run, MiniMax-M2.5 on four B200 (TP 2, two ranks), vLLM 0.25.1",
        "`benchmarks/evidence/accuracy/replay-evidence.md` of ai-dynamo/aisimulate (commit 305e46b)",
    ),
    Peer(
        SERVINGSIM,
        "mean TPOT up to 1.7 %, mean TTFT up to 13.6 % off: four runs of 300 requests on RTX PRO 6000 and RTX 4090,"
        " vLLM 0.19",
        "`bench/examples/*/*/validation/summary.txt` of casys-kaist/LLMServingSim (commit 030c1bc)",
    ),
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
