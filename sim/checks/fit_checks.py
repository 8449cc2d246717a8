"""A fit beside the engine that is to use it: another GPU or kind is refused, another model or split is a note."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sim.checks.findings import Findings, collect
from sim.errors import InputError
from sim.latency.fitted import Fitted, load_fit
from sim.latency.gpus import load_gpu
from sim.latency.kind import latency_kind

if TYPE_CHECKING:
    from sim.scenario.schema import EngineSection, LatencyConfig

REPLACED = {
    "step_s": ("step_ms",),
    "host_overhead_ms": ("host_step_ms", "host_request_us"),
    "client_overhead_ms": ("client_ms",),
}
"""Keys of ``latency`` that fitted parameters take the place of."""
ENGINE_KEYS = ("model", "dtype", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""What a fitted engine is told by."""


def check_fit(engine: EngineSection | None, latency: LatencyConfig, base_dir: Path, findings: Findings) -> None:
    """The file of ``latency.fit``, and whether it is for this engine."""
    name, path = latency.fit, ("latency", "fit")
    fitted = None if name is None else collect(findings, lambda: load_fit(name, base_dir), path)
    if fitted is None or engine is None:
        return
    kind = latency_kind(engine.gpu, latency)
    if fitted.kind != kind:
        findings.problem(
            path,
            f"`latency.fit` was fitted under `kind: {fitted.kind}`, and this is `kind: {kind}`; "
            f"give `latency.kind: {fitted.kind}`, or fit again with this one",
        )
    try:
        gpu = load_gpu(engine.gpu)
    except InputError:
        return  # an unknown GPU is told where memory is planned
    if fitted.gpu != gpu.name:
        findings.problem(
            path,
            f"`latency.fit` was fitted on {fitted.gpu}, but engine.gpu is {gpu.name}; fit runs of {gpu.name}, or "
            "leave the fit out",
        )
    for key, names in REPLACED.items():
        if set(names) & set(fitted.values):
            findings.unused(latency, path[:1], key, "`latency.fit` has it from measured runs")
    _note_other_engine(engine, fitted, findings)


def engine_of(engine: EngineSection) -> dict[str, str | int]:
    """What ``fitted_on`` tells of an engine."""
    return {key: getattr(engine, key) for key in ENGINE_KEYS}


def _note_other_engine(engine: EngineSection, fitted: Fitted, findings: Findings) -> None:
    mine = engine_of(engine)
    known = [{key: each.get(key) for key in ENGINE_KEYS} for each in fitted.fitted_on]
    if not known or mine in known:
        return
    told = "; ".join(dict.fromkeys(_told(each) for each in known))
    findings.note(f"`latency.fit` was fitted on {told}, and is used for {_told(mine)}: no measured run says how well")


def _told(engine: dict[str, str | int] | dict[str, object]) -> str:
    sizes = [(short, engine.get(key)) for short, key in zip(("TP", "PP", "DP"), ENGINE_KEYS[2:], strict=True)]
    splits = [f"{short} {size}" for short, size in sizes if size != 1 or short == "TP"]
    return ", ".join([f"{engine.get('model')} in {engine.get('dtype')}", *splits])
