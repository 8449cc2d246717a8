"""How wrong single operators are predicted: parts of a profile are left out, predicted from the rest, and compared."""

from __future__ import annotations

from dataclasses import dataclass

from sim.latency.profile.file import Error, load_profile
from sim.latency.profile.library import BUILTIN, SUFFIX, builtin_names

BARS = {"h100-sxm": 0.04, "h200-sxm": 0.04, "a100-80gb-sxm": 0.08}
"""Median error where random inner points of curves are left out."""
QUICK = ("a100-80gb-sxm", "h100-sxm")
KINDS = {"random_points": "random inner points left out", "held_out_curves": "whole shapes left out"}


@dataclass(frozen=True)
class OperatorScore:
    """The errors of one operator of one profile."""

    profile: str
    operator: str
    errors: dict[str, Error]
    is_stated: bool
    """Whether they stand in the profile (from the full tables), or were found here on its own points."""

    def error(self, kind: str) -> Error | None:
        """Of one of ``KINDS``."""
        return self.errors.get(kind)


@dataclass(frozen=True)
class ProfileScore:
    """All operators of one profile; ``median`` weighs each operator that a dense layer is made of alike."""

    name: str
    operators: tuple[OperatorScore, ...]

    @property
    def bar(self) -> float | None:
        """Of the median error with random points left out."""
        return BARS.get(self.name)

    @property
    def worst_layer_operator(self) -> float | None:
        """Largest median error, random points left out, among GEMM and both attentions."""
        found = [
            error.median
            for each in self.operators
            if each.operator in ("gemm", "decode_attention", "prefill_attention")
            if (error := each.error("random_points")) is not None
        ]
        return max(found, default=None)

    @property
    def met(self) -> bool:
        """Whether each of GEMM and both attentions reaches the bar."""
        return self.bar is None or self.worst_layer_operator is None or self.worst_layer_operator <= self.bar


def operator_scores(*, quick: bool = False) -> list[ProfileScore]:
    """Of the built-in profiles: what they state of the tables they come from, else found on their own points."""
    from gpu_calibrate.fit.held_out import held_out_errors

    scores = []
    for name in builtin_names():
        if quick and name not in QUICK:
            continue
        profile = load_profile(BUILTIN / f"{name}{SUFFIX}")
        stated = {operator: errors for operator, errors in profile.errors.items() if set(errors) & set(KINDS)}
        found = stated or held_out_errors(profile, splits=1 if quick else 3)
        scores.append(
            ProfileScore(name, tuple(OperatorScore(name, each, found[each], bool(stated)) for each in sorted(found)))
        )
    return scores
