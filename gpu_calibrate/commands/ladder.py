"""The ladder of paged-attention kernels on the same shapes: what each rung gains over the one below, and why."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_calibrate.commands.calibration import ANCHORS
from gpu_calibrate.device.base import Device
from gpu_calibrate.fit.build_profile import COPY_BYTES
from gpu_calibrate.launches.plans import DECODE_LADDER
from gpu_calibrate.plan.grid import CORE_HEADS
from gpu_calibrate.plan.points import LADDER, Point, work_of
from gpu_calibrate.timing.replays import Settings, Watch, measure_batch, quantile

SHAPES = ((1, 16384), (16, 1024), (8, 4096), (64, 2048), (64, 4096))
"""(batch, context): 67 MB twice, 134 MB, 537 MB and 1.07 GB of KV at 8 KV heads of 128 in 16 bits."""
TWIN = "contiguous_attention"
REASONS: Mapping[str, str] = {
    "paged_attention_naive": "three passes; scores computed anew in each for every output element",
    "paged_attention_uncoalesced": "scores once, kept; neighbouring threads still read far apart",
    "paged_attention_shared": "a warp shares a token: reads lie side by side, the query waits in shared memory",
    "paged_attention_vectorised": "16 bytes per load: fewer instructions, more bytes in flight",
    "paged_attention_gqa": "K and V are read once per KV head, not once per query head",
    "paged_attention_split_kv": "long contexts are cut so that every multiprocessor has work",
    TWIN: "the same kernel without block tables: what paging costs",
}
"""Why each rung should be faster than the one below it."""
SETTINGS = Settings(min_replays=8, max_replays=16, batch_points=1)


@dataclass(frozen=True, slots=True)
class Rung:
    """One kernel at one shape."""

    kernel: str
    batch: int
    context: int
    bytes: int
    time_ns: float

    @property
    def bandwidth(self) -> float:
        """Compulsory bytes per second."""
        return self.bytes / self.time_ns * 1e9


def ladder_points() -> list[Point]:
    """Every rung at every shape, and the contiguous twin."""
    points = []
    for batch, context in SHAPES:
        key = ("bfloat16", "bfloat16", *CORE_HEADS, 0, batch)
        points += [Point("decode_attention", key, context, LADDER, kernel) for kernel in DECODE_LADDER]
        points.append(Point("decode_attention_contiguous", key, context, LADDER))
    return points


def time_ladder(device: Device) -> dict[str, Any]:
    """All rungs, the copy bandwidth of the same run, and what could not be timed. Raises DeviceError, PointError."""
    watch, rng = Watch(), random.Random(1)
    anchors = [device.prepare(anchor) for anchor in ANCHORS]
    rungs, failures = [], []
    try:
        for point in ladder_points():
            measured, failed = measure_batch(device, [point], SETTINGS, rng, watch, anchors)
            failures += [f"{each.point}: {each.reason}" for each in failed]
            rungs += [
                {
                    "kernel": point.variant or TWIN,
                    "batch": int(point.fields["batch"]),
                    "context": point.at,
                    "bytes": work_of(point).bytes,
                    "ns": each.median_ns,
                }
                for each in measured
            ]
    finally:
        device.release(anchors)
    copies = sorted(watch.anchors[str(ANCHORS[1])])
    return {"rungs": rungs, "copy_bytes_per_s": COPY_BYTES / quantile(copies, 0.5) * 1e9, "failures": failures}


def read_rungs(record: Mapping[str, Any]) -> list[Rung]:
    """The inverse of what ``time_ladder`` writes."""
    return [
        Rung(str(each["kernel"]), int(each["batch"]), int(each["context"]), int(each["bytes"]), float(each["ns"]))
        for each in record["rungs"]
    ]


def best_share(rungs: Sequence[Rung], copy: float, low: int, high: int) -> float | None:
    """The better of ``gqa`` and ``split_kv`` as a share of the copy bandwidth, at its worst shape between ``low`` and
    ``high`` bytes; None where there is no such shape."""
    best: dict[tuple[int, int], float] = {}
    for rung in rungs:
        if rung.kernel in ("paged_attention_gqa", "paged_attention_split_kv") and low <= rung.bytes < high:
            shape = (rung.batch, rung.context)
            best[shape] = max(best.get(shape, 0.0), rung.bandwidth / copy)
    return min(best.values(), default=None)


def ladder_table(record: Mapping[str, Any]) -> list[str]:
    """Markdown: a row per rung, a column per shape."""
    rungs, copy = read_rungs(record), float(record["copy_bytes_per_s"])
    shapes = list(dict.fromkeys((rung.batch, rung.context) for rung in rungs))
    known = {(rung.kernel, rung.batch, rung.context): rung for rung in rungs}
    heads = [f"{batch} x {context:,}" for batch, context in shapes]
    lines = [
        f"Share of the copy bandwidth ({copy / 1e9:,.0f} GB/s), and times faster than the rung below:",
        "",
        "| kernel | " + " | ".join(heads) + " | why |",
        "|---|" + "---:|" * len(heads) + "---|",
    ]
    below: str | None = None
    for kernel in (*DECODE_LADDER, TWIN):
        cells = []
        for batch, context in shapes:
            rung = known.get((kernel, batch, context))
            under = known.get((below, batch, context)) if below else None
            gain = "" if rung is None or under is None else f", {under.time_ns / rung.time_ns:.2f}x"
            cells.append("-" if rung is None else f"{rung.bandwidth / copy:.1%}{gain}")
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + f" | {REASONS[kernel]} |")
        below = kernel
    return lines
