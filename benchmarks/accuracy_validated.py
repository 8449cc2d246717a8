"""``sim/latency/validated.json``: which kinds of run were measured, and how far off their predictions are.

The product reads it to say of a run whether its kind was measured. Written by ``--write-validated``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy_experiment import weights_of
from benchmarks.accuracy_open_loop import LITE_0151, QWEN_0230
from benchmarks.accuracy_runs import Outcome
from sim.latency.models import MODELS

COLUMNS = {
    "tpot_median": ("mean_tpot_ms", "mean_itl_ms"),
    "ttft_median": ("mean_ttft_ms",),
    "e2e_median": ("mean_e2el_ms",),
}
"""Key of the file -> keys of ``summary.json`` whose absolute error is meant, the first that was measured."""
SEEN = (LITE_0151, QWEN_0230)
"""Sets that causes of errors were looked for in, or a constant chosen on."""
DIGITS = 4


def validated(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One entry for each set, model, GPU, weights, version and half.

    Runs under a fit and runs that could not be made do not count.
    """
    kinds: dict[tuple[Any, ...], list[Outcome]] = {}
    for each in outcomes:
        if not each.failure and each.experiment.fitted_to is None:
            kinds.setdefault(_kind(each), []).append(each)
    return [_entry(kind, found) for kind, found in kinds.items()]


def _kind(outcome: Outcome) -> tuple[Any, ...]:
    experiment = outcome.experiment
    engine = experiment.scenario["engine"]
    return (
        experiment.group,
        engine["model"],
        engine["gpu"],
        weights_of(engine),
        experiment.version,
        "link_bandwidth_gb_s" in experiment.scenario["latency"],
        "training" if experiment.is_training or experiment.group in SEEN else "validation",
    )


def _entry(kind: tuple[Any, ...], found: Sequence[Outcome]) -> dict[str, Any]:
    group, model, gpu, weights, version, is_link_stated, how = kind
    sizes = {int(each.experiment.scenario["engine"].get("tensor_parallel_size", 1)) for each in found}
    entry: dict[str, Any] = {
        "set": group,
        "model": model,
        "model_kind": "moe" if MODELS[model].num_experts else "dense",
        "gpu": gpu,
        "dtype": weights,
        "tensor_parallel": sorted(sizes),
        "link_stated": is_link_stated,
        "vllm_version": version,
        "runs": len(found),
    }
    for name, keys in COLUMNS.items():
        signed = [next((error for key in keys if (error := each.error(key)) is not None), None) for each in found]
        errors = [abs(error) for error in signed if error is not None]
        entry[name] = round(float(np.median(errors)), DIGITS) if errors else None
    return {**entry, "how": how}


def write_validated(outcomes: Sequence[Outcome], path: Path) -> None:
    """One entry a line."""
    lines = ",\n".join("  " + json.dumps(each) for each in validated(outcomes))
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
