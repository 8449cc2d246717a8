"""How wrong predictions from a profile are: parts of it are left out, predicted from the rest, and compared.

Two kinds, by operator. ``random_points``: single places inside curves, what interpolation along a curve costs.
``held_out_curves``: all curves of a shape (a GEMM's (n, k), an attention's heads), what an unmeasured shape costs.
The prediction is the one that the simulator charges (``sim.latency.profile.predict``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.latency.profile.file import Curve, Error, Key, Operator, Profile
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.predict import Predictor

Floats = npt.NDArray[np.float64]

POINT_SHARE = 0.1
"""Of the inner points of all curves, left out at a time."""
CURVE_SHARE = 0.1
"""Of the shapes, left out at a time."""
SPLITS = 3
"""Times that points and shapes are drawn; their errors are put together."""
EDGE, SHORT_EDGE, SHORT = 2, 1, 5
"""Points kept at each end of a curve, where it has at least ``SHORT``; else one."""
SHAPE_FIELDS = ("batch", "prior_tokens", "chunk_tokens", "num_decodes")
"""Parts of a key that are not the shape: left out with it."""
MATCHED = (
    "dtype",
    "kv_dtype",
    "head_size",
    "window",
    "implementation",
    "name",
    "direction",
    "num_gpus",
    "block",
    "state",
)
"""Parts that predictions never cross; shapes are drawn within."""


@dataclass(frozen=True)
class HeldOut:
    """Places of one curve that the prediction does not see."""

    operator: str
    key: Key
    at: Floats
    time_ns: Floats


def held_out_errors(
    profile: Profile,
    *,
    seed: int = 0,
    splits: int = SPLITS,
) -> dict[str, dict[str, Error]]:
    """Errors by operator and kind.

    The same profile, seed and splits give the same errors. Operators with too few points or shapes are not in it.
    """
    errors: dict[str, dict[str, Error]] = {}
    for kind, draw in (("random_points", without_points), ("held_out_curves", without_shapes)):
        found: dict[str, list[Floats]] = {}
        for split in range(splits):
            rng = np.random.default_rng([seed, split, len(kind)])
            rest, held = draw(profile, rng)
            predictor = Predictor(rest)
            for operator, ratios in _ratios(predictor, held):
                found.setdefault(operator, []).append(ratios)
        for operator, parts in found.items():
            errors.setdefault(operator, {})[kind] = error_of(np.concatenate(parts))
    return {operator: errors[operator] for operator in sorted(errors)}


def error_of(ratios: Floats) -> Error:
    """``ratios``: predicted / measured, one per point, at least one."""
    off = np.abs(ratios - 1.0)
    return Error(
        median=_short(np.median(off)),
        p90=_short(np.quantile(off, 0.9)),
        mean=_short(off.mean()),
        bias=_short((ratios - 1.0).mean()),
        num_points=len(ratios),
    )


def relative_error(pairs: Sequence[tuple[float, float]]) -> Error | None:
    """Of (predicted, measured) times; None without any."""
    return error_of(np.array([predicted / measured for predicted, measured in pairs])) if pairs else None


def _short(value: float | np.floating[npt.NBitBase]) -> float:
    return round(float(value), 5)


def _ratios(predictor: Predictor, held: Iterable[HeldOut]) -> Iterable[tuple[str, Floats]]:
    for some in held:
        if predictor.has(some.operator, some.key):
            yield some.operator, predictor.times_ns(some.operator, some.key, some.at) / some.time_ns


def without_points(profile: Profile, rng: np.random.Generator) -> tuple[Profile, list[HeldOut]]:
    """The profile without ``POINT_SHARE`` of its curves' inner points, and those."""
    held: list[HeldOut] = []
    operators = {}
    for name, operator in profile.operators.items():
        curves = []
        for curve in operator.curves:
            rest, out = _split_curve(name, curve, rng)
            curves.append(rest)
            if out is not None:
                held.append(out)
        operators[name] = operator.model_copy(update={"curves": tuple(curves)})
    return profile.model_copy(update={"operators": operators}), held


def _split_curve(operator: str, curve: Curve, rng: np.random.Generator) -> tuple[Curve, HeldOut | None]:
    count = len(curve.at)
    edge = EDGE if count >= SHORT else SHORT_EDGE
    inner = np.arange(edge, count - edge)
    drawn = inner[rng.random(len(inner)) < POINT_SHARE] if len(inner) else inner
    if not len(drawn):
        return curve, None
    keep = np.setdiff1d(np.arange(count), drawn)
    rest = curve.model_copy(
        update={"at": tuple(curve.at[i] for i in keep), "time_ns": tuple(curve.time_ns[i] for i in keep)}
    )
    return rest, _held(operator, curve, drawn)


def _held(operator: str, curve: Curve, places: npt.NDArray[np.intp]) -> HeldOut:
    at, times = np.array(curve.at, dtype=np.float64), np.array(curve.time_ns, dtype=np.float64)
    return HeldOut(operator, curve.key, at[places], times[places])


def without_shapes(profile: Profile, rng: np.random.Generator) -> tuple[Profile, list[HeldOut]]:
    """The profile without ``CURVE_SHARE`` of each operator's inner shapes, and those.

    Inner: no number of the shape is the least or greatest among the shapes it could be predicted from. Operators whose
    curves are told apart by matched fields only have none.
    """
    held: list[HeldOut] = []
    operators: dict[str, Operator] = {}
    for name, operator in profile.operators.items():
        shapes = sorted({shape_of(name, curve.key) for curve in operator.curves}, key=str)
        inner = _inner(name, shapes)
        drawn = {shape for shape in inner if rng.random() < CURVE_SHARE}
        rest = []
        for curve in operator.curves:
            if shape_of(name, curve.key) in drawn:
                held.append(_held(name, curve, np.arange(len(curve.at))))
            else:
                rest.append(curve)
        operators[name] = operator.model_copy(update={"curves": tuple(rest)})
    return profile.model_copy(update={"operators": operators}), held


def shape_of(operator: str, key: Key) -> Key:
    """The parts of a key that make a shape: a GEMM's format, n and k; an attention's formats and heads."""
    names = OPERATORS[operator].key
    return tuple(part for name, part in zip(names, key, strict=True) if name not in SHAPE_FIELDS)


def _inner(operator: str, shapes: list[Key]) -> list[Key]:
    names = [name for name in OPERATORS[operator].key if name not in SHAPE_FIELDS]
    free = [i for i, name in enumerate(names) if name not in MATCHED]
    if not free:
        return []
    groups: dict[Key, list[Key]] = {}
    for shape in shapes:
        groups.setdefault(tuple(part for i, part in enumerate(shape) if i not in free), []).append(shape)
    inner = []
    for members in groups.values():
        ends = [(min(values), max(values)) for values in ([int(shape[i]) for shape in members] for i in free)]
        moving = [(i, low, high) for i, (low, high) in zip(free, ends, strict=True) if low < high]
        inner += [shape for shape in members if moving and all(low < int(shape[i]) < high for i, low, high in moving)]
    return inner
