"""The schema's own docstrings, key by key. Python does not keep those under attributes, so the source is read."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from types import ModuleType

from pydantic import BaseModel

from sim.scenario import distributions, engine_section, hardware, noise_config, schema


def section_text(model: type[BaseModel]) -> str:
    """What a section is, as one line of Markdown."""
    return _one_line(inspect.getdoc(model) or "")


def key_text(model: type[BaseModel], key: str) -> str:
    """What a key means, as one line of Markdown; empty where the schema says nothing."""
    for owner in model.__mro__:
        text = _texts().get((owner.__name__, key))
        if text is not None:
            return text
    return ""


@cache
def _texts() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for module in (distributions, engine_section, hardware, noise_config, schema):
        found.update(_of_module(module))
    return found


def _of_module(module: ModuleType) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[node.name, field.target.id] = _one_line(str(ast.literal_eval(after.value)))  # type: ignore[attr-defined]
    return found


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("``", "`").strip()
