"""A scenario written out with every default filled in."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from sim.scenario.schema import Scenario

_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./:-]*")
# Words that YAML 1.2, or the 1.1 that other readers follow, takes for something else than text.
_RESERVED = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def resolved_yaml(scenario: Scenario, base_dir: Path | None = None) -> str:
    """``scenario`` as YAML that loads to an equal scenario, the same text on every run.

    With ``base_dir``, the folder that its relative paths start at, these are written absolute, so
    that the text means the same wherever it is put.
    """
    data = scenario.model_dump()
    for entry, dumped in zip(scenario.workload.classes or (), data["workload"]["classes"] or (), strict=True):
        for key in {"tenant", "priority"} - entry.model_fields_set:
            del dumped[key]  # a class that leaves them out has the workload's; writing the default would change that
    if base_dir is not None:
        _make_absolute(data["engine"], "model", base_dir)
        _make_absolute(data["latency"], "profile", base_dir)
        _make_absolute(data["latency"], "fit", base_dir)
        for traffic in (data["workload"], *(data["workload"]["classes"] or ())):
            if traffic["trace"] is not None:
                _make_absolute(traffic["trace"], "path", base_dir)
    return "\n".join(_block(data, 0)) + "\n"


def block_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML text, a key a line."""
    return "\n".join(_block(data, 0)) + "\n"


def _make_absolute(section: dict[str, Any], key: str, base_dir: Path) -> None:
    if section[key] is None:
        return
    for candidate in (base_dir / section[key], Path(section[key])):
        if candidate.exists():
            section[key] = str(candidate.resolve())
            return


def _block(value: dict[str, Any], indent: int) -> list[str]:
    """The lines of a section: what fits a line in braces, the rest indented."""
    lines: list[str] = []
    margin = " " * indent
    for key, inner in value.items():
        head = f"{margin}{_scalar(key)}:"
        line = flow(inner)
        nested = isinstance(inner, dict) and inner and (indent == 0 or len(head) + len(line) > _WIDTH)
        if nested:
            lines += [head, *_block(inner, indent + 2)]
        elif isinstance(inner, list | tuple) and any(isinstance(item, dict) for item in inner):
            lines.append(head)
            for item in inner:
                lines += _item(item, indent + 2)
        else:
            lines.append(f"{head} {line}")
    return lines


def _item(item: Any, indent: int) -> list[str]:
    if not isinstance(item, dict) or not item or len(flow(item)) + indent <= _WIDTH:
        return [f"{' ' * indent}- {flow(item)}"]
    first, *rest = _block(item, indent + 2)
    return [f"{' ' * indent}- {first.lstrip()}", *rest]


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and not text.endswith(":") and text.lower() not in _RESERVED:
        return text
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if " " <= character <= "~":
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
