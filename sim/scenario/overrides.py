"""``--set a.b=c``: values from the command line, put into a scenario before it is checked."""

from __future__ import annotations

from typing import Any

from sim.errors import InputError, Problem
from sim.scenario.document import Document, Path, Place, parse
from sim.scenario.fields import shape_at
from sim.scenario.messages import dotted, shown, value_at


def apply(document: Document, override: str) -> list[Problem]:
    """Put one ``dotted.key=value`` into ``document``; the value is read as YAML. Returns what is wrong with it."""
    option = f"--set {override}"
    place = Place(option)
    name, equals, text = override.partition("=")
    steps = name.strip().split(".")
    if not equals or not all(steps):
        return [place.problem("expected --set dotted.key=value, for example --set engine.max_num_seqs=64")]
    try:
        value_document = parse(text, option)
    except InputError as error:
        message = error.problems[0].message
        return [place.problem(f"the value cannot be read: {message}")]
    if value_document.problems:
        return [place.problem(problem.message) for problem in value_document.problems]
    if not isinstance(document.data, dict):
        return []
    return _set(document, steps, value_document.data, place)


def _set(document: Document, steps: list[str], value: Any, place: Place) -> list[Problem]:
    """Walk to the parent of the last step, making sections on the way, and set it."""
    here: Any = document.data
    path: Path = ()
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        if isinstance(here, list):
            if not step.isdecimal() or int(step) >= len(here):
                have = f"0 to {len(here) - 1}" if here else "none"
                return [
                    place.problem(f"`{dotted(path)}` is a list; give the position of an item ({have}), not `{step}`")
                ]
            key: str | int = int(step)
        else:
            key = step
        inner = (*path, key)
        if last:
            here[key] = value
            document.mark(inner, place)
            return []
        child = value_at(here, (key,))
        if not isinstance(child, dict | list):
            replacement = _section_for(document, inner, child)
            if replacement is None:
                return [
                    place.problem(
                        f"`{dotted(inner)}` is {shown(child)}, so `{steps[position + 1]}` cannot be set in it"
                    )
                ]
            child = here[key] = replacement
            if inner not in document.values:
                document.mark(inner, place)
        here, path = child, inner
    return []


def _section_for(document: Document, path: Path, child: Any) -> dict[str, Any] | None:
    """What a value becomes when a key is set inside it: ``fcfs`` turns into ``{name: fcfs}``; None = impossible."""
    if child is None:
        return {}
    shape = shape_at(path, document.data)
    return {"name": child} if isinstance(child, str) and shape is not None and "name" in shape.branches else None
