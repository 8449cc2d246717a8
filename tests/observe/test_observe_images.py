"""The client sends prompts of text alone, and says so before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.errors import InputError
from sim.live.observe import plan
from sim.scenario.schema import WorkloadConfig
from sim.workload.build_table import build_workload


def test_images_are_not_sent_and_it_says_so() -> None:
    workload = {
        "requests": 3,
        "arrival": {"process": "poisson", "rate": 1},
        "input_tokens": {"dist": "fixed", "value": 100},
        "output_tokens": {"dist": "fixed", "value": 10},
        "images": {"tokens": 256},
    }
    table = build_workload(WorkloadConfig.model_validate(workload), 0, Path())
    with pytest.raises(InputError, match="requests with images are not sent"):
        plan(table)
