"""Lengths and arrivals: the parts of the scenario format that name a distribution."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim.scenario.types import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Strict,
)

# --- lengths ---------------------------------------------------------------------------------


class FixedLength(Strict):
    """Every request the same."""

    dist: Literal["fixed"]
    value: PositiveInt
    """Tokens."""


class UniformLength(Strict):
    """Whole numbers from ``low`` to ``high``, both included, equally likely."""

    dist: Literal["uniform"]
    low: PositiveInt
    """Fewest tokens."""
    high: PositiveInt
    """Most tokens."""


class NormalLength(Strict):
    """Normal, rounded, at least 1. With a large cv what is drawn has a larger mean (for 100, cv 1 gives 108 and cv 2
    gives 140); the run's notes say so from 5 % on."""

    dist: Literal["normal"]
    mean: PositiveFloat
    """Tokens."""
    cv: NonNegativeFloat
    """Coefficient of variation: standard deviation / mean."""
    max: PositiveInt | None = None
    """Larger draws count as this many tokens; null = no bound."""


class LognormalLength(Strict):
    """Lognormal with this mean and coefficient of variation, rounded, at least 1."""

    dist: Literal["lognormal"]
    mean: PositiveFloat
    """Tokens (of the distribution itself, not of its logarithm)."""
    cv: NonNegativeFloat
    """Coefficient of variation: standard deviation / mean."""
    max: PositiveInt | None = None
    """Larger draws count as this many tokens; null = no bound."""


class ExponentialLength(Strict):
    """Exponential with this mean, rounded, at least 1."""

    dist: Literal["exponential"]
    mean: PositiveFloat
    """Tokens."""
    max: PositiveInt | None = None
    """Larger draws count as this many tokens; null = no bound."""


class ZipfLength(Strict):
    """Zipf over ``low``..``high``: P(low + k) proportional to 1 / (k + 1)**alpha."""

    dist: Literal["zipf"]
    alpha: PositiveFloat
    """Exponent: the larger, the shorter most requests are."""
    low: PositiveInt = 1
    """Fewest tokens, the likeliest number."""
    high: PositiveInt
    """Most tokens."""


class QuantilesLength(Strict):
    """Linear interpolation between (probability, tokens) points; the first at probability 0, the last at 1."""

    dist: Literal["quantiles"]
    points: list[tuple[Probability, NonNegativeFloat]] = Field(min_length=2)
    """Pairs [probability, tokens]: probabilities rising from 0 to 1, tokens never falling."""


class ValuesLength(Strict):
    """These values, in order, over and over (for hand-made examples)."""

    dist: Literal["values"]
    values: list[PositiveInt] = Field(min_length=1)
    """Tokens of the first request, the second, and so on."""


Length = Annotated[
    FixedLength
    | UniformLength
    | NormalLength
    | LognormalLength
    | ExponentialLength
    | ZipfLength
    | QuantilesLength
    | ValuesLength,
    Field(discriminator="dist"),
]

# --- arrivals --------------------------------------------------------------------------------


class Capped(Strict):
    """Arrivals that wait at their sender while it has as many requests under way as it may have."""

    max_concurrency: PositiveInt | None = None
    """Requests under way at most (``vllm bench serve --max-concurrency``): one that is due beyond that waits at its
    client, in order, and its arrival is when it is sent. null = no bound."""


class PoissonArrival(Capped):
    """Exponential gaps: independent users."""

    process: Literal["poisson"]
    rate: PositiveFloat
    """Requests per second over the whole cluster."""


class ConstantArrival(Capped):
    """Equal gaps; the first request at 0."""

    process: Literal["constant"]
    rate: PositiveFloat
    """Requests per second over the whole cluster."""


class GammaArrival(Capped):
    """Gamma gaps with this coefficient of variation (burstiness of ``vllm bench serve`` = 1 / cv**2)."""

    process: Literal["gamma"]
    rate: PositiveFloat
    """Requests per second over the whole cluster."""
    cv: PositiveFloat
    """Coefficient of variation of the gaps; 1 is Poisson, more is burstier."""


class WeibullArrival(Capped):
    """Weibull gaps with this coefficient of variation."""

    process: Literal["weibull"]
    rate: PositiveFloat
    """Requests per second over the whole cluster."""
    cv: PositiveFloat
    """Coefficient of variation of the gaps; 1 is Poisson, more is burstier."""


class Stage(Strict):
    """Poisson at ``rate`` for ``duration_s``."""

    rate: NonNegativeFloat
    """Requests per second; 0 is a pause."""
    duration_s: PositiveFloat
    """Length of the stage in seconds."""


class StagesArrival(Capped):
    """One Poisson stage after the other; ends the workload by itself."""

    process: Literal["stages"]
    stages: list[Stage] = Field(min_length=1)
    """The stages in order."""


class DiurnalArrival(Capped):
    """Poisson whose rate swings as a cosine: mean ``rate``, peak ``rate * (1 + amplitude)`` at ``peak_s``."""

    process: Literal["diurnal"]
    rate: PositiveFloat
    """Mean requests per second over the whole cluster."""
    amplitude: Probability = 0.5
    """Swing as a share of the mean rate."""
    period_s: PositiveFloat = 86400.0
    """Seconds from peak to peak."""
    peak_s: NonNegativeFloat = 0.0
    """Instant of the first peak in seconds."""


class ClosedLoopArrival(Strict):
    """``concurrency`` clients, each sending its next request ``think_time_s`` after its last one ended."""

    process: Literal["closed_loop"]
    concurrency: PositiveInt
    """Clients, each with one request at a time."""
    think_time_s: NonNegativeFloat = 0.0
    """Seconds between the end of a client's request and its next one."""


class BurstArrival(Capped):
    """Everything at one instant: the backlog."""

    process: Literal["burst"]
    at_s: NonNegativeFloat = 0.0
    """The instant in seconds."""


Arrival = Annotated[
    PoissonArrival
    | ConstantArrival
    | GammaArrival
    | WeibullArrival
    | StagesArrival
    | DiurnalArrival
    | ClosedLoopArrival
    | BurstArrival,
    Field(discriminator="process"),
]
