"""Checks of parameters, with one wording: what was given, and what it must be."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Integral, Real

from policies.base import PolicyError


def refuse(owner: str, parameter: str, value: object, must: str) -> PolicyError:
    """The error for a value that cannot be used, for the caller to raise."""
    return PolicyError(f"{owner}: {parameter} is {value!r}, but it must be {must}")


def check_positive(owner: str, parameter: str, value: float) -> None:
    """Raise PolicyError unless ``value`` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise refuse(owner, parameter, value, "above 0")


def check_not_negative(owner: str, parameter: str, value: float) -> None:
    """Raise PolicyError unless ``value`` is finite and at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise refuse(owner, parameter, value, "at least 0")


def check_fraction(owner: str, parameter: str, value: float) -> None:
    """Raise PolicyError unless ``value`` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise refuse(owner, parameter, value, "between 0 and 1")


def exact(value: float) -> Fraction:
    """The decimal number the user wrote, without the error of its binary form (0.29 * 100 is 29)."""
    return Fraction(str(value))


def milliseconds_ns(milliseconds: float) -> int:
    """Whole nanoseconds in so many milliseconds."""
    return int(exact(milliseconds) * 1_000_000)


def seconds_ns(seconds: float) -> int:
    """Whole nanoseconds in so many seconds."""
    return int(exact(seconds) * 1_000_000_000)


def label(policy: object) -> str:
    """A policy as errors name it: its ``name``, or ``module:Class`` where it only has that of a built-in one."""
    kind = type(policy)
    named = next((each for each in kind.__mro__ if "name" in vars(each)), None)
    if named is None or (named is not kind and named.__module__.startswith("policies.")):
        return f"{kind.__module__}:{kind.__qualname__}"
    return str(vars(named)["name"])


def check_rank(policy: str, request_id: str, rank: object) -> None:
    """Raise PolicyError unless ``rank`` is a number with an order: None, text, tuples and NaN have none with others."""
    if not isinstance(rank, Real):
        raise PolicyError(
            f"policy {policy} ranked request {request_id} {rank!r} ({type(rank).__name__}), but a rank must be a number"
        )
    if rank != rank:
        raise PolicyError(f"policy {policy} ranked request {request_id} NaN: no order with it")


def wrong_answer(policy: object, method: str, answer: object, expected: str) -> str:
    """The message for an answer of a policy's ``method`` that is none."""
    return f"policy {label(policy)} answered {method} with {answer!r} ({type(answer).__name__}); it must be {expected}"


def check_instant(policy: str, request_id: str, instant: object) -> None:
    """Raise PolicyError unless ``instant``, an answer of ``next_change_ns``, is a whole number (or None)."""
    if instant is not None and not isinstance(instant, Integral):
        raise PolicyError(
            f"policy {policy} named {instant!r} ({type(instant).__name__}) as the instant of the next change of "
            f"request {request_id}, but next_change_ns must return whole nanoseconds or None"
        )
