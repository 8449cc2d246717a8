"""The accuracy benchmark: errors become the right scores and pages, and a miss is told."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accuracy_data import of, write_data

from benchmarks import accuracy
from benchmarks.accuracy_experiment import Experiment, Section
from benchmarks.accuracy_fit import LITE_FITTED
from benchmarks.accuracy_front import front_page, kind_rows, missed_lines
from benchmarks.accuracy_inferencex import (
    GROUPS,
)
from benchmarks.accuracy_known import known_misses, write_known
from benchmarks.accuracy_open_loop import LITE_0151
from benchmarks.accuracy_operators import OperatorScore, ProfileScore, operator_scores
from benchmarks.accuracy_page import experiment_table, run_table, score_table, tables_page
from benchmarks.accuracy_runs import Outcome, predict_all
from benchmarks.accuracy_scores import BARS, MARGIN, Bar, score, scores, slices
from benchmarks.accuracy_sets import (
    LLAMA,
    MINIMAX,
    QWEN,
    RTX_LLAMA,
    read_sets,
)
from benchmarks.accuracy_single import RTX_MOE, SINGLE
from benchmarks.accuracy_text import ABOUT, flow
from benchmarks.accuracy_validated import validated
from sim.latency.profile.file import Error, load_profile
from sim.latency.profile.library import BUILTIN


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def outcome(group: str, errors: dict[str, float], **more: Any) -> Outcome:
    measured = dict.fromkeys(errors, 100.0)
    scenario = {
        "engine": {"tensor_parallel_size": more.pop("tp", 2)},
        "workload": {"arrival": {"concurrency": more.pop("clients", 4)}, "input_tokens": {"value": 64}},
    }
    experiment = Experiment(group, "x", scenario, measured, **more)
    return Outcome(experiment, {key: 100.0 * (1 + error) for key, error in errors.items()})


def points(*errors: float, **more: Any) -> list[Outcome]:
    return [outcome(LLAMA, {"mean_tpot_ms": error, "mean_ttft_ms": 2 * error}, **more) for error in errors]


def test_points_are_scored_by_their_median_error() -> None:
    bar = Bar(LLAMA, ("mean_tpot_ms",), "TPOT", 0.08)
    found = score(bar, points(-0.02, 0.05, -0.30))
    assert found is not None
    assert (found.num_experiments, found.met) == (3, True)
    assert found.median == pytest.approx(0.05)
    assert found.mape == pytest.approx(0.37 / 3)
    assert found.bias == pytest.approx(-0.09)
    assert score(bar, points(0.09, 0.09, 0.0)).met is False  # type: ignore[union-attr]
    assert score(bar, [outcome(QWEN, {"mean_tpot_ms": 0.1})]) is None


def test_a_run_is_scored_by_its_worst_statistic() -> None:
    bar = next(bar for bar in BARS if bar.group == RTX_LLAMA and bar.label == "TPOT")
    errors = dict.fromkeys(bar.keys, 0.01)
    good, bad = (score(bar, [outcome(RTX_LLAMA, {**errors, "p99_tpot_ms": last})]) for last in (-0.02, -0.03))
    assert good is not None
    assert bad is not None
    assert (good.num_experiments, good.met, bad.met) == (1, True, False)


def test_training_is_kept_out_of_the_scores() -> None:
    mixed = [*points(0.01), *points(0.5, is_training=True)]
    assert [round(each.median, 3) for each in scores(mixed)] == [0.01, 0.02]
    assert [round(each.median, 3) for each in scores(mixed, training=True)] == [0.5, 1.0]


def test_check_holds_the_bar_with_its_margin_and_what_is_known_to_be_missed() -> None:
    bar = Bar(LLAMA, ("mean_tpot_ms",), "TPOT", 0.08)
    assert score(bar, points(0.08 * MARGIN - 1e-6)).held  # type: ignore[union-attr]
    assert not score(bar, points(0.08 * MARGIN + 1e-6)).held  # type: ignore[union-attr]
    known = replace(bar, known=0.2)
    assert score(known, points(0.22)).held  # type: ignore[union-attr]
    assert not score(known, points(0.24)).held  # type: ignore[union-attr]
    assert not score(known, points(0.22)).met  # type: ignore[union-attr]


def test_what_is_missed_is_written_and_held(tmp_path: Path) -> None:
    bar = Bar(LLAMA, ("mean_tpot_ms",), "TPOT", 0.08)
    found = [each for each in (score(bar, points(0.0811)), score(bar, points(0.07))) if each is not None]
    write_known(found, tmp_path / "known.json")
    assert known_misses(tmp_path / "known.json") == {(LLAMA, "TPOT"): 0.082}
    assert replace(bar, known=0.082).held == pytest.approx(1.15 * 0.082)


def test_failed_checks_name_set_metric_operator_and_failure() -> None:
    good = Error(median=0.01, p90=0.1, mean=0.02, bias=0.0, num_points=10)
    operators = [
        ProfileScore(name, (OperatorScore(name, "gemm", {"random_points": error}, True),))
        for name, error in (("h100-sxm", replace_median(good, 0.2)), ("a100-80gb-sxm", good), ("l40s", good))
    ]
    broken = Outcome(points(0.0)[0].experiment, failure="no such model")
    lines = accuracy.failed_checks([*points(0.5, 0.5), broken], operators)
    assert [line.partition(": ")[0] for line in lines] == [LLAMA, LLAMA, "h100-sxm", LLAMA]
    assert "TPOT off by 50.0 %, at most " in lines[0]
    assert "no such model" in lines[-1]
    assert accuracy.failed_checks(points(0.01), operators[1:]) == []


def test_a_few_of_a_set_are_held_less_and_one_of_several_not_at_all() -> None:
    held = next(bar.held for bar in BARS if (bar.group, bar.label) == (LLAMA, "TPOT"))

    def off_by(share: float, count: int) -> list[Outcome]:
        return [outcome(LLAMA, {"mean_tpot_ms": share * held})] * count

    assert len(accuracy.failed_checks(off_by(1.5, 2), ())) == 1
    assert accuracy.failed_checks(off_by(1.5, 2), (), {LLAMA: 45}) == []
    assert len(accuracy.failed_checks(off_by(2.5, 2), (), {LLAMA: 45})) == 1
    assert accuracy.failed_checks(off_by(2.5, 1), (), {LLAMA: 45}) == []
    assert len(accuracy.failed_checks(off_by(1.5, 1), (), {LLAMA: 1})) == 1


def replace_median(error: Error, median: float) -> Error:
    return error.model_copy(update={"median": median})


def test_slices_show_where_a_set_is_off() -> None:
    found = slices([*points(0.1, tp=2), *points(-0.1, -0.3, tp=8, clients=8)], LLAMA)
    told = {each.setting: (each.num_experiments, round(each.median_tpot, 3)) for each in found}
    assert told == {"TP 2": (1, 0.1), "TP 8": (2, -0.2), "clients 4": (1, 0.1), "clients 8": (2, -0.2)}


def test_operators_of_a_profile_are_scored_by_leaving_parts_out() -> None:
    found = {each.name: each for each in operator_scores(quick=True)}
    assert set(found) == {"a100-80gb-sxm", "h100-sxm"}
    for profile in found.values():
        gemm = next(each for each in profile.operators if each.operator == "gemm")
        random = gemm.error("random_points")
        assert random is not None
        assert 0 < random.median < random.p90
        assert profile.worst_layer_operator is not None
        assert math.isfinite(profile.worst_layer_operator)


def test_a_saturated_run_counts_where_none_was() -> None:
    bar = next(bar for bar in BARS if bar.label == "runs called saturated")
    calm = outcome(LITE_0151, {"mean_tpot_ms": 0.0})
    assert score(bar, [calm, calm]).met  # type: ignore[union-attr]
    found = score(bar, [calm, replace(calm, is_saturated=True)])
    assert found is not None
    assert (found.scored, found.met, found.held) == (0.5, False, False)


def test_experiments_of_one_scenario_are_simulated_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = of(read_sets(data), LLAMA)[0]
    second = replace(first, group=MINIMAX, name="again")
    made = []

    def count(experiment: Experiment) -> Outcome:
        made.append(experiment)
        return Outcome(experiment, {"mean_ttft_ms": 1.0, "mean_tpot_ms": 2.0})

    monkeypatch.setattr("benchmarks.accuracy_runs.predict", count)
    found = predict_all([first, second])
    assert made == [first]
    assert [each.experiment for each in found] == [first, second]


def off_by_a_tenth(experiment: Experiment) -> Outcome:
    return Outcome(experiment, {key: 1.1 * value for key, value in experiment.measured.items()})


def test_measured_kinds_are_told_with_their_errors(data: Path) -> None:
    experiments = [*of(read_sets(data), LITE_0151), *of(read_sets(data), GROUPS[0])]
    found = validated(
        [Outcome(each, {key: 1.1 * value for key, value in each.measured.items()}) for each in experiments]
    )
    llama = next(each for each in found if each["model"] == "llama-3.1-8b")
    assert (llama["vllm_version"], llama["model_kind"], llama["runs"]) == ("0.15.1", "dense", 1)
    assert llama["e2e_median"] == llama["tpot_median"] == pytest.approx(0.1)
    rows = [each for each in found if each["set"] == GROUPS[0]]
    assert {each["how"] for each in rows} == {"training", "validation"}
    assert all(each["e2e_median"] is None and each["vllm_version"] == "0.10.2" for each in rows)


# --- page and command --------------------------------------------------------------------------


def test_tables_hold_prediction_measurement_and_error() -> None:
    table = experiment_table(points(0.125))
    assert "| x " in table
    assert "+12.5 %" in table
    assert "validation" not in table
    assert "training" in experiment_table(points(0.1, is_training=True))
    bar = BARS[0]
    found = score(bar, points(0.5))
    assert found is not None
    assert "**no**" in score_table([found])
    run = outcome(RTX_LLAMA, {"mean_ttft_ms": -0.02})
    assert "-2.0 %" in run_table(run)
    assert "-4.0 %" in run_table(run)


def test_the_tables_hold_every_set_and_reason(data: Path) -> None:
    sets = read_sets(data)
    outcomes = [off_by_a_tenth(each) for each in sets.experiments]
    text = tables_page(sets, outcomes, operator_scores(quick=True), "made today")
    for heading in (*sets.groups(), "Not scored", "Other simulators", "Single operators", "What is off, and why"):
        assert f"## {heading}" in text
    for each in sets.unscored:
        assert each.reason in text
    assert "+10.0 %" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 200


def test_the_front_page_is_short_and_says_what_was_not_measured(data: Path) -> None:
    outcomes = [off_by_a_tenth(each) for each in read_sets(data).experiments]
    section = Section("Memory", "All is well.")
    text = front_page(outcomes, [], "Made today.", "accuracy-tables.md", [section])
    lines = text.splitlines()
    assert len(lines) < 120
    assert "## Memory\n\nAll is well." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| dense")]
    rate = next(row for row in rows if row[0] == "dense, BF16: qwen3-14b TP 1; low rate, prompts that share nothing")
    assert rate[1:] == ["h100-sxm", "0.23.0", "1", *["10.0 %"] * 4]
    clients = next(row for row in rows if row[0].startswith("dense, FP8: llama-3.1-70b") and row[1] == "h200-sxm")
    assert clients[2:] == ["0.10.2", "1", "10.0 %", "10.0 %", "not yet measured", "not yet measured"]
    off = "TTFT +10 %, TPOT +10 %"
    assert f"(one run: {off}; with the link that its owners state {off})" in " ".join(text.split())
    without = [each for each in outcomes if each.experiment.name != RTX_MOE]
    text_without = front_page(without, [], "Made today.", "accuracy-tables.md", [])
    assert f"(one run: not simulated here; with the link that its owners state {off})" in " ".join(text_without.split())
    assert "an RTX 4090 at three times its capacity: TTFT +10 %, TPOT +10 %" in " ".join(text.split())
    assert "1148" not in text  # single runs are in the tables
    assert max(len(line) for line in lines if not line.startswith("|")) <= 150


def test_training_and_fitted_runs_are_not_in_the_front_table(data: Path) -> None:
    experiments = read_sets(data).experiments
    runs = [int(row[3]) for row in kind_rows([off_by_a_tenth(each) for each in experiments])[1:]]
    shown = [
        each for each in experiments if not each.is_training and each.group not in (LLAMA, MINIMAX, SINGLE, LITE_FITTED)
    ]
    assert sum(runs) == len(shown)


def test_missed_bars_are_listed_by_set() -> None:
    assert missed_lines(scores(points(0.01))) == []
    (line,) = missed_lines(scores(points(0.5)))
    assert line.startswith(f"- {LLAMA}: TPOT 50.0 % (median; bar 2.0 %)")


def test_text_is_filled() -> None:
    assert flow("  one\n   two\n\n  three ") == "one two\n\nthree"


def test_the_command_without_data_scores_operators_and_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main(["--quick", "--check", "--data", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "| h100-sxm " in printed.out
    assert "single operators only" in printed.err


def test_the_command_on_a_few_experiments_tells_misses(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The measurements are invented, so predictions are far off."""
    assert accuracy.main(["--quick", "--check", "--data", str(data)]) == 1
    printed = capsys.readouterr()
    assert f"check: {LLAMA}: T" in printed.err
    assert accuracy.main(["--quick", "--data", str(data)]) == 0


def test_some_sets_are_scored_row_by_row(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--data", str(data), "--only", "inferencex, llama", "--half", "training", "--rows"]) == 0
    printed = capsys.readouterr().out
    assert "  T 2025-10-29, TP " in printed
    assert "  V " not in printed
    assert "bar 4 (aim 2) %" in printed
    assert accuracy.main(["--data", str(data), "--only", "no such set"]) == 2
    assert LITE_0151 in capsys.readouterr().err


def test_two_profiles_are_compared_operator_by_operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sim.latency.profile.file import save_profile

    profile = load_profile(BUILTIN / "a100-80gb-sxm.json.gz")
    gemm = profile.operators["gemm"]
    slow = [each.model_copy(update={"time_ns": tuple(2 * time for time in each.time_ns)}) for each in gemm.curves]
    operators = {**profile.operators, "gemm": gemm.model_copy(update={"curves": tuple(slow), "kernel": "slow GEMM"})}
    save_profile(profile.model_copy(update={"operators": operators}), tmp_path / "slow.json.gz")
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        "name: x\n"
        "workload: {requests: 20, arrival: {process: poisson, rate: 5}, input_tokens: {dist: fixed, value: 100},"
        " output_tokens: {dist: fixed, value: 20}}\n"
        "engine: {model: llama-3.1-8b, gpu: a100-80gb-sxm}\n"
    )
    paths = ["--profile", "a100-80gb-sxm", "--profile", str(tmp_path / "slow.json.gz")]
    assert accuracy.main([*paths, "--scenario", str(scenario)]) == 0
    printed = capsys.readouterr().out
    terms = printed[printed.index("| operator ") :].splitlines()
    assert terms[2].startswith("| matrices ")  # the largest difference first
    first, second = (float(cell) for cell in terms[2].split("|")[2:4])
    assert second == pytest.approx(2 * first, rel=0.05)
    assert "slow GEMM" in printed
    assert accuracy.main(["--profile", "a100-80gb-sxm", "--profile", "nope", "--scenario", str(scenario)]) == 2
    assert "nope" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--jobs", "0"], ["--profile", "a"], ["--data", "no such folder"], ["--quick", "--page", "x.md"]),
        *(["--page", "no such folder/x.md"], ["--page", "."], ["--rows"], ["--only", "x", "--page", "x.md"]),
        ["--quick", "--write-validated", "x.json"],
        ["--only", "x", "--write-known", "x.json"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_to_accuracy_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        accuracy.main(arguments)
    assert stop.value.code == 2


def test_the_committed_pages_are_of_these_sets() -> None:
    text = (accuracy.ROOT / "docs" / "accuracy-tables.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [each for each in headings if each in ABOUT] == list(ABOUT)
    for bar in BARS:
        assert f"| {bar.group} " in text
