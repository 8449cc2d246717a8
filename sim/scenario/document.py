"""YAML text as plain data in which every key and value knows where it was written."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim.errors import InputError, Problem

if TYPE_CHECKING:
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

Path = tuple[str | int, ...]
"""Keys and list positions from the top of a scenario to one of its values."""

MAX_NODES = 100_000
"""Aliases can blow a small file up; no real scenario comes near this many values."""

_LOCATION = re.compile(r"`?((?:workload|engine|cluster|latency|slo|outputs)(?:\.\w+|\[\d+\]| \([^()]*\))*)`?(?=[: ])")

_TAG = "tag:yaml.org,2002:"
# YAML 1.2 knows these as floats; the reader's own pattern misses an exponent without a sign after a leading dot.
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: a position in a file (from 1), or the command-line option that gave it."""

    file: str | None = None
    line: int | None = None
    column: int | None = None

    def problem(self, message: str) -> Problem:
        """``message`` at this place."""
        return Problem(message, self.file, self.line, self.column)


@dataclass(slots=True)
class Document:
    """Plain data (dicts, lists, scalars) and the places of its values and keys."""

    file: str | None = None
    """None for a scenario that was not read from a file."""
    data: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """What is wrong with the text although it could be read, such as duplicate keys."""

    def value_place(self, path: Path) -> Place:
        """Where the value at ``path`` is, or the nearest section around it that was written."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Place(self.file, 1, 1) if self.file else Place())

    def key_place(self, path: Path) -> Place:
        """Where the key of ``path`` is: what points at a whole section better than its first line does."""
        return self.keys[path] if path in self.keys else self.value_place(path)

    def problem(self, path: Path, message: str) -> Problem:
        """``message`` about the value at ``path``: at the value, or at the key of a whole section."""
        return (self.key_place(path) if self.is_section(path) else self.value_place(path)).problem(message)

    def is_section(self, path: Path) -> bool:
        """Whether a section or list was written at ``path``."""
        value = self.data
        for step in path:
            try:
                value = value[step]
            except (TypeError, KeyError, IndexError):
                return False
        return isinstance(value, dict | list)

    def mark(self, path: Path, place: Place) -> None:
        """Say that ``path`` and all in it came from ``place``, whatever was there before."""
        depth = len(path)
        for places in (self.values, self.keys):
            for inner in [known for known in places if known[:depth] == path]:
                del places[inner]
        self.values[path] = self.keys[path] = place


def parse(text: str, file: str) -> Document:
    """Read one YAML 1.2 document. Raises InputError with the position if it is not YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = YAML(typ="safe", pure=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor name used twice is legal in YAML 1.2
            root = reader.compose(text)
    except MarkedYAMLError as error:
        raise InputError(_syntax_problem(error, text, file)) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(_unreadable(error, text, file)) from None
    document = Document(file)
    if root is not None:
        document.data = _Builder(document).build(root, ())
    return document


class _Builder:
    """Turns the reader's nodes into plain data, noting places."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()
        self.count = 0

    def build(self, node: Node, path: Path) -> Any:
        """The value of ``node``. Raises InputError for aliases that never end."""
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        place = self.place(node)
        if isinstance(node, ScalarNode) and not node.value and node.style is None:
            place = self.document.keys.get(path, place)  # nothing is there: point at the key
        self.document.values[path] = place
        self.count += 1
        if self.count > MAX_NODES:
            raise InputError(place.problem(f"aliases expand to more than {MAX_NODES:,} values; write them out"))
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        if id(node) in self.open:
            raise InputError(place.problem("an alias here refers to the section that contains it; write it out"))
        self.open.add(id(node))
        result: Any = None
        if isinstance(node, SequenceNode):
            result = [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        elif isinstance(node, MappingNode):
            result = self.mapping(node, path)
        self.open.discard(id(node))
        return result

    def mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        """A section; a key written twice is a problem and the first one counts."""
        result: dict[str, Any] = {}
        merged: list[tuple[Node, Node]] = []
        for key_node, value_node in node.value:
            if str(key_node.tag) == _TAG + "merge":
                merged += self.merged_pairs(value_node)
                continue
            key = self.key(key_node)
            if key is None:
                continue
            if key in result:
                first = self.document.keys[(*path, key)]
                self.complain(key_node, f"key `{key}` is already given in line {first.line}; keep one of the two")
                continue
            self.document.keys[(*path, key)] = self.place(key_node)
            result[key] = self.build(value_node, (*path, key))
        for key_node, value_node in merged:
            key = self.key(key_node)
            if key is not None and key not in result:
                self.document.keys[(*path, key)] = self.place(key_node)
                result[key] = self.build(value_node, (*path, key))
        return result

    def merged_pairs(self, node: Node) -> Iterator[tuple[Node, Node]]:
        """The keys that ``<<: *anchor`` brings in; earlier ones win."""
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        sources = node.value if isinstance(node, SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, MappingNode) or id(source) in self.open:
                self.complain(source, "`<<` takes an alias of another section, such as `<<: *base`")
                continue
            self.open.add(id(source))
            for key_node, value_node in source.value:
                if str(key_node.tag) == _TAG + "merge":
                    yield from self.merged_pairs(value_node)
                else:
                    yield key_node, value_node
            self.open.discard(id(source))

    def key(self, node: Node) -> str | None:
        from ruamel.yaml.nodes import ScalarNode

        if isinstance(node, ScalarNode):
            return str(node.value)
        self.complain(node, "a key must be a plain word, not a list or a section")
        return None

    def scalar(self, node: ScalarNode) -> Any:
        """The value by YAML 1.2's rules; dates stay text."""
        text, kind = str(node.value), str(node.tag).removeprefix(_TAG)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() in ("true", "yes", "on", "y")
            if kind == "int":
                return _integer(text)
            if kind == "float" or (kind == "str" and node.style is None and _FLOAT.fullmatch(text)):
                return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return text
        if kind not in ("str", "timestamp", "value", "merge"):
            self.complain(node, f"tag `{str(node.tag).replace(_TAG, '!!')}` is not used in scenarios; remove it")
        return text

    def place(self, node: Node) -> Place:
        return Place(self.document.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def complain(self, node: Node, message: str) -> None:
        self.document.problems.append(self.place(node).problem(message))


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    base = 16 if "0x" in digits else 8 if "0o" in digits else 2 if "0b" in digits else 10
    return int(digits, base)


# (what the reader says, in our words with the remedy); the first that is contained counts.
_SYNTAX = (
    ("'\\t' that cannot start", "a tab is used for indentation; YAML allows only spaces"),
    (
        "mapping values are not allowed",
        "`:` is not possible here; check the indentation, or quote text that contains `: `",
    ),
    ("found undefined alias", "an alias (`*name`) without an anchor (`&name`) before it; quote the text if it is none"),
    ("that cannot start any token", "text cannot begin with this character; put it in quotes"),
    ("expected ',' or ']'", "the list that begins with `[` is not closed; add `]`, or `,` between its items"),
    ("expected ',' or '}'", "the section that begins with `{` is not closed; add `}`, or `,` between its keys"),
    ("unexpected end of stream", "the quotes that open here are never closed"),
    ("unknown escape character", "`\\` starts an escape inside double quotes; use single quotes"),
    ("could not find expected ':'", "a key without `:`; write `key: value`"),
    ("expected <block end>", "this line does not fit the ones around it; check the indentation"),
    ("expected the node content", "a value is missing here, or a bracket is not closed"),
    ("but found another document", "a second document (`---`) begins here; a scenario file holds one"),
    ("incompatible YAML document", "this YAML version is not known; remove the %YAML line"),
)


def _syntax_problem(error: Any, text: str, file: str) -> Problem:
    said = f"{error.context or ''} {error.problem or ''}"
    known = next((ours for theirs, ours in _SYNTAX if theirs in said), None)
    message = known or f"not valid YAML: {(error.problem or error.context or 'cannot be read').strip()}"
    opened = "never closed" in message or "is not closed" in message
    mark = (error.context_mark if opened else error.problem_mark) or error.problem_mark or error.context_mark
    if mark is None:
        return Problem(message, file)
    line, column = mark.line, mark.column
    lines = text.splitlines()
    if line >= len(lines) and lines:
        line, column = len(lines) - 1, len(lines[-1])
    return Problem(message, file, line + 1, column + 1)


def _unreadable(error: Exception, text: str, file: str) -> Problem:
    """The reader refused a character, or the nesting; neither comes with a mark."""
    position = getattr(error, "position", None)
    if isinstance(position, int):
        before = text[:position]
        line = before.count("\n") + 1
        column = position - (before.rfind("\n") + 1) + 1
        code = ord(text[position]) if position < len(text) else 0
        return Problem(f"character U+{code:04X} is not allowed in YAML; delete it", file, line, column)
    if isinstance(error, RecursionError):
        return Problem("sections are nested too deeply to be read", file)
    return Problem(f"not valid YAML: {str(error).splitlines()[0] if str(error) else 'cannot be read'}", file)


def located(problem: Problem, document: Document, default: Path) -> Problem:
    """A place for a problem without one: that of the dotted key it begins with, else of ``default``.

    ``default`` also counts where the problem only names a section around it.
    """
    if problem.file is not None:
        return problem
    match = _LOCATION.match(problem.message)
    message, path = problem.message, default
    if match:
        steps = re.findall(r"\w+", re.sub(r" \(.*?\)", "", match[1]))
        named = tuple(int(step) if step.isdecimal() else step for step in steps)
        if named != default[: len(named)]:
            path = named
        message = f"`{'.'.join(steps)}`{message[match.end() :]}"
    return document.problem(path, message)


def ordered(problems: Iterable[Problem], file: str | None = None) -> list[Problem]:
    """Each problem once, by place in ``file``; those of the command line and of other files after."""
    return sorted(dict.fromkeys(problems), key=lambda p: (p.file != file, p.file or "", p.line or 0, p.column or 0))
