"""From measured curves to the time of any shape: what is interpolated is time over speed of light, in logarithms.

Along a curve's axis the multiple is linear between measured places (exact at them) and held outside; places that only
curves of like shape have are filled in first (``fill``). Between curves it is linear in the logarithm of each number of
the key, one after the other; a number beyond those measured takes the nearest. What a key must share (number formats,
windows) is never mixed.

Attention is looked up by the size of its groups (query heads per KV head), KV heads, and KV heads of the whole batch:
kernels give each of those its own thread blocks, so that 4 requests of 32 KV heads cost what 16 of 8 do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sim.errors import InputError
from sim.latency.profile.file import Curve, Device, Key, Operator, Profile
from sim.latency.profile.fill import Line, Lines
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.speed_of_light import bound_ns

Floats = npt.NDArray[np.float64]

EXACT_FIELDS = frozenset({"dtype", "kv_dtype", "window", "implementation", "name", "direction"})
"""Parts of a key that are matched, never interpolated."""


FIRST_FIELDS = ("head_size",)
"""Numbers that curves are told apart by before the others: heads of another size are the last to stand in."""


class Predictor:
    """Times of single operators from one profile. Curves are prepared when they are first asked for.

    With ``device``, the multiples measured on the profile's GPU are those of another one's speed of light.
    """

    def __init__(self, profile: Profile, device: Device | None = None) -> None:
        self.profile = profile
        self.device = device or profile.device
        self._operators: dict[str, _Curves] = {}

    def has(self, operator: str, key: Key) -> bool:
        """Whether ``times_ns`` has curves to go by for this key: some that share what must be shared."""
        return self._curves(operator) is not None and self._exactly(operator, key) is not None

    def has_exactly(self, operator: str, key: Key) -> bool:
        """Whether this very key was measured."""
        curves = self._curves(operator)
        return curves is not None and key in curves.keys

    def time_ns(self, operator: str, key: Key, at: int) -> float:
        """One launch at one place of the axis, nanoseconds."""
        return float(self.times_ns(operator, key, np.array([float(at)]))[0])

    def times_ns(self, operator: str, key: Key, at: Floats, *, like: Key | None = None) -> Floats:
        """One launch at each place of the axis (any positive numbers), nanoseconds, shape as ``at``.

        With ``like``, the curves of that key are followed and scaled by the speed of light of ``key``. Raises
        InputError where the profile holds nothing of this operator with these number formats.
        """
        followed = like or key
        curves = self._curves(operator)
        group = None if curves is None else self._exactly(operator, followed)
        if curves is None or group is None:
            raise InputError(f"profile {self.profile.name}: no curve of {operator} like {list(followed)}")
        multiple = group.log_multiple(group.tree, curves.numbers(followed), np.log(at))
        fields = dict(zip(OPERATORS[operator].key, key, strict=True))
        times: Floats = np.exp(multiple) * bound_ns(operator, self.device, fields, at)
        return times

    def _exactly(self, operator: str, key: Key) -> _Group | None:
        curves = self._operators[operator]
        return curves.groups.get(curves.exact(key))

    def _curves(self, operator: str) -> _Curves | None:
        if operator not in self._operators:
            measured = self.profile.operators.get(operator)
            if measured is None or not measured.curves:
                return None
            self._operators[operator] = _Curves(operator, measured, self.profile)
        return self._operators[operator]


_Tree = dict[float, "_Tree | int"]
"""Curves by the logarithm of the first number of their key, then the second, and so on; the last gives a position."""


@dataclass(slots=True)
class _Group:
    """Curves that share what must match."""

    tree: _Tree = field(default_factory=dict)
    shapes: list[list[float]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    filled: Lines | None = None
    order: dict[int, list[float]] = field(default_factory=dict)

    def add(self, curve: Curve, numbers: list[float], line: Line) -> None:
        """Put a curve at its numbers."""
        tree = self.tree
        for number in numbers[:-1]:
            below = tree.setdefault(number, {})
            if isinstance(below, int):
                raise InputError(f"curve {list(curve.key)} is not like the others")
            tree = below
        tree[numbers[-1]] = len(self.lines)
        self.shapes.append(numbers)
        self.lines.append(line)

    def log_multiple(self, tree: _Tree, numbers: list[float], log_at: Floats) -> Floats:
        """Interpolate the first number among the tree's branches, the rest within each of the two beside it."""
        number, rest = (numbers[0], numbers[1:]) if numbers else (0.0, [])
        branch = tree.get(number)
        if branch is not None:
            return self._follow(branch, rest, log_at)
        known = self.order.get(id(tree))
        if known is None:
            known = self.order[id(tree)] = sorted(tree)
        above = int(np.searchsorted(known, number))
        if above == 0 or above == len(known):
            return self._follow(tree[known[min(above, len(known) - 1)]], rest, log_at)
        low, high = known[above - 1], known[above]
        share = (number - low) / (high - low)
        left = self._follow(tree[low], rest, log_at)
        right = self._follow(tree[high], rest, log_at)
        blend: Floats = left * (1.0 - share) + right * share
        return blend

    def _follow(self, branch: _Tree | int, rest: list[float], log_at: Floats) -> Floats:
        if not isinstance(branch, int):
            return self.log_multiple(branch, rest, log_at)
        if self.filled is None:
            self.filled = Lines(self.shapes, self.lines)
        line = self.filled.line(branch)
        multiple: Floats = np.interp(log_at, line.log_at, line.log_multiple)
        return multiple


class _Curves:
    """All curves of one operator, grouped by what must match."""

    def __init__(self, operator: str, measured: Operator, profile: Profile) -> None:
        layout = OPERATORS[operator]
        self._exact = [i for i, name in enumerate(layout.key) if name in EXACT_FIELDS]
        numbers = [name for name in layout.key if name not in EXACT_FIELDS]
        self._numbers = sorted(numbers, key=lambda name: name not in FIRST_FIELDS)
        self._names = layout.key
        self.groups: dict[Key, _Group] = {}
        self.keys = {curve.key for curve in measured.curves}
        for curve in measured.curves:
            fields = dict(zip(layout.key, curve.key, strict=True))
            at = np.array(curve.at, dtype=np.float64)
            line = Line(np.log(at), np.log(np.array(curve.time_ns) / bound_ns(operator, profile.device, fields, at)))
            group = self.groups.setdefault(self.exact(curve.key), _Group())
            group.add(curve, self.numbers(curve.key) or [0.0], line)

    def exact(self, key: Key) -> Key:
        return tuple(key[i] for i in self._exact)

    def numbers(self, key: Key) -> list[float]:
        """Logarithms of the key's numbers; zeros (no prior tokens, no decodes) are counted from one."""
        fields = {name: float(value) for name, value in zip(self._names, key, strict=True) if name in self._numbers}
        if "num_kv_heads" in fields:
            fields["num_heads"] /= fields["num_kv_heads"]
            if "batch" in fields:
                fields["batch"] *= fields["num_kv_heads"]
        return [float(np.log1p(fields[name])) for name in self._numbers]
