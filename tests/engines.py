"""Engines for tests that look at something else than defaults: sizes that no GPU or model changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.latency.gpus import GIB, GPUS
from sim.scenario.schema import EngineConfig

SIZES: dict[str, Any] = {
    "dtype": "bfloat16",
    "gpu_memory_utilization": 0.9,
    "max_model_len": 4096,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
}
"""As an ``engine`` section has them; a test's own settings come after."""


def engine_config(**settings: Any) -> EngineConfig:
    """An engine as it is once a scenario is loaded."""
    engine = EngineConfig(**{**SIZES, **settings})
    engine.model_fields_set.difference_update(SIZES.keys() - settings.keys())
    return engine


def any_block(engine: Mapping[str, Any]) -> dict[str, Any]:
    """An engine section whose GPU takes its ``block_size``: where that is no multiple of 16, one with the figures of
    the preset, but with other kernels."""
    if engine.get("block_size", 16) % 16 == 0:
        return dict(engine)
    preset = GPUS[engine["gpu"]]
    return {
        **engine,
        "gpu": {
            "name": f"{preset.name}, any block",
            "memory_gib": preset.memory_bytes / GIB,
            "memory_bandwidth_gb_s": preset.memory_bandwidth / 1e9,
            "fp16_tflops": preset.fp16_flops / 1e12,
            "fp32_tflops": preset.fp32_flops / 1e12,
            "fp8_tflops": None if preset.fp8_flops is None else preset.fp8_flops / 1e12,
            "int8_tflops": None if preset.int8_flops is None else preset.int8_flops / 1e12,
            "nvlink_gb_s": None if preset.nvlink_bandwidth is None else preset.nvlink_bandwidth / 1e9,
            "pcie_gb_s": preset.pcie_bandwidth / 1e9,
            "kv_block_multiple": 1,
            "usd_per_hour": preset.usd_per_hour,
        },
    }


def whole_prompts(engine: Mapping[str, Any]) -> dict[str, Any]:
    """An engine section that vLLM starts: without chunked prefill the longest request fits a step's budget."""
    if engine.get("enable_chunked_prefill", True):
        return dict(engine)
    return {**engine, "max_model_len": min(engine["max_model_len"], engine["max_num_batched_tokens"])}
