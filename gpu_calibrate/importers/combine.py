"""Two profiles of one GPU as one: curves that the first lacks come from the second, named as such."""

from __future__ import annotations

from sim.errors import InputError
from sim.latency.profile.file import Operator, Profile


def add_curves(first: Profile, second: Profile) -> Profile:
    """``first`` with the curves of ``second`` whose key it does not have; each operator names both origins.

    Errors are those of ``first``, and of ``second`` for operators that only it has. Raises InputError where the two
    are of different GPUs.
    """
    if first.device.gpu != second.device.gpu:
        raise InputError(
            f"cannot add {second.name} ({second.device.gpu}) to {first.name} ({first.device.gpu}): not the same GPU"
        )
    operators = dict(first.operators)
    added = []
    for name, operator in second.operators.items():
        operators[name], count = _joined(first.operators.get(name), operator)
        if count:
            added.append(f"{count} curves of {name}")
    note = f"added from {second.source.origin}: {', '.join(added) or 'nothing'}"
    source = first.source.model_copy(
        update={
            "origin": f"{first.source.origin}; {second.source.origin}",
            "notes": (*first.source.notes, note, *second.source.notes),
        }
    )
    only_second = {name: found for name, found in second.errors.items() if name not in first.operators}
    return first.model_copy(
        update={
            "operators": operators,
            "source": source,
            "errors": {**only_second, **first.errors},
            "software": _both(first.software, second.software),
        }
    )


def _joined(first: Operator | None, second: Operator) -> tuple[Operator, int]:
    """The curves of both, the first's where both have the key, and how many are of the second."""
    if first is None:
        return second, len(second.curves)
    have = {curve.key for curve in first.curves}
    new = tuple(curve for curve in second.curves if curve.key not in have)
    if not new:
        return first, 0
    joined = first.model_copy(
        update={
            "kernel": f"{first.kernel}; {second.kernel}",
            "origin": f"{first.origin}; {second.origin}",
            "curves": (*first.curves, *new),
        }
    )
    return joined, len(new)


def _both(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """Versions of both; two different ones of the same software are both told."""
    joined = {**second, **first}
    for name in first.keys() & second.keys():
        if first[name] != second[name]:
            joined[name] = f"{first[name]}, {second[name]}"
    return {name: joined[name] for name in sorted(joined)}
