"""Results of other load generators with a value of the wrong kind in any one place: read, or refused in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from test_observe_other_tools import SCENARIO, aiperf, as_seen, guidellm, inference_perf, sglang

from sim.errors import InputError
from sim.explore.measured_run import read_runs

JUNK: tuple[Any, ...] = ([], {}, "x", -1, 1.5, True, [[1]], {"a": [1]}, 0, None, float("inf"), 10**30)
STATISTICS: dict[str, Any] = {
    "request_latency": {"unit": "ms", "avg": 100.0},
    "benchmark_duration": {"unit": "sec", "avg": 10.0},
    "request_count": {"avg": 5},
    "error_request_count": {"avg": 0},
    "total_isl": {"avg": 9},
    "time_to_first_token": {"unit": "ms", "avg": 2.0, "p99": 3.0},
    "request_throughput": {"avg": 1.0},
}
ROWS = as_seen(SCENARIO)[:2]
FILES: dict[str, str] = {
    "sglang": sglang(ROWS),
    "guidellm": guidellm(ROWS),
    "inference_perf": inference_perf(ROWS),
    "aiperf": aiperf(ROWS),
    "aiperf statistics": json.dumps(STATISTICS),
}


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key, and the first entries of every list."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*before, key)
        yield from places(inner, (*before, key))


@pytest.mark.parametrize("name", FILES)
def test_a_value_of_the_wrong_kind_is_no_traceback(name: str, tmp_path: Any) -> None:
    documents = [json.loads(line) for line in FILES[name].splitlines()]
    path, refused = tmp_path / "result", 0
    for place in list(places(documents)):
        section: Any = documents
        for key in place[:-1]:
            section = section[key]
        before = section[place[-1]]
        for junk in JUNK:
            section[place[-1]] = junk
            path.write_text("".join(json.dumps(each) + "\n" for each in documents))
            try:
                read_runs(str(path))
            except InputError:
                refused += 1
        section[place[-1]] = before
    assert refused > 5


@pytest.mark.parametrize("unit", ["min", ["sec"]])
def test_a_duration_in_an_unknown_unit_is_left_out(unit: Any, tmp_path: Any) -> None:
    path = tmp_path / "result"
    path.write_text(json.dumps(STATISTICS | {"benchmark_duration": {"unit": unit, "avg": 10.0}}))
    (run,) = read_runs(str(path))
    assert run.figures["mean_e2el_ms"] == 100.0
    assert "duration" not in run.counts
