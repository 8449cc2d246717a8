"""The JSON Schema is draft-07, says what every key means, and takes and refuses what the loader does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sim.scenario.document import parse
from sim.scenario.json_schema import DIALECT, json_schema

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "scenarios").glob("*.yaml"))


def words(node: Any) -> set[str]:
    """Every word of JSON Schema used under ``node``, names of properties left out."""
    if isinstance(node, list):
        return set().union(*map(words, node))
    if not isinstance(node, dict):
        return set()
    found = set(node)
    for key, value in node.items():
        if key in ("properties", "definitions"):
            found |= set().union(*map(words, value.values()))
        elif key not in ("default", "enum", "const"):
            found |= words(value)
    return found


def test_draft_07() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == DIALECT == "http://json-schema.org/draft-07/schema#"
    known = set(jsonschema.Draft7Validator.META_SCHEMA["properties"])
    assert words(SCHEMA) - known == set()


def test_every_key_is_described() -> None:
    for name, definition in {**SCHEMA["definitions"], "Scenario": SCHEMA}.items():
        assert definition["description"], name
        if name == "SloConfig":
            continue
        for key, value in definition["properties"].items():
            assert value.get("description") or key in ("dist", "process"), f"{name}.{key}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_takes_the_example_scenarios(path: Path) -> None:
    data = parse(path.read_text(), str(path)).data
    assert [error.message for error in VALIDATOR.iter_errors(data)] == []


@pytest.mark.parametrize(
    "name", ["unknown_key", "wrong_section", "negative_rate", "missing_section", "missing_keys", "wrong_type"]
)
def test_refuses_broken_scenarios(name: str) -> None:
    path = ROOT / "tests" / "broken" / f"{name}.yaml"
    assert not VALIDATOR.is_valid(parse(path.read_text(), str(path)).data)
