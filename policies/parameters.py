"""Building an object from a scenario's parameters: names and types are checked against its fields."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from policies.base import PolicyError

REQUIRED = "required"
"""Stands for the default of a parameter that has none."""


ALIKE = 0.8
"""How much of two names must be the same for one to be a misspelled other, 1 = all."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a policy, predictor or router, as a scenario may give it."""

    name: str
    type_text: str
    default: object
    """``REQUIRED`` where there is none."""
    help: str
    hint: object
    """Its type annotation; ``typing.Any`` where it has none."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def misspelled(name: str, known: Iterable[str]) -> str:
    """The same for names whose meanings differ: ``lcfs`` and ``ljf`` are the opposite of ``fcfs`` and ``sjf``.

    Nearly all letters are the same, or all of them in another order (``srft``).
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=ALIKE)
    close = close or [each for each in names if sorted(each) == sorted(name)]
    return f"; did you mean {close[0]!r}?" if close else ""


def parameters_of(cls: type, supplied: Iterable[str]) -> dict[str, Parameter]:
    """The parameters of ``cls``: its dataclass fields, else its constructor's arguments, less ``supplied`` ones."""
    left_out = set(supplied)
    return {parameter.name: parameter for parameter in _all_parameters(cls) if parameter.name not in left_out}


@functools.cache  # Every replica has a policy and a predictor of its own, and resolving annotations is slow.
def _all_parameters(cls: type) -> tuple[Parameter, ...]:
    found = []
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        for item in dataclasses.fields(cls):
            if item.init:
                default = item.default
                if item.default_factory is not dataclasses.MISSING:
                    default = item.default_factory()
                known = REQUIRED if default is dataclasses.MISSING else default
                hint = hints.get(item.name, typing.Any)
                found.append(Parameter(item.name, type_text(hint), known, item.metadata.get("help", ""), hint))
        return tuple(found)
    hints = _hints(inspect.getattr_static(cls, "__init__"))
    for argument in inspect.signature(cls).parameters.values():
        if argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
            known = REQUIRED if argument.default is argument.empty else argument.default
            hint = hints.get(argument.name, typing.Any)
            found.append(Parameter(argument.name, type_text(hint), known, "", hint))
    return tuple(found)


def construct(label: str, cls: type, params: Mapping[str, object], supplied: Mapping[str, object]) -> typing.Any:
    """``cls(**params)``, with those of ``supplied`` that it takes.

    Raises:
        PolicyError: an unknown, missing or ill-typed parameter (all of them in one message), or one that
            ``cls`` itself refuses.
    """
    known = parameters_of(cls, supplied)
    problems = [_problem(label, name, value, known) for name, value in params.items()]
    problems += [
        f"{label}: parameter {name!r} is missing ({parameter.type_text})"
        for name, parameter in known.items()
        if parameter.default is REQUIRED and name not in params
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise PolicyError("; ".join(found))
    accepted = _accepted(cls)
    given = {name: value for name, value in supplied.items() if name in accepted}
    try:
        return cls(**given, **params)
    except PolicyError:
        raise
    except (TypeError, ValueError) as error:
        raise PolicyError(f"{label}: {error}") from error


def type_text(hint: object) -> str:
    """A type annotation as a user reads it."""
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(type_text(part) for part in typing.get_args(hint))
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "")


def matches(value: object, hint: object) -> bool:
    """Whether ``value``, as read from YAML, is of type ``hint``.

    Whole numbers pass as floats, booleans never as numbers; types that YAML has no value of are not judged.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, part) for part in args)
    if origin is typing.Literal:
        return value in args
    if origin is list or hint is list:
        return isinstance(value, list) and all(matches(item, args[0]) for item in value if args)
    if origin is dict or hint is dict:
        return isinstance(value, dict) and all(
            matches(key, args[0]) and matches(item, args[1]) for key, item in value.items() if args
        )
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    return True


def _problem(label: str, name: str, value: object, known: Mapping[str, Parameter]) -> str | None:
    parameter = known.get(name)
    if parameter is None:
        listing = f"its parameters are {', '.join(known)}" if known else "it has none"
        return f"{label} has no parameter {name!r}{suggestion(name, known)} ({listing})"
    if not matches(value, parameter.hint):
        return f"{label}: {name} is {value!r}, but it must be {parameter.type_text}"
    return None


@functools.cache
def _accepted(cls: type) -> frozenset[str]:
    if dataclasses.is_dataclass(cls):
        return frozenset(item.name for item in dataclasses.fields(cls) if item.init)
    return frozenset(inspect.signature(cls).parameters)


def _hints(thing: object) -> dict[str, object]:
    """Type annotations by name; none where they cannot be resolved (a name known to type checkers only)."""
    try:
        return typing.get_type_hints(thing)
    except (NameError, TypeError):
        return {}
