"""The scenario format as JSON Schema draft-07, for editors that check and complete YAML."""

from __future__ import annotations

from typing import Any

from sim.scenario.docstrings import key_text, section_text
from sim.scenario.fields import sections

DIALECT = "http://json-schema.org/draft-07/schema#"


def json_schema() -> dict[str, Any]:
    """The schema, with the docstrings as descriptions. It does not know the checks between keys."""
    from sim.scenario.schema import Scenario

    generated = Scenario.model_json_schema()
    definitions = generated.pop("$defs")
    by_name = {model.__name__: model for _, model in sections()}
    for name, definition in (*definitions.items(), ("Scenario", generated)):
        model = by_name[name]
        definition["description"] = section_text(model)
        for key, value in definition["properties"].items():
            text = key_text(model, key)
            if text:
                value["description"] = text
    return {
        "$schema": DIALECT,
        "title": "simrun scenario",
        **_draft_07(generated),
        "definitions": {name: _draft_07(definition) for name, definition in definitions.items()},
    }


def _draft_07(node: Any) -> Any:
    """pydantic writes draft 2020-12; the parts of it that draft-07 spells differently."""
    if isinstance(node, list):
        return [_draft_07(item) for item in node]
    if not isinstance(node, dict):
        return node
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":  # here keys are names of the scenario, not words of JSON Schema
            result[key] = {name: _draft_07(inner) for name, inner in value.items()}
        elif key in ("default", "const", "enum", "description"):
            result[key] = value
        elif key == "prefixItems":
            result["items"] = _draft_07(value)
            result["additionalItems"] = False
        elif key not in ("discriminator", "title") and not (key == "items" and "prefixItems" in node):
            result[key] = _draft_07(value)
    reference = result.pop("$ref", None)
    if reference is None:
        return result
    reference = {"$ref": reference.replace("#/$defs/", "#/definitions/")}
    return {"allOf": [reference], **result} if result else reference  # draft-07 ignores what stands beside $ref
