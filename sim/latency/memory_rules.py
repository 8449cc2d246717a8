"""What vLLM's profiling pass does in which version: the rules behind the terms of the memory plan.

Each rule names the place in vLLM's sources that it was read from, in the releases 0.16 to 0.32. A rule that a log
contradicts is wrong; ``docs/memory.md`` has the logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.latency.formats import FLOATS
from sim.latency.gpus import GpuSpec
from sim.latency.model_spec import ModelSpec
from sim.scenario.vllm_version import Version, version_of

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

V2_EVERYWHERE: Version = (0, 29, 0)
"""From here on the V2 model runner takes all models (``VllmConfig.use_v2_model_runner``)."""
V2_DENSE: Version = (0, 25, 0)
"""From here on it takes all dense ones."""
V2_ARCHITECTURES: tuple[tuple[Version, frozenset[str]], ...] = (
    (V2_DENSE, frozenset({"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"})),
    (
        (0, 24, 0),
        frozenset({"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"})
        | {"LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"},
    ),
    ((0, 23, 0), frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"})),
    ((0, 22, 0), frozenset({"Qwen3ForCausalLM"})),
)
"""``DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES`` of ``vllm/config/vllm.py``, newest first."""
V2_QUANTIZED: Version = (0, 24, 0)
"""Before, a quantised checkpoint kept the V1 runner."""

GRAPHS_COUNTED: Version = (0, 20, 0)
"""``VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS`` is on by default (vLLM's own log says 0.21)."""
GRAPHS_PROFILED: Version = (0, 18, 0)
"""From here on some graphs are captured for an estimate, counted or not."""
GRAPHS_OUTSIDE: Version = (0, 27, 0)
"""From here on that capture comes after the memory is measured, so that what it leaves behind does not count."""
V2_GRAPHS_COUNTED: Version = (0, 29, 0)
"""The V2 runner's ``profile_cudagraph_memory`` returned 0 before."""

SORTED_BEFORE: Version = (0, 17, 0)
"""Until then the sampler sorted all logits; since then a Triton kernel cuts them in place."""
COPIED_BEFORE: Version = (0, 28, 0)
"""Until then the V2 runner's sampler made a 32-bit copy of the logits even where no request asked for any change."""
IN_FLIGHT_KEPT: Version = (0, 25, 0)
"""From here on a window's blocks are kept until the steps that see them have ended (pull request 47728, July 2026): a
request needs room for the tokens of all batches in flight, not of one."""
TOKENS_FROM_CONCURRENCY: Version = (0, 20, 0)
"""From here on the logged KV tokens are the maximum concurrency times ``max_model_len``."""

SORTED_LOGIT_BYTES = 38.4
"""Logits in 16 and 32 bits, the scaled copy, the sort's values, 64-bit indices and workspace, softmax, cumulative sum,
mask. vLLM 0.11 logs peaks of 38.2-38.6 bytes per logit beyond the hidden states, over three vocabularies."""
CUT_LOGIT_BYTES = 14.0
"""Logits in 16 bits (2), in 32 (4), probabilities (4) and exponential noise (4)."""
COPIED_LOGIT_BYTES = 6.0
"""Logits in 16 bits and their 32-bit copy."""
PLAIN_LOGIT_BYTES = 2.0
GATHERED_LOGIT_BYTES = 4.0
"""With tensor parallelism the gathered shards are put in order by a copy."""


@dataclass(frozen=True, slots=True)
class MemoryRules:
    """How one version of vLLM profiles one model."""

    version: Version
    runner: int
    """1 or 2: vLLM's model runner."""
    logit_bytes: float
    """What the profiled sampler takes for each logit."""
    has_scratch: bool
    """Whether the kernel that cuts logits keeps a row of 32-bit logits for each multiprocessor."""
    counts_graphs: bool
    """Whether an estimate of CUDA graphs is taken from the KV cache."""
    graphs_leave_memory: bool
    """Whether the capture for the estimate of CUDA graphs happens before memory is measured."""

    @property
    def is_sorted(self) -> bool:
        """An engine whose sampler sorts: figures of 0.11 hold."""
        return self.version < SORTED_BEFORE


def memory_rules(engine: EngineConfig, model: ModelSpec, weights: str) -> MemoryRules:
    """The rules for ``model`` with weights in that format."""
    version = version_of(engine.vllm_version)
    runner = 2 if runs_on_v2(model, weights, version) else 1
    if version < SORTED_BEFORE:
        logit_bytes = SORTED_LOGIT_BYTES
    elif runner == 1:
        logit_bytes = CUT_LOGIT_BYTES
    elif version < COPIED_BEFORE:
        logit_bytes = COPIED_LOGIT_BYTES
    else:
        logit_bytes = PLAIN_LOGIT_BYTES if engine.tensor_parallel_size == 1 else GATHERED_LOGIT_BYTES
    return MemoryRules(
        version=version,
        runner=runner,
        logit_bytes=logit_bytes,
        has_scratch=version >= SORTED_BEFORE and runner == 1,
        counts_graphs=not engine.enforce_eager and version >= (GRAPHS_COUNTED if runner == 1 else V2_GRAPHS_COUNTED),
        graphs_leave_memory=GRAPHS_PROFILED <= version < GRAPHS_OUTSIDE and runner == 1 and not engine.enforce_eager,
    )


def runs_on_v2(model: ModelSpec, weights: str, version: Version) -> bool:
    """Whether vLLM takes its V2 model runner for ``model`` by default."""
    if version >= V2_EVERYWHERE:
        return True
    if version >= V2_DENSE and not model.num_experts:
        return True
    if version < V2_QUANTIZED and (model.num_experts or weights not in FLOATS):
        return False
    known = next((names for since, names in V2_ARCHITECTURES if version >= since), frozenset[str]())
    return model.architecture in known


def is_hopper_or_newer(gpu: GpuSpec) -> bool:
    """A data-centre GPU with NVLink and FP8: H100, H200, B200. They alone have NVLink multicast, fused all-reduce and
    symmetric memory in vLLM, FlashAttention 3 and the large cuBLAS workspace."""
    return gpu.nvlink_bandwidth is not None and gpu.fp8_flops is not None
