"""Small measurements in the formats of the real ones, for the tests of the accuracy benchmark."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy_experiment import Experiment, Sets
from benchmarks.accuracy_inferencex import (
    RECIPES,
    ROWS,
)
from benchmarks.accuracy_open_loop import LITE, POISSON
from benchmarks.accuracy_sets import (
    FIXED,
    LLAMA,
    META,
    MINIMAX,
    QWEN,
    REQUESTS,
    RTX_LLAMA,
    RTX_QWEN,
    RTX_QWEN_LINK,
)
from benchmarks.accuracy_single import WORKLOADS

GROUPS_OF_BEFORE = [LLAMA, MINIMAX, QWEN, RTX_LLAMA, RTX_QWEN, RTX_QWEN_LINK]
COLUMNS = (
    *("model_path", "system", "precision", "isl", "osl", "batch_size", "tp_size", "attention_dp_size"),
    *("silicon_ttft_ms", "silicon_tpot_ms"),
)
POINTS = (
    ("Qwen/Qwen3-32B", "h100_sxm", "", 64, 16, "2.0", "2.0", "", 50.0, 12.0),
    ("Qwen/Qwen3-32B", "h100_sxm", "", 64, 16, "4.0", "2.0", "", 60.0, 13.0),
    ("Qwen/Qwen3-32B", "h100_sxm", "fp8", 4000, 1000, "24.0", "1.0", "", 294.8, 16.8),
    ("meta-llama/Llama-3.1-70B", "h100_sxm", "fp8", 100, 20, "3.0", "4.0", "1.0", 80.0, 11.0),
    ("MiniMaxAI/MiniMax-M2.5", "h100_sxm", "fp8", 100, 20, "3.0", "4.0", "1.0", 80.0, 11.0),
    ("MiniMaxAI/MiniMax-M2.5", "h100_sxm", "fp8", 100, 20, "3.0", "4.0", "4.0", 80.0, 11.0),
    ("openai/gpt-oss-120b", "h100_sxm", "fp4", 100, 20, "3.0", "4.0", "1.0", 80.0, 11.0),
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "h200_sxm", "fp8", 100, 20, "3.0", "1.0", "", 80.0, 11.0),
)


def write_data(folder: Path) -> Path:
    """A folder laid out as the public data is, with a handful of rows."""
    (folder / "e2e").mkdir()
    with open(folder / FIXED, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *POINTS])
    columns = ("gpu", "run", "input_toks", "output_toks", "queued_ts", "request_id", "ttft_s", "e2e_s", "tpot_s")
    runs = [
        ("RTX", "Llama-3.1-8B", 30, 5, 100.5, "b", 0.02, 0.1, 0.02),
        ("RTX", "Llama-3.1-8B", 20, 6, 100.0, "a", 0.04, 0.3, 0.04),
        ("RTX", "Llama-3.1-8B", 20, 1, 101.0, "c", 0.03, 0.03, ""),
        ("RTX", "Qwen3-32B", 20, 6, 7.0, "a", 0.04, 0.3, 0.04),
    ]
    with gzip.open(folder / REQUESTS, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *runs])
    for run, tp in (("Llama-3.1-8B", 1), ("Qwen3-32B", 2)):
        told = {"tensor_parallel_size": tp, "max_num_seqs": 128, "max_num_batched_tokens": 2048}
        (folder / META.format(gpu="RTX", run=run)).write_text(json.dumps({"engine_kwargs": told}))
    _write_open_loop(folder)
    _write_inferencex(folder)
    return folder


LITE_ROW = {
    **{"model": "Qwen/Qwen3-14B", "hardware": "H100", "tp": 1, "max_num_batched_tokens": 2048, "max_num_seqs": 128},
    **{"gpu_mem_util": 0.9, "rates_rps": "2|4", "durations_s": "2|2", "system_prompt_len": 100, "question_len": 400},
    **{"output_len": 10, "num_unique_system_prompts": 3, "users_per_prompt": 2, "ttft_mean_ms": 40, "ttft_p90_ms": 41},
    **{"ttft_p99_ms": 42, "itl_mean_ms": 12, "e2e_mean_ms": 150, "e2e_p90_ms": 151, "e2e_p99_ms": 152},
}
LITE_ROWS = (LITE_ROW, {**LITE_ROW, "model": "meta-llama/Llama-3.1-8B-Instruct", "output_len": 100})


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_open_loop(folder: Path) -> None:
    measured = {
        f"{name}_{metric}_ms": 10.0 for metric in ("ttft", "tpot", "e2el") for name in ("mean", "p50", "p90", "p99")
    }
    run = {"model": "Qwen/Qwen3-14B", "gpu": "H100", "vllm": "0.23.0", "rate_rps": 2, "input_tokens": 98.6}
    _write(folder / POISSON, [{**run, "output_tokens": 8, **measured}])
    _write(folder / LITE, LITE_ROWS)


ROW = {
    **{"id": "a", "model": "meta-llama/Llama-3.1-70B", "system": "h100_sxm", "precision": "fp8", "mode": "agg"},
    **{"isl": "1024", "osl": "64", "concurrency": "2", "tp": "4", "dp": "1", "moe_ep": "1", "measured": "2025-10-29"},
    **{"backend_version": "", "ttft_mean_ms": "80", "tpot_mean_ms": "12", "recipe_commit": "c", "recipe_files": "l.sh"},
}
MOE_ROW = {**ROW, "id": "m", "model": "MiniMaxAI/MiniMax-M2.5", "backend_version": "0.18.0", "recipe_files": "m.sh"}
OSS_ROW = {**MOE_ROW, "id": "o", "model": "openai/gpt-oss-120b", "precision": "fp4", "recipe_files": "o.sh"}
KIMI_ROW = {
    **MOE_ROW,
    "id": "k",
    "model": "moonshotai/Kimi-K2.5",
    "precision": "int4",
    "tp": "8",
    "recipe_files": "k.sh",
}
INFERENCEX_ROWS = (
    *({**OSS_ROW, "system": system, "id": f"o {system}"} for system in ("h100_sxm", "h200_sxm", "b200_sxm")),
    *({**KIMI_ROW, "system": system, "id": f"k {system}"} for system in ("h200_sxm", "b200_sxm")),
    {**OSS_ROW, "id": "o seats", "concurrency": "512"},
    {**KIMI_ROW, "id": "k fp4", "system": "b200_sxm", "precision": "fp4"},
    *(
        {**row, "system": system, "id": f"{row['id']} {system}"}
        for row in (ROW, MOE_ROW)
        for system in ("h100_sxm", "h200_sxm", "b200_sxm")
    ),
    {**ROW, "id": "a h100_sxm again"},
    {**ROW, "id": "b", "tp": "8"},
    {**ROW, "id": "c", "tp": "8", "concurrency": "4"},
    {**MOE_ROW, "id": "d", "dp": "4", "moe_ep": "16"},
    {**MOE_ROW, "id": "e", "precision": "fp4"},
    {**MOE_ROW, "id": "f", "system": "b300_sxm"},
    {**MOE_ROW, "id": "g", "recipe_commit": "", "recipe_files": ""},
    {**ROW, "id": "h", "model": "openai/gpt-oss-120b"},
    {**ROW, "id": "i", "model": "Qwen/Qwen3-32B", "mode": "disagg"},
)
RECIPE_LLAMA = {
    "commit": "c",
    "file": "l.sh",
    "env": ["X=1"],
    "vllm_serve": "vllm serve $MODEL --config=config.yaml --gpu-memory-utilization=0.9 --max-num-seqs=$CONC",
    "config_yaml": "kv-cache-dtype: fp8\nasync-scheduling: true\nmax-num-batched-tokens: 8192\nmax-model-len: 10240",
}
RECIPE_MOE = {
    "commit": "c",
    "file": "m.sh",
    "env": ["VLLM_FLASHINFER_ALLREDUCE_BACKEND=mnnvl"],
    "vllm_serve": "vllm serve $MODEL --port $PORT --tensor-parallel-size=$TP $EP --gpu-memory-utilization 0.95 "
    '--max-model-len $MAX_MODEL_LEN --block-size=32 --max-num-batched-tokens "$((ISL * 2 ))" --stream-interval 20 '
    "--no-enable-prefix-caching --trust-remote-code",
    "config_yaml": "",
}


RECIPE_OSS = {
    "commit": "c",
    "file": "o.sh",
    "env": ["VLLM_MXFP4_USE_MARLIN=1"],
    "vllm_serve": "vllm serve $MODEL --config config.yaml --gpu-memory-utilization 0.9 --max-num-seqs $CONC",
    "config_yaml": "max-cudagraph-capture-size: 2048\nmax-num-batched-tokens: 8192\nmax-model-len: 10240",
}


def _write_inferencex(folder: Path) -> None:
    _write(folder / ROWS, INFERENCEX_ROWS)
    (folder / "workloads").mkdir()
    chats = {"workload": "sharegpt-llama-3.1-8b-300-sps10", "input_tokens": 20, "output_tokens": 5}
    of_ranks = {**chats, "workload": "sharegpt-qwen3-32b-300-sps10", "arrival_s": 0.5}
    _write(folder / WORKLOADS, [{**chats, "arrival_s": 2.5}, {**chats, "arrival_s": 0.5}, of_ranks])
    recipes = [RECIPE_LLAMA, RECIPE_MOE, RECIPE_OSS, {**RECIPE_MOE, "file": "k.sh", "env": []}]
    (folder / RECIPES).write_text(json.dumps(recipes))


def of(sets: Sets, group: str) -> list[Experiment]:
    return [each for each in sets.experiments if each.group == group]
