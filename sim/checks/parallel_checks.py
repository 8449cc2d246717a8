"""Checks of data and expert parallelism, which depend on whether the model has experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.checks.findings import Findings
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.latency.experts import ExpertGroup
    from sim.latency.model_spec import ModelSpec
    from sim.scenario.loader import Parts
    from sim.scenario.schema import EngineSection, LatencyConfig

_ENGINE = ("engine",)
BLOCK = 128
"""Rows and columns of FP8 weights that share a scale (``fp8_block``)."""
ONE_MACHINE = 8
"""GPUs of the largest machine whose collectives were measured."""

NOT_IN_STEP = (
    ("pipeline_parallel_size", 1, "stages under data parallelism of experts are not modelled"),
    ("speculative", None, "drafts of ranks that step together are not modelled"),
    ("batching", "continuous", "the static baseline steps alone"),
    ("kv", "paged", "the contiguous baseline steps alone"),
    ("preemption", "recompute", "the older engine's swapping steps alone"),
)
"""Settings that ranks of an MoE model cannot have: the only value they can, and why."""


def check_parallel(engine: EngineSection, model: ModelSpec, parts: Parts, findings: Findings) -> None:
    """Data and expert parallelism of ``engine``: what is not modelled is a problem, what has no effect a note."""
    from sim.latency.experts import ExpertGroup

    group = ExpertGroup.of(engine, model)
    _check_experts(engine, model, group, findings)
    _check_exchange(engine, model, group, findings)
    _check_imbalance(engine, parts, group, findings)
    _check_blocks(engine, model, group, findings)
    if because := _why_no_choice(engine, model, parts, group):
        findings.unused(engine, _ENGINE, "moe_backend", because)
    if group.is_lockstep:
        _check_lockstep(engine, findings)
        if group.num_gpus > ONE_MACHINE:
            findings.note(
                f"experts are spread over {group.num_gpus} GPUs: their links are taken to be as fast as those within "
                f"one machine; latency.link_bandwidth_gb_s says otherwise"
            )


def _check_experts(engine: EngineSection, model: ModelSpec, group: ExpertGroup, findings: Findings) -> None:
    if not engine.enable_expert_parallel:
        return
    if not model.num_experts:
        findings.unused(engine, _ENGINE, "enable_expert_parallel", f"{engine.model} has no experts")
    elif not group.is_whole:
        why = "tensor_parallel_size is 1"
        findings.unused(engine, _ENGINE, "enable_expert_parallel", f"{why} and so is data_parallel_size")
    elif not group.is_lockstep and model.num_experts % engine.tensor_parallel_size:
        findings.problem(
            (*_ENGINE, "enable_expert_parallel"),
            f"`engine.tensor_parallel_size` ({engine.tensor_parallel_size}) does not divide the {model.num_experts} "
            f"experts of {engine.model}",
        )


def _check_exchange(engine: EngineSection, model: ModelSpec, group: ExpertGroup, findings: Findings) -> None:
    from sim.latency.experts import WHY_NO_BACKEND

    key, backend = "all2all_backend", engine.all2all_backend
    if not model.num_experts:
        findings.unused(engine, _ENGINE, key, f"{engine.model} has no experts")
    elif not group.is_lockstep:
        findings.unused(engine, _ENGINE, key, "data_parallel_size is 1, so that all-reduces do")
    elif backend in WHY_NO_BACKEND:
        findings.problem(
            (*_ENGINE, key),
            f"`engine.all2all_backend: {backend}` has no cost here: {WHY_NO_BACKEND[backend]}; there are "
            "allgather_reducescatter (vLLM's default) and deepep_high_throughput",
        )
    elif not group.is_whole:
        findings.unused(engine, _ENGINE, key, "without enable_expert_parallel tokens are gathered everywhere")


def _check_imbalance(engine: EngineSection, parts: Parts, group: ExpertGroup, findings: Findings) -> None:
    from sim.latency.kind import latency_kind

    latency, key = parts.latency, "expert_load_imbalance"
    stated = None if latency is None else latency.expert_load_imbalance
    if latency is None or stated is None or latency_kind(engine.gpu, latency) == "constant":
        return  # that a constant does not read it is noted with its other keys
    if not group.is_whole:
        why = "no GPU has experts of its own, which takes enable_expert_parallel and several GPUs"
        findings.unused(latency, ("latency",), key, why)
    elif stated > group.ep:
        findings.problem(
            ("latency", key),
            f"`latency.expert_load_imbalance` ({stated:g}) is above {group.ep}, the number of GPUs that share the "
            "experts: one of them cannot have more than all tokens",
        )


def _check_blocks(engine: EngineSection, model: ModelSpec, group: ExpertGroup, findings: Findings) -> None:
    """vLLM stops where a GPU's share of an expert's width is no whole number of blocks (``fp8_utils.py``, 0.32.0)."""
    if not model.num_experts or group.is_whole or model.dtype != "fp8_block" or engine.dtype not in ("auto", "fp8"):
        return
    share, rest = divmod(model.moe_intermediate_size, group.num_gpus)
    if not rest and share % BLOCK:
        key = "tensor_parallel_size" if engine.data_parallel_size == 1 else "data_parallel_size"
        findings.problem(
            (*_ENGINE, key),
            f"`engine.{key}`: {group.num_gpus} GPUs with a share of every expert have {share} of its "
            f"{model.moe_intermediate_size} columns each, no multiple of the {BLOCK} that share a scale in the FP8 "
            f"weights of {engine.model}; set enable_expert_parallel: true",
        )


def _why_no_choice(engine: EngineSection, model: ModelSpec, parts: Parts, group: ExpertGroup) -> str | None:
    """Why ``moe_backend`` changes nothing; None = it does, or it is not given."""
    from sim.latency.kind import latency_kind
    from sim.latency.profile.expert_kernels import MXFP4_BACKENDS, OPERATORS

    if engine.moe_backend == "auto" or parts.latency is None:
        return None
    kind = latency_kind(engine.gpu, parts.latency)
    if not model.num_experts:
        return f"{engine.model} has no experts"
    if kind != "profile":
        return f"it belongs to `kind: profile`, and this is `kind: {kind}`"
    formats = {model.dtype, *(found for layer, _ in model.kinds for part, found in layer.formats if part == "experts")}
    if "mxfp4" in formats and engine.dtype == "auto" and engine.moe_backend in MXFP4_BACKENDS:
        return None
    if model.dtype != "fp8_block" or engine.dtype not in ("auto", "fp8") or engine.moe_backend not in OPERATORS:
        return "it chooses among kernels of experts in FP8 with a scale per block or in MXFP4, and these are not"
    return _why_no_curves(engine, parts.latency, parts, group)


def _why_no_curves(engine: EngineSection, latency: LatencyConfig, parts: Parts, group: ExpertGroup) -> str | None:
    from sim.latency.gpus import load_gpu
    from sim.latency.profile.expert_kernels import HOPPER, OPERATORS
    from sim.latency.profile.library import find_profile

    try:
        profile = find_profile(latency.profile, load_gpu(engine.gpu), parts.base_dir).profile
    except InputError:
        return None  # told by the checks of the GPU and the profile
    is_hopper = profile.device.compute_capability == HOPPER
    of_table = "flashinfer_cutlass" if group.is_whole else "triton"
    if is_hopper and engine.moe_backend == of_table:
        return None
    if OPERATORS[engine.moe_backend] in profile.operators and not (is_hopper and group.is_whole):
        return None
    return f"profile {profile.name} has no curves of that kernel for experts spread like this; those it has stand in"


def _check_lockstep(engine: EngineSection, findings: Findings) -> None:
    for key, only, why in NOT_IN_STEP:
        value = getattr(engine, key)
        if value != only:
            shown = key if only is None else f"{key}: {value}"
            remedy = "remove it" if only is None else f"set it to {only}"
            findings.problem(
                (*_ENGINE, key),
                f"`engine.{shown}` does not go with data_parallel_size {engine.data_parallel_size} of a model with "
                f"experts: {why}; {remedy}",
            )
