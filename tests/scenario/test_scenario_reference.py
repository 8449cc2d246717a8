"""docs/scenario.md is what the schema says today, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

from sim.checks.all_checks import check_all
from sim.checks.loading import load_data
from sim.scenario.document import parse
from sim.scenario.fields import sections
from sim.scenario.reference import scenario_reference
from sim.scenario.schema import SloConfig

DOCS = Path(__file__).parents[2] / "docs" / "scenario.md"


def test_up_to_date() -> None:
    assert DOCS.read_text() == scenario_reference(), "run: python -m sim.scenario.reference > docs/scenario.md"


def test_every_key_is_there() -> None:
    text = DOCS.read_text()
    for _, model in sections():
        if model is not SloConfig:
            for key in model.model_fields:
                assert f"`{key}`" in text, key


def test_the_example_loads() -> None:
    example = re.search(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example is not None
    check_all(load_data(parse(example[1], "docs").data))
