"""Three pictures of a profile: roofline, GEMM utilisation over M, decode bandwidth over KV bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpu_calibrate.commands.utilisation import (
    Place,
    ceiling,
    decode_bandwidth,
    decode_heads,
    gemm_curves,
    gpu_of,
    pick,
    places,
    utilisation,
)
from gpu_calibrate.plan.points import peak_flops
from sim.errors import OutputError
from sim.latency.profile.file import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"gemm": "tab:blue", "decode_attention": "tab:orange", "prefill_attention": "tab:green"}
LABELS = {"gemm": "GEMM", "decode_attention": "decode attention", "prefill_attention": "prefill attention"}
MAX_CURVES = 60
"""Of one operator in the roofline; more would only hide each other."""
SIZE = (7.0, 4.2)


def draw_roofline(profile: Profile, axes: Axes) -> None:
    """FLOP/s over FLOPs per byte, 16-bit numbers, under the two roofs of the datasheet and the copy's."""
    import numpy as np

    gpu = gpu_of(profile)
    peak = peak_flops(gpu, "bfloat16")
    found: list[Place] = []
    for operator, color in COLORS.items():
        measured = profile.operators.get(operator)
        if measured is None:
            continue
        curves = [curve for curve in measured.curves if curve.key[0] == "bfloat16"]
        shown = [place for curve in pick(curves, MAX_CURVES) for place in places(profile, operator, curve)]
        found += shown
        axes.scatter(
            [place.intensity for place in shown],
            [place.rate for place in shown],
            s=9,
            alpha=0.5,
            color=color,
            linewidths=0,
            label=LABELS[operator],
        )
    if not found:
        return
    low = min(place.intensity for place in found) / 2
    high = max(place.intensity for place in found) * 2
    intensity = np.geomspace(low, high, 200)
    axes.plot(intensity, np.minimum(peak, intensity * gpu.memory_bandwidth), color="black", linewidth=1.2)
    axes.text(high, peak * 1.08, f"{peak / 1e12:,.0f} TFLOP/s", ha="right", va="bottom", fontsize=8)
    axes.text(
        low,
        low * 4 * gpu.memory_bandwidth,
        f"{gpu.memory_bandwidth / 1e9:,.0f} GB/s",
        fontsize=8,
        ha="left",
        va="bottom",
    )
    copy = profile.device.copy_bandwidth_bytes_per_s
    if copy:
        axes.plot(
            intensity,
            np.minimum(peak, intensity * copy),
            color="tab:gray",
            linewidth=1,
            linestyle="--",
            label="measured copy",
        )
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="FLOP/s")
    axes.set_title(f"{profile.device.gpu}: what kernels reach under the datasheet's roof", fontsize=10)
    axes.set_ylim(bottom=min(place.rate for place in found) / 2, top=peak * 2.2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


def draw_utilisation(profile: Profile, axes: Axes) -> None:
    """Share of the peak over M."""
    for curve in gemm_curves(profile):
        shares = utilisation(profile, curve)
        label = f"{int(curve.key[1]):,} x {int(curve.key[2]):,}"
        axes.plot([m for m, _ in shares], [share for _, share in shares], marker=".", linewidth=1, label=label)
    axes.set(xscale="log", xlabel="rows M (tokens in the step)", ylabel="share of the datasheet's FLOP/s")
    axes.set_title(f"{profile.device.gpu}: GEMM in 16 bits, n x k", fontsize=10)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def draw_decode(profile: Profile, axes: Axes) -> None:
    """Bandwidth over the KV that a launch reads, one colour per head configuration."""
    for key in decode_heads(profile)[:5]:
        found = decode_bandwidth(profile, key)
        axes.scatter(
            [size / 1e6 for _, size, _ in found],
            [rate / 1e9 for _, _, rate in found],
            s=10,
            alpha=0.6,
            linewidths=0,
            label=f"{key[2]} heads, {key[3]} KV heads of {key[4]}",
        )
    device = profile.device
    axes.axhline(device.memory_bandwidth_bytes_per_s / 1e9, color="black", linewidth=1, label="datasheet")
    if device.copy_bandwidth_bytes_per_s:
        axes.axhline(ceiling(profile) / 1e9, color="tab:gray", linestyle="--", linewidth=1, label="measured copy")
    axes.set(xscale="log", xlabel="KV, queries and outputs of a launch (MB)", ylabel="GB/s")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_title(f"{device.gpu}: decode attention in 16 bits", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


PLOTS = {"roofline": draw_roofline, "gemm_utilisation": draw_utilisation, "decode_bandwidth": draw_decode}


def figure(profile: Profile, name: str) -> Figure:
    """One of ``PLOTS`` as a figure of its own, without a window."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=SIZE, layout="constrained")
    PLOTS[name](profile, drawn.subplots())
    return drawn


def write_plots(profile: Profile, folder: Path) -> list[Path]:
    """All of them as PNG files. Raises OutputError where the folder cannot be written."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in PLOTS:
            path = folder / f"{name}.png"
            figure(profile, name).savefig(path, dpi=130)
            paths.append(path)
    except OSError as error:
        raise OutputError(str(folder), error) from error
    return paths
