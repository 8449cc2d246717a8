"""Measured runs whose requests come at a rate: two of vLLM 0.23.0, nine of vLLM 0.15.1."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.accuracy_experiment import Experiment, Scenario, Sets

POISSON = "e2e/vllm0230_qwen3-14b_h100_poisson.csv"
LITE = "e2e/vllm0151_lite_runs.csv"

QWEN_0230 = "vLLM 0.23.0, Qwen3-14B, H100"
LITE_0151 = "vLLM 0.15.1, nine runs"

POISSON_S = 600.0
"""Length of each of the two runs."""
NO_FILES = {"report": False, "trace": False, "requests": False, "steps": False}
GPUS = {"H100": "h100-sxm", "A100-80GB": "a100-80gb-sxm", "L40S": "l40s"}
MODELS = {
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "mistralai/Mixtral-8x22B-v0.1": "mixtral-8x22b",
    "Qwen/Qwen3-14B": "qwen3-14b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "codellama/CodeLlama-34b-Instruct-hf": "codellama-34b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
}
INPUT_FACTOR = 1.047
"""Tokens of a prompt for one of its system prompt and question: the chat's own words, and text that is counted anew."""
OUTPUT_FACTORS = {"meta-llama/Llama-3.1-8B-Instruct": 0.956}
"""Tokens out for one of the stated length, where a model gives others than were asked for."""
LITE_MODEL_LEN = 4096
LITE_VERSION = "0.15.1"
METRICS = (
    *("mean_ttft_ms", "p50_ttft_ms", "p90_ttft_ms", "p99_ttft_ms"),
    *("mean_tpot_ms", "p50_tpot_ms", "p90_tpot_ms", "p99_tpot_ms"),
    *("mean_e2el_ms", "p50_e2el_ms", "p90_e2el_ms", "p99_e2el_ms"),
)


def add_poisson(sets: Sets, table: list[dict[str, str]]) -> None:
    """Stock settings on an H100 as vLLM 0.23.0 has them, prompts that share nothing."""
    for row in table:
        rate = float(row["rate_rps"])
        scenario: Scenario = {
            "name": f"{rate:g} requests/s",
            "workload": {
                "arrival": {"process": "stages", "stages": [{"rate": rate, "duration_s": POISSON_S}]},
                "input_tokens": {"dist": "fixed", "value": round(float(row["input_tokens"]))},
                "output_tokens": {"dist": "fixed", "value": int(row["output_tokens"])},
            },
            "engine": {
                "model": "qwen3-14b",
                "gpu": GPUS[row["gpu"]],
                "vllm_version": row["vllm"],
                "max_num_seqs": 1024,
                "max_num_batched_tokens": 8192,
                "max_model_len": 40960,
            },
            "latency": {"kind": "profile"},
            "outputs": NO_FILES,
        }
        measured = {key: float(row[key]) for key in METRICS}
        sets.experiments.append(Experiment(QWEN_0230, scenario["name"], scenario, measured, version=row["vllm"]))


def add_lite(sets: Sets, table: list[dict[str, str]]) -> None:
    """Runs of inference-perf: each user repeats one prompt, so that from the second time on all of it is cached."""
    for row in table:
        scenario = _lite(row)
        measured = {
            "mean_ttft_ms": float(row["ttft_mean_ms"]),
            "p90_ttft_ms": float(row["ttft_p90_ms"]),
            "p99_ttft_ms": float(row["ttft_p99_ms"]),
            "mean_tpot_ms": float(row["itl_mean_ms"]),
            "mean_e2el_ms": float(row["e2e_mean_ms"]),
            "p90_e2el_ms": float(row["e2e_p90_ms"]),
            "p99_e2el_ms": float(row["e2e_p99_ms"]),
        }
        sets.experiments.append(Experiment(LITE_0151, scenario["name"], scenario, measured, version=LITE_VERSION))


def _lite(row: Mapping[str, str]) -> Scenario:
    tokens = round(INPUT_FACTOR * (int(row["system_prompt_len"]) + int(row["question_len"])))
    output = round(OUTPUT_FACTORS.get(row["model"], 1.0) * int(row["output_len"]))
    stages = [
        {"rate": float(rate), "duration_s": float(duration)}
        for rate, duration in zip(row["rates_rps"].split("|"), row["durations_s"].split("|"), strict=True)
    ]
    return {
        "name": f"{row['model'].rpartition('/')[2]}, {row['hardware']} TP {row['tp']}",
        "workload": {
            "arrival": {"process": "stages", "stages": stages},
            "input_tokens": {"dist": "fixed", "value": tokens},
            "output_tokens": {"dist": "fixed", "value": output},
            "prefix": {
                "groups": int(row["num_unique_system_prompts"]) * int(row["users_per_prompt"]),
                "tokens": tokens,
            },
        },
        "engine": {
            "model": MODELS[row["model"]],
            "gpu": GPUS[row["hardware"]],
            "vllm_version": LITE_VERSION,
            "tensor_parallel_size": int(row["tp"]),
            "max_num_seqs": int(row["max_num_seqs"]),
            "max_num_batched_tokens": int(row["max_num_batched_tokens"]),
            "max_model_len": LITE_MODEL_LEN,
            "gpu_memory_utilization": float(row["gpu_mem_util"]),
        },
        "latency": {"kind": "profile"},
        "outputs": NO_FILES,
    }
