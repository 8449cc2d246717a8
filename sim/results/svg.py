"""Small charts as inline SVG: no script, no font, no network; colours come from the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from sim.results.wording import nice_number

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 34


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten (powers alone over more than two decades) within ``[low, high]``."""
    factors = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [tick for tick in ticks if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]


@dataclass(slots=True)
class Chart:
    """Axes and what is drawn on them, in data coordinates."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    title: str
    """What a screen reader says."""
    x_label: str = ""
    log_x: bool = False
    y_percent: bool = False
    _parts: list[str] = field(default_factory=list)

    def px(self, value: float) -> float:
        """Horizontal position of a value."""
        low, high = self.x
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.x[0]))
        return LEFT + (value - low) / ((high - low) or 1) * (self.width - LEFT - RIGHT)

    def py(self, value: float) -> float:
        """Vertical position of a value."""
        low, high = self.y
        return self.height - BOTTOM - (value - low) / ((high - low) or 1) * (self.height - TOP - BOTTOM)

    def _points(self, xs: Sequence[float], ys: Sequence[float]) -> list[str]:
        return [f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in zip(xs, ys, strict=True)]

    def line(self, xs: Sequence[float], ys: Sequence[float], css: str) -> None:
        """A line through the points."""
        self._parts.append(f'<path class="line {css}" d="M{"L".join(self._points(xs, ys))}"/>')

    def area(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], css: str) -> None:
        """The area between two lines."""
        outline = self._points(xs, high) + self._points(xs, low)[::-1]
        self._parts.append(f'<path class="area {css}" d="M{"L".join(outline)}Z"/>')

    def marker(self, x: float, label: str, row: int, hint: str) -> None:
        """A vertical line at ``x`` with a label; ``row`` keeps labels of close markers apart."""
        at = self.px(x)
        near_right = at > self.width - RIGHT - 70
        anchor, shift = ("end", -4) if near_right else ("start", 4)
        top = TOP + 12 + 14 * row
        self._parts.append(
            f'<g><title>{escape(hint)}</title><line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" '
            f'y2="{self.height - BOTTOM}"/><text class="label" text-anchor="{anchor}" x="{at + shift:.1f}" '
            f'y="{top}">{escape(label)}</text></g>'
        )

    def _axes(self) -> str:
        parts = []
        bottom = self.height - BOTTOM
        y_text: Callable[[float], str] = (lambda v: f"{v:.0%}") if self.y_percent else nice_number
        for tick in linear_ticks(*self.y, count=4):
            at = self.py(tick)
            parts.append(
                f'<line class="rule" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{at + 4:.1f}">{y_text(tick)}</text>'
            )
        for tick in log_ticks(*self.x) if self.log_x else linear_ticks(*self.x, count=5):
            at = self.px(tick)
            anchor = "end" if at > self.width - RIGHT - 12 else "middle"
            parts.append(
                f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
                f'<text class="tick" text-anchor="{anchor}" x="{at:.1f}" y="{bottom + 16}">{nice_number(tick)}</text>'
            )
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        middle = (LEFT + self.width - RIGHT) / 2
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{middle:.0f}" y="{self.height - 3}">'
            f"{escape(self.x_label)}</text>"
        )
        return "".join(parts)

    def render(self) -> str:
        """The chart as an ``<svg>`` element."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}">'
            f"{self._axes()}{''.join(self._parts)}</svg>"
        )
