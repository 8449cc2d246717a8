"""Figures that tables and plots show: utilisation of matrices, bandwidth of decode attention, roofline places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_calibrate.plan.grid import CORE_HEADS, OTHER_HEADS, TP_SIZES, model_matrices
from gpu_calibrate.plan.points import Key, Point, peak_flops, work_of
from sim.latency.gpus import GPUS, GpuSpec
from sim.latency.models import MODELS
from sim.latency.profile.file import Curve, Profile

WORK_DTYPES = {"fp8_block": "fp8", "int4": "bfloat16"}
"""Formats whose bytes and FLOPs are counted as another's."""


@dataclass(frozen=True, slots=True)
class Place:
    """One measured time with what it moved and computed."""

    operator: str
    key: Key
    at: int
    time_ns: float
    bytes: int
    flops: int
    dtype: str

    @property
    def bandwidth(self) -> float:
        """Compulsory bytes per second."""
        return self.bytes / self.time_ns * 1e9

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / self.time_ns * 1e9

    @property
    def intensity(self) -> float:
        """FLOPs per compulsory byte."""
        return self.flops / self.bytes


def gpu_of(profile: Profile) -> GpuSpec:
    """The preset that the profile's card is held against."""
    return GPUS[profile.device.gpu]


def places(profile: Profile, operator: str, curve: Curve) -> list[Place]:
    """A curve's places; none for operators whose bytes are not of the memory."""
    found = []
    for at, time_ns in zip(curve.at, curve.time_ns, strict=True):
        key = tuple(WORK_DTYPES.get(part, part) if isinstance(part, str) else part for part in curve.key)
        work = work_of(Point(operator, key, at))
        if not work.link:
            found.append(Place(operator, curve.key, at, time_ns, work.bytes, work.flops, work.dtype))
    return found


def gemm_curves(profile: Profile, most: int = 6) -> list[Curve]:
    """The 16-bit matrices with the most places, of different sizes; of the model presets where there are enough."""
    measured = profile.operators.get("gemm")
    if measured is None:
        return []
    curves = [curve for curve in measured.curves if curve.key[0] in ("bfloat16", "float16")]
    preset = [curve for curve in curves if curve.key[1:] in _preset_matrices()]
    curves = preset if len(preset) >= 2 else curves
    longest = max((len(curve.at) for curve in curves), default=0)
    dense = sorted(
        (curve for curve in curves if len(curve.at) >= 0.6 * longest),
        key=lambda curve: int(curve.key[1]) * int(curve.key[2]),
    )
    return pick(dense, most)


def _preset_matrices() -> set[Key]:
    return {matrix for model in MODELS.values() for tp in TP_SIZES for matrix in model_matrices(model, tp)}


def pick(curves: Sequence[Curve], most: int) -> list[Curve]:
    """At most this many, spread evenly from first to last."""
    if len(curves) <= most:
        return list(curves)
    return [curves[round(i * (len(curves) - 1) / (most - 1))] for i in range(most)]


def utilisation(profile: Profile, curve: Curve) -> list[tuple[int, float]]:
    """(M, share of the datasheet's FLOP/s) of one matrix."""
    gpu = gpu_of(profile)
    return [(place.at, place.rate / peak_flops(gpu, place.dtype)) for place in places(profile, "gemm", curve)]


def decode_heads(profile: Profile) -> list[Key]:
    """Head configurations (key without the batch) of 16-bit decode attention: those of much-served models first, then
    the most measured."""
    measured = profile.operators.get("decode_attention")
    if measured is None:
        return []
    count: dict[Key, int] = {}
    for curve in measured.curves:
        if curve.key[1] in ("bfloat16", "float16") and curve.key[5] == 0:
            count[curve.key[:-1]] = count.get(curve.key[:-1], 0) + len(curve.at)
    served: list[Key] = [CORE_HEADS, *OTHER_HEADS]

    def order(key: Key) -> tuple[int, int, str]:
        heads = key[2:5]
        return (served.index(heads) if heads in served else len(served), -count[key], str(key))

    return sorted(count, key=order)


def decode_bandwidth(profile: Profile, heads: Key, operator: str = "decode_attention") -> list[tuple[int, int, float]]:
    """(batch, compulsory bytes, bytes/s) of one head configuration, by bytes."""
    measured = profile.operators.get(operator)
    found = []
    for curve in measured.curves if measured is not None else ():
        if curve.key[:-1] == heads:
            found += [(int(curve.key[-1]), place.bytes, place.bandwidth) for place in places(profile, operator, curve)]
    return sorted(found, key=lambda item: (item[1], item[0]))


def ceiling(profile: Profile) -> float:
    """Bytes/s that bandwidths are compared with: the copy's, where it was measured, else the datasheet's."""
    device = profile.device
    return device.copy_bandwidth_bytes_per_s or device.memory_bandwidth_bytes_per_s
