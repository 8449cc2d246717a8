"""Timed whole layers (``timing.mixed_steps``) against what the simulator charges for them through its own step cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from gpu_calibrate.fit.held_out import relative_error
from sim.latency.base import StepShape
from sim.latency.gpus import GPUS
from sim.latency.models import MODELS
from sim.latency.profile.file import Error, Profile
from sim.latency.uniform import reshaped

ENGINE_VERSION = "0.32.0"
"""Of the engine whose charges are compared; one GPU's layers cost the same in every version."""
REPLAYED = frozenset({"launches"})
"""Layers are timed as graphs of any size, so that none waits for the launches of its kernels."""


def step_shape(step: Mapping[str, Any]) -> Any:
    """A timed step as the sums that the simulator's cost reads. Its own class belongs to a part of the simulator that
    this package does not import."""
    chunks = [(int(chunk), int(prior)) for chunk, prior in step["chunks"]]
    decodes = [int(context) for context in step["decodes"]]
    return StepShape(
        num_prefills=len(chunks),
        num_prefill_tokens=sum(chunk for chunk, _ in chunks),
        prefill_context_tokens=sum(chunk + prior for chunk, prior in chunks),
        prefill_attention_pairs=sum(chunk * (2 * prior + chunk) for chunk, prior in chunks),
        num_decodes=len(decodes),
        decode_context_tokens=sum(decodes),
        num_sampled=len(chunks) + len(decodes),
    )


def engine_settings(shapes: Sequence[Any], longest: int) -> Any:
    """One GPU, CUDA graphs, room for these steps."""
    return SimpleNamespace(
        dtype="bfloat16",
        kv_cache_dtype="auto",
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        data_parallel_size=1,
        enable_expert_parallel=False,
        moe_backend="auto",
        enforce_eager=False,
        preemption="recompute",
        speculative=None,
        async_scheduling=False,
        vllm_version=ENGINE_VERSION,
        compilation_config=SimpleNamespace(
            max_cudagraph_capture_size=None, pass_config=SimpleNamespace(fuse_allreduce_rms=None)
        ),
        max_num_seqs=max(256, *(shape.num_sampled for shape in shapes)),
        max_num_batched_tokens=max(2048, *(shape.num_tokens for shape in shapes)),
        max_model_len=longest,
    )


def step_errors(profile: Profile, mixed: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(predicted, measured) nanoseconds of every timed step. Predicted is what the simulator charges for its layers:
    its cost of a step with that many layers more."""
    from sim.latency.profile.cost import ProfileCost
    from sim.latency.profile.library import Found

    steps: Sequence[Mapping[str, Any]] = mixed["steps"]
    if not steps:
        return []
    shapes = [step_shape(step) for step in steps]
    longest = max(sum(chunk) for step in steps for chunk in [*step["chunks"], *([each] for each in step["decodes"])])
    engine = engine_settings(shapes, longest)
    gpu, found = GPUS[profile.device.gpu], Found(profile, profile.device)
    costs: dict[tuple[str, int], ProfileCost] = {}

    def cost(name: str, num_layers: int, shape: Any) -> int:
        if (name, num_layers) not in costs:
            model = reshaped(MODELS[name], num_layers=num_layers)
            costs[name, num_layers] = ProfileCost(found, model, gpu, engine, without=REPLAYED)
        return costs[name, num_layers].gpu_ns(shape)

    pairs = []
    for step, shape in zip(steps, shapes, strict=True):
        name, layers = str(step["model"]), int(step["layers"])
        pairs.append((cost(name, layers + 1, shape) - cost(name, 1, shape), float(step["ns"])))
    return pairs


def step_error(profile: Profile, mixed: Mapping[str, Any]) -> Error | None:
    """Over all timed steps."""
    return relative_error([(float(told), seen) for told, seen in step_errors(profile, mixed)])
