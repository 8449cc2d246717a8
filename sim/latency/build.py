"""From a scenario's ``engine`` and ``latency`` sections to a latency model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError
from sim.latency.base import StepCost, StepShape
from sim.latency.constant import ConstantCost
from sim.latency.draft_heads import JoiningCost
from sim.latency.experts import ExpertGroup
from sim.latency.fitted import Fitted, load_fit
from sim.latency.image_cost import ImageCost
from sim.latency.kind import latency_kind
from sim.latency.lockstep_cost import LockstepCost
from sim.latency.lora import LoraCost
from sim.latency.memory import load_model_and_gpu
from sim.latency.models import load_model
from sim.latency.operators import Efficiency
from sim.latency.parallel import Link
from sim.latency.profile.library import find_profile
from sim.latency.roofline import RooflineCost
from sim.latency.speculative_cost import SpeculativeCost, draft_engine, head_of, load_draft_model
from sim.latency.work import WorkModel

if TYPE_CHECKING:
    from sim.latency.gpus import GpuSpec
    from sim.latency.memory import PlannedEngine
    from sim.latency.model_spec import ModelSpec
    from sim.latency.profile.cost import ProfileCost
    from sim.scenario.schema import EngineConfig, LatencyConfig

LINK_LATENCY_US = 20.0
"""Of a collective over a link that is stated rather than measured."""

LONGEST_STEP_S = 3600.0
"""For one token: far beyond any engine, and far from where a run's nanoseconds would no longer fit 64 bits."""
STRETCHING_KEYS = ("step_s", "time_scale", "host_overhead_ms", "link_bandwidth_gb_s", "link_latency_us", "profile")


def build_step_cost(
    engine: EngineConfig,
    latency: LatencyConfig,
    base_dir: Path | None = None,
    planned: PlannedEngine | None = None,
    fitted: Fitted | None = None,
) -> StepCost:
    """Build the latency model that the scenario asks for; ``planned`` is what has been looked up already, ``fitted``
    takes the place of ``latency.fit``.

    Raises InputError for a constant without ``step_s``, an unknown model or GPU, a split that vLLM refuses, a
    profile that is not there, cannot be used, or is of another GPU, and steps of more than an hour.
    """
    named = None if planned is None else (planned.model, planned.gpu)
    if fitted is None:
        fitted = fit_of(latency, base_dir)
    cost = _build_plain_cost(engine, latency, base_dir, named, fitted)
    _check_shortest_step(cost, latency)
    if engine.data_parallel_size > 1:
        model = load_model(engine.model, base_dir) if planned is None else planned.model
        if ExpertGroup.of(engine, model).is_lockstep:
            return LockstepCost(cost, engine, model)
    if engine.enable_images and not isinstance(cost, ConstantCost):
        model, gpu = load_model_and_gpu(engine, base_dir) if named is None else named
        if model.vision is not None:
            return ImageCost(cost, model, model.vision, gpu, engine, latency.time_scale)
    if engine.enable_lora and not isinstance(cost, ConstantCost):
        model, gpu = load_model_and_gpu(engine, base_dir) if named is None else named
        return LoraCost(cost, model, gpu, engine, latency.time_scale)
    speculative = engine.speculative
    if speculative is None or isinstance(cost, ConstantCost):
        return cost
    draft = None
    if (method := head_of(engine)) is not None:
        return _with_head(cost, method, engine, latency, base_dir, planned, fitted)
    if speculative.draft_model is not None:
        named = None if planned is None or planned.draft is None else (planned.draft, planned.gpu)
        of_draft = None if fitted is None else fitted.without_exposed()
        draft = _build_plain_cost(draft_engine(engine), latency, base_dir, named, of_draft)
    if isinstance(draft, ConstantCost):
        draft = None
    return SpeculativeCost(cost, draft, speculative.num_speculative_tokens)


def _with_head(
    cost: ProfileCost | RooflineCost,
    method: str,
    engine: EngineConfig,
    latency: LatencyConfig,
    base_dir: Path | None,
    planned: PlannedEngine | None,
    fitted: Fitted | None,
) -> SpeculativeCost | ProfileCost | RooflineCost:
    """``cost`` with a head that drafts."""
    head = load_draft_model(engine, base_dir) if planned is None else planned.draft
    gpu = load_model_and_gpu(engine, base_dir)[1] if planned is None else planned.gpu
    if head is None or engine.speculative is None:
        return cost
    of_draft = None if fitted is None else fitted.without_exposed()
    passes = _build_plain_cost(draft_engine(engine), latency, base_dir, (head, gpu), of_draft)
    if isinstance(passes, ConstantCost):
        return cost
    joining = JoiningCost(head, method, gpu, engine, latency.time_scale)
    return SpeculativeCost(cost, passes, engine.speculative.num_speculative_tokens, joining)


def fit_of(latency: LatencyConfig, base_dir: Path | None) -> Fitted | None:
    """What ``latency.fit`` names. Raises InputError."""
    return None if latency.fit is None else load_fit(latency.fit, base_dir)


def _build_plain_cost(
    engine: EngineConfig,
    latency: LatencyConfig,
    base_dir: Path | None,
    named: tuple[ModelSpec, GpuSpec] | None,
    fitted: Fitted | None,
) -> ConstantCost | RooflineCost | ProfileCost:
    kind = latency_kind(engine.gpu, latency)
    if fitted is not None and fitted.kind != kind:
        raise InputError(f"latency.fit: fitted under `kind: {fitted.kind}`, and this is `kind: {kind}`")
    if kind == "constant":
        return _constant_cost(latency, fitted)
    model, gpu = load_model_and_gpu(engine, base_dir) if named is None else named
    host_ms, link, scale = latency.host_overhead_ms, _link(latency), latency.time_scale
    uneven = latency.expert_load_imbalance
    if kind == "roofline":
        if link is None:
            return RooflineCost(
                model,
                gpu,
                engine,
                host_overhead_ms=host_ms,
                time_scale=scale,
                expert_load_imbalance=uneven,
                fitted=fitted,
            )
        linked = replace(gpu, nvlink_bandwidth=link.bandwidth)
        latency_s = link.latency_ns / 1e9
        costs = Efficiency(link=1.0, nvlink_latency_s=latency_s, nvlink_hop_s=0.0)
        return RooflineCost(
            model,
            linked,
            engine,
            host_overhead_ms=host_ms,
            efficiency=costs,
            time_scale=scale,
            expert_load_imbalance=uneven,
            fitted=fitted,
        )
    from sim.latency.profile.cost import ProfileCost
    from sim.latency.profile.kind_cost import KindCost, has_several_kinds

    found = find_profile(latency.profile, gpu, base_dir)
    cost_type = KindCost if has_several_kinds(model) else ProfileCost
    return cost_type(
        found,
        model,
        gpu,
        engine,
        host_overhead_ms=host_ms,
        link=link,
        time_scale=scale,
        expert_load_imbalance=uneven,
        fitted=fitted,
        sampling=latency.sampling,
    )


def _constant_cost(latency: LatencyConfig, fitted: Fitted | None) -> ConstantCost:
    scale = latency.time_scale
    step_ns: float | None = None if latency.step_s is None else latency.step_s * 1e9
    if fitted is not None and (of_fit := fitted.ns("step_ms")) is not None:
        step_ns = of_fit
    if step_ns is None:
        raise InputError("latency.step_s: kind constant needs the time of a step, for example step_s: 0.05")
    token_ns = 0 if fitted is None else fitted.ns("token_us") or 0
    return ConstantCost(round(step_ns * scale), round(token_ns * scale), time_scale=scale, fitted=fitted)


def _check_shortest_step(cost: StepCost, latency: LatencyConfig) -> None:
    shape = StepShape(num_decodes=1, decode_context_tokens=1, num_sampled=1)
    step_s = (cost.host_ns(shape) + cost.gpu_ns(shape)) / 1e9
    if step_s <= LONGEST_STEP_S:
        return
    given = [f"latency.{key} ({getattr(latency, key)})" for key in STRETCHING_KEYS if key in latency.model_fields_set]
    raise InputError(
        f"latency: a step of one token would take {step_s:.3g} s, at most {LONGEST_STEP_S:g} s are possible; "
        f"look at {', '.join(given) or 'the profile'}"
    )


def _link(latency: LatencyConfig) -> Link | None:
    if latency.link_bandwidth_gb_s is None:
        return None
    latency_us = LINK_LATENCY_US if latency.link_latency_us is None else latency.link_latency_us
    return Link(latency_us * 1e3, latency.link_bandwidth_gb_s * 1e9)


def build_work_model(
    engine: EngineConfig,
    latency: LatencyConfig,
    base_dir: Path | None = None,
    planned: PlannedEngine | None = None,
) -> WorkModel | None:
    """FLOPs and bytes of steps, for MFU and bandwidth use; None where step times say nothing of a GPU."""
    if latency_kind(engine.gpu, latency) == "constant":
        return None
    if planned is None:
        return WorkModel(*load_model_and_gpu(engine, base_dir), engine)
    return WorkModel(planned.model, planned.gpu, engine)
