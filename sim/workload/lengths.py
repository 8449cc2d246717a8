"""How long prompts and outputs are: every length distribution as whole tokens, at least 1."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sim.errors import Problem
from sim.scenario.schema import (
    ExponentialLength,
    FixedLength,
    Length,
    LognormalLength,
    NormalLength,
    QuantilesLength,
    UniformLength,
    ValuesLength,
    ZipfLength,
)
from sim.workload.table import IntColumn

FloatColumn = npt.NDArray[np.float64]

ZIPF_MAX_RANGE = 10_000_000
MAX_TOKENS = 1 << 40
"""Longer lengths are clamped here: no sum over a run can then overflow 64 bits."""


def length_problems(config: Length, where: str) -> list[Problem]:
    """What is wrong with a length distribution beyond what the schema checks; empty if nothing."""
    message = None
    if isinstance(config, UniformLength) and config.low > config.high:
        message = f"low ({config.low}) is above high ({config.high}); swap them"
    elif isinstance(config, ZipfLength):
        if config.low > config.high:
            message = f"low ({config.low}) is above high ({config.high}); swap them"
        elif config.high - config.low >= ZIPF_MAX_RANGE:
            message = f"low..high spans more than {ZIPF_MAX_RANGE:,} values; give a smaller `high`"
    elif isinstance(config, NormalLength | LognormalLength | ExponentialLength) and config.mean < 1:
        message = f"mean must be at least 1 token, got {config.mean:g}"
    elif isinstance(config, QuantilesLength):
        message = _quantiles_message(config.points)
    return [] if message is None else [Problem(f"{where}: {message}")]


def _quantiles_message(points: list[tuple[float, float]]) -> str | None:
    if points[0][0] != 0 or points[-1][0] != 1:
        return (
            "the first point must have probability 0 and the last 1, "
            f"got {points[0][0]:g} and {points[-1][0]:g}; add the shortest and the longest length"
        )
    for (p0, t0), (p1, t1) in pairwise(points):
        if not p0 < p1:
            return f"probabilities must increase, but {p1:g} follows {p0:g}"
        if t1 < t0:
            return f"tokens must not decrease, but {t1:g} at {p1:g} follows {t0:g} at {p0:g}"
    if points[-1][1] < 1:
        return "the longest length is below 1 token"
    return None


def mean_of_draws(config: Length) -> float | None:
    """Mean of the lengths that are drawn, in tokens, where the distribution has a ``mean`` of its own; else None.

    Cutting to 1..max moves it: a normal of mean 100 and cv 1 draws 108.
    """
    if not isinstance(config, NormalLength | LognormalLength | ExponentialLength):
        return None
    mean, low, high = config.mean, 1.0, float(config.max or MAX_TOKENS)
    if isinstance(config, ExponentialLength):  # rounded up: geometric
        return mean * -math.expm1(high * math.log1p(-1.0 / mean)) if mean > 1 else 1.0
    if config.cv == 0:
        return min(max(mean, low), high)
    if isinstance(config, NormalLength):
        sigma = config.cv * mean
        a, b = (low - mean) / sigma, (high - mean) / sigma
        inside = mean * (_phi(b) - _phi(a)) - sigma * (_density(b) - _density(a))
    else:
        sigma = math.sqrt(math.log1p(config.cv**2))
        a, b = ((math.log(bound / mean) + sigma**2 / 2) / sigma for bound in (low, high))
        inside = mean * (_phi(b - sigma) - _phi(a - sigma))
    return low * _phi(a) + inside + high * (1.0 - _phi(b))


def _phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _density(z: float) -> float:
    return math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)


def draw_lengths(config: Length, gen: np.random.Generator, n: int) -> IntColumn:
    """``n`` lengths in tokens, each a whole number of at least 1. The first ``k`` do not depend on ``n``.

    - ``normal``, ``lognormal``: rounded to the nearest, then clamped to 1..max; ``mean`` and ``cv``
      are those before rounding and clamping (for a lognormal: sigma**2 = ln(1 + cv**2),
      mu = ln(mean) - sigma**2 / 2).
    - ``exponential``: rounded up, from an exponential whose scale makes the mean of the *rounded*
      lengths exactly ``mean`` (they are then geometric); a ``max`` lowers it.
    - ``quantiles``: linear interpolation of the inverse distribution function, rounded.
    - ``values``: no draw; the list over and over.
    """
    if isinstance(config, FixedLength):
        return np.full(n, config.value, dtype=np.int64)
    if isinstance(config, UniformLength):
        return gen.integers(config.low, config.high, size=n, dtype=np.int64, endpoint=True)
    if isinstance(config, ValuesLength):
        return np.resize(np.array(config.values, dtype=np.int64), n)
    if isinstance(config, ZipfLength):
        weights = np.arange(1, config.high - config.low + 2, dtype=np.float64) ** -config.alpha
        cumulative = np.cumsum(weights)
        ranks = np.searchsorted(cumulative, gen.random(n) * cumulative[-1], side="right")
        ks: IntColumn = np.minimum(ranks, len(weights) - 1).astype(np.int64)
        return config.low + ks
    if isinstance(config, QuantilesLength):
        points = np.array(config.points, dtype=np.float64)
        return to_tokens(np.interp(gen.random(n), points[:, 0], points[:, 1]))
    return to_tokens(_continuous(config, gen, n), config.max)


def _continuous(
    config: NormalLength | LognormalLength | ExponentialLength, gen: np.random.Generator, n: int
) -> FloatColumn:
    if isinstance(config, NormalLength):
        return config.mean * (1.0 + config.cv * gen.standard_normal(n))
    if isinstance(config, LognormalLength):
        variance = math.log1p(config.cv**2)
        return np.exp(math.log(config.mean) - 0.5 * variance + math.sqrt(variance) * gen.standard_normal(n))
    if config.mean == 1:
        return np.ones(n)
    scale = -1.0 / math.log1p(-1.0 / config.mean)
    return np.ceil(gen.exponential(scale, n))


def to_tokens(values: FloatColumn, maximum: int | None = None) -> IntColumn:
    """Real lengths to whole tokens: nearest, at least 1, at most ``maximum``."""
    top = MAX_TOKENS if maximum is None else maximum
    return np.clip(np.rint(values), 1, top).astype(np.int64)
