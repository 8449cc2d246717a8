"""What fits on a GPU: weights, the engine's own needs, and how many KV blocks are left.

The split is vLLM's (``gpu_worker.determine_available_memory``): total memory times ``gpu_memory_utilization``, less
weights, less the peak of a profiling pass at the largest batch, less what is allocated outside PyTorch, less the CUDA
graphs where the version counts them; the rest holds KV blocks. vLLM measures the middle three; here they are formulas
(``memory_terms.py``) by version (``memory_rules.py``). ``docs/memory.md`` compares the result with what vLLM logged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError, Problem
from sim.latency.draft_heads import head_bytes, head_notes
from sim.latency.experts import ExpertGroup, expert_problems
from sim.latency.gpus import GpuSpec, load_gpu
from sim.latency.kv_layout import why_not_followed
from sim.latency.kv_pages import KvPool
from sim.latency.lora import lora_bytes
from sim.latency.memory_plan import MIN_BLOCKS, MemoryPlan, PlannedEngine, Stage
from sim.latency.memory_refusal import does_not_fit, no_room_for_one
from sim.latency.memory_rules import IN_FLIGHT_KEPT, TOKENS_FROM_CONCURRENCY, memory_rules
from sim.latency.memory_terms import activation_bytes, graph_bytes, non_torch_bytes
from sim.latency.memory_weights import weights_bytes
from sim.latency.model_spec import ModelSpec
from sim.latency.models import load_model
from sim.latency.parallel import parallel_problems, pipeline_layers
from sim.latency.pipelining import pipeline_depth
from sim.latency.precision import Precision, resolve_precision
from sim.latency.sliding_window import max_blocks_per_request
from sim.latency.speculative_cost import draft_engine, head_of, load_draft_model
from sim.latency.state_layers import StateLayer

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig, EngineSection

__all__ = ["MemoryPlan", "PlannedEngine", "kept_window", "load_model_and_gpu", "plan_engine", "plan_memory"]


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

    ``kv_cache_memory_bytes`` is the pool itself and ``num_gpu_blocks_override`` replaces the computed number of blocks,
    as in vLLM. Raises InputError for an unknown model or GPU, a split that vLLM refuses, a model that does not fit (by
    how many GB, and what would help), or a pool smaller than one request of ``max_model_len``, as vLLM refuses it
    (``_check_enough_kv_cache_memory`` of ``v1/core/kv_cache_utils.py``, the null block kept back). vLLM refuses such a
    pool also where ``num_gpu_blocks_override`` says it; here that is a note.
    """
    model, gpu = load_model_and_gpu(engine, base_dir)
    draft = load_draft_model(engine, base_dir)
    head_method = head_of(engine)
    if head_method is None and draft is not None:
        _check_draft(engine, model, draft)
    stage = _tightest_stage(engine, model, gpu, draft)
    if stage.missing_bytes(engine) > 0:
        raise InputError(
            does_not_fit(engine, model, gpu, stage, draft, lambda other: _missing_bytes(other, model, gpu, draft))
        )
    override = engine.num_gpu_blocks_override
    blocks = stage.blocks if override is None else override
    precision = resolve_precision(engine, gpu, model)
    rules = memory_rules(engine, model, precision.weights)
    pool, window = _pool(engine, model, precision, draft), kept_window(engine, model, draft)
    has_drafts = engine.speculative is not None
    reason = why_not_followed(pool.kv_groups, has_prefix_cache=engine.enable_prefix_caching, has_drafts=has_drafts)
    if reason is not None:
        raise InputError(f"engine.model: {model.name}: {reason}")
    largest = of_longest = _blocks_of_longest(engine, window)
    if pool.kv_groups:
        largest = request_blocks(engine, pool, engine.max_model_len, pipeline_depth(engine))
        of_longest = largest
        if rules.version < IN_FLIGHT_KEPT:
            of_longest = request_blocks(engine, pool, engine.max_model_len, 1)
    if override is None and blocks - 1 < of_longest:
        raise InputError(no_room_for_one(engine, model, gpu, stage, of_longest, window))
    memory = MemoryPlan(
        total_bytes=gpu.memory_bytes,
        requested_bytes=stage.requested,
        weights_bytes=stage.weights,
        draft_weights_bytes=stage.draft_weights,
        lora_bytes=stage.lora,
        activation_bytes=stage.activations,
        non_torch_bytes=stage.non_torch,
        graph_bytes=stage.graphs,
        reserve_bytes=stage.reserve,
        available_kv_bytes=stage.free,
        kv_bytes_per_token=round(stage.kv_per_token),
        block_size=pool.block_size(engine.block_size),
        num_gpu_blocks=blocks,
        max_model_len=engine.max_model_len,
        sliding_window=window,
        max_blocks_per_request=largest,
        kv_groups=pool.kv_groups,
        blocks_of_longest=of_longest,
        tokens_from_concurrency=rules.version >= TOKENS_FROM_CONCURRENCY,
        model_runner=rules.runner,
        vllm_version=engine.vllm_version,
        notes=(
            *model.notes,
            *precision.notes,
            *_notes(engine, model, stage, blocks, largest, window, bool(pool.kv_groups)),
            *_window_notes(engine, model, window, draft),
            *(() if head_method is None else head_notes(model, head_method)),
        ),
    )
    return PlannedEngine(model, gpu, draft, memory)


def _split_problems(engine: EngineSection, model: ModelSpec) -> list[Problem]:
    problems = parallel_problems(model, engine.tensor_parallel_size, engine.pipeline_parallel_size)
    return problems + expert_problems(engine, model)


def kept_window(engine: EngineConfig, model: ModelSpec, draft: ModelSpec | None) -> int | None:
    """The window that KV is kept for, or None where all of it is: no window, memory reserved in one piece, or a draft
    model that shares the blocks and looks back on something else. A window that ``max_model_len`` does not exceed is
    one to vLLM all the same: it caches the ends of prompts only."""
    window = model.sliding_window
    if window is None or engine.kv == "contiguous":
        return None
    return window if draft is None or draft.sliding_window == window else None


def _blocks_of_longest(engine: EngineConfig, window: int | None) -> int:
    if window is None:
        return -(-engine.max_model_len // engine.block_size)
    in_flight = pipeline_depth(engine) * engine.max_num_batched_tokens
    return max_blocks_per_request(window, in_flight, engine.max_model_len, engine.block_size)


def keeps_all(engine: EngineConfig, model: ModelSpec, draft: ModelSpec | None) -> bool:
    """Whether a block holds all layers, and all KV is kept although layers differ: so it is here, unlike in vLLM,
    beside a draft model, where memory is reserved in one piece, and where KV moves to host memory."""
    return draft is not None or engine.kv == "contiguous" or engine.preemption == "swap"


def _pool(engine: EngineConfig, model: ModelSpec, precision: Precision, draft: ModelSpec | None) -> KvPool:
    """Groups of layers that share a block table."""
    return KvPool.of(
        model,
        engine.tensor_parallel_size,
        precision.kv_bytes,
        precision.activation_bytes,
        engine.block_size,
        keeps_all=keeps_all(engine, model, draft),
    )


def request_blocks(engine: EngineConfig, pool: KvPool, tokens: int, batches_in_flight: int) -> int:
    """Blocks of all groups that a request of so many tokens holds at most."""
    in_flight = batches_in_flight * engine.max_num_batched_tokens
    return pool.request_blocks(tokens, in_flight, has_prefix_cache=engine.enable_prefix_caching)


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
    """Of a draft model on one GPU: weights, KV per token (its layers share the target's blocks), layers."""
    if draft is None:
        return 0, 0, 0
    theirs = draft_engine(engine)
    precision, tp = resolve_precision(theirs, gpu, draft), engine.tensor_parallel_size
    method = head_of(engine)
    # A head shares the model's embedding, and EAGLE and MTP its LM head.
    outer = method is None
    weights = weights_bytes(
        draft, precision, tp, range(draft.num_layers), embed=outer, head=outer or method == "eagle3"
    )
    if method is not None:
        # The layer keeps what the model's layers keep, the keys of a sparse index included.
        pool = _pool(theirs, draft, precision, draft)
        kv = round(pool.bytes_per_token(range(draft.num_layers)))
        return weights + head_bytes(draft, method, tp), kv, draft.num_layers
    kv = sum(count * mixer.kept_bytes(tp, precision.kv_bytes) for mixer, count in draft.mixers)
    return weights, kv, draft.num_layers


def _missing_bytes(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, draft: ModelSpec | None) -> int | None:
    """How much memory other settings miss; None where vLLM refuses their split."""
    split = _split_problems(engine, model)
    if draft is not None:
        split += parallel_problems(draft, engine.tensor_parallel_size, 1)
    return None if split else _tightest_stage(engine, model, gpu, draft).missing_bytes(engine)


def _tightest_stage(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, draft: ModelSpec | None = None) -> Stage:
    """The pipeline stage with the fewest KV blocks: vLLM gives all stages as many as that one has."""
    draft_weights, draft_kv, draft_layers = _draft_stage(engine, draft, gpu)
    precision = resolve_precision(engine, gpu, model)
    rules = memory_rules(engine, model, precision.weights)
    tp, dp = engine.tensor_parallel_size, ExpertGroup.of(engine, model).dp
    lora = engine.max_loras * lora_bytes(model, engine.max_lora_rank, tp) if engine.enable_lora else 0
    pool = _pool(engine, model, precision, draft)
    sizes = pipeline_layers(model.num_layers, engine.pipeline_parallel_size)
    stages: list[Stage] = []
    first = 0
    for index, size in enumerate(sizes):
        layers = range(first, first + size)
        first += size
        head = index == len(sizes) - 1
        weights = weights_bytes(
            model, precision, tp, layers, embed=index == 0, head=head, dp=dp, is_whole=engine.enable_expert_parallel
        )
        stages.append(
            Stage(
                weights=weights + draft_weights + lora,
                draft_weights=draft_weights,
                lora=lora,
                kv_per_token=pool.bytes_per_token(layers) + draft_kv,
                block_bytes=pool.block_bytes(layers) + draft_kv * engine.block_size,
                activations=activation_bytes(engine, model, precision, rules, gpu, head=head),
                non_torch=non_torch_bytes(engine, gpu, rules, dp),
                graphs=graph_bytes(engine, rules, gpu, size + draft_layers),
                requested=int(gpu.memory_bytes * engine.gpu_memory_utilization),
                total=gpu.memory_bytes,
                pool=engine.kv_cache_memory_bytes,
            )
        )
    return min(stages, key=lambda stage: stage.free / stage.block_bytes)


def _notes(
    engine: EngineConfig, model: ModelSpec, stage: Stage, blocks: int, largest: int, window: int | None, several: bool
) -> list[str]:
    notes: list[str] = []
    capacity = (blocks - 1) * engine.block_size
    if several:
        capacity = int((blocks - 1) * engine.max_model_len / largest)
    if blocks - 1 < largest:
        longest = f"max_model_len {engine.max_model_len}"
        if window is not None:
            longest = f"the {largest * engine.block_size} of a window of {window} and the tokens that are in flight"
        is_told = engine.num_gpu_blocks_override is not None
        theirs = "itself refuses to start like this" if is_told else "keeps less for layers with a window"
        notes.append(
            f"the KV cache holds {capacity} tokens, fewer than {longest}: longer requests are rejected (vLLM {theirs})"
        )
    if blocks > max(stage.blocks, MIN_BLOCKS):
        notes.append(
            f"num_gpu_blocks_override {blocks} is more than the {stage.blocks} blocks that "
            f"{engine.gpu_name} has memory for"
        )
    if (
        "block_size" not in engine.model_fields_set
        and engine.block_size != type(engine).model_fields["block_size"].default
    ):
        notes.append(f"block_size {engine.block_size}: the smallest that the attention kernels of {model.name} take")
    if engine.kv_cache_memory_bytes is not None and "gpu_memory_utilization" in engine.model_fields_set:
        notes.append("gpu_memory_utilization is without effect: kv_cache_memory_bytes is the KV cache")
    if engine.max_model_len > model.longest_context:
        notes.append(
            f"max_model_len {engine.max_model_len} is beyond the {model.longest_context} positions of "
            f"{model.name}: vLLM starts like this only with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"
        )
    if model.vision is not None and not model.vision.tokens_per_image:
        notes.append(
            f"the images of the profiling pass are not planned: the config of {model.name} does not say how many "
            "tokens one takes"
        )
    return notes


def _window_notes(engine: EngineConfig, model: ModelSpec, window: int | None, draft: ModelSpec | None) -> list[str]:
    """Where a model has a window and the KV behind it is kept all the same."""
    has_states = any(isinstance(mixer, StateLayer) for mixer, _ in model.mixers)
    if keeps_all(engine, model, draft) and (model.num_window_layers or has_states):
        kept = f"a window of {model.layer_window} tokens: they keep all KV here" if model.num_window_layers else ""
        return [f"{model.name} has layers with {kept or 'a state, which is left out of the KV cache here'}"]
    if model.sliding_window is None or window is not None or engine.max_model_len <= model.sliding_window:
        return []
    why = "kv: contiguous reserves all of it" if engine.kv == "contiguous" else "the draft model looks further back"
    return [f"{model.name} attends to a window of {model.sliding_window} tokens, but KV behind it is kept: {why}"]
