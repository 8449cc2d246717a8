"""Checks of KV offloading: what vLLM has no tier for, what is not modelled, and keys without effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.checks.findings import Findings

if TYPE_CHECKING:
    from sim.latency.memory_plan import PlannedEngine
    from sim.scenario.loader import Parts
    from sim.scenario.schema import EngineConfig, EngineSection

NOT_WITH_OFFLOADING = (
    ("enable_prefix_caching", True, "without a prefix cache nothing that was loaded is found again on the GPU"),
    ("pipeline_parallel_size", 1, "offloading from pipeline stages is not modelled"),
    ("data_parallel_size", 1, "offloading of several ranks is not modelled"),
    ("enable_lora", False, "offloading of requests with adapters is not modelled"),
    ("speculative", None, "offloading beside drafts is not modelled"),
    ("batching", "continuous", "the static baseline offloads nothing"),
    ("kv", "paged", "the contiguous baseline offloads nothing"),
    ("preemption", "recompute", "swapping is the older engine's, offloading the newer one's"),
)
"""Settings that an engine with offloading cannot have otherwise: the only value they can have, and why."""


def check_offloading(engine: EngineSection, parts: Parts, findings: Findings) -> None:
    """Offloading of ``engine`` against its other settings."""
    if engine.kv_offloading_size is None:
        findings.unused(engine, ("engine",), "kv_offloading_backend", "kv_offloading_size is not given")
        for key in ("kv_load_gb_s", "kv_store_gb_s"):
            findings.unused(parts.latency, ("latency",), key, "no KV is offloaded (engine.kv_offloading_size)")
        return
    if engine.kv_offloading_backend != "native":
        findings.problem(
            ("engine", "kv_offloading_backend"),
            f"`engine.kv_offloading_backend: {engine.kv_offloading_backend}` is a server of its own, whose size and "
            "decisions vLLM does not know, and is not modelled; take native",
        )
    for key, only, why in NOT_WITH_OFFLOADING:
        if getattr(engine, key) != only:
            shown = str(only).lower() if isinstance(only, bool) else only
            findings.problem(
                ("engine", key),
                f"`engine.{key}` does not go with `engine.kv_offloading_size`: {why}; "
                + ("remove one of the two" if only is None else f"set it to {shown}, or remove kv_offloading_size"),
            )


def check_offloading_memory(engine: EngineConfig, planned: PlannedEngine, findings: Findings) -> None:
    """Offloading of ``engine`` against its model and its KV blocks."""
    from sim.latency.host_link import host_block_bytes

    if engine.kv_offloading_size is None:
        return
    where = ("engine", "kv_offloading_size")
    memory = planned.memory
    if memory.kv_groups or memory.sliding_window is not None:
        findings.problem(
            where,
            f"`engine.kv_offloading_size`: {planned.model.name} has layers that keep a window or a state, and "
            "offloading is modelled where every layer keeps all KV; remove it, or choose another model",
        )
        return
    block_bytes = host_block_bytes(engine, planned)
    if engine.kv_offloading_size * 2**30 < block_bytes:
        findings.problem(
            where,
            f"`engine.kv_offloading_size` ({engine.kv_offloading_size:g} GiB) does not hold one KV block of "
            f"{block_bytes:,} bytes; give at least {block_bytes / 2**30:.4f}",
        )
