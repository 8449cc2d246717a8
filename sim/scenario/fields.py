"""What the scenario format takes at each place, read off the schema: for messages and the reference."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag
from pydantic.fields import FieldInfo

from sim.scenario.document import Path
from sim.scenario.schema import NamedSpec, Scenario
from sim.scenario.types import LARGEST

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What one value may be. One of ``model``, ``branches``, ``item(s)``, ``entry``, ``choices``, ``kind`` says it."""

    model: type[BaseModel] | None = None
    """A section."""
    branches: dict[str, Shape] = field(default_factory=dict)
    """One of several, by tag."""
    discriminator: str | None = None
    """The key that names the branch; None where the kind of value does."""
    item: Shape | None = None
    """A list of these."""
    items: tuple[Shape, ...] = ()
    """A list of exactly these."""
    entry: Shape | None = None
    """A section whose keys are names that the user gives; each value one of these."""
    kind: type | None = None
    """int, float, bool or str."""
    choices: tuple[str | int, ...] = ()
    """The only values, texts or whole numbers, in the order of the schema."""
    bounds: dict[str, Any] = field(default_factory=dict)
    """``gt``, ``ge``, ``lt``, ``le``, ``min_length``."""
    nullable: bool = False

    def words(self) -> str:
        """What is expected, as it completes "must be ..."."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        if self.kind is not None:
            return bounded_words(self.kind, self.bounds)
        if self.items:
            return f"a list of {len(self.items)}: {', then '.join(item.words() for item in self.items)}"
        if self.item is not None:
            return f"a list, each item {self.item.words()}"
        if self.entry is not None:
            return f"a section, each value {self.entry.words()}"
        if self.discriminator is not None:
            return f"a section with `{self.discriminator}` one of {', '.join(self.branches)}"
        if self.branches:
            return " or ".join(branch.words() for branch in self.branches.values())
        if self.model is NamedSpec:
            return "a section such as {name: ...}"
        return f"a section with the keys {allowed_keys(self.model)}" if self.model else "anything"

    def section(self, value: Any) -> type[BaseModel] | None:
        """The section that ``value``, a mapping, is meant to be; None if it does not say."""
        if self.discriminator is not None and isinstance(value, dict):
            chosen = self.branches.get(str(value.get(self.discriminator)))
            return chosen.section(value) if chosen else None
        if self.model is not None:
            return self.model
        sections = [branch for branch in self.branches.values() if branch.model or branch.branches]
        return sections[0].section(value) if len(sections) == 1 else None


def bounded_words(kind: type, bounds: dict[str, Any], largest: float = LARGEST) -> str:
    """A scalar's type and limits in words; limits of ``largest`` and beyond go without saying."""
    text = _WORDS[kind]
    low, high = bounds.get("ge"), bounds.get("le", bounds.get("lt"))
    if kind is str or kind is bool:
        return text
    if high is not None and high >= largest:
        high = None
    if low is not None and low <= -largest:
        low = None
    if "gt" in bounds:
        text += f" above {bounds['gt']}"
        return text if high is None else f"{text} and at most {high}"
    if low is None or high is None:
        return text if low is None else f"{text}, at least {low}"
    return f"{text} from {low} to less than {high}" if "lt" in bounds else f"{text} from {low} to {high}"


def shape_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> Shape:
    """The shape behind a type annotation of the schema."""
    extra = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        extra = more + extra
    discriminator = None
    bounds: dict[str, Any] = {}
    for entry in _flat(extra):
        if isinstance(entry, str):
            discriminator = entry
        for name in ("gt", "ge", "lt", "le", "min_length"):
            if getattr(entry, name, None) is not None:
                bounds[name] = getattr(entry, name)
    origin = get_origin(annotation)
    if origin is Union or origin is types.UnionType:
        return _union(annotation, discriminator, tuple(extra))
    if origin is Literal:
        return Shape(choices=get_args(annotation))
    if origin is list:
        return Shape(item=shape_of(get_args(annotation)[0]))
    if origin is dict:
        return Shape(entry=shape_of(get_args(annotation)[1]))
    if origin is tuple:
        return Shape(items=tuple(shape_of(member) for member in get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Shape(model=annotation)
    return Shape(kind=annotation, bounds=bounds) if annotation in _WORDS else Shape()


def _flat(extra: list[Any]) -> Iterator[Any]:
    """Constraints; a ``Field(...)`` inside ``Annotated`` holds more of them, and the discriminator's name."""
    for entry in extra:
        if isinstance(entry, FieldInfo):
            yield from entry.metadata
            if isinstance(entry.discriminator, str):
                yield entry.discriminator
        else:
            yield entry


def _union(annotation: Any, discriminator: str | None, extra: tuple[Any, ...]) -> Shape:
    members = [member for member in get_args(annotation) if member is not type(None)]
    nullable = len(members) < len(get_args(annotation))
    if len(members) == 1:
        inner = shape_of(members[0], extra)
        return Shape(**{**{name: getattr(inner, name) for name in Shape.__slots__}, "nullable": nullable})
    branches: dict[str, Shape] = {}
    for member in members:
        tags = [entry.tag for entry in get_args(member)[1:] if isinstance(entry, Tag)]
        shape = shape_of(member)
        if tags:
            branches[tags[0]] = shape
        elif shape.model is not None and discriminator is not None:
            branches[str(get_args(shape.model.model_fields[discriminator].annotation)[0])] = shape
    by_key = None if any(isinstance(entry, Discriminator) for entry in extra) else discriminator
    return Shape(branches=branches, discriminator=by_key, nullable=nullable)


def field_shape(model: type[BaseModel], name: str) -> Shape | None:
    """The shape of ``model``'s key ``name``; None if it has no such key."""
    info = model.model_fields.get(name)
    if info is None:
        return None
    discriminator = (info.discriminator,) if isinstance(info.discriminator, str) else ()
    return shape_of(info.annotation, (*info.metadata, *discriminator))


def allowed_keys(model: type[BaseModel]) -> str:
    """Every key of a section, the required ones marked."""
    return ", ".join(f"{name} (required)" if info.is_required() else name for name, info in model.model_fields.items())


SCENARIO = Shape(model=Scenario)


def follow(location: Path) -> tuple[Path, Shape | None, type[BaseModel] | None]:
    """A pydantic error location as a path of the scenario, without the names of union branches.

    Returns the path, the shape at its end (None for a key that does not exist) and the section
    that holds its last key.
    """
    path: list[str | int] = []
    shape: Shape | None = SCENARIO
    parent: type[BaseModel] | None = None
    for step in location:
        if shape is None:
            path.append(step)
        elif shape.branches:
            shape = shape.branches.get(str(step))
        elif shape.model is not None:
            path.append(step)
            parent = shape.model
            shape = field_shape(shape.model, str(step))
        elif shape.items or shape.item is not None or shape.entry is not None:
            path.append(step)
            shape = _item(shape, step)
    return tuple(path), shape, parent


def shape_at(path: Path, data: Any) -> Shape | None:
    """The shape of the value at ``path`` in ``data``, whose discriminating keys choose the branches."""
    shape: Shape | None = SCENARIO
    value = data
    for step in path:
        if shape is None:
            return None
        if shape.items or shape.item is not None or shape.entry is not None:
            shape = _item(shape, step)
        else:
            model = shape.section(value)
            shape = field_shape(model, str(step)) if model else None
        value = _child(value, step)
    return shape


def _item(shape: Shape, step: str | int) -> Shape | None:
    if shape.items:
        return shape.items[step] if isinstance(step, int) and step < len(shape.items) else None
    return shape.item or shape.entry


def _child(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value):
        return value[step]
    return None


def sections(shape: Shape = SCENARIO, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of the format with its dotted path, outer ones first; branches of a union one by one."""
    if shape.item is not None:
        yield from sections(shape.item, path)
    for branch in shape.branches.values():
        yield from sections(branch, path)
    if shape.model is not None:
        yield path, shape.model
        for name in shape.model.model_fields:
            inner = field_shape(shape.model, name)
            if inner is not None:
                yield from sections(inner, f"{path}.{name}" if path else name)
