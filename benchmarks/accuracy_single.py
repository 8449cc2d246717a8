"""Runs that were measured one at a time, each from its own public source: no bar, but to be seen."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import replace

from benchmarks.accuracy_experiment import Experiment, Scenario, Sets

WORKLOADS = "workloads/llmservingsim_workloads.csv.gz"
SINGLE = "Single runs"

NO_FILES = {"report": False, "trace": False, "requests": False, "steps": False}
SHAREGPT = "sharegpt-{}-300-sps10"
H200_ITL_MS = {16: 93.63, 32: 236.8, 64: 308.8}
"""Mean ITL by clients."""

SINGLE_SOURCES = {
    "Qwen3-8B, H200, 9,000 in / 30 out": "ai-dynamo/aiconfigurator issue 1148, vLLM 0.18",
    "Qwen3-14B AWQ, A100, eager, 16,000 in / 200 out": "vllm-project/vllm issue 20469, vLLM 0.9.1",
    "Llama-3.1-8B, RTX 4090, ShareGPT at 10/s": "casys-kaist/LLMServingSim issue 59, vLLM 0.19",
    "Qwen3-30B-A3B, two ranks with EP, RTX PRO 6000, ShareGPT at 10/s": "casys-kaist/LLMServingSim,"
    " `bench/examples`, vLLM 0.19.0",
}
"""Run -> where it was published."""
H200_QWEN, A100_AWQ, RTX4090_LLAMA, RTX_MOE = SINGLE_SOURCES
RTX_MOE_LINK = f"{RTX_MOE}, link as its owners state"
OWNERS_LINK = {"link_bandwidth_gb_s": 16.0, "link_latency_us": 20.0}
"""Between the two RTX PRO 6000: ``link_bw`` and ``link_latency`` in LLMServingSim's own configurations of its two runs
on that machine (Qwen3-32B at TP 2, Qwen3-30B-A3B on two ranks: commit 5daddb2), both of 2026-04-25."""

RTX4090_MS = {
    **{"mean_ttft_ms": 65456.6, "p50_ttft_ms": 60110.9, "p90_ttft_ms": 121121.7, "p99_ttft_ms": 137356.3},
    **{"mean_tpot_ms": 32.4, "p50_tpot_ms": 30.8, "p90_tpot_ms": 38.1, "p99_tpot_ms": 56.0},
    **{"mean_e2el_ms": 86578.3, "p50_e2el_ms": 83413.3, "p90_e2el_ms": 141600.9, "p99_e2el_ms": 153627.5},
}
RTX_MOE_MS = {
    **{"mean_ttft_ms": 1086.0, "p50_ttft_ms": 138.8, "p90_ttft_ms": 5182.6, "p99_ttft_ms": 9587.9},
    **{"mean_tpot_ms": 47.3, "p50_tpot_ms": 48.9, "p90_tpot_ms": 52.2, "p99_tpot_ms": 53.3},
    **{"mean_e2el_ms": 32344.6, "p50_e2el_ms": 31462.3, "p90_e2el_ms": 38448.2, "p99_e2el_ms": 43901.1},
}
"""As LLMServingSim's ``validation/summary.txt`` has them (commit 030c1bc)."""


def add_single(sets: Sets, workloads: Iterable[Mapping[str, str]]) -> None:
    """Those that need no data file, and those whose workload lies under the data folder."""
    for clients, itl_ms in H200_ITL_MS.items():
        name = f"{H200_QWEN}, {clients} clients"
        measured = {"mean_itl_ms": itl_ms}
        sets.experiments.append(Experiment(SINGLE, name, _h200(name, clients), measured, version="0.18.0"))
    measured = {"mean_ttft_ms": 3345.0, "mean_tpot_ms": 20.63}
    sets.experiments.append(Experiment(SINGLE, A100_AWQ, _awq(), measured, version="0.9.1"))
    traces = _traces(workloads)
    for name, workload, engine, more, found in (
        (
            RTX4090_LLAMA,
            SHAREGPT.format("llama-3.1-8b"),
            {"model": "llama-3.1-8b", "gpu": "rtx-4090", "max_num_seqs": 256, "max_model_len": 32768},
            {},
            RTX4090_MS,
        ),
        (
            RTX_MOE,
            SHAREGPT.format("qwen3-32b"),
            {
                "model": "qwen3-30b-a3b",
                "gpu": "rtx-pro-6000",
                "data_parallel_size": 2,
                "enable_expert_parallel": True,
                "max_num_seqs": 128,
                "max_model_len": 40960,
            },
            {"cluster": {"router": "vllm_dp"}},
            RTX_MOE_MS,
        ),
    ):
        if workload in traces:
            scenario: Scenario = {
                "name": name,
                "workload": {"trace": {"path": None, "format": "generic"}},
                "engine": {**engine, "max_num_batched_tokens": 2048, "vllm_version": "0.19.0"},
                "outputs": NO_FILES,
                "latency": {},
                **more,
            }
            experiment = Experiment(SINGLE, name, scenario, found, traces[workload], version="0.19.0")
            sets.experiments.append(experiment)
            if name == RTX_MOE:
                linked = {**scenario, "latency": dict(OWNERS_LINK)}
                sets.experiments.append(replace(experiment, name=RTX_MOE_LINK, scenario=linked))


def _traces(workloads: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Workload -> the trace that a scenario replays."""
    rows: dict[str, list[list[str]]] = {}
    for row in workloads:
        rows.setdefault(row["workload"], []).append([row["arrival_s"], row["input_tokens"], row["output_tokens"]])
    found = {}
    for name, each in rows.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["arrival_s", "input_tokens", "output_tokens"])
        writer.writerows(sorted(each, key=lambda row: float(row[0])))
        found[name] = text.getvalue()
    return found


def _closed_loop(name: str, clients: int, requests: int, lengths: tuple[int, int], engine: Scenario) -> Scenario:
    return {
        "name": name,
        "workload": {
            "requests": requests,
            "arrival": {"process": "closed_loop", "concurrency": clients},
            "input_tokens": {"dist": "fixed", "value": lengths[0]},
            "output_tokens": {"dist": "fixed", "value": lengths[1]},
        },
        "engine": engine,
        "latency": {},
        "outputs": NO_FILES,
    }


def _h200(name: str, clients: int) -> Scenario:
    engine = {
        "model": "qwen3-8b",
        "gpu": "h200-sxm",
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 8192,
        "max_model_len": 16384,
        "enable_prefix_caching": False,
        "vllm_version": "0.18.0",
    }
    return _closed_loop(name, clients, 400, (9000, 30), engine)


def _awq() -> Scenario:
    engine = {
        "model": "qwen3-14b",
        "dtype": "int4",
        "gpu": "a100-80gb-sxm",
        "enforce_eager": True,
        "max_num_seqs": 30,
        "max_num_batched_tokens": 2048,
        "max_model_len": 16384,
        "gpu_memory_utilization": 0.95,
        "async_scheduling": False,
        "vllm_version": "0.9.1",
    }
    return _closed_loop(A100_AWQ, 1, 30, (16000, 200), engine)
