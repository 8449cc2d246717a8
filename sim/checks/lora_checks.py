"""Checks of LoRA adapters: what vLLM refuses, what is not modelled, and requests for adapters that nothing serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.checks.findings import Findings
from sim.latency.lora import LARGEST_VOCABULARY

if TYPE_CHECKING:
    from sim.latency.model_spec import ModelSpec
    from sim.scenario.loader import Parts
    from sim.scenario.schema import EngineSection, WorkloadConfig

KEYS = ("max_loras", "max_lora_rank", "max_cpu_loras")
NOT_WITH_ADAPTERS = (
    ("pipeline_parallel_size", 1, "adapters on pipeline stages are not modelled"),
    ("data_parallel_size", 1, "adapters of several ranks are not modelled"),
    ("speculative", None, "drafts for requests with adapters are not modelled"),
    ("batching", "continuous", "the static baseline knows no adapters"),
    ("kv", "paged", "the contiguous baseline knows no adapters"),
    ("preemption", "recompute", "the older engine's swapping knows no adapters"),
)
"""Settings that an engine with adapters cannot have: the only value they can, and why."""


def check_lora(engine: EngineSection, parts: Parts, findings: Findings) -> None:
    """Adapters of ``engine`` against its other settings and against the workload."""
    asked = [] if parts.workload is None else _places(parts.workload)
    if not engine.enable_lora:
        for key in KEYS:
            findings.unused(engine, ("engine",), key, "enable_lora is off")
        for path, what in asked:
            findings.problem(
                path,
                f"`{what}` names LoRA adapters, and the engine serves none: vLLM answers that the model does not "
                "exist; set engine.enable_lora: true, or remove it",
            )
        return
    if not asked and parts.workload is not None and parts.workload.trace is None:
        findings.note(
            "engine.enable_lora: no request has an adapter (`workload.lora`); the slots take memory all the same"
        )
    if engine.max_cpu_loras is not None and engine.max_cpu_loras < engine.max_loras:
        findings.problem(
            ("engine", "max_cpu_loras"),
            f"`engine.max_cpu_loras` ({engine.max_cpu_loras}) is below `engine.max_loras` ({engine.max_loras}): vLLM "
            "refuses to start; raise the first or lower the second",
        )
    for key, only, why in NOT_WITH_ADAPTERS:
        value = getattr(engine, key)
        if value != only:
            findings.problem(
                ("engine", key),
                f"`engine.{key}` does not go with `engine.enable_lora`: {why}; "
                + ("remove one of the two" if only is None else f"set it to {only}, or enable_lora to false"),
            )


def check_lora_model(engine: EngineSection, model: ModelSpec, findings: Findings) -> None:
    """Adapters of ``engine`` against its model."""
    if engine.enable_lora and model.vocab_size > LARGEST_VOCABULARY:
        findings.problem(
            ("engine", "enable_lora"),
            f"`engine.enable_lora`: {model.name} has a vocabulary of {model.vocab_size} tokens, and vLLM serves "
            f"adapters of at most {LARGEST_VOCABULARY}; choose another model",
        )


def _places(workload: WorkloadConfig) -> list[tuple[tuple[str | int, ...], str]]:
    """Where the workload asks for adapters, and that place in words."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    if workload.lora is not None:
        found.append((("workload", "lora"), "workload.lora"))
    for index, each in enumerate(workload.classes or ()):
        if each.lora is not None:
            found.append((("workload", "classes", index, "lora"), f"workload.classes[{index}].lora"))
    return found
