"""What fits on a GPU: weights, the engine's own needs, and how many KV blocks are left.

The split is vLLM's (``gpu_worker.determine_available_memory``): total memory times
``gpu_memory_utilization``, less weights, less the peak of a profiling pass at the largest batch,
less what is allocated outside PyTorch, less the CUDA graphs; the rest holds KV blocks. vLLM
measures the middle three; here they are formulas, stated at each function. CUDA graphs count since
vLLM 0.21; older versions took them from what ``gpu_memory_utilization`` leaves. ``docs/memory.md``
compares the result with what vLLM logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError, Problem
from sim.latency.experts import ExpertGroup, expert_problems
from sim.latency.gpus import GpuSpec, load_gpu
from sim.latency.model_spec import ModelSpec
from sim.latency.models import load_model
from sim.latency.parallel import kv_heads_per_gpu, parallel_problems, pipeline_layers
from sim.latency.pipelining import pipeline_depth
from sim.latency.precision import BYTES_PER_ELEMENT, Precision, resolve_precision
from sim.latency.sliding_window import max_blocks_per_request
from sim.latency.speculative_cost import draft_engine, load_draft_model

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig, EngineSection

SAMPLER_BYTES_PER_LOGIT = 38.4
"""The profiling pass samples with top-k and top-p: logits in 16 and 32 bits, the scaled copy, the sort's values, 64-bit
indices and workspace, softmax, cumulative sum, mask. vLLM 0.11 logs peaks of 38.2-38.6 bytes per logit beyond the
hidden states, over three vocabularies and models from 0.6 B to 70 B."""

NON_TORCH_BYTES = 128 << 20
"""CUDA libraries and workspaces outside PyTorch's pool; vLLM logs 0.13-0.14 GiB for one GPU."""

NVLINK_COMMUNICATOR_BYTES = 416 << 20
"""NCCL and custom all-reduce buffers of a GPU that talks to others over NVLink; vLLM logs 0.40-0.42 GiB more than
for one GPU."""

PCIE_COMMUNICATOR_BYTES = 96 << 20
"""The same over PCIe, where custom all-reduce is off: 0-0.13 GiB by what vLLM logs."""

GRAPH_BYTES_PER_LAYER = 16 << 20
"""CUDA graphs of all captured batch sizes; vLLM logs about 0.5 GiB for 32 layers."""

MIN_BLOCKS = 2
"""vLLM keeps one null block, so that one is usable."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """One GPU's memory, of the pipeline stage that has the least room for KV blocks."""

    total_bytes: int
    requested_bytes: int
    """``total_bytes * gpu_memory_utilization``."""
    weights_bytes: int
    reserve_bytes: int
    """Activations, CUDA graphs and what lives outside PyTorch."""
    graph_bytes: int
    """CUDA graphs, a part of ``reserve_bytes``."""
    available_kv_bytes: int
    kv_bytes_per_token: int
    """Of one GPU: its layers, its KV heads."""
    block_size: int
    num_gpu_blocks: int
    """As vLLM counts them: the null block included."""
    max_model_len: int
    sliding_window: int | None = None
    """Tokens of KV that a request keeps, beside those being computed; None = all."""
    max_blocks_per_request: int = 0
    """Most blocks that a request of ``max_model_len`` holds at a time."""
    notes: tuple[str, ...] = ()

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.num_gpu_blocks - 1

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that fit the usable blocks."""
        return self.num_usable_blocks * self.block_size

    @property
    def max_concurrency(self) -> float:
        """Requests of ``max_model_len`` that fit at once, as vLLM logs it (``get_max_concurrency_for_kv_cache_config``
        of ``v1/core/kv_cache_utils.py``): the null block counts."""
        return self.num_gpu_blocks / self.max_blocks_per_request


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """What an engine's settings name, looked up once a run: models, GPU and the memory they leave."""

    model: ModelSpec
    gpu: GpuSpec
    draft: ModelSpec | None
    """The model that drafts; None = no speculative decoding, or n-grams."""
    memory: MemoryPlan


@dataclass(frozen=True, slots=True)
class _Stage:
    """One GPU of one pipeline stage."""

    weights: int
    kv_per_token: int
    reserve: int
    graphs: int
    """A part of ``reserve``."""
    requested: int

    @property
    def free(self) -> int:
        return self.requested - self.weights - self.reserve

    def blocks(self, block_size: int) -> int:
        return max(0, self.free) // (self.kv_per_token * block_size)

    def missing_bytes(self, engine: EngineConfig) -> int:
        """How much more memory the smallest pool would need; 0 or less = it fits."""
        pool = 1 if engine.num_gpu_blocks_override is not None else MIN_BLOCKS * self.kv_per_token * engine.block_size
        return pool - self.free


def load_model_and_gpu(engine: EngineSection, base_dir: Path | None = None) -> tuple[ModelSpec, GpuSpec]:
    """The engine's model and GPU. Raises InputError with everything wrong about names, config and split."""
    problems: list[Problem] = []
    model: ModelSpec | None = None
    gpu: GpuSpec | None = None
    try:
        model = load_model(engine.model, base_dir)
        problems += _split_problems(engine, model)
    except InputError as error:
        problems += error.problems
    try:
        gpu = load_gpu(engine.gpu)
    except InputError as error:
        problems += error.problems
    if model is None or gpu is None or problems:
        raise InputError(problems)
    return model, gpu


def plan_memory(engine: EngineConfig, base_dir: Path | None = None) -> MemoryPlan:
    """Plan the memory of one GPU of ``engine``, and its KV blocks: ``plan_engine`` without what it looked up."""
    return plan_engine(engine, base_dir).memory


def plan_engine(engine: EngineConfig, base_dir: Path | None = None) -> PlannedEngine:
    """Look up model, draft model and GPU of ``engine``, and plan the memory of one GPU and its KV blocks.

    ``num_gpu_blocks_override`` replaces the computed number, as in vLLM. Raises InputError for an
    unknown model or GPU, a split that vLLM refuses, or a model that does not fit (by how many GB,
    and what would help), or a pool smaller than one request of ``max_model_len``, as vLLM does
    (``_check_enough_kv_cache_memory`` of ``v1/core/kv_cache_utils.py``, the null block kept back). Where
    ``num_gpu_blocks_override`` says the pool, a small one is a note here, though vLLM refuses that too.
    """
    model, gpu = load_model_and_gpu(engine, base_dir)
    draft = load_draft_model(engine, base_dir)
    if draft is not None:
        _check_draft(engine, model, draft)
    stage = _tightest_stage(engine, model, gpu, draft)
    override = engine.num_gpu_blocks_override
    if stage.missing_bytes(engine) > 0:
        raise InputError(_does_not_fit(engine, model, gpu, stage, draft))
    blocks = stage.blocks(engine.block_size) if override is None else override
    window = kept_window(engine, model, draft)
    largest = _blocks_of_longest(engine, window)
    if override is None and blocks - 1 < largest:
        raise InputError(_no_room_for_one(engine, model, gpu, stage, largest, window))
    memory = MemoryPlan(
        total_bytes=gpu.memory_bytes,
        requested_bytes=stage.requested,
        weights_bytes=stage.weights,
        reserve_bytes=stage.reserve,
        graph_bytes=stage.graphs,
        available_kv_bytes=stage.free,
        kv_bytes_per_token=stage.kv_per_token,
        block_size=engine.block_size,
        num_gpu_blocks=blocks,
        max_model_len=engine.max_model_len,
        sliding_window=window,
        max_blocks_per_request=largest,
        notes=(
            *model.notes,
            *resolve_precision(engine, gpu, model).notes,
            *_notes(engine, model, stage, blocks, largest, window),
            *_window_notes(engine, model, window),
        ),
    )
    return PlannedEngine(model, gpu, draft, memory)


def _split_problems(engine: EngineSection, model: ModelSpec) -> list[Problem]:
    problems = parallel_problems(model, engine.tensor_parallel_size, engine.pipeline_parallel_size)
    return problems + expert_problems(engine, model)


def kept_window(engine: EngineConfig, model: ModelSpec, draft: ModelSpec | None) -> int | None:
    """The window that KV is kept for, or None where all of it is: no window or none that ``max_model_len`` exceeds,
    memory reserved in one piece, or a draft model that shares the blocks and looks back on something else."""
    window = model.sliding_window
    if window is None or engine.max_model_len <= window or engine.kv == "contiguous":
        return None
    return window if draft is None or draft.sliding_window == window else None


def _blocks_of_longest(engine: EngineConfig, window: int | None) -> int:
    if window is None:
        return -(-engine.max_model_len // engine.block_size)
    in_flight = pipeline_depth(engine) * engine.max_num_batched_tokens
    return max_blocks_per_request(window, in_flight, engine.max_model_len, engine.block_size)


def weights_bytes(
    model: ModelSpec, precision: Precision, tp: int, layers: range, *, embed: bool, head: bool, dp: int = 1
) -> int:
    """Weights on one of ``tp`` GPUs that hold ``layers``, with the table of rotary positions. Quantisation leaves the
    embedding and the LM head in 16 bits; KV projections are replicated where there are more GPUs than KV heads. Routed
    experts are spread over ``dp`` such ranks, whole or split: a GPU holds as much either way."""
    extra_kv = max(0, tp * kv_heads_per_gpu(model.num_kv_heads, tp) - model.num_kv_heads)
    replicated = 2 * model.hidden_size * extra_kv * model.head_size
    attention = model.attention_parameters + replicated
    moe = model.router_parameters + model.num_experts * model.expert_parameters + model.shared_expert_parameters
    num_dense = len(range(layers.start, min(layers.stop, model.num_layers - model.num_moe_layers)))
    num_moe = len(layers) - num_dense
    linear = len(layers) * attention + num_dense * model.dense_mlp_parameters + num_moe * moe
    elsewhere = num_moe * model.num_experts * model.expert_parameters * (dp - 1) / dp
    matrices = 1 if embed and head and model.tie_word_embeddings else int(embed) + int(head)
    outer = matrices * model.vocab_size * model.hidden_size
    norms = (2 * len(layers) + 1) * model.hidden_size * precision.activation_bytes
    rotary = model.max_position_embeddings * model.head_size * precision.activation_bytes
    here = (linear - elsewhere) / tp
    return round(here * precision.linear_bytes + outer / tp * precision.head_bytes) + norms + rotary


def activation_bytes(engine: EngineConfig, model: ModelSpec, precision: Precision, *, head: bool) -> int:
    """Peak of vLLM's profiling pass (``profile_run``): the larger of one MLP or attention block at
    ``max_num_batched_tokens`` and, with ``head``, the sampler at ``max_num_seqs`` rows of whole logits beside the
    hidden states. Under data parallelism the experts see the tokens of all ranks, each with its full budget."""
    tp, dp = engine.tensor_parallel_size, ExpertGroup.of(engine, model).dp
    width = model.intermediate_size if model.num_moe_layers < model.num_layers else 0
    routed = model.experts_per_token * model.moe_intermediate_size + model.shared_expert_intermediate_size
    mlp = 3 * max(width, routed) / tp + dp * model.experts_per_token * model.hidden_size
    if dp > 1:
        mlp += dp * model.hidden_size
    attention = 2 * (model.q_size + model.kv_size) / tp
    per_token = 4 * model.hidden_size + max(mlp, attention)
    forward = engine.max_num_batched_tokens * per_token * precision.activation_bytes
    if not head:
        return round(forward)
    rows = min(engine.max_num_seqs, engine.max_num_batched_tokens)
    hidden = engine.max_num_batched_tokens * model.hidden_size * precision.activation_bytes
    return round(max(forward, hidden + rows * model.vocab_size * SAMPLER_BYTES_PER_LOGIT))


def non_torch_bytes(engine: EngineConfig, gpu: GpuSpec, dp: int = 1) -> int:
    """What lives outside PyTorch's pool: libraries and, with several GPUs, communicators. ``dp``: ranks that exchange
    tokens with each other."""
    if engine.tensor_parallel_size * engine.pipeline_parallel_size * dp == 1:
        return NON_TORCH_BYTES
    over_pcie = gpu.nvlink_bandwidth is None
    return NON_TORCH_BYTES + (PCIE_COMMUNICATOR_BYTES if over_pcie else NVLINK_COMMUNICATOR_BYTES)


def _check_draft(engine: EngineConfig, model: ModelSpec, draft: ModelSpec) -> None:
    """Raise InputError for a draft model that cannot be split as the target, or speaks other tokens."""
    key = "engine.speculative.draft_model"
    problems = parallel_problems(draft, engine.tensor_parallel_size, 1)
    if draft.vocab_size != model.vocab_size:
        problems.append(
            Problem(
                f"{key}: {draft.name} has a vocabulary of {draft.vocab_size} tokens, {model.name} one of "
                f"{model.vocab_size}: vLLM refuses to start; choose a smaller model of the same family"
            )
        )
    if problems:
        raise InputError(problems)


def _draft_stage(engine: EngineConfig, draft: ModelSpec | None, gpu: GpuSpec) -> tuple[int, int, int]:
    """Of a draft model on one GPU: weights, KV per token (its layers share the target's blocks), CUDA graphs."""
    if draft is None:
        return 0, 0, 0
    theirs = draft_engine(engine)
    precision, tp = resolve_precision(theirs, gpu, draft), engine.tensor_parallel_size
    weights = weights_bytes(draft, precision, tp, range(draft.num_layers), embed=True, head=True)
    kv = 2 * kv_heads_per_gpu(draft.num_kv_heads, tp) * draft.head_size * precision.kv_bytes
    graphs = 0 if engine.enforce_eager else draft.num_layers * GRAPH_BYTES_PER_LAYER
    return weights, draft.num_layers * kv, graphs


def _tightest_stage(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, draft: ModelSpec | None = None) -> _Stage:
    """The pipeline stage with the fewest KV blocks: vLLM gives all stages as many as that one has."""
    draft_weights, draft_kv, draft_graphs = _draft_stage(engine, draft, gpu)
    precision = resolve_precision(engine, gpu, model)
    tp, dp = engine.tensor_parallel_size, ExpertGroup.of(engine, model).dp
    heads = kv_heads_per_gpu(model.num_kv_heads, tp)
    kv_per_layer = 2 * heads * model.head_size * precision.kv_bytes
    sizes = pipeline_layers(model.num_layers, engine.pipeline_parallel_size)
    stages: list[_Stage] = []
    first = 0
    for index, size in enumerate(sizes):
        layers = range(first, first + size)
        first += size
        head = index == len(sizes) - 1
        weights = weights_bytes(model, precision, tp, layers, embed=index == 0, head=head, dp=dp)
        activations = activation_bytes(engine, model, precision, head=head)
        graphs = 0 if engine.enforce_eager else size * GRAPH_BYTES_PER_LAYER
        stages.append(
            _Stage(
                weights=weights + draft_weights,
                kv_per_token=size * kv_per_layer + draft_kv,
                reserve=activations + non_torch_bytes(engine, gpu, dp) + graphs + draft_graphs,
                graphs=graphs + draft_graphs,
                requested=int(gpu.memory_bytes * engine.gpu_memory_utilization),
            )
        )
    return min(stages, key=lambda stage: stage.free / stage.kv_per_token)


def _does_not_fit(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, stage: _Stage, draft: ModelSpec | None) -> str:
    """By how much, made of what, and what would help."""
    missing = stage.missing_bytes(engine)
    lines = (
        f"engine: {model.name} in {resolve_precision(engine, gpu, model).weights}"
        f"{'' if draft is None else f', with {draft.name} to draft for it,'} does not fit {gpu.name} with "
        f"tensor_parallel_size {engine.tensor_parallel_size}, pipeline_parallel_size {engine.pipeline_parallel_size}"
        f"{'' if engine.data_parallel_size == 1 else f', data_parallel_size {engine.data_parallel_size}'}: "
        f"it misses {missing / 1e9:.1f} GB per GPU (weights {stage.weights / 1e9:.1f} GB + activations, graphs and "
        f"buffers {stage.reserve / 1e9:.1f} GB + KV cache, against {stage.requested / 1e9:.1f} GB = "
        f"gpu_memory_utilization {engine.gpu_memory_utilization:g} of {gpu.memory_bytes / 1e9:.1f} GB)"
    )
    remedies = [
        text
        for text in (
            _larger_tp(engine, model, gpu, draft),
            _larger_dp(engine, model, gpu, draft),
            _smaller_dtype(engine, model, gpu, draft),
        )
        if text
    ]
    if not remedies:
        remedies = ["a smaller model, a larger GPU or more GPUs (pipeline_parallel_size)"]
    return f"{lines}; would fit: {' or '.join(remedies)}"


def _no_room_for_one(
    engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, stage: _Stage, largest: int, window: int | None
) -> str:
    """What one request of ``max_model_len`` needs, what there is, and what would help."""
    block_bytes, blocks = stage.kv_per_token * engine.block_size, stage.blocks(engine.block_size) - 1
    longest = (blocks if window is None else blocks - 1) * engine.block_size  # a window begins anywhere in a block
    return (
        f"engine.max_model_len: a request of {engine.max_model_len} tokens needs {largest * block_bytes / 1e9:.2f} GB "
        f"of KV cache per GPU, and {model.name} leaves {blocks * block_bytes / 1e9:.2f} GB on {gpu.name} "
        f"({blocks * engine.block_size} tokens): vLLM refuses to start; lower max_model_len to at most {longest}, "
        "or raise gpu_memory_utilization or tensor_parallel_size"
    )


def _fits(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, draft: ModelSpec | None) -> bool:
    split = _split_problems(engine, model)
    if draft is not None:
        split += parallel_problems(draft, engine.tensor_parallel_size, 1)
    return not split and _tightest_stage(engine, model, gpu, draft).missing_bytes(engine) <= 0


def _larger_tp(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, draft: ModelSpec | None) -> str | None:
    for tp in (2, 4, 8, 16):
        larger = engine.model_copy(update={"tensor_parallel_size": tp})
        if tp > engine.tensor_parallel_size and _fits(larger, model, gpu, draft):
            return f"tensor_parallel_size: {tp}"
    return None


def _larger_dp(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, draft: ModelSpec | None) -> str | None:
    """More ranks that share the experts, where there are several already."""
    if ExpertGroup.of(engine, model).is_lockstep:
        for dp in (2, 4, 8, 16, 32):
            larger = engine.model_copy(update={"data_parallel_size": dp})
            if dp > engine.data_parallel_size and _fits(larger, model, gpu, draft):
                return f"data_parallel_size: {dp}"
    return None


def _smaller_dtype(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, draft: ModelSpec | None) -> str | None:
    now = BYTES_PER_ELEMENT[resolve_precision(engine, gpu, model).weights]
    for dtype in ("bfloat16", "fp8", "int4"):
        smaller = engine.model_copy(update={"dtype": dtype})
        if BYTES_PER_ELEMENT[dtype] < now and _fits(smaller, model, gpu, draft):
            return f"dtype: {dtype}"
    return None


def _notes(
    engine: EngineConfig, model: ModelSpec, stage: _Stage, blocks: int, largest: int, window: int | None
) -> list[str]:
    notes: list[str] = []
    capacity = (blocks - 1) * engine.block_size
    if blocks - 1 < largest:
        longest = f"max_model_len {engine.max_model_len}"
        if window is not None:
            longest = f"the {largest * engine.block_size} of a window of {window} and the tokens that are in flight"
        notes.append(
            f"the KV cache holds {capacity} tokens, fewer than {longest}: longer requests "
            "are rejected (vLLM itself refuses to start like this)"
        )
    if blocks > max(stage.blocks(engine.block_size), MIN_BLOCKS):
        notes.append(
            f"num_gpu_blocks_override {blocks} is more than the {stage.blocks(engine.block_size)} blocks that "
            f"{engine.gpu_name} has memory for"
        )
    if engine.max_model_len > model.longest_context:
        notes.append(
            f"max_model_len {engine.max_model_len} is beyond the {model.longest_context} positions of "
            f"{model.name}: vLLM starts like this only with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"
        )
    return notes


def _window_notes(engine: EngineConfig, model: ModelSpec, window: int | None) -> list[str]:
    """Where a model has a window and the KV behind it is kept all the same."""
    if model.sliding_window is None or window is not None or engine.max_model_len <= model.sliding_window:
        return []
    why = "kv: contiguous reserves all of it" if engine.kv == "contiguous" else "the draft model looks further back"
    return [f"{model.name} attends to a window of {model.sliding_window} tokens, but KV behind it is kept: {why}"]
