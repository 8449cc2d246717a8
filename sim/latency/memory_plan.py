"""The result of planning memory: one GPU's bytes by part, and the KV blocks that they leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.latency.gpus import GpuSpec
from sim.latency.kv_layout import KvGroup
from sim.latency.model_spec import ModelSpec

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

MIN_BLOCKS = 2
"""vLLM keeps one null block, so that one is usable."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """One GPU's memory, of the pipeline stage that has the least room for KV blocks."""

    total_bytes: int
    requested_bytes: int
    """``total_bytes * gpu_memory_utilization``."""
    weights_bytes: int
    """Of the model and of a draft model."""
    reserve_bytes: int
    """Activations, CUDA graphs and what lives outside PyTorch."""
    graph_bytes: int
    """CUDA graphs, a part of ``reserve_bytes``: 0 where the version does not take them from the KV cache."""
    available_kv_bytes: int
    kv_bytes_per_token: int
    """Of one GPU: its layers, its KV heads, the padding of groups of layers."""
    block_size: int
    num_gpu_blocks: int
    """As vLLM counts them: the null block included."""
    max_model_len: int
    sliding_window: int | None = None
    """Tokens of KV that a request keeps, beside those being computed; None = all."""
    kv_groups: tuple[KvGroup, ...] = ()
    """Layers of several kinds: a block is then one of one group. Empty = a block holds all layers."""
    max_blocks_per_request: int = 0
    """Most blocks that a request of ``max_model_len`` holds at a time."""
    activation_bytes: int = 0
    """Peak of the profiling pass, with the workspaces that stay: a part of ``reserve_bytes``."""
    non_torch_bytes: int = 0
    """What lives outside PyTorch's pool: a part of ``reserve_bytes``."""
    draft_weights_bytes: int = 0
    """A draft model's part of ``weights_bytes``."""
    lora_bytes: int = 0
    """Slots of LoRA adapters, a part of ``weights_bytes``."""
    blocks_of_longest: int = 0
    """Blocks that a request of ``max_model_len`` takes in vLLM; 0 = ``max_blocks_per_request``."""
    tokens_from_concurrency: bool = True
    """Whether this version logs maximum concurrency times ``max_model_len`` as the size of the KV cache."""
    model_runner: int = 2
    """vLLM's model runner, 1 or 2, which decides what the profiling pass computes."""
    vllm_version: str = ""
    notes: tuple[str, ...] = ()

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.num_gpu_blocks - 1

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that fit the usable blocks: of several groups, those of requests of ``max_model_len``."""
        return int(self.num_usable_blocks * self.tokens_per_block)

    @property
    def tokens_per_block(self) -> float:
        """Tokens of requests of ``max_model_len`` for each block that they hold, where there are several groups."""
        return self.max_model_len / self.max_blocks_per_request if self.kv_groups else self.block_size

    @property
    def max_concurrency(self) -> float:
        """Requests of ``max_model_len`` that fit at once, as vLLM logs it (``get_max_concurrency_for_kv_cache_config``
        of ``v1/core/kv_cache_utils.py``): the null block counts."""
        return self.num_gpu_blocks / (self.blocks_of_longest or self.max_blocks_per_request)

    @property
    def logged_kv_tokens(self) -> int:
        """``GPU KV cache size`` in the log of this version: the null block counts."""
        if self.tokens_from_concurrency:
            return int(self.max_concurrency * self.max_model_len)
        smallest = min((group.block_size for group in self.kv_groups), default=self.block_size)
        return self.num_gpu_blocks // max(len(self.kv_groups), 1) * smallest


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """What an engine's settings name, looked up once a run: models, GPU and the memory they leave."""

    model: ModelSpec
    gpu: GpuSpec
    draft: ModelSpec | None
    """The model that drafts; None = no speculative decoding, or n-grams."""
    memory: MemoryPlan


@dataclass(frozen=True, slots=True)
class Stage:
    """One GPU of one pipeline stage."""

    weights: int
    draft_weights: int
    lora: int
    kv_per_token: float
    """Bytes that one more token takes of the pool."""
    block_bytes: int
    """Of a block, which holds layers of one group where there are several."""
    activations: int
    non_torch: int
    graphs: int
    requested: int
    total: int
    pool: int | None
    """``kv_cache_memory_bytes``."""

    @property
    def reserve(self) -> int:
        """Everything but weights and KV."""
        return self.activations + self.non_torch + self.graphs

    @property
    def free(self) -> int:
        """Bytes for KV."""
        return self.requested - self.weights - self.reserve if self.pool is None else self.pool

    @property
    def blocks(self) -> int:
        """KV blocks that fit."""
        return max(0, self.free) // self.block_bytes

    def missing_bytes(self, engine: EngineConfig) -> int:
        """How much more memory the smallest pool would need; 0 or less = it fits."""
        least = MIN_BLOCKS * self.block_bytes
        if self.pool is not None:
            return max(self.weights + self.reserve + self.pool - self.total, least - self.pool)
        return (1 if engine.num_gpu_blocks_override is not None else least) - self.free
