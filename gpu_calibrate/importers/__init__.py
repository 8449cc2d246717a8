"""Profiles from tables that others measured, one file per source.

``aiconfigurator``: operator tables inside the PyPI package ``aiconfigurator-core``. ``vidur``, ``llmservingsim``: files
in those simulators' layouts, that a user has. What is imported is the figures; each operator says where from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sim.errors import InputError
from sim.latency.profile.file import Profile

SOURCES = ("aiconfigurator", "vidur", "llmservingsim")
"""What ``import_profile`` reads from."""


def import_profile(
    source: str,
    *,
    gpu: str,
    engine: str = "vllm",
    version: str | None = None,
    path: Path | None = None,
    name: str | None = None,
    command: str = "",
    add: Sequence[tuple[str, Path | None]] = (),
) -> Profile:
    """The profile of ``gpu`` in the tables of ``source``, cleaned, with its gates, without stated errors
    (``held_out`` finds those).

    ``gpu`` is a preset's name or the source's own (``a100_sxm``). ``engine`` and ``version`` choose among an
    aiconfigurator's tables, None the newest version. ``path`` is a folder (aiconfigurator: of the unpacked package,
    None the installed one; the others: of their files, or one file). ``add`` names further (source, path) whose
    curves are taken where the first has none. ``command`` is kept in the file: what the user typed.

    Raises InputError for an unknown source, GPU, engine or version, for tables that are missing, known to be wrong or
    not in the layout, each with what to do.
    """
    from gpu_calibrate.fit.gates import imported_gates
    from gpu_calibrate.importers.combine import add_curves

    profile = _import_one(source, gpu=gpu, engine=engine, version=version, path=path, name=name, command=command)
    for other, other_path in add:
        extra = _import_one(other, gpu=gpu, engine=engine, version=None, path=other_path, name=name, command=command)
        profile = add_curves(profile, extra)
    return profile.model_copy(update={"gates": imported_gates(profile)})


def _import_one(
    source: str, *, gpu: str, engine: str, version: str | None, path: Path | None, name: str | None, command: str
) -> Profile:
    if source == "aiconfigurator":
        from gpu_calibrate.importers.aiconfigurator import import_aiconfigurator

        return import_aiconfigurator(gpu, engine=engine, version=version, path=path, name=name, command=command)
    if source == "vidur":
        from gpu_calibrate.importers.vidur import import_vidur

        return import_vidur(gpu, path=path, name=name, command=command)
    if source == "llmservingsim":
        from gpu_calibrate.importers.llmservingsim import import_llmservingsim

        return import_llmservingsim(gpu, path=path, name=name, command=command)
    raise InputError(f"unknown source {source!r} to import from; known are {', '.join(SOURCES)}")
