"""The keys of one ``config.json``, read with every problem kept for one report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sim.errors import Problem

LARGEST_DIMENSION = 10**9


class Keys:
    """One section of a config: the whole of it, or the text decoder that is nested in it."""

    def __init__(self, values: Mapping[str, Any], file: str, section: str = "") -> None:
        """``section``: what problems put before a key, ``text_config.``."""
        self.values = values
        self.file = file
        self.section = section
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    @property
    def model_type(self) -> str:
        """The model's family in Hugging Face's words."""
        return str(self.values.get("model_type", ""))

    def problem(self, message: str) -> None:
        """Add a problem of this file."""
        self.problems.append(Problem(f"{self.section}{message}", file=self.file))

    def has(self, name: str) -> bool:
        """Whether ``name`` is given, and not null."""
        return self.values.get(name) is not None

    def number(self, names: Iterable[str] | str, default: int | None = None, *, least: int = 1) -> int:
        """The first of ``names`` that is given, as a whole number; ``default`` None = required. A list of one number
        for each layer is that number where all are equal."""
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, list) and value and all(each == value[0] for each in value):
                value = value[0]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_DIMENSION:
                what = "layers that differ in it are not read" if isinstance(value, list) else f"found {value!r}"
                self.problem(f"{name}: expected a whole number of at least {least}, {what}")
                return max(least, 1)
            return value
        if default is None:
            self.problem(
                f"{' or '.join(names)} is missing: not a config.json of a decoder that can be costed, or "
                "left to the default of its model type; write it in"
            )
            return 1
        return default

    def flag(self, name: str, default: bool) -> bool:
        """``name`` as true or false; null = ``default``."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(f"{name}: expected true or false, found {value!r}")
        return value is True

    def listing(self, name: str, length: int) -> list[Any] | None:
        """``name`` as a list with an entry for each of ``length`` layers; None = not given. Further entries are of
        layers that only draft."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self.problem(f"{name}: expected a list of one entry a layer, found {value!r}")
            return None
        if len(value) < length:
            self.problem(f"{name}: has {len(value)} entries for {length} layers")
            return None
        return value[:length]

    def sub(self, name: str) -> Keys:
        """A section below this one; its problems are this one's."""
        inner = self.values.get(name)
        found = Keys(inner if isinstance(inner, dict) else {}, self.file, f"{self.section}{name}.")
        found.problems, found.notes = self.problems, self.notes
        return found
