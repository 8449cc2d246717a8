"""Whole runs that were measured and predicted: how wrong the predictions were, by kind of model, format, GPU, version.

``validated.json`` has an entry for each model, GPU, format and version that ``docs/accuracy.md`` scores
(``python -m benchmarks.accuracy --write-validated``). Runs that causes of errors were looked for in or that something
was fitted to (``training``) validate nothing, but are named. Runs whose link was told beside the profile are left out:
they say nothing of a run that only names its GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from sim.scenario.vllm_version import version_of

FORMATS = {"float16": "16 bits", "bfloat16": "16 bits", "fp8_block": "fp8"}
"""Number formats that count as one; all others are their own."""
FIGURES = (("TPOT", "tpot_median"), ("TTFT", "ttft_median"), ("E2E", "e2e_median"))

Entry = Mapping[str, Any]


@cache
def validated_sets() -> tuple[Entry, ...]:
    """The entries of the file that count."""
    entries = json.loads((files("sim.latency") / "validated.json").read_text(encoding="utf-8"))
    return tuple(each for each in entries if not each["link_stated"])


def whole_runs(
    model: str, *, is_moe: bool, gpu: str, dtype: str, tp: int, version: str, sets: Sequence[Entry] | None = None
) -> dict[str, Any]:
    """What measured runs say of predictions of this kind.

    ``validated`` where a set is of the kind of model (dense or MoE), number format, GPU, tensor parallelism and
    version (0.32.1 counts for 0.32.0). Else ``text`` says so, and names the nearest set: of this GPU, format and kind.
    """
    kind, asked = ("MoE" if is_moe else "dense"), FORMATS.get(dtype, dtype)
    entries = validated_sets() if sets is None else sets
    near = [
        each
        for each in entries
        if each["gpu"] == gpu
        and (each["model_kind"] == "moe") is is_moe
        and FORMATS.get(each["dtype"], each["dtype"]) == asked
    ]
    near.sort(
        key=lambda each: (
            each["how"] != "validation",
            each["model"] != model,
            not _is_version(each, version),
            -each["runs"],
            each["set"],
        )
    )
    unseen = [each for each in near if each["how"] == "validation"]
    same = [each for each in unseen if _is_version(each, version) and tp in each["tensor_parallel"]]
    subject = f"{kind} models in {asked} on {gpu}"
    if same:
        return {"validated": True, "text": _figures(same[0]), "sets": [dict(each) for each in same]}
    if not near:
        return {"validated": False, "text": f"not validated: no measured runs of {subject}", "sets": []}
    unlike = f"TP{tp} of {subject} under vLLM {version}"
    text = f"not validated for {unlike}; nearest: {_figures(near[0])}"
    return {"validated": False, "text": text, "sets": [dict(each) for each in near]}


def _is_version(entry: Entry, version: str) -> bool:
    told = entry["vllm_version"]
    return told is not None and version_of(told)[:2] == version_of(version)[:2]


def _figures(entry: Entry) -> str:
    known = [f"{name} {entry[key]:.1%}" for name, key in FIGURES if entry[key] is not None]
    told = entry["vllm_version"]
    version = "a version not recorded" if told is None else f"vLLM {told}"
    sizes = "/".join(str(size) for size in entry["tensor_parallel"])
    seen = "" if entry["how"] == "validation" else " (causes of errors were looked for in them)"
    runs = f"{entry['runs']} run{'' if entry['runs'] == 1 else 's'}"
    have = "has" if entry["runs"] == 1 else "have"
    return f"{runs} of {entry['model']} (TP{sizes}, {version}) {have} median errors of {', '.join(known)}{seen}"
