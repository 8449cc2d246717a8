"""The public measured sets of ``benchmarks.accuracy``, read as experiments: a scenario, and what was measured.

The data files are not part of the project; ``SOURCES`` says where they are from.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy_experiment import Experiment, Scenario, Sets, Unscored
from benchmarks.accuracy_fit import add_fitted
from benchmarks.accuracy_inferencex import LLAMA_VERSION, RECIPES, ROWS, add_inferencex
from benchmarks.accuracy_open_loop import LITE, POISSON, add_lite, add_poisson
from benchmarks.accuracy_single import OWNERS_LINK, SINGLE_SOURCES, WORKLOADS, add_single
from sim.seeds import rng

FIXED = "e2e/aiconfigurator_vllm_h100_fixed_concurrency.csv"
REQUESTS = "e2e/llmservingsim_vllm019_requests.csv.gz"
META = "e2e/llmservingsim_meta_{gpu}_{run}.json"

SOURCES = {
    FIXED: "ai-dynamo/aiconfigurator, Apache-2.0: `systems/silicon_sample.csv` of PyPI's `aiconfigurator-core`, rows of"
    " vLLM on H100 (and one model on H200)",
    REQUESTS: "casys-kaist/LLMServingSim, MIT: `bench/examples`, runs of April 2026 on vLLM 0.19.0",
    POISSON: "figures of two runs of vLLM 0.23.0: Qwen3-14B on one H100, Poisson arrivals, 600 s each",
    LITE: "figures of nine runs of vLLM 0.15.1 with inference-perf, on H100, A100 and L40S",
    WORKLOADS: "casys-kaist/LLMServingSim, MIT: the workloads of its runs; single runs are from "
    + "; ".join(SINGLE_SOURCES.values()),
    ROWS: "SemiAnalysisAI/InferenceX (commit 843c6254), Apache-2.0: vLLM's rows as in `silicon_sample` of PyPI's"
    " `aiconfigurator-core`, and the recipes of their dates (`inferencex_vllm_recipes.json`)",
}

LLAMA, MINIMAX, QWEN = "Llama-3.1-70B FP8, H100", "MiniMax-M2.5 FP8, H100", "Qwen3-32B BF16, H100"
RTX_LLAMA, RTX_QWEN = "Llama-3.1-8B, RTX PRO 6000", "Qwen3-32B TP 2, RTX PRO 6000"
RTX_QWEN_LINK = f"{RTX_QWEN}, link as its owners state"

MINIMAX_VERSION, QWEN_VERSION, RTX_VERSION = "0.18.0", "0.12.0", "0.19.0"
"""Engines that were measured."""


def read_sets(data: Path) -> Sets:
    """Whatever of the sets lies under ``data``; nothing where nothing does."""
    sets = Sets()
    if (data / FIXED).is_file():
        with open(data / FIXED, newline="", encoding="utf-8") as file:
            add_fixed_concurrency(sets, list(csv.DictReader(file)))
    if (data / REQUESTS).is_file():
        with gzip.open(data / REQUESTS, "rt", newline="", encoding="utf-8") as file:
            add_runs(sets, list(csv.DictReader(file)), data)
    for name, add in ((POISSON, add_poisson), (LITE, add_lite)):
        if (data / name).is_file():
            with open(data / name, newline="", encoding="utf-8") as file:
                add(sets, list(csv.DictReader(file)))
    add_fitted(sets)
    if (data / ROWS).is_file() and (data / RECIPES).is_file():
        with gzip.open(data / ROWS, "rt", newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        add_inferencex(sets, table, json.loads((data / RECIPES).read_text(encoding="utf-8")))
    if (data / WORKLOADS).is_file():
        with gzip.open(data / WORKLOADS, "rt", newline="", encoding="utf-8") as file:
            add_single(sets, csv.DictReader(file))
    return sets


# --- fixed concurrency -------------------------------------------------------------------------


def _uniform(longest: int) -> Scenario:
    return {"dist": "uniform", "low": int(longest * 0.8), "high": longest}


def _fixed(tokens: int) -> Scenario:
    return {"dist": "fixed", "value": tokens}


@dataclass(frozen=True)
class Point:
    """One measured point of the file."""

    model: str
    system: str
    precision: str
    isl: int
    osl: int
    concurrency: int
    tp: int
    data_parallel: int
    ttft_ms: float
    tpot_ms: float

    @property
    def name(self) -> str:
        return f"TP {self.tp}, {self.isl:,} in / {self.osl:,} out, {self.concurrency} clients"

    @property
    def measured(self) -> dict[str, float]:
        return {"mean_ttft_ms": self.ttft_ms, "mean_tpot_ms": self.tpot_ms}


def _number(row: Mapping[str, str], key: str) -> int:
    return int(float(row[key] or 0))


def _rows(table: list[dict[str, str]]) -> Iterator[Point]:
    for row in table:
        yield Point(
            model=row["model_path"],
            system=row["system"],
            precision=row["precision"],
            isl=_number(row, "isl"),
            osl=_number(row, "osl"),
            concurrency=_number(row, "batch_size"),
            tp=_number(row, "tp_size"),
            data_parallel=_number(row, "attention_dp_size"),
            ttft_ms=float(row["silicon_ttft_ms"]),
            tpot_ms=float(row["silicon_tpot_ms"]),
        )


def closed_loop(
    row: Point, lengths: tuple[Scenario, Scenario], engine: Scenario, sampling: str | None = "plain"
) -> Scenario:
    """Ten requests per client, all clients starting at once; every request counts. InferenceX's client asks for
    temperature 0, ``plain``; None = the model's own sampling, as for a client that asks for none."""
    return {
        "name": row.name,
        "workload": {
            "requests": 10 * row.concurrency,
            "arrival": {"process": "closed_loop", "concurrency": row.concurrency},
            "input_tokens": lengths[0],
            "output_tokens": lengths[1],
        },
        "engine": {
            "gpu": "h100-sxm",
            "tensor_parallel_size": row.tp,
            "enable_prefix_caching": False,
            **engine,
        },
        "latency": {"kind": "profile", **({} if sampling is None else {"sampling": sampling})},
        "outputs": {"report": False, "trace": False, "requests": False, "steps": False},
    }


def llama_point(row: Point) -> Scenario:
    """Settings of InferenceMAX's script for this model (``70b_fp8_h100_slurm.sh``), without its ``config.yaml``
    (``AS_STARTED``)."""
    settings = {
        "model": "llama-3.1-70b",
        "dtype": "fp8",
        "async_scheduling": False,
        "max_num_seqs": row.concurrency,
        "max_num_batched_tokens": 8192,
        "vllm_version": LLAMA_VERSION,
    }
    return closed_loop(row, (_uniform(row.isl), _uniform(row.osl)), settings)


def minimax_point(row: Point) -> Scenario:
    """Settings of InferenceX's script for this model (``minimaxm2.5_fp8_h100.sh``), the rest vLLM's defaults."""
    settings = {
        "model": "minimax-m2.5",
        "dtype": "fp8",
        "enable_expert_parallel": True,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": row.isl + row.osl + 200,
        "vllm_version": MINIMAX_VERSION,
    }
    return closed_loop(row, (_uniform(row.isl), _uniform(row.osl)), settings)


def qwen_point(row: Point) -> Scenario:
    """Settings that aiconfigurator's own generator of vLLM benchmarks would give; vLLM 0.12 schedules in step."""
    settings = {
        "model": "qwen3-32b",
        "async_scheduling": False,
        "vllm_version": QWEN_VERSION,
        "max_num_seqs": 128,
        "max_num_batched_tokens": row.isl + 1500 + row.concurrency,
        "max_model_len": row.isl + row.osl + 1500,
    }
    return closed_loop(row, (_fixed(row.isl), _fixed(row.osl)), settings, sampling=None)


def add_fixed_concurrency(sets: Sets, table: list[dict[str, str]]) -> None:
    """The points that are scored, and the rest with the reason."""
    rows = list(_rows(table))
    llama = [row for row in rows if row.model.endswith("Llama-3.1-70B")]
    minimax = [row for row in rows if "MiniMax" in row.model and row.data_parallel <= 1]
    qwen = [row for row in rows if row.model.endswith("Qwen3-32B") and not row.precision]
    training = set(rng(0, "accuracy", "training half").permutation(len(qwen))[: len(qwen) // 2].tolist())
    sets.experiments += [
        Experiment(LLAMA, row.name, llama_point(row), row.measured, version=LLAMA_VERSION) for row in llama
    ]
    sets.experiments += [
        Experiment(MINIMAX, row.name, minimax_point(row), row.measured, version=MINIMAX_VERSION) for row in minimax
    ]
    sets.experiments += [
        Experiment(QWEN, row.name, qwen_point(row), row.measured, is_training=i in training, version=QWEN_VERSION)
        for i, row in enumerate(qwen)
    ]
    for what, reason, chosen in (
        (
            "openai/gpt-oss-120b",
            "4-bit floating-point experts, attention sinks and alternating windows are not modelled",
            [row for row in rows if "gpt-oss" in row.model],
        ),
        (
            "nvidia/Llama-3.1-8B-Instruct-FP8, H200",
            "the client is not recorded, and a closed loop it was hardly: 112 clients with 1,000 tokens in and 100 out"
            " would prefill at 1.5 PFLOP/s beside their decodes",
            [row for row in rows if "8B" in row.model],
        ),
        (
            "MiniMax-M2.5, attention over 4 replicas",
            "the same experiments at 4 times the concurrency under another label (aiconfigurator's own file gives the"
            " concurrency, and the times are those of the 15 rows that are scored)",
            [row for row in rows if "MiniMax" in row.model and row.data_parallel > 1],
        ),
        (
            "Qwen3-32B FP8",
            "three points of another collection, their clients and engine settings unknown",
            [row for row in rows if row.model.endswith("Qwen3-32B") and row.precision],
        ),
    ):
        if chosen:
            sets.unscored.append(Unscored(what, len(chosen), reason))


# --- per-request runs --------------------------------------------------------------------------

STATISTICS = ("mean", "p50", "p90", "p99")
METRICS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}
RUNS = {"Llama-3.1-8B": ("llama-3.1-8b", RTX_LLAMA), "Qwen3-32B": ("qwen3-32b", RTX_QWEN)}


def statistics_ms(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Mean and percentiles as ``summary.json`` names them, from seconds per request by metric (``ttft`` ...)."""
    found = {}
    for metric, values in seconds.items():
        array = np.array(values) * 1e3
        for name in STATISTICS:
            value = array.mean() if name == "mean" else np.percentile(array, float(name[1:]))
            found[f"{name}_{metric}_ms"] = float(value)
    return found


def add_runs(sets: Sets, table: list[dict[str, str]], data: Path) -> None:
    """The runs as traces: requests arrive when the engine queued them."""
    for run, (model, group) in RUNS.items():
        rows = [row for row in table if row["run"] == run]
        if not rows:
            continue
        meta = json.loads((data / META.format(gpu=rows[0]["gpu"], run=run)).read_text(encoding="utf-8"))
        measured = statistics_ms(
            {metric: [float(row[key]) for row in rows if row[key]] for metric, key in METRICS.items()}
        )
        experiment = Experiment(
            group, run, _replay(run, model, meta["engine_kwargs"]), measured, _trace(rows), version=RTX_VERSION
        )
        sets.experiments.append(experiment)
        if meta["engine_kwargs"]["tensor_parallel_size"] == 2:
            scenario = deepcopy(experiment.scenario)
            scenario["latency"].update(OWNERS_LINK)
            sets.experiments.append(replace(experiment, group=RTX_QWEN_LINK, scenario=scenario))


def _trace(rows: list[dict[str, str]]) -> str:
    first = min(float(row["queued_ts"]) for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arrival_s", "input_tokens", "output_tokens", "request_id"])
    for row in sorted(rows, key=lambda row: float(row["queued_ts"])):
        arrival = float(row["queued_ts"]) - first
        writer.writerow([f"{arrival:.6f}", row["input_toks"], row["output_toks"], row["request_id"]])
    return text.getvalue()


def _replay(run: str, model: str, told: Mapping[str, Any]) -> Scenario:
    return {
        "name": run,
        "workload": {"trace": {"path": None, "format": "generic"}},
        "engine": {
            "model": model,
            "gpu": "rtx-pro-6000",
            "tensor_parallel_size": told["tensor_parallel_size"],
            "max_num_seqs": told["max_num_seqs"],
            "max_num_batched_tokens": told["max_num_batched_tokens"],
            "max_model_len": 16384,
            "vllm_version": RTX_VERSION,
        },
        # the times are the engine's own, and its requests say nothing of top_p
        "latency": {"kind": "profile", "client_overhead_ms": 0, "sampling": "plain"},
        "outputs": {"report": False, "trace": False, "requests": False, "steps": False},
    }
