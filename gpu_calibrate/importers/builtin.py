"""The profiles that come with the simulator, made from the installed ``aiconfigurator-core``:

    python -m gpu_calibrate.importers.builtin [--path FOLDER] [--out FOLDER]

Same tables, same bytes. ``docs/profiles.md`` says what each stands on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu_calibrate.importers import import_profile
from gpu_calibrate.importers.aiconfigurator import GPU_NAMES
from gpu_calibrate.importers.thin import operator_sizes, thin_profile
from sim.errors import InputError
from sim.latency.profile.file import Profile, save_profile

OUT = Path(__file__).resolve().parents[2] / "sim" / "latency" / "profile" / "builtin"
CREATED = "2026-11-21T00:00:00+00:00"
"""Written into the files instead of the clock: the same tables give the same bytes."""
TOLERANCE = 0.01

MIN_N, MIN_K, MAX_K = 128, 256, 51200
"""Linear layers of the models people serve, under tensor parallelism of up to 8."""
HEAD_SIZES = (64, 128, 256)
WINDOWS = {(64, 128), (256, 1024), (128, 8192)}
"""(head size, window) of models with sliding windows: gpt-oss, Gemma 3, Llama 4."""
MAX_TP, MAX_EP = 8, 8


def wanted(operator: str, fields: dict[str, str | int]) -> bool:
    """Whether a built-in profile holds this curve."""
    if operator == "gemm":
        return int(fields["n"]) >= MIN_N and MIN_K <= int(fields["k"]) <= MAX_K
    if "head_size" in fields:
        size, window = int(fields["head_size"]), int(fields["window"])
        return size in HEAD_SIZES and (window == 0 or (size, window) in WINDOWS)
    if operator == "moe":
        return int(fields["tp"]) <= MAX_TP and int(fields["ep"]) <= MAX_EP
    return True


def build(gpu: str, path: Path | None) -> Profile:
    """One GPU's built-in profile, by the name that the tables give it."""
    imported = import_profile("aiconfigurator", gpu=gpu, path=path, command="python -m gpu_calibrate.importers.builtin")
    return thin_profile(imported, wanted, TOLERANCE).model_copy(update={"created": CREATED})


def main(arguments: list[str] | None = None) -> int:
    """Write all, or those named. Exit code 2 where the tables are missing."""
    parser = argparse.ArgumentParser(description="Make the built-in profiles.")
    parser.add_argument("--path", type=Path, help="where aiconfigurator-core is unpacked, if not installed")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("gpus", nargs="*", default=list(GPU_NAMES), help=", ".join(GPU_NAMES))
    chosen = parser.parse_args(arguments)
    try:
        for gpu in chosen.gpus:
            profile = build(gpu, chosen.path)
            target = chosen.out / f"{profile.name}.json.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            save_profile(profile, target)
            sizes = ", ".join(f"{name} {points}" for name, (_, points) in operator_sizes(profile.operators).items())
            print(f"{target.name}: {target.stat().st_size / 1e3:.0f} kB; points: {sizes}")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
