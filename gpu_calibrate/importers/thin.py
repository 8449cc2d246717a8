"""Fewer curves and points for a profile that is shipped, without losing what interpolation needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sim.latency.profile.file import Curve, Device, Key, Operator, Profile
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.speed_of_light import bound_ns

Floats = npt.NDArray[np.float64]
Keep = Callable[[str, dict[str, str | int]], bool]
"""Whether a curve is kept, by its operator and the fields of its key."""


def thin_profile(profile: Profile, keep: Keep, tolerance: float) -> Profile:
    """The profile with the curves that ``keep`` names, each with the points needed to give the others back within
    ``tolerance`` (relative), and times of four digits. What went is in the notes."""
    operators = {}
    notes = []
    for name, operator in profile.operators.items():
        layout = OPERATORS[name].key
        kept = [curve for curve in operator.curves if keep(name, dict(zip(layout, curve.key, strict=True)))]
        thinned = tuple(thin_curve(name, profile.device, curve, tolerance) for curve in kept)
        if thinned:
            operators[name] = operator.model_copy(update={"curves": thinned})
        notes.append(
            f"{name}: {len(thinned)} of {len(operator.curves)} curves kept, "
            f"{_points(thinned)} of their {_points(kept)} points (the others within {tolerance:.0%} of the line)"
        )
    source = profile.source.model_copy(update={"notes": (*profile.source.notes, *notes)})
    return profile.model_copy(update={"operators": operators, "source": source})


def _points(curves: list[Curve] | tuple[Curve, ...]) -> int:
    return sum(len(curve.at) for curve in curves)


def thin_curve(operator: str, device: Device, curve: Curve, tolerance: float) -> Curve:
    """Both ends, and points in between until all others lie on the line as it is interpolated (``predict``)."""
    at: Floats = np.array(curve.at, dtype=np.float64)
    x = np.log(at)
    y = _log_multiple(operator, device, curve.key, at, np.array(curve.time_ns))
    wanted = [0, len(at) - 1] if len(at) > 1 else [0]
    while True:
        off = np.abs(y - np.interp(x, x[wanted], y[wanted]))
        worst = int(off.argmax())
        if off[worst] <= np.log1p(tolerance):
            break
        wanted = sorted({*wanted, worst})
    return Curve(
        key=curve.key,
        at=tuple(curve.at[i] for i in wanted),
        time_ns=tuple(float(f"{curve.time_ns[i]:.4g}") for i in wanted),
    )


def _log_multiple(operator: str, device: Device, key: Key, at: Floats, times: Floats) -> Floats:
    fields = dict(zip(OPERATORS[operator].key, key, strict=True))
    logs: Floats = np.log(times / bound_ns(operator, device, fields, at))
    return logs


def operator_sizes(operators: dict[str, Operator]) -> dict[str, tuple[int, int]]:
    """Curves and points by operator."""
    return {name: (len(operator.curves), _points(operator.curves)) for name, operator in operators.items()}
