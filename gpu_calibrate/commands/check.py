"""Whether a profile can be relied on: its gates, and its held-out errors against what a calibration must reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_calibrate.fit.gates import OPERATORS_GATE, missing_operators, operators_gate
from sim.errors import InputError
from sim.latency.profile.file import Error, Gate, Profile

BARS: Mapping[str, Mapping[tuple[str, str], float]] = {
    "measured": {
        ("gemm", "random_points"): 0.04,
        ("decode_attention", "random_points"): 0.04,
        ("mixed_steps", "layers"): 0.05,
        ("gemm", "repeat"): 0.01,
    },
    "imported": {("gemm", "random_points"): 0.08, ("decode_attention", "random_points"): 0.08},
}
"""Largest median (``mixed_steps``: mean) error by the profile's kind. Tables that others collected at different times
differ among themselves by 4-7 %, so an imported profile is held to less."""
MEANS = ("mixed_steps",)


@dataclass(frozen=True, slots=True)
class Bar:
    """One error against its bar; ``value`` None = not stated."""

    operator: str
    kind: str
    value: float | None
    limit: float
    missing: bool = False
    """The profile has no such operator, and no step can be formed without it."""

    @property
    def mark(self) -> str:
        """In a word."""
        if self.value is None:
            return "MISSING" if self.missing else "not known"
        return "met" if self.met else "MISSED"

    @property
    def met(self) -> bool:
        """Whether the error is known and small enough."""
        return self.value is not None and self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``check`` finds."""

    errors: Mapping[str, Mapping[str, Error]]
    gates: tuple[Gate, ...]
    bars: tuple[Bar, ...]

    @property
    def passed(self) -> bool:
        """No gate failed, no stated error is over its bar, nothing that a step needs is missing."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why nothing should be predicted from it; empty where it is fit. What a step needs and lacks is a gate."""
        failed = [f"{gate.name}: {gate.detail}" for gate in self.gates if not gate.passed]
        over = [bar for bar in self.bars if bar.value is not None and not bar.met]
        return [*failed, *(f"{bar.operator} {bar.kind} over its bar" for bar in over)]


def errors_of(profile: Profile) -> Mapping[str, Mapping[str, Error]]:
    """Held-out errors: computed anew from the measurements that the file keeps; else as stated, where it was thinned
    after they were found; else by leaving parts of it out."""
    records: Any = profile.details.get("measurements")
    if not isinstance(records, list):
        from gpu_calibrate.fit.held_out import held_out_errors

        return profile.errors or held_out_errors(profile)
    from gpu_calibrate.fit.build_profile import all_errors, usable
    from gpu_calibrate.timing.store import read_measurement

    extras = profile.details.get("extras")
    try:
        measured = usable(read_measurement(record) for record in records)
        return all_errors(profile, measured, extras if isinstance(extras, dict) else {})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{profile.name}: details.measurements and details.extras are not as `gpu-calibrate run` writes them "
            f"({type(error).__name__}: {error}); measure again"
        ) from error


def gates_of(profile: Profile) -> tuple[Gate, ...]:
    """Gates as the file has them, but for the operators that it holds: those are looked at anew, since the file's own
    gates may be older than this one, or edited."""
    told = tuple(gate for gate in profile.gates if gate.name != OPERATORS_GATE)
    anew = operators_gate(profile)
    # Where it passes, a measured profile's own gates say as much.
    return told if told and anew.passed else (*told, anew)


def check(profile: Profile) -> Verdict:
    """Gates as the file has them, errors as they are."""
    errors = errors_of(profile)
    missing = missing_operators(profile)
    bars = []
    for (operator, kind), limit in BARS[profile.source.kind].items():
        error = errors.get(operator, {}).get(kind)
        value = None if error is None else error.mean if operator in MEANS else error.median
        bars.append(Bar(operator, kind, value, limit, operator in missing))
    return Verdict(errors, gates_of(profile), tuple(bars))
