"""The profiles that come with the simulator, made from the installed ``aiconfigurator-core``:

    python -m gpu_calibrate.importers.builtin [--path FOLDER] [--llmservingsim FOLDER] [--out FOLDER] [NAME ...]

Same tables, same bytes. ``docs/profiles.md``, written by the same command, says what each stands on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu_calibrate.fit.gates import imported_gates
from gpu_calibrate.fit.held_out import held_out_errors
from gpu_calibrate.importers import import_profile
from gpu_calibrate.importers.aic_tables import GPU_NAMES
from gpu_calibrate.importers.thin import keep_curves, thin_points
from sim.errors import InputError
from sim.latency.profile.file import Curve, Profile, save_profile
from sim.latency.profile.library import BUILTIN

COMMAND = "python -m gpu_calibrate.importers.builtin"
CREATED = "2026-11-21T00:00:00+00:00"
"""Written into the files instead of the clock: the same tables give the same bytes."""
TOLERANCE = 0.01

AICONFIGURATOR = {preset: own for own, preset in GPU_NAMES.items()}
"""Presets and the source's names of them."""
LLMSERVINGSIM = ("rtx-pro-6000",)
"""Presets whose kernels LLMServingSim timed in a running vLLM for several models: those come first. (The RTX 4090 it
timed for one model, too little to go by for others.)"""

MIN_N, MIN_K, MAX_K = 128, 256, 51200
"""Linear layers of the models people serve, under tensor parallelism of up to 8."""
HEAD_SIZES = (64, 128, 256)
WINDOWS = {(64, 128), (256, 1024), (128, 8192)}
"""(head size, window) of models with sliding windows: gpt-oss, Gemma 3, Llama 4."""
MAX_TP, MAX_EP = 8, 8
COLLECTIVES = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"}
SLOW_LINK = 0.4
"""Of the bus bandwidth over two GPUs: below this, more GPUs are wired worse than the two."""
MIXED_CHUNKS = (16, 64, 256, 512, 1024, 2048)
MIXED_PRIORS = (0, 512, 2048, 8192)
"""Of the mixed batches of LLMServingSim: enough to see what a chunk does to the decodes beside it."""


def wanted(operator: str, fields: dict[str, str | int]) -> bool:
    """Whether a built-in profile holds this curve."""
    if operator == "gemm":
        return int(fields["n"]) >= MIN_N and MIN_K <= int(fields["k"]) <= MAX_K
    if operator == "mixed_attention" and (
        fields["chunk_tokens"] not in MIXED_CHUNKS or fields["prior_tokens"] not in MIXED_PRIORS
    ):
        return False
    if "window" in fields:
        size, window = int(fields["head_size"]), int(fields["window"])
        return size in HEAD_SIZES and (window == 0 or (size, window) in WINDOWS)
    if operator.startswith("moe"):
        return int(fields["tp"]) <= MAX_TP and int(fields["ep"]) <= MAX_EP
    return True


def build(preset: str, path: Path | None, llmservingsim_path: Path | None) -> Profile:
    """One GPU's built-in profile: imported, cut to what models need, its errors found, thinned.

    The errors are found before thinning, which adds at most ``TOLERANCE`` to any point.
    """
    if preset in LLMSERVINGSIM:
        add = [("aiconfigurator", path)]
        imported = import_profile("llmservingsim", gpu=preset, path=llmservingsim_path, command=COMMAND, add=add)
    else:
        imported = import_profile("aiconfigurator", gpu=preset, path=path, command=COMMAND)
    kept = without_slow_links(keep_curves(imported, wanted))
    errors = held_out_errors(kept)
    thinned = thin_points(kept, TOLERANCE)
    return thinned.model_copy(update={"created": CREATED, "errors": errors, "gates": imported_gates(thinned)})


def without_slow_links(profile: Profile) -> Profile:
    """Collectives over more than two GPUs left out where they use the links far worse than those over two.

    Such a table tells of the wiring of one machine (GPUs on PCIe behind several hosts), not of the GPU. The predictor
    then takes the share of the link that two GPUs reached.
    """
    operators, notes = dict(profile.operators), []
    for name in COLLECTIVES & set(operators):
        rates = {curve.key: _bus_rate(curve) for curve in operators[name].curves}
        slow = {
            key for key, rate in rates.items() if rate < SLOW_LINK * rates.get((key[0], 2), 0.0) and int(key[1]) > 2
        }
        if slow:
            curves = tuple(curve for curve in operators[name].curves if curve.key not in slow)
            operators[name] = operators[name].model_copy(update={"curves": curves})
            told = ", ".join(f"{key[0]} over {key[1]} ({rates[key] / 1e9:.1f} GB/s)" for key in sorted(slow, key=str))
            notes.append(f"{name}: left out as the wiring of one machine: {told}")
    source = profile.source.model_copy(update={"notes": (*profile.source.notes, *sorted(notes))})
    return profile.model_copy(update={"operators": operators, "source": source})


def _bus_rate(curve: Curve) -> float:
    """Bytes/s per GPU and direction that a ring would need for the largest size measured."""
    gpus = int(curve.key[1])
    return curve.at[-1] * 2.0 * (gpus - 1) / gpus / curve.time_ns[-1] * 1e9


def main(arguments: list[str] | None = None) -> int:
    """Write all, or those named. Exit code 2 where tables are missing."""
    known = sorted(AICONFIGURATOR)
    parser = argparse.ArgumentParser(description="Make the built-in profiles.")
    parser.add_argument("--path", type=Path, help="where aiconfigurator-core is unpacked, if not installed")
    parser.add_argument("--llmservingsim", type=Path, help="folder of LLMServingSim's tables; without it: no RTX GPU")
    parser.add_argument("--out", type=Path, default=BUILTIN)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all if none is named")
    chosen = parser.parse_args(arguments)
    names = chosen.names or [name for name in known if chosen.llmservingsim or name not in LLMSERVINGSIM]
    try:
        for name in names:
            profile = build(name, chosen.path, chosen.llmservingsim)
            chosen.out.mkdir(parents=True, exist_ok=True)
            target = chosen.out / f"{profile.name}.json.gz"
            save_profile(profile, target)
            points = sum(len(curve.at) for operator in profile.operators.values() for curve in operator.curves)
            print(f"{target.name}: {target.stat().st_size / 1e3:.0f} kB, {points} points")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
