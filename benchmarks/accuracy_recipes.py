"""Engine settings of an InferenceX recipe: the flags of its ``vllm serve``, and those that a scenario cannot say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLAG = re.compile(r"--([a-z][a-z_.-]*)(?:[= ]+(?!--)('[^']*'|\"[^\"]*\"|\S+))?")
LINE = re.compile(r"^([a-z][a-z-]*): *(.*)$", re.MULTILINE)
MXFP4_BACKENDS = {
    "VLLM_MXFP4_USE_MARLIN=1": "marlin",
    "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1": "flashinfer_trtllm_afp8",
}
"""What a script sets for experts in MXFP4 -> the scenario's kernel."""
CLIENTS = "$CONC"
"""What a script has for its number of clients."""
FULL_CONTEXT = 10240
"""``max-model-len`` of the recipes of 2025 where lengths are neither 1,024 in and out nor 8,192 of either."""
NO_FLASHINFER, NO_DEEP_GEMM = "VLLM_USE_FLASHINFER_MOE_FP8=0", "VLLM_MOE_USE_DEEP_GEMM=0"
"""With both, experts in FP8 are left to Triton's kernel."""
ALWAYS_EXPERT_PARALLEL = frozenset(
    {
        ("64c20b6b5ba068ab4e3741c73fa1b3c71311aa55", "benchmarks/single_node/minimaxm2.5_fp8_b200.sh"),
        ("626932a110a2348591e314eddb782f7a0dee104c", "benchmarks/single_node/minimaxm2.5_fp8_b200.sh"),
        ("79a42e20a8559784641ca2279994c75c0608dc39", "benchmarks/single_node/minimaxm2.5_fp8_h200.sh"),
        ("626932a110a2348591e314eddb782f7a0dee104c", "benchmarks/single_node/minimaxm2.5_fp8_h200.sh"),
    }
)
"""(Commit, file) of scripts that ask for expert parallelism from an ``EP_SIZE`` of 1 on (``-ge 1``, others ``-gt 1``),
which is what every experiment without it is labelled. Over 8 GPUs nothing else would start: 1,536 / 8 = 192 columns of
an expert are no whole blocks of 128 (vLLM's issue 17569)."""


@dataclass(frozen=True)
class Recipe:
    """How a server of a date was started."""

    flags: Mapping[str, str]
    """Flag (or key of its ``config.yaml``) -> value; empty for a switch."""
    env: tuple[str, ...]
    always_spreads_experts: bool = False
    """Whether the script passed ``--enable-expert-parallel`` whatever the experiment's label says."""

    @property
    def has_fused_all_reduce(self) -> bool:
        """Whether the all-reduce and the norm after it are one kernel."""
        told = " ".join((*self.env, *self.flags, self.flags.get("compilation-config", "")))
        return any(name in told for name in ("ALLREDUCE", "fuse_allreduce_rms", "enable_fi_allreduce_fusion"))

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
    return Recipe(flags, tuple(told["env"]), (told["commit"], told["file"]) in ALWAYS_EXPERT_PARALLEL)


def engine_settings(recipe: Recipe, isl: int, osl: int, concurrency: int) -> dict[str, Any]:
    """Keys of ``engine`` but for model, GPU and parallelism; what a recipe leaves out is vLLM's default there."""
    flags = recipe.flags
    settings: dict[str, Any] = {
        # Llama's B200 recipe is without its command; those of the other GPUs give clients as seats.
        "max_num_seqs": concurrency
        if "async-scheduling" in flags or flags.get("max-num-seqs") == CLIENTS
        else int(flags.get("max-num-seqs", "1024")),
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
    if NO_FLASHINFER in recipe.env and NO_DEEP_GEMM in recipe.env:
        settings["moe_backend"] = "triton"
    for told, backend in MXFP4_BACKENDS.items():
        if told in recipe.env:
            settings["moe_backend"] = backend
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
