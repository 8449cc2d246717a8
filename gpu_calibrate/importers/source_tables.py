"""From rows of a table to the curves of one operator: duplicates, impossible times, times out of a warm cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpu_calibrate.importers.pooled_falls import pool_falls
from sim.errors import InputError
from sim.latency.profile.file import Curve, Device, Key
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.speed_of_light import LAUNCH_NS, bound_ns

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]

POSSIBLE_SHARE_OF_PEAK = 1.05
"""Faster than this share of the datasheet's peak is not believed."""
JUMP, AGREE = 2.0, 1.5
"""More than ``JUMP`` times above or below both neighbours, which differ by less than ``AGREE``, is an outlier."""
REACH = 0.9
"""Quantile of the bandwidth that cold curves reach, as a share of the peak: what reading is taken to take."""
NEVER_FALLS = frozenset(
    {"moe", "moe_triton", "moe_cutlass", "prefill_attention", "decode_attention", "expert_exchange"}
    | {"block_decode", "block_prefill", "state_decode", "state_prefill", "encoder_attention"}
)
"""Operators whose curves are made to rise. Matrices and collectives choose another kernel from some size on, and there
a larger size really can take less: the prediction knows."""
LEVELLED = 0.01
"""Of a time: from this change on a point counts as levelled."""
DIGITS = 5
"""Significant digits of a time that are kept: the tables' noise is at the third."""


@dataclass
class Cleaning:
    """What was dropped or changed of one operator's table, and why."""

    operator: str
    rows: int = 0
    duplicates: int = 0
    impossible: int = 0
    warm: int = 0
    raised: int = 0
    outliers: int = 0
    levelled: int = 0
    kept: int = 0

    def note(self) -> str:
        """One line for the profile's notes."""
        changes = {
            "repeated rows joined to their median": self.duplicates,
            "faster than the GPU can": self.impossible,
            "read out of a warm L2": self.warm,
            "out of a warm L2 raised to reading from memory": self.raised,
            "outliers": self.outliers,
            "in stretches that fall, joined at their median": self.levelled,
        }
        parts = [f"{count} {reason}" for reason, count in changes.items() if count]
        return f"{self.operator}: {self.kept} of {self.rows} rows kept" + (f"; {', '.join(parts)}" if parts else "")


WarmBytes = Callable[[dict[str, Any], Floats], Floats]
"""Bytes of weights or KV that one launch of a curve reads, at each place of its axis."""


@dataclass(frozen=True)
class Reuse:
    """How a benchmark went over the same memory again and again, so that what fits the L2 came from there."""

    read_bytes: WarmBytes
    copies: Callable[[dict[str, Any]], int]
    """Copies gone through in turn, by the fields of the key."""
    share: float | None
    """Times are dropped where reading the bytes from memory would take more of them than this. None: they are raised
    to what reading takes, at the rate of those curves that cannot be in the L2 (``REACH``)."""


@dataclass(frozen=True)
class CurveTable:
    """Rows of one operator. ``frame`` has a column per part of the key, ``at`` and ``time_ns``."""

    operator: str
    frame: pd.DataFrame
    reuse: Reuse | None = None
    """None where the benchmark's cache is as warm as an engine's."""


def build_curves(table: CurveTable, device: Device) -> tuple[tuple[Curve, ...], Cleaning]:
    """Curves of a table, cleaned. Order: by key. Raises InputError for times that are no positive numbers."""
    layout = OPERATORS[table.operator]
    cleaning = Cleaning(table.operator, rows=len(table.frame))
    frame = table.frame
    bad = ~(np.isfinite(frame["time_ns"]) & (frame["time_ns"] > 0) & (frame["at"] > 0))
    if bool(bad.any()):
        first = frame[bad].iloc[0].to_dict()
        raise InputError(f"{table.operator}: {int(bad.sum())} rows without a positive time or place, the first {first}")
    columns = [*layout.key, "at"]
    medians = frame.groupby(columns, sort=True, observed=True)["time_ns"].median().reset_index()
    cleaning.duplicates = len(frame) - len(medians)
    raw = [
        (_plain(key), group["at"].to_numpy(dtype=np.float64), group["time_ns"].to_numpy(dtype=np.float64))
        for key, group in medians.groupby(list(layout.key), sort=True, observed=True)
    ]
    reach = _reach(table, device, raw)
    cleaned = (_clean_curve(table, device, key, at, times, reach, cleaning) for key, at, times in raw)
    curves = [curve for curve in cleaned if curve is not None]
    cleaning.kept = sum(len(curve.at) for curve in curves)
    return tuple(curves), cleaning


def _plain(key: Sequence[Any]) -> Key:
    return tuple(part if isinstance(part, str) else int(part) for part in key)


def _reach(table: CurveTable, device: Device, raw: list[tuple[Key, Floats, Floats]]) -> float:
    """Share of the peak bandwidth at which curves read what cannot be in the L2; 1 where there are none."""
    if table.reuse is None or table.reuse.share is not None:
        return 1.0
    shares = []
    for key, at, times in raw:
        fields = dict(zip(OPERATORS[table.operator].key, key, strict=True))
        read = table.reuse.read_bytes(fields, at)
        if read.min() * table.reuse.copies(fields) > 2 * device.l2_bytes:
            shares.append(float((read / device.memory_bandwidth_bytes_per_s * 1e9 / times).max()))
    return min(1.0, float(np.quantile(shares, REACH))) if shares else 1.0


def _clean_curve(
    table: CurveTable, device: Device, key: Key, at: Floats, times: Floats, reach: float, cleaning: Cleaning
) -> Curve | None:
    fields = dict(zip(OPERATORS[table.operator].key, key, strict=True))
    possible = times >= _least_ns(table, device, fields, at)
    warm = np.zeros_like(possible)
    if table.reuse is not None:
        read = table.reuse.read_bytes(fields, at)
        reading_ns = read / device.memory_bandwidth_bytes_per_s * 1e9
        fits = read * table.reuse.copies(fields) <= device.l2_bytes
        if table.reuse.share is None:
            raised = fits & (times < reading_ns / reach)
            times = np.where(raised, reading_ns / reach, times)
            cleaning.raised += int(raised.sum())
        else:
            # A slow point among fast ones is no colder than they are: what counts is the fastest from there on.
            fastest = np.minimum.accumulate(times[::-1])[::-1]
            warm = fits & (reading_ns > table.reuse.share * fastest)
    outlier = np.zeros_like(possible)
    keep = possible & ~warm
    outlier[keep] = _outliers(times[keep])
    cleaning.warm += int(warm.sum())
    cleaning.impossible += int((~possible & ~warm).sum())
    cleaning.outliers += int(outlier.sum())
    keep &= ~outlier
    if not keep.any():
        return None
    kept = times[keep]
    if table.operator in NEVER_FALLS:
        risen = pool_falls(kept)
        cleaning.levelled += int((np.abs(risen / kept - 1.0) > LEVELLED).sum())
        kept = risen
    return Curve(
        key=key,
        at=tuple(int(place) for place in at[keep]),
        time_ns=tuple(_rounded(time) for time in kept),
    )


def _least_ns(table: CurveTable, device: Device, fields: dict[str, Any], at: Floats) -> Floats:
    """What no launch can beat: its arithmetic, and reading from memory what cannot be in the L2. Activations may be in
    the L2, as they are in an engine."""
    if "num_gpus" in fields:
        gpus = float(fields["num_gpus"])
        link = device.link_bandwidth_bytes_per_s or np.inf
        return at * (gpus - 1.0) / gpus / link * 1e9 / POSSIBLE_SHARE_OF_PEAK
    if table.operator == "moe" and fields["ep"] > 1:
        # How many of the tokens chose this GPU's experts is not known.
        return np.zeros_like(at)
    arithmetic = device.model_copy(update={"memory_bandwidth_bytes_per_s": 1e30})
    least = bound_ns(table.operator, arithmetic, fields, at) - LAUNCH_NS
    if table.reuse is not None:
        read = table.reuse.read_bytes(fields, at)
        cold = read * table.reuse.copies(fields) > device.l2_bytes
        least = np.maximum(least, np.where(cold, read / device.memory_bandwidth_bytes_per_s * 1e9, 0.0))
    share: Floats = least / POSSIBLE_SHARE_OF_PEAK
    return share


def _rounded(time: float) -> float:
    return float(f"{time:.{DIGITS}g}")


def _outliers(times: Floats) -> npt.NDArray[np.bool_]:
    """Single points far above or below both neighbours, which agree with each other, and a first one far above the two
    after it: less work takes no longer. Steps, as tiles of a matrix make them, are none."""
    found = np.zeros(len(times), dtype=bool)
    if len(times) < 3:
        return found
    agree_next = max(times[1], times[2]) < AGREE * min(times[1], times[2])
    left, middle, right = times[:-2], times[1:-1], times[2:]
    agree = np.maximum(left, right) < AGREE * np.minimum(left, right)
    far = (middle > JUMP * np.maximum(left, right)) | (middle * JUMP < np.minimum(left, right))
    found[1:-1] = agree & far
    found[0] = agree_next and times[0] > JUMP * max(times[1], times[2])
    return found
