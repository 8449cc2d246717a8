"""Checks of ``compilation_config``: keys that change nothing under the other settings are noted, once each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.checks.findings import Findings
from sim.errors import InputError
from sim.latency.kind import latency_kind

if TYPE_CHECKING:
    from sim.latency.memory import PlannedEngine
    from sim.scenario.loader import Parts
    from sim.scenario.schema import EngineSection, LatencyConfig

_COMPILATION = ("engine", "compilation_config")


def check_compilation(parts: Parts, planned: PlannedEngine | None, findings: Findings) -> None:
    """Note which keys of ``engine.compilation_config`` have no effect. ``planned`` is None for an engine with a
    problem."""
    engine, latency = parts.engine, parts.latency
    if engine is None or latency is None:
        return
    config = engine.compilation_config
    if because := _why_no_fusion(engine, latency, parts):
        findings.unused(config.pass_config, (*_COMPILATION, "pass_config"), "fuse_allreduce_rms", because)
    if because := _why_no_capture(engine, latency, planned):
        findings.unused(config, _COMPILATION, "max_cudagraph_capture_size", because)


def _why_no_fusion(engine: EngineSection, latency: LatencyConfig, parts: Parts) -> str | None:
    """Why no all-reduce is fused with the norm after it, whatever the key says; None = one may be."""
    if engine.compilation_config.pass_config.fuse_allreduce_rms is None:
        return None
    kind = latency_kind(engine.gpu, latency)
    if kind != "profile":
        return f"it belongs to `kind: profile`, and this is `kind: {kind}`"
    if engine.tensor_parallel_size == 1:
        return "tensor_parallel_size is 1, so that there are no all-reduces after a layer"
    if engine.enforce_eager:
        return "enforce_eager compiles nothing, and fuses nothing"
    return (
        None
        if _has_fused_kernel(engine, latency, parts)
        else (f"vLLM has no such kernel for {engine.tensor_parallel_size} x {engine.gpu_name}")
    )


def _has_fused_kernel(engine: EngineSection, latency: LatencyConfig, parts: Parts) -> bool:
    from sim.latency.gpus import load_gpu
    from sim.latency.profile.all_reduce import FUSED_LIMITS
    from sim.latency.profile.library import find_profile

    try:
        device = find_profile(latency.profile, load_gpu(engine.gpu), parts.base_dir).device
    except InputError:
        return True  # told by the checks of the GPU and the profile
    return engine.tensor_parallel_size in FUSED_LIMITS.get(device.compute_capability or "", {})


def _why_no_capture(engine: EngineSection, latency: LatencyConfig, planned: PlannedEngine | None) -> str | None:
    """Why the sizes of CUDA graphs change neither a time nor the KV cache; None = they do, or nothing is planned."""
    if engine.enforce_eager:
        return "enforce_eager captures no CUDA graphs"
    if planned is None or latency_kind(engine.gpu, latency) != "constant" or latency.fit is not None:
        return None
    is_told = engine.num_gpu_blocks_override is not None or engine.kv_cache_memory_bytes is not None
    if is_told or not planned.memory.graph_bytes:
        return "constant times know no CUDA graphs, and none are taken from the KV cache"
    return None
