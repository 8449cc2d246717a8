"""The resolved scenario loads again to the same scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from scenario_strategies import SCENARIOS

from sim.checks.loading import load_data, load_scenario
from sim.scenario.document import parse
from sim.scenario.json_schema import json_schema
from sim.scenario.resolved import resolved_yaml
from sim.scenario.schema import Scenario

VALIDATOR = jsonschema.Draft7Validator(json_schema())
MINIMAL: dict[str, Any] = {
    "name": "x",
    "workload": {
        "requests": 10,
        "arrival": {"process": "poisson", "rate": 4},
        "input_tokens": {"dist": "fixed", "value": 512},
        "output_tokens": {"dist": "fixed", "value": 128},
    },
    "engine": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm"},
}


@given(SCENARIOS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_round_trip_and_json_schema(data: dict[str, Any]) -> None:
    scenario = Scenario.model_validate(data)
    text = resolved_yaml(scenario)
    document = parse(text, "resolved.yaml")
    again = Scenario.model_validate(document.data)
    assert again == scenario
    assert document.problems == []
    assert resolved_yaml(again) == text
    for written in (data, document.data):
        assert [error.message for error in VALIDATOR.iter_errors(written)] == []


def test_every_default_is_written() -> None:
    resolved = parse(resolved_yaml(load_data(MINIMAL).scenario), "x").data
    for section in ("workload", "cluster", "engine", "latency", "outputs"):
        assert resolved[section].keys() == type(getattr(load_data(MINIMAL).scenario, section)).model_fields.keys()
    assert resolved["engine"]["max_num_seqs"] == 256
    assert resolved["engine"]["watermark"] == 0.0


def test_a_class_keeps_inheriting_what_it_leaves_out(tmp_path: Path) -> None:
    data = {**MINIMAL, "workload": {**MINIMAL["workload"], "tenant": "gold", "priority": 3}}
    data["workload"]["classes"] = [{"name": "a", "share": 1}, {"name": "b", "share": 1, "tenant": "default"}]
    path = tmp_path / "resolved.yaml"
    path.write_text(resolved_yaml(load_data(data).scenario))
    first, second = load_scenario(path).scenario.workload.classes or []
    assert "tenant" not in first.model_fields_set
    assert "tenant" in second.model_fields_set
    assert "priority" not in second.model_fields_set


def test_relative_paths_can_be_written_absolute(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,1,1\n")
    data = {**MINIMAL, "workload": {"trace": {"path": "t.csv", "format": "generic"}}}
    scenario = load_data(data, base_dir=tmp_path).scenario
    assert parse(resolved_yaml(scenario), "x").data["workload"]["trace"]["path"] == "t.csv"
    absolute = parse(resolved_yaml(scenario, tmp_path), "x").data
    assert absolute["workload"]["trace"]["path"] == str((tmp_path / "t.csv").resolve())
    assert absolute["engine"]["model"] == "llama-2-7b"
