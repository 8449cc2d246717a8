"""Engine settings of an InferenceX recipe: the flags of its ``vllm serve``, and those that a scenario cannot say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLAG = re.compile(r"--([a-z][a-z_.-]*)(?:[= ]+(?!--)('[^']*'|\"[^\"]*\"|\S+))?")
LINE = re.compile(r"^([a-z][a-z-]*): *(.*)$", re.MULTILINE)
FULL_CONTEXT = 10240
"""``max-model-len`` of the recipes of 2025 where lengths are neither 1,024 in and out nor 8,192 of either."""


@dataclass(frozen=True)
class Recipe:
    """How a server of a date was started."""

    flags: Mapping[str, str]
    """Flag (or key of its ``config.yaml``) -> value; empty for a switch."""
    env: tuple[str, ...]

    @property
    def has_fused_all_reduce(self) -> bool:
        """Whether the all-reduce and the norm after it are one kernel."""
        return any("ALLREDUCE" in each for each in self.env) or "fuse_allreduce_rms" in " ".join(self.flags)

    @property
    def graphs(self) -> str:
        """CUDA graphs: ``FULL_AND_PIECEWISE`` (vLLM's default), ``PIECEWISE`` or ``FULL_DECODE_ONLY``."""
        told = self.flags.get("compilation-config", "")
        if "FUSION_FLAG" in told:  # a variable of the B200's script, which captures decodes only
            return "FULL_DECODE_ONLY"
        return "PIECEWISE" if "PIECEWISE" in told else "FULL_AND_PIECEWISE"

    @property
    def stream_interval(self) -> int:
        """Tokens that a client gets at a time."""
        return int(self.flags.get("stream-interval", "1"))

    @property
    def unsaid(self) -> tuple[str, ...]:
        """What the server did that no key of a scenario says."""
        found = []
        if self.has_fused_all_reduce:
            found.append("fused all-reduce")
        if self.graphs != "FULL_AND_PIECEWISE":
            found.append(f"CUDA graphs {self.graphs}")
        if self.stream_interval > 1:
            found.append(f"streams every {self.stream_interval} tokens")
        return tuple(found)


def read_recipe(told: Mapping[str, Any]) -> Recipe:
    """From an entry of ``inferencex_vllm_recipes.json``."""
    flags = {name: value.strip("'\"") for name, value in FLAG.findall(told["vllm_serve"])}
    flags |= {name: value.strip("'\"") for name, value in LINE.findall(told["config_yaml"])}
    return Recipe(flags, tuple(told["env"]))


def engine_settings(recipe: Recipe, isl: int, osl: int, concurrency: int) -> dict[str, Any]:
    """Keys of ``engine`` but for model, GPU and parallelism; what a recipe leaves out is vLLM's default there."""
    flags = recipe.flags
    settings: dict[str, Any] = {
        # Llama's B200 recipe is without its command; those of the other GPUs give clients as seats.
        "max_num_seqs": concurrency if "async-scheduling" in flags else int(flags.get("max-num-seqs", "1024")),
        "max_num_batched_tokens": 2 * isl
        if "ISL" in flags.get("max-num-batched-tokens", "")
        else int(flags.get("max-num-batched-tokens", "8192")),
        "max_model_len": _context(flags, isl, osl),
        "enable_prefix_caching": "no-enable-prefix-caching" not in flags,
        "async_scheduling": True,
    }
    if "gpu-memory-utilization" in flags:
        settings["gpu_memory_utilization"] = float(flags["gpu-memory-utilization"])
    compilation: dict[str, Any] = {}
    if recipe.has_fused_all_reduce:
        compilation["pass_config"] = {"fuse_allreduce_rms": True}
    if "max-cudagraph-capture-size" in flags:
        compilation["max_cudagraph_capture_size"] = int(flags["max-cudagraph-capture-size"])
    if compilation:
        settings["compilation_config"] = compilation
    if "block-size" in flags:
        settings["block_size"] = int(flags["block-size"])
    if "kv-cache-dtype" in flags:
        settings["kv_cache_dtype"] = flags["kv-cache-dtype"]
    return settings


def _context(flags: Mapping[str, str], isl: int, osl: int) -> int:
    told = flags.get("max-model-len", "")
    if told.isdigit():
        return int(told)
    if "async-scheduling" not in flags:
        return isl + osl + 200
    if max(isl, osl) == 8192:
        return isl + osl + 200
    return isl + osl + 20 if isl == osl == 1024 else FULL_CONTEXT
