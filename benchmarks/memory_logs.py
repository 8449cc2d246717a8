"""KV cache sizes that vLLM logged when it started, with the settings of each start: figures from public logs.

``accuracy_memory.py`` scores the memory plan on them, ``docs/memory.md`` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

LMCACHE_1769 = "[LMCache#1769](https://github.com/LMCache/LMCache/pull/1769)"
LLM_D_011 = (
    "[llm-d-benchmark]"
    "(https://github.com/llm-d/llm-d-benchmark/blob/main/config_explorer/empirical-vllm-memory-results.md)"
)
PLANNER = "[llm-d-planner](https://github.com/llm-d-incubation/llm-d-planner/tree/main/docs/accuracy)"
SERVINGSIM = "[LLMServingSim](https://github.com/casys-kaist/LLMServingSim/tree/main/bench)"
NOTES = "public notes, address not known: `GPU KV cache size: {} tokens`"
OPTIMISATION_DOC = "[vllm#48322](https://github.com/vllm-project/vllm/pull/48322)"
STATED = 0.9
"""What a source says of ``gpu_memory_utilization`` where the version's own default is another; starts that say nothing
are of versions before 0.20, whose default this was."""
COLD = "probably the first start with these settings, which compiles and leaves less"


@dataclass(frozen=True, kw_only=True)
class StartLog:
    """One start of vLLM: its settings and what it had left for KV, per GPU."""

    name: str
    version: str
    engine: Mapping[str, Any]
    source: str
    tokens: int = 0
    """``GPU KV cache size``."""
    gib: float = 0.0
    """``Available KV cache memory``, where no tokens are known."""
    gave: str = ""
    """The figure of the plan that was taken from this log; empty = none, it is a test."""
    off: str = ""
    """Why the plan may be further off than others."""
    bound: float = 0.03
    """Error that a test holds it to."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The ``config.json`` of a model that is no preset."""


H100: Mapping[str, Any] = MappingProxyType({"gpu": "h100-sxm", "max_num_seqs": 1024, "max_num_batched_tokens": 8192})
"""What ``vllm serve`` takes by default on GPUs of 70 GiB or more other than A100; 256 and 2048 on all others."""
PRO_6000: Mapping[str, Any] = MappingProxyType(
    {"gpu": "rtx-pro-6000", "gpu_memory_utilization": 0.92, "max_num_seqs": 128, "max_num_batched_tokens": 2048}
)
A100, A100_40, RTX_4090 = "a100-80gb-sxm", "a100-40gb-sxm", "rtx-4090"

START_LOGS = (
    StartLog(
        name="Llama-3.1-8B, H100",
        version="0.11.0",
        engine={**H100, "model": "llama-3.1-8b", "max_model_len": 16000},
        source=LLM_D_011,
        gib=51.38,
        gave="bytes per sorted logit",
    ),
    StartLog(
        name="Qwen3-32B, H100",
        version="0.11.0",
        engine={**H100, "model": "qwen3-32b", "max_model_len": 16000},
        source=LLM_D_011,
        gib=4.45,
        gave="bytes per sorted logit",
    ),
    StartLog(
        name="Qwen3-32B, 2 x H100",
        version="0.11.0",
        engine={**H100, "model": "qwen3-32b", "max_model_len": 16000, "tensor_parallel_size": 2},
        source=LLM_D_011,
        gib=34.49,
        gave="communicators before 0.17",
    ),
    StartLog(
        name="Llama-3.3-70B FP8, 2 x H100",
        version="0.11.0",
        engine={
            **H100,
            "model": "llama-3.3-70b",
            "dtype": "fp8",
            "max_model_len": 16000,
            "tensor_parallel_size": 2,
        },
        source=LLM_D_011,
        gib=32.00,
        gave="communicators before 0.17",
    ),
    StartLog(
        name="Qwen3-8B, H100, LMCache",
        version="0.11.0",
        engine={**H100, "model": "qwen3-8b", "max_model_len": 40960},
        source=LMCACHE_1769,
        tokens=366_400,
    ),
    StartLog(
        name="Qwen3-32B, 2 x H100, LMCache",
        version="0.11.0",
        engine={**H100, "model": "qwen3-32b", "max_model_len": 40960, "tensor_parallel_size": 2},
        source=LMCACHE_1769,
        tokens=275_760,
        off="LMCache's own buffers are not in the plan",
    ),
    StartLog(
        name="Llama-3.1-70B, 4 x H100, LMCache",
        version="0.11.0",
        engine={**H100, "model": "llama-3.1-70b", "max_model_len": 131072, "tensor_parallel_size": 4},
        source=LMCACHE_1769,
        tokens=420_208,
        off="LMCache's own buffers are not in the plan",
        bound=0.04,
    ),
    StartLog(
        name="Qwen3-8B, A100 40 GB",
        version="0.9.0",
        engine={"gpu": A100_40, "model": "qwen3-8b", "max_model_len": 40960},
        source="[tokenkaki](https://github.com/dariustanrd/tokenkaki/tree/main/blogposts/content/1_vllm)",
        tokens=136_080,
    ),
    StartLog(
        name="Llama-3-70B AWQ, 2 x L40S",
        version="0.16.0",
        engine={
            "gpu": "l40s",
            "model": "llama-3-70b",
            "dtype": "int4",
            "max_model_len": 8192,
            "tensor_parallel_size": 2,
        },
        source=NOTES.format("132,128"),
        tokens=132_128,
    ),
    StartLog(
        name="Qwen2-7B, A100 80 GB, half of it",
        version="0.10.0",
        engine={"gpu": A100, "model": "qwen2.5-7b", "max_model_len": 16384, "gpu_memory_utilization": 0.5},
        source="[vLLM-benchmarking](https://github.com/dennislee22/vLLM-benchmarking/tree/main/log)",
        tokens=464_848,
        off="samples with FlashInfer, which does not sort: about 1 GiB less at its peak",
        bound=0.05,
    ),
    StartLog(
        name="Qwen2-7B, 2 x A100 80 GB, half of each",
        version="0.10.0",
        engine={
            "gpu": A100,
            "model": "qwen2.5-7b",
            "max_model_len": 16384,
            "gpu_memory_utilization": 0.5,
            "tensor_parallel_size": 2,
        },
        source="[vLLM-benchmarking](https://github.com/dennislee22/vLLM-benchmarking/tree/main/log)",
        tokens=1_192_160,
        off="samples with FlashInfer; PCIe cards without peer access, not SXM",
        bound=0.05,
    ),
    StartLog(
        name="Llama-3.1-8B, RTX 4090",
        version="0.19.0",
        engine={"gpu": RTX_4090, "model": "llama-3.1-8b", "max_model_len": 32768},
        source=SERVINGSIM,
        tokens=41_408,
        off=COLD,
        bound=0.08,
    ),
    StartLog(
        name="Qwen3-8B, RTX 4090 (24 GB card)",
        version="0.20.2",
        engine={"gpu": RTX_4090, "model": "qwen3-8b", "max_model_len": 16384, "gpu_memory_utilization": 0.9764},
        source="[LMCache#3430](https://github.com/LMCache/LMCache/issues/3430)",
        tokens=46_368,
    ),
    StartLog(
        name="Qwen2.5-14B, H100",
        version="0.21.0",
        engine={
            **H100,
            "model": "qwen2.5-14b",
            "max_model_len": 4096,
            "max_num_seqs": 256,
            "gpu_memory_utilization": STATED,
        },
        source="[server-sim](https://github.com/llm-inferno/server-sim/tree/main/docs/example-runs/qwen2.5-14b-h100)",
        tokens=226_240,
    ),
    StartLog(
        name="Qwen3-8B, RTX 4090",
        version="0.24.0",
        engine={
            "gpu": RTX_4090,
            "model": "qwen3-8b",
            "max_model_len": 16384,
            "gpu_memory_utilization": STATED,
        },
        source=f"{OPTIMISATION_DOC}; of July 2026, version by its date",
        tokens=40_464,
    ),
    StartLog(
        name="Qwen3-8B, RTX 4090, 8,192 tokens",
        version="0.24.0",
        engine={
            "gpu": RTX_4090,
            "model": "qwen3-8b",
            "max_model_len": 16384,
            "max_num_batched_tokens": 8192,
            "gpu_memory_utilization": STATED,
        },
        source=f"{OPTIMISATION_DOC}; of July 2026, version by its date",
        tokens=36_720,
        gave="hidden states under the V2 runner",
    ),
    StartLog(
        name="Qwen2.5-7B, RTX 4090",
        version="0.24.0",
        engine={"gpu": RTX_4090, "model": "qwen2.5-7b", "max_model_len": 2048, "gpu_memory_utilization": 0.85},
        source="a learner's log of 2026-07-06, address not known: `GPU KV cache size: 83,376 tokens`",
        tokens=83_376,
        gave="graphs on other than Hopper",
    ),
    StartLog(
        name="Llama-3.1-8B, RTX PRO 6000",
        version="0.28.0",
        engine={**PRO_6000, "model": "llama-3.1-8b", "max_model_len": 131072},
        source=SERVINGSIM,
        tokens=574_608,
        off=COLD,
    ),
    StartLog(
        name="Qwen3-32B, 2 x RTX PRO 6000",
        version="0.28.0",
        engine={**PRO_6000, "model": "qwen3-32b", "max_model_len": 40960, "tensor_parallel_size": 2},
        source=SERVINGSIM,
        tokens=462_144,
    ),
    StartLog(
        name="Qwen3-30B-A3B, DP2 with EP, 2 x RTX PRO 6000",
        version="0.28.0",
        engine={
            **PRO_6000,
            "model": "qwen3-30b-a3b",
            "max_model_len": 262144,
            "data_parallel_size": 2,
            "enable_expert_parallel": True,
        },
        source=SERVINGSIM,
        tokens=605_104,
    ),
    StartLog(
        name="Qwen3-32B AWQ, 2 x RTX 4090",
        version="0.28.0",
        engine={
            "gpu": RTX_4090,
            "model": "qwen3-32b",
            "dtype": "int4",
            "max_model_len": 8192,
            "gpu_memory_utilization": 0.85,
            "tensor_parallel_size": 2,
            "max_num_seqs": 72,
            "max_num_batched_tokens": 5120,
        },
        source="[vllm#54479](https://github.com/vllm-project/vllm/pull/54479), second start",
        tokens=5_315 * 16,
    ),
    StartLog(
        name="Llama-3.1-8B, A100 80 GB",
        version="0.31.0",
        engine={
            "gpu": A100,
            "model": "llama-3.1-8b",
            "max_model_len": 131072,
            "gpu_memory_utilization": 0.92,
        },
        source=NOTES.format("460,496"),
        tokens=460_496,
        gave="that the V2 runner's graphs are as the V1 runner's",
    ),
)

_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "image_size": 896,
    "patch_size": 14,
}


def _gemma2(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int) -> dict[str, Any]:
    return {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
    }


def _gemma3(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int) -> dict[str, Any]:
    text = {
        **_gemma2(layers, hidden, heads, kv_heads, head_dim, intermediate),
        "model_type": "gemma3_text",
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
    }
    return {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "mm_tokens_per_image": 256,
        "vision_config": _SIGLIP,
        "text_config": text,
    }


CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gemma-2-2b-it": _gemma2(26, 2304, 8, 4, 256, 9216),
        "gemma-2-27b-it": _gemma2(46, 4608, 32, 16, 128, 36864),
        "gemma-3-4b-it": _gemma3(34, 2560, 8, 4, 256, 10240),
        "gemma-3-27b-it": _gemma3(62, 5376, 32, 16, 128, 21504),
    }
)
"""What the ``config.json`` of models without a preset says, the defaults of their types written in."""
