"""One command that fills the table of what the kit must reach on a GPU: kernels, ladder, cuBLAS, two calibrations.

Each part writes one JSON file; the table is made of whatever parts are there, so that a long self-test can be taken
in pieces. Calibrations run as processes of their own: that is what repeatability is about, and a GPU that fails in one
does not end the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_calibrate.commands.compare import compare, predicted_rows
from gpu_calibrate.commands.cublas import TOLERANCE, cublas_table, ratios, time_cublas
from gpu_calibrate.commands.kernel_checks import check_kernels
from gpu_calibrate.commands.ladder import best_share, ladder_table, time_ladder
from gpu_calibrate.device.base import DeviceError, PointError
from sim.errors import InputError
from sim.latency.profile.file import Profile, load_profile

if TYPE_CHECKING:
    from gpu_calibrate.device.cuda import CudaDevice

PARTS = ("kernels", "ladder", "cublas", "calibrate", "repeat")
WITHOUT_CUPY = ("cublas",)
"""Parts that say themselves that CuPy is missing; nothing of the others can be done without it."""
FIRST, SECOND = "calibration.json.gz", "calibration-again.json.gz"
REPEAT_BUDGET_S = 45
ATTEMPTS = 3
"""A calibration that ends with a failed GPU is taken up again this often."""
Echo = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``met`` None = not yet measured."""

    what: str
    bar: str
    parts: tuple[str, ...]
    """Of the self-test, that fill it."""
    value: str
    met: bool | None

    @property
    def command(self) -> str:
        """What fills it."""
        return f"gpu-calibrate selftest {' '.join(f'--part {part}' for part in self.parts)}"


def write_part(folder: Path, part: str, record: Mapping[str, Any]) -> None:
    """Keep a part's result; a file is replaced whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{part}.json.part"
    try:
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
        partial.replace(folder / f"{part}.json")
    finally:
        partial.unlink(missing_ok=True)


def read_part(folder: Path, part: str) -> dict[str, Any] | None:
    """A part's result, if it has been run."""
    path = folder / f"{part}.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return record if isinstance(record, dict) else None


def run_calibration(out: Path, options: Sequence[str], echo: Echo) -> dict[str, Any]:
    """``gpu-calibrate run`` in a process of its own, taken up again after a failed GPU."""
    started = time.monotonic()
    command = [sys.executable, "-m", "gpu_calibrate.cli", "run", "--out", str(out), *options]
    done = subprocess.CompletedProcess[str](command, 1)
    out.unlink(missing_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        fresh = ["--fresh"] if attempt == 1 else []
        done = subprocess.run([*command, *fresh], check=False, text=True, capture_output=True)
        if done.returncode != 1 or out.is_file():
            break
        echo(f"calibration attempt {attempt}: {done.stderr.strip().splitlines()[-1:] or 'no message'}")
    return {
        "returncode": done.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "messages": done.stderr.strip().splitlines()[-6:],
    }


def run_parts(parts: Sequence[str], folder: Path, gpu: str | None, echo: Echo) -> None:
    """One part here, several in a process each: what one holds on the GPU, or breaks, is not the others' business."""
    for part in parts:
        begin = time.monotonic()
        if len(parts) == 1:
            try:
                run_part(part, folder, gpu, echo)
            except (DeviceError, PointError) as error:
                echo(f"{part}: {error}")
        else:
            options = ["--part", part, "--out", str(folder), *([] if gpu is None else ["--gpu", gpu])]
            command = [sys.executable, "-m", "gpu_calibrate.cli", "selftest", *options]
            done = subprocess.run(command, check=False, text=True, capture_output=True)
            for line in done.stderr.strip().splitlines()[-4:]:
                echo(line)
        echo(f"{part}: {time.monotonic() - begin:.0f} s")


def run_part(part: str, folder: Path, gpu: str | None, echo: Echo) -> None:
    """Run one part and write its file. Raises InputError where there is no GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [] if gpu is None else ["--gpu", gpu]
    if part in ON_DEVICE:
        write_part(folder, part, on_device(part, gpu))
        return
    before = settings_of_card()
    if part == "calibrate":
        record = run_calibration(folder / FIRST, options, echo)
    else:
        record = run_calibration(folder / SECOND, [*options, "--budget", str(REPEAT_BUDGET_S)], echo)
    write_part(folder, part, {**record, "settings_before": before, "settings_after": settings_of_card()})


ON_DEVICE: Mapping[str, Callable[[CudaDevice], dict[str, Any]]] = {
    "kernels": lambda _: check_kernels(),
    "ladder": time_ladder,
    "cublas": time_cublas,
}
"""Parts that are measured in this process."""


def on_device(part: str, gpu: str | None) -> dict[str, Any]:
    """A part's record, or that it was skipped and why. Raises InputError where there is no GPU."""
    from gpu_calibrate.device.cuda import import_cupy, import_torch, open_device

    import_torch()
    try:
        import_cupy()
    except InputError as error:
        if part not in WITHOUT_CUPY:
            raise
        return {"skipped": str(error)}
    device = open_device(gpu)
    return {**ON_DEVICE[part](device), "device": device.facts.name}


SETTINGS_FIELDS = (
    "power.limit",
    "clocks.applications.graphics",
    "compute_mode",
    "mig.mode.current",
    "persistence_mode",
)


def settings_of_card() -> str | None:
    """What a user can set on a card, as the driver prints it."""
    from gpu_calibrate.device.state import run_smi

    out = run_smi([f"--query-gpu={','.join(SETTINGS_FIELDS)}", "--format=csv,noheader"])
    return None if out is None else out.strip()


def _profile(folder: Path, name: str) -> Profile | None:
    try:
        return load_profile(folder / name, allow_failed_gates=True)
    except InputError:
        return None


def table(folder: Path) -> list[Row]:
    """Every row of the table, from the parts in ``folder``."""
    kernels, ladder = read_part(folder, "kernels"), read_part(folder, "ladder")
    calibrated, first, second = read_part(folder, "calibrate"), _profile(folder, FIRST), _profile(folder, SECOND)
    return [
        _kernels_row(kernels),
        *_ladder_rows(ladder),
        _cublas_row(read_part(folder, "cublas")),
        _prefill_row(first),
        _repeat_row(first, second),
        *_error_rows(first),
        *_run_rows(first, calibrated),
    ]


def _unknown(what: str, bar: str, *parts: str) -> Row:
    return Row(what, bar, parts, "not yet measured", None)


def _spaced(share: float) -> str:
    """``4 %``, as prose has it."""
    return f"{share:.0%}".replace("%", " %")


def _kernels_row(record: Mapping[str, Any] | None) -> Row:
    what, bar = "kernels against float64 on the GPU", "all right"
    if record is None:
        return _unknown(what, bar, "kernels")
    wrong, checked = record["wrong"], record["checked"]
    worst = max((float(each["error"]) for each in checked), default=0.0)
    value = f"{len(checked)} of {len(checked) + len(wrong)} right, worst {worst:.2f} of the tolerance"
    value += f", {record['skipped']} left out for time" if record["skipped"] else ""
    if wrong:
        value += f"; {wrong[0]['op']}: {wrong[0]['reason']}"
    return Row(what, bar, ("kernels",), value, not wrong and bool(checked))


def _cublas_row(record: Mapping[str, Any] | None) -> Row:
    what, bar = "GEMM through torch against cuBLAS through CuPy", f"ratios of medians within {_spaced(TOLERANCE)} of 1"
    if record is None:
        return _unknown(what, bar, "cublas")
    if "skipped" in record:
        return Row(what, bar, ("cublas",), f"skipped: {record['skipped']}", None)
    found = ratios(record)
    value = f"{min(found):.3f} to {max(found):.3f} over {len(found)} shapes" if found else "no shape could be timed"
    value += f"; {record['failures'][0]}" if record["failures"] else ""
    met = bool(found) and not record["failures"] and all(abs(ratio - 1.0) <= TOLERANCE for ratio in found)
    return Row(what, bar, ("cublas",), value, met)


def _ladder_rows(record: Mapping[str, Any] | None) -> list[Row]:
    what = "`split_kv`/`gqa` decode, 32q/8kv heads of 128, bf16"
    rows = []
    for size, low, high, bar in (
        ("more than 256 MB of KV", 256_000_000, 1 << 62, 0.80),
        ("30-130 MB", 30_000_000, 135_000_000, 0.60),
    ):
        label, limit = f"{what}, {size}", f"{_spaced(bar)} of the copy bandwidth"
        if record is None:
            rows.append(_unknown(label, limit, "ladder"))
            continue
        from gpu_calibrate.commands.ladder import read_rungs

        share = best_share(read_rungs(record), float(record["copy_bytes_per_s"]), low, high)
        value = "no shape could be timed" if share is None else f"{share:.1%} at its worst shape"
        rows.append(Row(label, limit, ("ladder",), value, share is not None and share >= bar))
    value = "not yet measured" if record is None else "below this table"
    rows.append(Row("each rung against the one below", "printed", ("ladder",), value, None if record is None else True))
    return rows


def _prefill_row(first: Profile | None) -> Row:
    what, bar = "prefill attention that is charged", "the kernel that engines run, named"
    operator = None if first is None else first.operators.get("prefill_attention")
    if operator is None:
        return _unknown(what, bar, "calibrate")
    return Row(what, bar, ("calibrate",), operator.kernel, "flash" in operator.kernel.lower())


def _repeat_row(first: Profile | None, second: Profile | None) -> Row:
    what, bar = "two calibrations, two processes", "median difference under 1 %, p90 under 3 %"
    parts = ("calibrate", "repeat")
    if first is None or second is None:
        return _unknown(what, bar, *parts)
    row = compare(first, second)[-1]
    value = f"median {row.median_difference:.2%}, p90 {row.p90_difference:.2%} over {row.num_points:,} points"
    return Row(what, bar, parts, value, row.median_difference < 0.01 and row.p90_difference < 0.03)


def _error_rows(first: Profile | None) -> list[Row]:
    rows = []
    for what, bar, operator, kind in (
        ("held-out error of GEMM", 0.04, "gemm", "random_points"),
        ("held-out error of decode attention", 0.04, "decode_attention", "random_points"),
        ("mixed whole-layer steps", 0.05, "mixed_steps", "layers"),
    ):
        measure = "MAPE" if kind == "layers" else "median"
        limit = f"{measure} under {_spaced(bar)}"
        error = None if first is None else first.errors.get(operator, {}).get(kind)
        if error is None:
            rows.append(_unknown(what, limit, "calibrate"))
            continue
        value = error.mean if kind == "layers" else error.median
        text = f"{measure} {value:.1%}, p90 {error.p90:.1%} over {error.num_points} points"
        rows.append(Row(what, limit, ("calibrate",), text, value < bar))
    return rows


def _run_rows(first: Profile | None, calibrated: Mapping[str, Any] | None) -> list[Row]:
    bars = (
        ("whole default run", "under 5 minutes"),
        ("its GPU memory", "under 40 GB"),
        ("settings of the card", "unchanged"),
        ("sanity gates", "all passed"),
    )
    if first is None or calibrated is None:
        return [_unknown(what, bar, "calibrate") for what, bar in bars]
    seconds, memory = float(calibrated["seconds"]), int(str(first.details.get("peak_memory_bytes", 0)))
    same = calibrated["settings_before"] == calibrated["settings_after"]
    failed = [gate.name for gate in first.failed_gates]
    values = (
        (f"{seconds:.0f} s, {first.details.get('left_out')} points of the grid left out", seconds < 300),
        (f"{memory / 1e9:.1f} GB", memory < 40e9),
        (str(calibrated["settings_after"] or "not told by the driver"), same),
        (f"failed: {', '.join(failed)}" if failed else "all passed", not failed),
    )
    return [Row(what, bar, ("calibrate",), value, met) for (what, bar), (value, met) in zip(bars, values, strict=True)]


def against_tables(folder: Path) -> list[str]:
    """The built-in profile of the same GPU at the places that were measured here: ratio of medians per operator."""
    from sim.latency.profile.library import BUILTIN

    first = _profile(folder, FIRST)
    path = None if first is None else BUILTIN / f"{first.device.gpu}.json.gz"
    if first is None or path is None or not path.is_file():
        return []
    public = load_profile(path, allow_failed_gates=True)
    try:
        rows = predicted_rows(first, public)
    except InputError:
        return []
    lines = [
        f"Against {public.source.origin}:",
        "",
        "| operator | points | theirs over ours | p90 |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| {r.operator} | {r.num_points:,} | {r.median_ratio:.3f} | {r.p90_difference:.1%} |" for r in rows]
    return lines


def table_lines(rows: Sequence[Row]) -> list[str]:
    """Markdown, as ``docs/calibration.md`` has it."""
    marks = {True: "; reached", False: "; **missed**", None: ""}
    return [
        "| what | at least | measured | filled by |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.bar} | {row.value}{marks[row.met]} | `{row.command}` |" for row in rows),
    ]


def markdown(folder: Path, command: str) -> str:
    """The table for ``docs/calibration.md``, the ladder, and the comparison with public tables."""
    first = _profile(folder, FIRST)
    where = (
        "no calibration yet" if first is None else f"{first.device.name}, driver {first.software.get('driver', '?')}"
    )
    lines = [f"{where}; {datetime.now(UTC):%Y-%m-%d}; `{command}`", "", *table_lines(table(folder))]
    ladder, cublas = read_part(folder, "ladder"), read_part(folder, "cublas")
    if ladder is not None and ladder["rungs"]:
        lines += ["", *ladder_table(ladder)]
    if cublas is not None and cublas.get("shapes"):
        lines += ["", *cublas_table(cublas)]
    others = against_tables(folder)
    return "\n".join([*lines, *(["", *others] if others else [])]) + "\n"


def as_json(folder: Path) -> dict[str, Any]:
    """The same as data."""
    rows = [
        {"what": row.what, "bar": row.bar, "value": row.value, "met": row.met, "command": row.command}
        for row in table(folder)
    ]
    return {"rows": rows, "parts": [part for part in PARTS if (folder / f"{part}.json").is_file()]}
