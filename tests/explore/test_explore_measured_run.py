"""What `simrun fit` takes from a result file, and what it refuses or says it left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sim.errors import InputError
from sim.explore.measured_run import read_runs

WHOLE: dict[str, Any] = {
    "completed": 120,
    "failed": 0,
    "total_input_tokens": 12_000,
    "total_output_tokens": 6_000,
    "duration": 60.0,
    "mean_ttft_ms": 40.0,
    "mean_tpot_ms": 12.0,
}


def written(folder: Path, **told: Any) -> str:
    path = folder / "result.json"
    path.write_text(json.dumps({**WHOLE, **told}))
    return str(path)


def test_a_whole_result_needs_no_word(tmp_path: Path) -> None:
    (run,) = read_runs(written(tmp_path))
    assert run.notes == []
    assert run.counts == {key: WHOLE[key] for key in run.counts}


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"completed": 1.5}, "completed must be a whole number of 0 or more, found 1.5"),
        ({"total_input_tokens": -3}, "total_input_tokens must be a whole number of 0 or more, found -3"),
        ({"failed": "none"}, "failed must be a whole number of 0 or more, found 'none'"),
        ({"duration": 0}, "duration is 0: no run takes no time"),
        ({"mean_ttft_ms": "fast"}, "mean_ttft_ms must be a number of 0 or more, found 'fast'"),
    ],
)
def test_figures_that_cannot_be_are_refused(tmp_path: Path, told: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_runs(written(tmp_path, **told))
    assert says in str(caught.value)


def test_what_cannot_be_held_against_the_scenario_is_said(tmp_path: Path) -> None:
    path = tmp_path / "means.json"
    path.write_text('{"mean_tpot_ms": 25}')
    (run,) = read_runs(str(path))
    assert "completed, total_input_tokens, total_output_tokens, duration are not in it" in run.notes[0]


def test_requests_without_all_of_their_lists_are_left_out_with_a_word(tmp_path: Path) -> None:
    (run,) = read_runs(written(tmp_path, ttfts=[1, 2], itls=[[1]]))
    assert run.measured is None
    assert "its requests are left out, for" in run.notes[0]
