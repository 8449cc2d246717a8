"""What is said of a model or a longest request that does not fit: by how much, made of what, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from sim.latency.experts import ExpertGroup
from sim.latency.gpus import GpuSpec
from sim.latency.memory_plan import Stage
from sim.latency.model_spec import ModelSpec
from sim.latency.precision import BYTES_PER_ELEMENT, resolve_precision

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

Remedy = tuple[str, dict[str, int | str]]
MAIN_TERMS = ("matrices", "experts", "all_reduce", "dispatch")
Missing = Callable[["EngineConfig"], int | None]
"""Bytes that an engine misses; None where its split is refused."""


def does_not_fit(
    engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, stage: Stage, draft: ModelSpec | None, missing: Missing
) -> str:
    """One sentence, and the settings that would fit."""
    against = f"{stage.requested / 1e9:.1f} GB = gpu_memory_utilization {engine.gpu_memory_utilization:g} of "
    pool = "KV cache"
    if stage.pool is not None:
        against, pool = "", f"kv_cache_memory_bytes {stage.pool / 1e9:.1f} GB"
    said = (
        f"engine: {model.name} in {resolve_precision(engine, gpu, model).weights}"
        f"{'' if draft is None else f', with {draft.name} to draft for it,'} does not fit {gpu.name} with "
        f"tensor_parallel_size {engine.tensor_parallel_size}, pipeline_parallel_size {engine.pipeline_parallel_size}"
        f"{'' if engine.data_parallel_size == 1 else f', data_parallel_size {engine.data_parallel_size}'}: "
        f"it misses {stage.missing_bytes(engine) / 1e9:.1f} GB per GPU (weights {stage.weights / 1e9:.1f} GB + "
        f"activations, graphs and buffers {stage.reserve / 1e9:.1f} GB + {pool}, against {against}"
        f"{gpu.memory_bytes / 1e9:.1f} GB)"
    )
    measured, estimated = [], []
    for words, change in _remedies(engine, model, gpu, missing):
        if change and not _is_measured(engine, change, model, gpu):
            estimated.append(f"{words} (step times: an estimate)")
        else:
            measured.append(words)
    remedies = [*measured, *estimated]
    if not remedies:
        remedies = ["a smaller model, a larger GPU or more GPUs (pipeline_parallel_size)"]
    return f"{said}; would fit: {' or '.join(remedies)}"


def no_room_for_one(
    engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, stage: Stage, of_longest: int, window: int | None
) -> str:
    """What one request of ``max_model_len`` needs, ``of_longest`` blocks, what there is, and what would help."""
    blocks = stage.blocks - 1
    held = blocks * engine.block_size
    if of_longest > -(-engine.max_model_len // engine.block_size) + 1:  # blocks of several groups
        held = blocks * engine.max_model_len // of_longest
    fitting = held if window is None else held - engine.block_size  # a window begins anywhere in a block
    more = "gpu_memory_utilization" if stage.pool is None else "kv_cache_memory_bytes"
    return (
        f"engine.max_model_len: a request of {engine.max_model_len} tokens needs "
        f"{of_longest * stage.block_bytes / 1e9:.2f} GB of KV cache per GPU, and {model.name} leaves "
        f"{blocks * stage.block_bytes / 1e9:.2f} GB on {gpu.name} ({held} tokens): vLLM refuses to "
        f"start; lower max_model_len to at most {fitting}, or raise {more} or tensor_parallel_size"
    )


def _remedies(engine: EngineConfig, model: ModelSpec, gpu: GpuSpec, missing: Missing) -> Iterator[Remedy]:
    """What would fit: in words, and as a change of the engine's settings (empty = of no matter for step times)."""

    def first(key: str, values: tuple[int | str, ...]) -> Iterator[Remedy]:
        for value in values:
            lacks = missing(engine.model_copy(update={key: value}))
            if lacks is not None and lacks <= 0:
                yield f"{key}: {value}", {key: value}
                return

    pool = engine.kv_cache_memory_bytes
    if pool is not None and _fits_without_its_pool(engine, missing):
        # The same pool twice as large misses less only where it has no room for a block.
        lacks, of_twice = missing(engine), missing(engine.model_copy(update={"kv_cache_memory_bytes": 2 * pool}))
        is_tiny = lacks is not None and of_twice is not None and of_twice < lacks
        yield f"a {'larger' if is_tiny else 'smaller'} kv_cache_memory_bytes", {}
    if engine.enable_chunked_prefill:
        budgets = (8192, 2048)
        yield from first(
            "max_num_batched_tokens", tuple(each for each in budgets if each < engine.max_num_batched_tokens)
        )
    yield from first("tensor_parallel_size", tuple(tp for tp in (2, 4, 8, 16) if tp > engine.tensor_parallel_size))
    if ExpertGroup.of(engine, model).is_lockstep:
        # More ranks that share the experts, where there are several already.
        ranks = (2, 4, 8, 16, 32)
        yield from first("data_parallel_size", tuple(dp for dp in ranks if dp > engine.data_parallel_size))
    now = BYTES_PER_ELEMENT[resolve_precision(engine, gpu, model).weights]
    yield from first("dtype", tuple(dt for dt in ("bfloat16", "fp8", "int4") if BYTES_PER_ELEMENT[dt] < now))


def _is_measured(engine: EngineConfig, change: Mapping[str, int | str], model: ModelSpec, gpu: GpuSpec) -> bool:
    """Whether most of what the changed engine computes and exchanges was measured on this GPU."""
    from sim.latency.profile.cost import ProfileCost
    from sim.latency.profile.library import find_profile, profile_for_gpu

    if profile_for_gpu(gpu.name) is None:
        return False
    cost = ProfileCost(find_profile(None, gpu), model, gpu, engine.model_copy(update=dict(change)))
    terms = cast("dict[str, list[dict[str, Any]]]", cost.describe()["evidence"])
    shares = {
        name: sum(part["share"] for part in parts if part["kind"] in ("measured", "interpolated"))
        for name, parts in terms.items()
        if name in MAIN_TERMS
    }
    return all(share >= 0.5 for share in shares.values())


def _fits_without_its_pool(engine: EngineConfig, missing: Missing) -> bool:
    """Whether the model would fit with a pool of what its share of the memory leaves."""
    lacks = missing(engine.model_copy(update={"kv_cache_memory_bytes": None}))
    return lacks is not None and lacks <= 0
