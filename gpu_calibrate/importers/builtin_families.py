"""The files beside the built-in profiles: what most models do not need, read when a run asks for it.

    python -m gpu_calibrate.importers.builtin_families [--path FOLDER] [--out FOLDER] [--family NAME] [NAME ...]

Same tables, same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu_calibrate.fit.held_out import held_out_errors
from gpu_calibrate.importers.aic_families import READERS
from gpu_calibrate.importers.aic_tables import DISTRIBUTION, GPU_NAMES, LICENCE, Found, find_place, package_version
from gpu_calibrate.importers.aiconfigurator import merged
from gpu_calibrate.importers.builtin import CREATED, TOLERANCE, wanted
from gpu_calibrate.importers.devices import device_of, resolve_gpu
from gpu_calibrate.importers.source_tables import build_curves
from gpu_calibrate.importers.thin import keep_curves, thin_points
from sim.errors import InputError
from sim.latency.profile.file import Operator, Profile, Source, save_profile
from sim.latency.profile.layout import FAMILIES
from sim.latency.profile.library import BUILTIN

COMMAND = "python -m gpu_calibrate.importers.builtin_families"


def build_family(preset: str, family: str, path: Path | None) -> Profile | None:
    """One file: imported, cut to what models need, its errors found, thinned. None where the tables have nothing."""
    preset, own = resolve_gpu(preset, GPU_NAMES, DISTRIBUTION)
    place = find_place(own, "vllm", None, path)
    profile = _profile(preset, family, READERS[family](place), f"{own}, vllm {place.version}", place.data)
    if profile is None:
        return None
    kept = keep_curves(profile, wanted)
    errors = held_out_errors(kept)
    return thin_points(kept, TOLERANCE).model_copy(update={"errors": errors})


def _profile(preset: str, family: str, found: Found, tables: str, data: Path) -> Profile | None:
    operators: dict[str, Operator] = {}
    notes: list[str] = []
    device = device_of(preset, preset)
    for operator, table in found:
        device = device.model_copy(update={"name": table.reported_device or device.name})
        curves, cleaning = build_curves(table.curves, device)
        if curves:
            own = Operator(kernel=table.kernel, origin=table.origin, curves=curves)
            operators[operator] = merged(operators.get(operator), own)
            notes += [cleaning.note(), *table.notes]
    if not operators:
        return None
    origin = f"{DISTRIBUTION} {package_version(data)} ({LICENCE}), {tables}"
    source = Source(
        kind="imported", tool="gpu-calibrate import", command=COMMAND, origin=origin, notes=tuple(dict.fromkeys(notes))
    )
    return Profile(
        name=f"{preset}.{family}", created=CREATED, source=source, device=device, software={}, operators=operators
    )


def main(arguments: list[str] | None = None) -> int:
    """Write all, or those named. Exit code 2 where tables are missing."""
    known = sorted(GPU_NAMES.values())
    parser = argparse.ArgumentParser(description="Make the files beside the built-in profiles.")
    parser.add_argument("--path", type=Path, help="where aiconfigurator-core is unpacked, if not installed")
    parser.add_argument("--out", type=Path, default=BUILTIN / "families")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="all if none is named")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all if none is named")
    chosen = parser.parse_args(arguments)
    try:
        for name in chosen.names or known:
            for family in chosen.family or FAMILIES:
                _write(build_family(name, family, chosen.path), chosen.out)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _write(profile: Profile | None, folder: Path) -> None:
    if profile is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{profile.name}.json.gz"
    save_profile(profile, target)
    points = sum(len(curve.at) for operator in profile.operators.values() for curve in operator.curves)
    print(f"{target.name}: {target.stat().st_size / 1e3:.0f} kB, {points} points")


if __name__ == "__main__":
    sys.exit(main())
