"""Two profiles of one GPU as one: what the first lacks comes from the second, named as such."""

from __future__ import annotations

from sim.errors import InputError
from sim.latency.profile.file import Profile


def add_operators(first: Profile, second: Profile) -> Profile:
    """``first`` with the operators that only ``second`` has; each keeps its own ``origin``.

    Raises InputError where the two are of different GPUs.
    """
    if first.device.gpu != second.device.gpu:
        raise InputError(
            f"cannot add {second.name} ({second.device.gpu}) to {first.name} ({first.device.gpu}): not the same GPU"
        )
    added = {name: operator for name, operator in second.operators.items() if name not in first.operators}
    taken = f"{', '.join(sorted(added)) or 'nothing'} added from {second.source.origin}"
    source = first.source.model_copy(update={"notes": (*first.source.notes, taken, *second.source.notes)})
    errors = {**{name: second.errors[name] for name in added if name in second.errors}, **first.errors}
    return first.model_copy(
        update={
            "operators": {**first.operators, **added},
            "source": source,
            "errors": errors,
            "software": {**second.software, **first.software},
        }
    )
