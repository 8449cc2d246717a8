"""From measured curves to the time of any shape: what is interpolated is time over speed of light, in logarithms.

Along a curve's axis the multiple is linear between measured places (exact at them) and held outside; places that only
curves of like shape have are filled in first (``fill``). Between curves it is linear in the logarithm of each number of
the key, one after the other; a number beyond those measured takes the nearest. What a key must share (number formats,
windows) is never mixed.

Attention is looked up by the size of its groups (query heads per KV head), KV heads, and KV heads of the whole batch:
kernels give each of those its own thread blocks, so that 4 requests of 32 KV heads cost what 16 of 8 do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from operator import mul, truediv

import numpy as np
import numpy.typing as npt

from sim.errors import InputError
from sim.latency.profile.file import Device, Error, Key
from sim.latency.profile.fill import Lines, distinct
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.speed_of_light import bound_ns
from sim.latency.profile.written import AnyProfile, Curves, curves_of, part_with

Floats = npt.NDArray[np.float64]

EXACT_FIELDS = frozenset({"dtype", "kv_dtype", "window", "implementation", "name", "direction", "block", "state"})
"""Parts of a key that are matched, never interpolated."""


SIZES = frozenset({"batch", "prior_tokens", "chunk_tokens", "num_decodes"})
"""Parts of a key that say how much there is to do rather than what an engine is."""
FIRST_FIELDS = ("head_size",)
"""Numbers that curves are told apart by before the others: heads of another size are the last to stand in."""


class Basis(IntEnum):
    """How near a key is to those that were measured, whatever its batch and number of tokens; later = less near."""

    MEASURED = 0
    BETWEEN = 1
    """Each number that was not measured lies between two that were."""
    BEYOND = 2
    """Some number is beyond all that were measured, and the nearest is taken."""


class Predictor:
    """Times of single operators from one profile. Curves are prepared when they are first asked for.

    With ``device``, the multiples measured on the profile's GPU are those of another one's speed of light.
    """

    def __init__(self, profile: AnyProfile, device: Device | None = None) -> None:
        self.profile = profile
        self.device = device or profile.device
        self._operators: dict[tuple[str, str], _Curves] = {}
        """By operator and the file that holds them."""

    def has(self, operator: str, key: Key) -> bool:
        """Whether ``times_ns`` has curves to go by for this key: some that share what must be shared."""
        curves = self._curves(operator, key)
        return curves is not None and curves.has_like(key)

    def has_exactly(self, operator: str, key: Key) -> bool:
        """Whether this very key was measured."""
        curves = self._curves(operator, key)
        return curves is not None and curves.has(key)

    def basis(self, operator: str, key: Key) -> Basis | None:
        """What a prediction for ``key`` stands on; None where ``has`` says no."""
        curves = self._curves(operator, key)
        return None if curves is None else curves.basis(key)

    def time_ns(self, operator: str, key: Key, at: float) -> float:
        """One launch at one place of the axis, nanoseconds."""
        return float(self.times_ns(operator, key, np.array([float(at)]))[0])

    def times_ns(self, operator: str, key: Key, at: Floats, *, like: Key | None = None) -> Floats:
        """One launch at each place of the axis (any positive numbers), nanoseconds, shape as ``at``.

        With ``like``, the curves of that key are followed and scaled by the speed of light of ``key``. Raises
        InputError where the profile holds nothing of this operator with these number formats.
        """
        followed = like or key
        curves = self._curves(operator, followed)
        group = None if curves is None else curves.group(followed)
        if curves is None or group is None:
            raise InputError(f"profile {self.profile.name}: no curve of {operator} like {list(followed)}")
        multiple = group.log_multiple(group.tree, curves.numbers(followed), np.log(at))
        fields = dict(zip(OPERATORS[operator].key, key, strict=True))
        times: Floats = np.exp(multiple) * bound_ns(operator, self.device, fields, at)
        return times

    def stated_errors(self, operator: str, key: Key) -> Mapping[str, Error]:
        """Errors by kind that the file with such curves states of the operator."""
        return part_with(self.profile, operator, key).errors.get(operator, {})

    def _curves(self, operator: str, key: Key) -> _Curves | None:
        part = part_with(self.profile, operator, key)
        known = self._operators.get((operator, part.name))
        if known is None:
            measured = curves_of(part, operator)
            if measured is None:
                return None
            known = self._operators[operator, part.name] = _Curves(operator, measured, part.device)
        return known


_Tree = dict[float, "_Tree | int"]
"""Curves by the logarithm of the first number of their key, then the second, and so on; the last gives a position."""


@dataclass(slots=True)
class _Group:
    """Curves that share what must match. What is measured along a curve is read when a prediction needs it."""

    lines: Lines
    tree: _Tree = field(default_factory=dict)
    order: dict[int, list[float]] = field(default_factory=dict)

    def add(self, key: Key, numbers: Sequence[float], position: int) -> None:
        """Put the curve at ``position`` of ``lines`` at its numbers."""
        tree = self.tree
        for number in numbers[:-1]:
            below = tree.setdefault(number, {})
            if isinstance(below, int):
                raise InputError(f"curve {list(key)} is not like the others")
            tree = below
        tree[numbers[-1]] = position

    def log_multiple(self, tree: _Tree, numbers: Sequence[float], log_at: Floats) -> Floats:
        """Interpolate the first number among the tree's branches, the rest within each of the two beside it."""
        number, rest = numbers[0], numbers[1:]
        branch = tree.get(number)
        if branch is not None:
            return self._follow(branch, rest, log_at)
        known = self.order.get(id(tree))
        if known is None:
            known = self.order[id(tree)] = sorted(tree)
        above = bisect_left(known, number)
        if above == 0 or above == len(known):
            return self._follow(tree[known[min(above, len(known) - 1)]], rest, log_at)
        low, high = known[above - 1], known[above]
        share = (number - low) / (high - low)
        left = self._follow(tree[low], rest, log_at)
        right = self._follow(tree[high], rest, log_at)
        blend: Floats = left * (1.0 - share) + right * share
        return blend

    def _follow(self, branch: _Tree | int, rest: Sequence[float], log_at: Floats) -> Floats:
        if not isinstance(branch, int):
            return self.log_multiple(branch, rest, log_at)
        line = self.lines.line(branch)
        multiple: Floats = np.interp(log_at, line.log_at, line.log_multiple)
        return multiple


def _basis(tree: _Tree | int, numbers: Sequence[float]) -> Basis:
    """What an interpolation among the branches of ``tree`` by these numbers stands on."""
    if isinstance(tree, int) or not numbers:
        return Basis.MEASURED
    number, rest = numbers[0], numbers[1:]
    if number in tree:
        return _basis(tree[number], rest)
    below = [each for each in tree if each < number]
    above = [each for each in tree if each > number]
    if not below or not above:
        return Basis.BEYOND
    return max(Basis.BETWEEN, _basis(tree[max(below)], rest), _basis(tree[min(above)], rest))


class _MeasuredLine:
    """One curve in logarithms, read when it is asked for."""

    __slots__ = ("_curves", "_position")

    def __init__(self, curves: _Curves, position: int) -> None:
        self._curves = curves
        self._position = position

    @property
    def log_at(self) -> Floats:
        """The places."""
        return self._curves.log_places(self._position)

    @property
    def log_multiple(self) -> Floats:
        """Multiples of the bound at them."""
        return self._curves.log_multiples(self._position)


class _Curves:
    """All curves of one operator, grouped by what must match."""

    def __init__(self, operator: str, measured: Curves, device: Device) -> None:
        self._operator = operator
        self._measured = measured
        self._device = device
        self._names = OPERATORS[operator].key
        self._exact = [i for i, name in enumerate(self._names) if name in EXACT_FIELDS]
        numbers = [name for name in self._names if name not in EXACT_FIELDS]
        self._numbers = sorted(numbers, key=lambda name: name not in FIRST_FIELDS)
        self._log1p = cache(lambda number: float(np.log1p(number)))
        self._log_places: dict[int, Floats] = {}
        """By the array of places, which curves share."""
        self._members: dict[Key, list[int]] = {}
        """Positions of curves by what must match."""
        for position, key in enumerate(measured.keys):
            self._members.setdefault(self._shared(key), []).append(position)
        self._keys = set(measured.keys)
        self._groups: dict[Key, _Group] = {}

    def has(self, key: Key) -> bool:
        """Whether this very key was measured."""
        return key in self._keys

    def has_like(self, key: Key) -> bool:
        """Whether some curve shares with ``key`` what must match."""
        return self._shared(key) in self._members

    def group(self, key: Key) -> _Group | None:
        """The curves that share with ``key`` what must match."""
        shared = self._shared(key)
        group = self._groups.get(shared)
        if group is None and (members := self._members.get(shared)):
            keys = [self._measured.keys[position] for position in members]
            shapes = self._shapes(keys)
            places = [self._logarithms(each) for each in self._measured.distinct_places(members)]
            lines = [_MeasuredLine(self, position) for position in members]
            group = self._groups[shared] = _Group(Lines(shapes, lines, distinct(np.concatenate(places))))
            for i, (key, shape) in enumerate(zip(keys, shapes, strict=True)):
                group.add(key, shape, i)
        return group

    def basis(self, key: Key) -> Basis | None:
        """See ``Predictor.basis``."""
        group = self.group(key)
        if group is None:
            return None
        of_shape = sum(name not in SIZES for name in self._numbers)
        return _basis(group.tree, self.numbers(key)[:of_shape])

    def log_places(self, position: int) -> Floats:
        """Logarithms of a curve's places."""
        return self._logarithms(self._measured.places(position))

    def _logarithms(self, places: Floats) -> Floats:
        known = self._log_places.get(id(places))
        if known is None:
            known = self._log_places[id(places)] = np.log(places)
        return known

    def log_multiples(self, position: int) -> Floats:
        """Logarithms of a curve's times over their speed of light."""
        fields = dict(zip(self._names, self._measured.keys[position], strict=True))
        bound = bound_ns(self._operator, self._device, fields, self._measured.places(position))
        multiples: Floats = np.log(self._measured.times_ns(position) / bound)
        return multiples

    def _shared(self, key: Key) -> Key:
        return tuple([key[i] for i in self._exact])

    def numbers(self, key: Key) -> Sequence[float]:
        """Logarithms of the key's numbers; zeros (no prior tokens, no decodes) are counted from one. A key without
        numbers has one, 0."""
        return self._shapes([key])[0]

    def _shapes(self, keys: Sequence[Key]) -> list[tuple[float, ...]]:
        """``numbers`` of each of ``keys``, column by column."""
        columns = dict(zip(self._names, zip(*keys, strict=True), strict=True))
        if "num_kv_heads" in columns:
            kv_heads = columns["num_kv_heads"]
            columns["num_heads"] = tuple(map(truediv, columns["num_heads"], kv_heads))
            if "batch" in columns:
                columns["batch"] = tuple(map(mul, columns["batch"], kv_heads))
        shapes = [list(map(self._log1p, columns[name])) for name in self._numbers]
        return list(zip(*shapes, strict=True)) if shapes else [(0.0,)] * len(keys)
