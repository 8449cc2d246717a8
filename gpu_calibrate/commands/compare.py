"""Two profiles held against each other: ratios over the points that both have, and where they differ most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpu_calibrate.timing.replays import quantile
from sim.errors import InputError
from sim.latency.profile.file import Key, Profile
from sim.latency.profile.layout import OPERATORS

WORST = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """One shared point."""

    operator: str
    key: Key
    at: int
    first_ns: float
    second_ns: float

    @property
    def ratio(self) -> float:
        """Second over first."""
        return self.second_ns / self.first_ns

    def __str__(self) -> str:
        key = ", ".join(str(part) for part in self.key)
        return f"{self.operator}({key}; {OPERATORS[self.operator].axis} {self.at:,})"


@dataclass(frozen=True, slots=True)
class Row:
    """An operator's shared points."""

    operator: str
    num_points: int
    median_ratio: float
    median_difference: float
    """Of |ratio - 1|."""
    p90_difference: float
    worst: tuple[Difference, ...]


def shared_points(first: Profile, second: Profile) -> list[Difference]:
    """Every place of every curve that is in both, in a fixed order."""
    found = []
    for name in sorted(first.operators.keys() & second.operators.keys()):
        others = {curve.key: dict(zip(curve.at, curve.time_ns, strict=True)) for curve in second.operators[name].curves}
        for curve in first.operators[name].curves:
            other = others.get(curve.key, {})
            for at, time_ns in zip(curve.at, curve.time_ns, strict=True):
                if at in other:
                    found.append(Difference(name, curve.key, at, time_ns, other[at]))
    return found


def _row(operator: str, points: list[Difference]) -> Row:
    ratios = sorted(point.ratio for point in points)
    off = sorted(abs(ratio - 1.0) for ratio in ratios)
    worst = sorted(points, key=lambda point: -abs(point.ratio - 1.0))[:WORST]
    return Row(operator, len(points), quantile(ratios, 0.5), quantile(off, 0.5), quantile(off, 0.9), tuple(worst))


def compare(first: Profile, second: Profile) -> list[Row]:
    """One row per operator with shared points, then one for ``all``.

    Raises:
        InputError: the profiles share no point.
    """
    points = shared_points(first, second)
    if not points:
        raise InputError(f"{first.name} and {second.name} have no point in common: nothing to compare")
    operators = list(dict.fromkeys(point.operator for point in points))
    rows = [_row(name, [point for point in points if point.operator == name]) for name in operators]
    return [*rows, _row("all", points)]


def predicted_rows(first: Profile, second: Profile) -> list[Row]:
    """As ``compare`` where the grids differ: the second profile's prediction at the places of the first.

    Raises:
        InputError: the second can say nothing about any of them.
    """
    from sim.latency.profile.predict import Predictor

    predictor = Predictor(second)
    points = [
        Difference(name, curve.key, at, time_ns, predictor.time_ns(name, curve.key, at))
        for name in sorted(first.operators.keys() & second.operators.keys())
        for curve in first.operators[name].curves
        if predictor.has(name, curve.key)
        for at, time_ns in zip(curve.at, curve.time_ns, strict=True)
    ]
    if not points:
        raise InputError(f"{second.name} can say nothing about any point of {first.name}")
    operators = list(dict.fromkeys(point.operator for point in points))
    return [
        *(_row(name, [point for point in points if point.operator == name]) for name in operators),
        _row("all", points),
    ]


def print_rows(rows: list[Row], echo: Callable[[str], None]) -> None:
    """As a table, then the largest differences."""
    echo(f"{'operator':<30}{'points':>8}{'median B/A':>12}{'median |d|':>12}{'p90 |d|':>10}")
    for row in rows:
        echo(
            f"{row.operator:<30}{row.num_points:>8,}{row.median_ratio:>12.3f}"
            f"{row.median_difference:>12.2%}{row.p90_difference:>10.2%}"
        )
    echo("\nLargest differences")
    for point in rows[-1].worst:
        echo(f"  {point}: {point.first_ns / 1e3:,.1f} us and {point.second_ns / 1e3:,.1f} us ({point.ratio - 1:+.0%})")
