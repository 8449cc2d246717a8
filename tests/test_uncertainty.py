"""Several seeds at once: the arithmetic of intervals, the stated error, and that nothing else changes."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.errors import InputError, SimulationError
from sim.seed_intervals import SAME_NOTE, SeedLoads, interval, intervals, notes, t_quantile
from sim.uncertainty import Interrupted, headline, simulate_seeds, stated_error

SCENARIO: dict[str, Any] = {
    "name": "seeds",
    "seed": 7,
    "workload": {
        "requests": 60,
        "arrival": {"process": "poisson", "rate": 12.0},
        "input_tokens": {"dist": "lognormal", "mean": 400, "cv": 0.6},
        "output_tokens": {"dist": "uniform", "low": 5, "high": 80},
    },
    "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm"},
    "slo": {"ttft_p95_ms": 500.0},
}


def without_timing(summary: dict[str, Any]) -> dict[str, Any]:
    run = {key: value for key, value in summary["run"].items() if key not in ("cpu_s", "wall_s")}
    return {**summary, "run": run}


def of(kind: str, accelerator: float) -> dict[str, Any]:
    described = {"kind": kind, "profile": "p"}
    return {"run": {"latency": described}, "error": {"accelerator": accelerator, "value": 0.9, "terms": {}}}


# -- arithmetic -----------------------------------------------------------------------------------


def test_the_t_interval_of_five_values() -> None:
    """By hand, by ratios: mean 31, logarithms of deviation log(2) sqrt(2.5), t of 4 degrees 2.7764."""
    values = [5.0, 10.0, 20.0, 40.0, 80.0]
    found = interval(values, 5.0, [], tuple(values))
    factor = math.exp(2.7764 * math.log(2) * math.sqrt(2.5 / 5))
    assert found.mean == 31.0
    assert (found.low, found.high) == pytest.approx((31 / factor, 31 * factor))
    assert found.from_seeds == pytest.approx((31 / factor - 31, 31 * factor - 31))


def test_two_seeds_and_zeros_go_by_differences() -> None:
    for values in ([4.0, 6.0], [0.0, 1.0, 2.0]):
        found = interval(values, values[0], [], tuple(values))
        half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        assert found.from_seeds == pytest.approx((-half, half))


def test_both_parts_are_added_as_squares_each_side_by_itself() -> None:
    values = [10.0, 12.0, 11.0]
    factor = math.exp(t_quantile(2) * statistics.stdev(map(math.log, values)) / math.sqrt(3))
    found = interval(values, 10.0, [9.5, 14.0], tuple(values))
    assert found.from_profile == (-0.5, 4.0)
    assert found.low == pytest.approx(11.0 - math.hypot(11 - 11 / factor, 0.5))
    assert found.high == pytest.approx(11.0 + math.hypot(11 * factor - 11, 4.0))


def test_a_change_to_one_side_only_moves_that_side() -> None:
    found = interval([10.0], 10.0, [10.0, 13.0], (10.0,))
    assert (found.low, found.mean, found.high) == (10.0, 10.0, 13.0)
    assert found.from_seeds is None


def test_nothing_falls_below_zero() -> None:
    assert interval([1.0, 100.0], 1.0, [], (1.0, 100.0)).low == 0.0


def test_seeds_without_a_value_are_left_out_and_none_at_all_gives_no_interval() -> None:
    found = intervals([{"a": None, "b": None}, {"a": 2.0, "b": None}, {"a": 4.0, "b": None}], [{"a": 9.0, "b": None}])
    assert set(found) == {"a"}
    assert found["a"].mean == 3.0
    assert found["a"].from_profile == (0.0, 0.0)  # the first seed has nothing to compare with
    assert found["a"].by_seed == (None, 2.0, 4.0)


def test_t_falls_to_the_normal_quantile_without_a_jump_at_the_end_of_the_table() -> None:
    values = [t_quantile(degrees) for degrees in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert t_quantile(40) == pytest.approx(2.0211, abs=1e-4)  # Student's table
    assert t_quantile(10**6) == pytest.approx(1.95996, abs=1e-4)


# -- the stated error -----------------------------------------------------------------------------


def test_the_stated_error_is_that_of_the_accelerators_time_which_is_what_is_scaled() -> None:
    found = stated_error(of("profile", 0.071))
    assert found.value == 0.071
    assert found.source.startswith("profile p")
    assert stated_error(of("roofline", 0.25)).value == 0.25
    assert stated_error(of("constant", 0.25)).value == 0.0


# -- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Any:
    return simulate_seeds(SCENARIO, seeds=3, jobs=2)


def test_each_seed_is_what_a_single_run_of_it_gives(found: Any) -> None:
    assert found.seeds == (7, 8, 9)
    for seed, values in zip(found.seeds, found.by_seed, strict=True):
        assert values == headline(sim.simulate(SCENARIO, seed=seed).summary)


def test_the_first_summary_is_untouched_but_for_the_section(found: Any) -> None:
    summary = dict(found.results.summary)
    section = summary.pop("intervals")
    assert without_timing(summary) == without_timing(sim.simulate(SCENARIO).summary)
    assert section["metrics"]["mean_ttft_ms"]["mean"] == pytest.approx(
        statistics.fmean(each["mean_ttft_ms"] for each in found.by_seed)
    )
    assert section["slo_met_by_seed"] == [True, True, True]


def test_scaled_runs_are_the_first_seed_with_that_time_scale(found: Any) -> None:
    for values, factor in ((found.shorter, 1 - found.error.value), (found.longer, 1 + found.error.value)):
        assert values == headline(sim.simulate(SCENARIO, overrides=[f"latency.time_scale={factor!r}"]).summary)
    assert found.longer["mean_tpot_ms"] > found.by_seed[0]["mean_tpot_ms"] > found.shorter["mean_tpot_ms"]


def test_the_scenario_s_own_time_scale_is_kept() -> None:
    scaled = simulate_seeds({**SCENARIO, "latency": {"time_scale": 2.0}}, seeds=1)
    factor = 2.0 * (1.0 + scaled.error.value)
    assert scaled.longer == headline(sim.simulate(SCENARIO, overrides=[f"latency.time_scale={factor!r}"]).summary)


def test_queueing_amplifies_the_profile_s_error() -> None:
    """Near saturation a step time that is a few per cent off changes waiting by much more."""
    busy = {**SCENARIO, "workload": {**SCENARIO["workload"], "requests": 200}}
    busy["engine"] = {**SCENARIO["engine"], "max_num_seqs": 4}
    found = simulate_seeds(busy, seeds=1)
    ttft = found.intervals["p90_ttft_ms"]
    assert ttft.high / ttft.mean - 1 > 3 * found.error.value


def test_the_number_of_processes_changes_nothing(found: Any) -> None:
    assert simulate_seeds(SCENARIO, seeds=3, jobs=1).document() == found.document()


def test_every_number_lies_in_its_interval(found: Any) -> None:
    assert {"duration", "output_throughput", "request_goodput", "p99_e2el_ms", "cost.usd"} <= set(found.intervals)
    for each in found.intervals.values():
        assert each.low <= each.mean <= each.high


def test_constant_steps_have_the_spread_over_seeds_only() -> None:
    constant = {**SCENARIO, "latency": {"kind": "constant", "step_s": 0.02}}
    found = simulate_seeds(constant, seeds=2, jobs=1)
    assert (found.shorter, found.longer) == (None, None)
    assert found.document()["scaled"] == []
    assert found.intervals["mean_ttft_ms"].from_profile == (0.0, 0.0)


def test_a_workload_without_randomness_is_told(found: Any) -> None:
    assert SAME_NOTE not in found.notes()
    fixed = {
        "requests": 20,
        "arrival": {"process": "constant", "rate": 5.0},
        "input_tokens": {"dist": "fixed", "value": 200},
        "output_tokens": {"dist": "values", "values": [5, 9]},
    }
    same = simulate_seeds({**SCENARIO, "workload": fixed}, seeds=3, jobs=1)
    assert same.notes() == [SAME_NOTE]
    assert same.results.summary["intervals"]["notes"] == [SAME_NOTE]
    assert simulate_seeds({**SCENARIO, "workload": fixed}, seeds=1, jobs=1).notes() == []


def test_near_saturation_is_told_and_by_what_it_shows() -> None:
    few_seats = {**SCENARIO["engine"], "max_num_seqs": 4}
    busy = {**SCENARIO["workload"], "arrival": {"process": "poisson", "rate": 11.0}}
    note, short = simulate_seeds({**SCENARIO, "workload": busy, "engine": few_seats}, seeds=2, jobs=1).notes()
    assert note.startswith("near saturation (steps ")
    assert "longer make the mean TTFT" in note
    assert short.startswith("the intervals hold for runs of this length; an endless run's mean, p95 and p99 ")
    constant = {**SCENARIO, "engine": few_seats, "latency": {"kind": "constant", "step_s": 0.0085}}
    constant["workload"] = {**SCENARIO["workload"], "requests": 150}
    overloaded, note, *_ = simulate_seeds(constant, seeds=4, jobs=1).notes()
    assert overloaded.startswith("overloaded in 2 of 4 seeds")
    assert note.startswith("near saturation (mean TTFTs of the seeds go from ")


def loads(worth: float | None, requests: int = 1000, seeds: int = 5, saturated: int = 0) -> SeedLoads:
    return SeedLoads((True,) * saturated + (False,) * (seeds - saturated), (worth,) * seeds, (requests,) * seeds)


@pytest.mark.parametrize(
    ("worth", "told"),
    [
        (100.0, None),
        (99.0, "an endless run's p99 would"),
        (19.0, "an endless run's p95 and p99 would"),
        (9.0, "an endless run's mean, p95 and p99 would"),
        (0.5, "take a lower rate"),
        (0.0, "take a lower rate"),
        (None, None),
    ],
)
def test_a_run_too_short_for_its_load_says_which_figures_and_how_long_would_do(
    worth: float | None, told: str | None
) -> None:
    by_seed = [{"mean_ttft_ms": 100.0 + seed} for seed in range(5)]
    found = notes(by_seed, None, 0.0, loads(worth))
    assert len(found) == (told is not None)
    if told is not None and worth is not None:
        assert told in found[0]
        if worth < 1:
            return
        needed = int(found[0].split("runs of about ")[1].split(" ")[0].replace(",", ""))
        assert 1000 * 100 / worth <= needed < 1.12 * 1000 * 100 / worth


def test_an_overloaded_seed_is_told_instead() -> None:
    by_seed = [{"mean_ttft_ms": 100.0 * seed} for seed in range(1, 6)]
    (note,) = notes(by_seed, None, 0.0, loads(3.0, saturated=5))
    assert note.startswith("overloaded in 5 of 5 seeds")
    assert len(notes(by_seed, None, 0.0, loads(3.0, saturated=2))) == 3, "some of them are only near it"


def test_written_files(found: Any, tmp_path: Path) -> None:
    many, one = tmp_path / "many", tmp_path / "one"
    written = found.write(many)
    sim.simulate(SCENARIO).write(one)
    assert {path.name for path in written} == {path.name for path in many.iterdir()}
    assert {path.name for path in many.iterdir()} - {path.name for path in one.iterdir()} == {"seeds.json"}
    for name in ("requests.parquet", "steps.parquet", "scenario.resolved.yaml", "trace.json.gz", "report.html"):
        assert (many / name).read_bytes() == (one / name).read_bytes()
    document = json.loads((many / "seeds.json").read_text())
    assert [each["seed"] for each in document["seeds"]] == [7, 8, 9]
    assert document["metrics"]["mean_ttft_ms"]["low"] < document["metrics"]["mean_ttft_ms"]["high"]
    assert document["profile_error"]["value"] == found.error.value


# -- what is refused, what fails ------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -3])
def test_no_seeds_are_refused(count: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        simulate_seeds(SCENARIO, seeds=count)
    with pytest.raises(InputError, match="at least 1"):
        simulate_seeds(SCENARIO, jobs=count)


def test_seeds_beyond_the_last_are_refused() -> None:
    with pytest.raises(InputError, match="largest seed"):
        simulate_seeds(SCENARIO, seed=2**63 - 1, seeds=2)


def test_bad_input_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.uncertainty._all", lambda *_: pytest.fail("started"))
    with pytest.raises(InputError, match="max_num_seqs"):
        simulate_seeds(SCENARIO, overrides=["engine.max_num_seqs=-1"])


FAILS_IN_WORKERS = """\
import sys
from policies.fcfs import Fcfs

class Fails(Fcfs):
    stock_mode = None

    def rank(self, request, *more):
        print("a policy that talks")
        if "pytest" not in sys.modules:
            raise ValueError("no rank for this one")
        return super().rank(request, *more)
"""


def test_a_run_that_fails_fails_the_whole_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy of the user's own, found where the caller finds it; its output does not get into the answers."""
    (tmp_path / "own_policy.py").write_text(FAILS_IN_WORKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {**SCENARIO, "engine": {**SCENARIO["engine"], "policy": "own_policy:Fails"}}
    sim.simulate(own)
    with pytest.raises(SimulationError, match=r"seed 8: ValueError: no rank for this one in .*own_policy.py:10"):
        simulate_seeds(own, seeds=2, jobs=2)


def test_an_interrupted_run_says_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import uncertainty

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(uncertainty._Runs, "collect", interrupted)
    with pytest.raises(Interrupted, match=r"1 of 4 runs had finished \(seed 7\)"):
        simulate_seeds(SCENARIO, seeds=2, jobs=1)
