"""Fewer curves and points for a profile that is shipped, without losing what predictions need."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sim.latency.profile.file import Curve, Device, Key, Operator, Profile
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.predict import Predictor
from sim.latency.profile.speed_of_light import bound_ns

Floats = npt.NDArray[np.float64]
Keep = Callable[[str, dict[str, str | int]], bool]
"""Whether a curve is kept, by its operator and the fields of its key."""

DIGITS = 4
"""Significant digits of a time that are kept: the tables' noise is at the second or third."""
ROUNDS = 3
"""Of putting the worst points back, before all of those that are off are."""


def keep_curves(profile: Profile, keep: Keep) -> Profile:
    """The profile with the curves that ``keep`` names; how many went is in the notes."""
    operators = {}
    notes = []
    for name, operator in profile.operators.items():
        layout = OPERATORS[name].key
        kept = tuple(curve for curve in operator.curves if keep(name, dict(zip(layout, curve.key, strict=True))))
        if kept:
            operators[name] = operator.model_copy(update={"curves": kept})
        if len(kept) < len(operator.curves):
            notes.append(f"{name}: {len(kept)} of {len(operator.curves)} curves kept, those of common models")
    return _with_notes(profile.model_copy(update={"operators": operators}), notes)


def thin_points(profile: Profile, tolerance: float) -> Profile:
    """The profile with as few points as give all others back within ``tolerance`` (relative), as they are predicted.

    First each curve alone: both ends, and points in between until the rest lies on the line. What other curves make of
    the gaps (``sim.latency.profile.fill``) is looked at afterwards, and points that are off are put back.
    """
    wanted = {
        name: [thin_places(name, profile.device, curve, tolerance) for curve in operator.curves]
        for name, operator in profile.operators.items()
    }
    for turn in itertools.count():
        predictor = Predictor(_with_places(profile, wanted))
        if not _put_back(profile, predictor, wanted, tolerance, every=turn >= ROUNDS):
            break
    notes = []
    for name, operator in profile.operators.items():
        before = sum(len(curve.at) for curve in operator.curves)
        after = sum(len(places) for places in wanted[name])
        notes.append(f"{name}: {after} of {before} points kept, which give the others back within {tolerance:.0%}")
    return _with_notes(_with_places(profile, wanted), notes)


def _with_notes(profile: Profile, notes: list[str]) -> Profile:
    source = profile.source.model_copy(update={"notes": (*profile.source.notes, *notes)})
    return profile.model_copy(update={"source": source})


def _with_places(profile: Profile, wanted: dict[str, list[list[int]]]) -> Profile:
    operators: dict[str, Operator] = {}
    for name, operator in profile.operators.items():
        curves = tuple(_at_places(curve, places) for curve, places in zip(operator.curves, wanted[name], strict=True))
        operators[name] = operator.model_copy(update={"curves": curves})
    return profile.model_copy(update={"operators": operators})


def _at_places(curve: Curve, places: list[int]) -> Curve:
    times = tuple(float(f"{curve.time_ns[i]:.{DIGITS}g}") for i in places)
    return Curve(key=curve.key, at=tuple(curve.at[i] for i in places), time_ns=times)


def _put_back(
    profile: Profile, predictor: Predictor, wanted: dict[str, list[list[int]]], tolerance: float, *, every: bool
) -> bool:
    """Add to each curve its worst point that is off (``every``: all that are); whether there was any."""
    any_off = False
    for name, operator in profile.operators.items():
        for i, curve in enumerate(operator.curves):
            if len(wanted[name][i]) == len(curve.at):
                continue
            predicted = predictor.times_ns(name, curve.key, np.array(curve.at, dtype=np.float64))
            off = np.abs(predicted / np.array(curve.time_ns) - 1.0)
            off[wanted[name][i]] = 0.0
            if off.max() > tolerance:
                any_off = True
                worst = np.flatnonzero(off > tolerance) if every else [off.argmax()]
                wanted[name][i] = sorted({*wanted[name][i], *(int(place) for place in worst)})
    return any_off


def thin_places(operator: str, device: Device, curve: Curve, tolerance: float) -> list[int]:
    """Positions of both ends, and of points in between until all others lie on the line between those."""
    at: Floats = np.array(curve.at, dtype=np.float64)
    x = np.log(at)
    y = _log_multiple(operator, device, curve.key, at, np.array(curve.time_ns))
    wanted = [0, len(at) - 1] if len(at) > 1 else [0]
    while True:
        off = np.abs(y - np.interp(x, x[wanted], y[wanted]))
        worst = int(off.argmax())
        if off[worst] <= np.log1p(tolerance):
            return wanted
        wanted = sorted({*wanted, worst})


def _log_multiple(operator: str, device: Device, key: Key, at: Floats, times: Floats) -> Floats:
    fields = dict(zip(OPERATORS[operator].key, key, strict=True))
    logs: Floats = np.log(times / bound_ns(operator, device, fields, at))
    return logs
