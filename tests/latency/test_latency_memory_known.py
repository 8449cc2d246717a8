"""KV cache sizes that vLLM's V1 engine logged in public, against the memory plan: ``docs/memory.md`` is this table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engines import engine_config

from sim.latency.memory import MemoryPlan, plan_memory

GIB = 1 << 30
H100: dict[str, Any] = {"gpu": "h100-sxm", "max_num_seqs": 1024, "max_num_batched_tokens": 8192}
"""What ``vllm serve`` takes by default on GPUs of 70 GiB or more other than A100; 256 and 2048 on all others."""
LLM_D = "https://github.com/llm-d/llm-d-benchmark/blob/main/config_explorer/empirical-vllm-memory-results.md"
LMCACHE = "https://github.com/LMCache/LMCache/pull/1769"


@dataclass(frozen=True)
class Known:
    """One start of vLLM: its settings and what it had left for KV, per GPU."""

    name: str
    version: tuple[int, int]
    engine: dict[str, Any]
    source: str
    gib: float | None = None
    """``Available KV cache memory``."""
    tokens: int | None = None
    """``GPU KV cache size``."""
    off: str = ""
    """Why the plan may be more than 3 % off."""
    bound: float = 0.03


KNOWN = (
    Known("Llama-3.1-8B, H100", (0, 11), {**H100, "model": "llama-3.1-8b", "max_model_len": 16000}, LLM_D, gib=51.38),
    Known("Qwen3-32B, H100", (0, 11), {**H100, "model": "qwen3-32b", "max_model_len": 16000}, LLM_D, gib=4.45),
    Known(
        "Qwen3-32B, 2 x H100",
        (0, 11),
        {**H100, "model": "qwen3-32b", "max_model_len": 16000, "tensor_parallel_size": 2},
        LLM_D,
        gib=34.49,
    ),
    Known(
        "Llama-3.3-70B FP8, 2 x H100",
        (0, 11),
        {**H100, "model": "llama-3.3-70b", "dtype": "fp8", "max_model_len": 16000, "tensor_parallel_size": 2},
        LLM_D,
        gib=32.00,
    ),
    Known(
        "Qwen3-8B, H100, LMCache",
        (0, 11),
        {**H100, "model": "qwen3-8b", "max_model_len": 40960},
        LMCACHE,
        tokens=366_400,
    ),
    Known(
        "Qwen3-32B, 2 x H100, LMCache",
        (0, 11),
        {**H100, "model": "qwen3-32b", "max_model_len": 40960, "tensor_parallel_size": 2},
        LMCACHE,
        tokens=275_760,
    ),
    Known(
        "Llama-3.1-70B, 4 x H100, LMCache",
        (0, 11),
        {**H100, "model": "llama-3.1-70b", "max_model_len": 131072, "tensor_parallel_size": 4},
        LMCACHE,
        tokens=420_208,
    ),
    Known(
        "Qwen2.5-14B, H100",
        (0, 21),
        {**H100, "model": "qwen2.5-14b", "max_model_len": 4096, "max_num_seqs": 256},
        "https://github.com/llm-inferno/server-sim/tree/main/docs/example-runs/qwen2.5-14b-h100",
        tokens=226_240,
    ),
    Known(
        "Qwen3-8B, A100 40 GB",
        (0, 9),
        {"gpu": "a100-40gb-sxm", "model": "qwen3-8b", "max_model_len": 40960},
        "https://github.com/dariustanrd/tokenkaki/tree/main/blogposts/content/1_vllm",
        tokens=136_080,
    ),
    Known(
        "Llama-3.1-8B, A100 80 GB",
        (0, 31),
        {
            "gpu": "a100-80gb-sxm",
            "model": "llama-3.1-8b",
            "max_model_len": 131072,
            "gpu_memory_utilization": 0.92,
        },
        "public notes on GitHub, address not known; its log says `GPU KV cache size: 460,496 tokens`",
        tokens=460_496,
    ),
    Known(
        "Llama-3-70B AWQ, 2 x L40S",
        (0, 16),
        {"gpu": "l40s", "model": "llama-3-70b", "dtype": "int4", "max_model_len": 8192, "tensor_parallel_size": 2},
        "public notes on GitHub, address not known; its log says `GPU KV cache size: 132,128 tokens`",
        tokens=132_128,
    ),
    Known(
        "Qwen2-7B, A100 80 GB, half of it",
        (0, 10),
        {"gpu": "a100-80gb-sxm", "model": "qwen2.5-7b", "max_model_len": 16384, "gpu_memory_utilization": 0.5},
        "https://github.com/dennislee22/vLLM-benchmarking/blob/main/log/vllm-7B-1gpuA10080GB-0.5GRAM.log",
        tokens=464_848,
        off="samples with FlashInfer, which does not sort: about 1 GiB less at its peak",
        bound=0.05,
    ),
    Known(
        "Qwen2-7B, 2 x A100 80 GB, half of each",
        (0, 10),
        {
            "gpu": "a100-80gb-sxm",
            "model": "qwen2.5-7b",
            "max_model_len": 16384,
            "gpu_memory_utilization": 0.5,
            "tensor_parallel_size": 2,
        },
        "https://github.com/dennislee22/vLLM-benchmarking/blob/main/log/vllm-7B-2gpuA10080GB-0.5GRAM-same-node.log",
        tokens=1_192_160,
        off="samples with FlashInfer; PCIe cards without peer access, not SXM",
        bound=0.05,
    ),
)


def computed(known: Known) -> tuple[MemoryPlan, float]:
    """The plan, and the bytes that this version of vLLM would have left for KV by it."""
    # The longest request decides nothing of what is left, but since 0.21 graphs may take the room that it needs.
    plan = plan_memory(engine_config(**{**known.engine, "max_model_len": 4096}))
    return plan, plan.available_kv_bytes + (plan.graph_bytes if known.version < (0, 21) else 0)


def error(known: Known) -> float:
    """Computed over logged, less one."""
    plan, kv_bytes = computed(known)
    logged = known.gib * GIB if known.tokens is None and known.gib else (known.tokens or 0) * plan.kv_bytes_per_token
    return kv_bytes / logged - 1.0


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_the_plan_leaves_what_vllm_logged(known: Known) -> None:
    assert abs(error(known)) < known.bound, f"{error(known):+.2%}"


def test_bounds_are_wider_only_with_a_reason() -> None:
    assert all(known.off for known in KNOWN if known.bound > 0.03)
    within = [known for known in KNOWN if abs(error(known)) < 0.03]
    assert len(within) >= 8
    assert {known.engine["gpu"] for known in within} >= {"h100-sxm", "a100-80gb-sxm", "a100-40gb-sxm", "l40s"}


def row(known: Known) -> str:
    """The line of ``docs/memory.md``."""
    plan, kv_bytes = computed(known)
    logged = known.gib if known.gib is not None else (known.tokens or 0) * plan.kv_bytes_per_token / GIB
    version = f"{known.version[0]}.{known.version[1]}"
    source = f"[log]({known.source})" if known.source.startswith("http") else known.source
    return f"| {known.name} | {version} | {logged:.2f} | {kv_bytes / GIB:.2f} | {error(known):+.1%} | {source} |"


def test_the_page_is_this_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")
    missing = [row(known) for known in KNOWN if row(known) not in page]
    assert not missing, "\n".join(["docs/memory.md lacks:", *missing])
