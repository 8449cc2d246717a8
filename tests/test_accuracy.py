"""The accuracy benchmark: sets become the right scenarios and are simulated as measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accuracy_data import (
    GROUPS_OF_BEFORE,
    INFERENCEX_ROWS,
    MOE_ROW,
    POINTS,
    RECIPE_LLAMA,
    RECIPE_MOE,
    RECIPE_OSS,
    ROW,
    of,
    write_data,
)

from benchmarks.accuracy_experiment import Experiment, Sets
from benchmarks.accuracy_fit import LITE_FITTED
from benchmarks.accuracy_host import fit, training
from benchmarks.accuracy_inferencex import (
    AS_STARTED,
    GROUPS,
    configuration,
    distinct,
    scenario_of,
    training_half,
)
from benchmarks.accuracy_open_loop import LITE_0151, QWEN_0230
from benchmarks.accuracy_recipes import ALWAYS_EXPERT_PARALLEL, Recipe, engine_settings, read_recipe
from benchmarks.accuracy_runs import Outcome, predict, predict_all
from benchmarks.accuracy_scores import BARS
from benchmarks.accuracy_sets import (
    LLAMA,
    MINIMAX,
    QWEN,
    RTX_LLAMA,
    RTX_QWEN,
    RTX_QWEN_LINK,
    read_sets,
    statistics_ms,
)
from benchmarks.accuracy_single import OWNERS_LINK, RTX4090_LLAMA, RTX_MOE, RTX_MOE_LINK, SINGLE
from benchmarks.accuracy_text import ABOUT
from sim.latency.gpus import GPUS
from sim.run import load


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def test_every_row_is_scored_or_has_a_reason(data: Path) -> None:
    sets = read_sets(data)
    assert sets.groups() == [*GROUPS_OF_BEFORE, QWEN_0230, LITE_0151, LITE_FITTED, *GROUPS, SINGLE]
    scored = sum(len(of(sets, group)) for group in (LLAMA, MINIMAX, QWEN, *GROUPS))
    assert scored + sum(each.count for each in sets.unscored) == len(POINTS) + len(INFERENCEX_ROWS)
    assert all(each.reason for each in sets.unscored)
    assert set(ABOUT) == set(sets.groups())
    assert {bar.group for bar in BARS} == set(sets.groups()) - {SINGLE}


def test_points_become_the_scenarios_that_the_page_states(data: Path) -> None:
    llama = of(read_sets(data), LLAMA)[0].scenario
    assert llama["workload"]["requests"] == 30
    assert llama["workload"]["arrival"] == {"process": "closed_loop", "concurrency": 3}
    assert llama["workload"]["input_tokens"] == {"dist": "uniform", "low": 80, "high": 100}
    assert (llama["engine"]["max_num_seqs"], llama["engine"]["tensor_parallel_size"]) == (3, 4)
    qwen = of(read_sets(data), QWEN)[1].scenario
    assert qwen["workload"]["output_tokens"] == {"dist": "fixed", "value": 16}
    assert qwen["engine"]["async_scheduling"] is False
    assert qwen["engine"]["max_num_batched_tokens"] == 64 + 1500 + 4


def test_runs_at_a_rate_become_stages_with_their_shared_prompts(data: Path) -> None:
    sets = read_sets(data)
    poisson = of(sets, QWEN_0230)[0].scenario
    assert poisson["workload"]["arrival"]["stages"] == [{"rate": 2.0, "duration_s": 600.0}]
    assert poisson["workload"]["input_tokens"]["value"] == 99
    assert (poisson["engine"]["max_num_seqs"], poisson["engine"]["vllm_version"]) == (1024, "0.23.0")
    qwen, llama = (each.scenario for each in of(sets, LITE_0151))
    assert qwen["workload"]["arrival"]["stages"][1] == {"rate": 4.0, "duration_s": 2.0}
    assert qwen["workload"]["prefix"] == {"groups": 6, "tokens": 524}  # 1.047 x 500, all of the prompt
    assert qwen["workload"]["input_tokens"]["value"] == 524
    assert llama["workload"]["output_tokens"]["value"] == 96  # 0.956 x 100
    assert qwen["engine"]["vllm_version"] == "0.15.1"


def test_recipes_become_engine_settings() -> None:
    llama, moe = read_recipe(RECIPE_LLAMA), read_recipe(RECIPE_MOE)
    settings = engine_settings(llama, 1024, 1024, 16)
    assert (settings["max_num_seqs"], settings["max_model_len"], settings["kv_cache_dtype"]) == (16, 10240, "fp8")
    assert llama.unsaid == ()
    settings = engine_settings(moe, 8192, 1024, 16)
    assert (settings["max_num_seqs"], settings["max_num_batched_tokens"]) == (1024, 16384)
    assert (settings["block_size"], settings["gpu_memory_utilization"]) == (32, 0.95)
    assert settings["enable_prefix_caching"] is False
    assert settings["max_model_len"] == 8192 + 1024 + 200
    assert "gpu_memory_utilization" not in engine_settings(Recipe({}, ()), 8192, 1024, 16), "its version's default"
    assert moe.unsaid == ("fused all-reduce", "streams every 20 tokens")
    decodes = read_recipe({**RECIPE_LLAMA, "config_yaml": "compilation-config: '$FUSION_FLAG'"})
    assert decodes.graphs == "FULL_DECODE_ONLY"


def test_some_scripts_spread_experts_whatever_the_label_says() -> None:
    """``-ge 1`` where the others have ``-gt 1``; the halves were drawn by the labels."""
    commit, file = next(each for each in sorted(ALWAYS_EXPERT_PARALLEL) if "b200" in each[1])
    env = ["VLLM_USE_FLASHINFER_MOE_FP8=0", "VLLM_MOE_USE_DEEP_GEMM=0"]
    spread = read_recipe({**RECIPE_MOE, "commit": commit, "file": file, "env": env})
    plain = read_recipe(RECIPE_MOE)
    engines = [scenario_of(MOE_ROW, each)["engine"] for each in (spread, plain)]
    assert [each.get("enable_expert_parallel", False) for each in engines] == [True, False]
    assert [each.get("moe_backend", "auto") for each in engines] == ["triton", "auto"]
    assert " EP," in scenario_of(MOE_ROW, spread)["name"]
    assert not configuration(MOE_ROW, spread).is_expert_parallel
    assert configuration(MOE_ROW, spread).key == configuration(MOE_ROW, read_recipe({**RECIPE_MOE, "env": []})).key


def test_repeated_rows_are_dropped_and_others_labels_understood(data: Path) -> None:
    assert len(distinct(INFERENCEX_ROWS)) == len(INFERENCEX_ROWS) - 1
    sets = read_sets(data)
    (group,) = [each for each in GROUPS if "MiniMax" in each and each.endswith("H100")]
    engines = [each.scenario["engine"] for each in of(sets, group)]
    assert [each.get("enable_expert_parallel", False) for each in engines] == [False, True]
    assert {each["tensor_parallel_size"] for each in engines} == {4}
    assert {each["vllm_version"] for each in engines} == {"0.18.0"}
    unknown = of(sets, GROUPS[0])[0]
    assert unknown.version == unknown.scenario["engine"]["vllm_version"] == "0.10.2"


def test_newer_models_run_as_their_checkpoints_and_scripts_have_them(data: Path) -> None:
    """The experts' kernel by the script's variable, as many seats as clients, formats of the checkpoint."""
    sets = read_sets(data)
    (oss,) = of(sets, "InferenceX, gpt-oss-120B MXFP4, H200")
    engine = oss.scenario["engine"]
    assert [engine[key] for key in ("model", "dtype", "moe_backend", "max_num_seqs")] == [
        *("gpt-oss-120b", "auto", "marlin"),
        2,
    ]
    small = read_recipe({**RECIPE_OSS, "env": ["VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1"]})
    assert engine_settings(small, 1024, 64, 2)["moe_backend"] == "flashinfer_trtllm_afp8"
    told = {each.what: each.reason for each in sets.unscored}
    assert "512 clients" in told["InferenceX, gpt-oss-120b fp4, h100_sxm"]
    assert "NVFP4" in told["InferenceX, Kimi-K2.5 fp4, b200_sxm"]


def test_rows_are_simulated_as_their_script_started_the_engine(data: Path) -> None:
    """The H100's ``config.yaml`` was not read: 16-bit KV, no scheduling ahead, the model's own length."""
    (engine, *_) = [each.scenario["engine"] for each in of(read_sets(data), GROUPS[0])]
    told = [engine[key] for key in ("kv_cache_dtype", "async_scheduling", "max_model_len", "max_num_batched_tokens")]
    assert told == ["auto", False, None, 8192]
    assert AS_STARTED["llama-3.1-70b", "b200-sxm"] == {"max_num_seqs": 512}


def test_halves_keep_configurations_together_and_do_not_look_at_results(data: Path) -> None:
    sets = read_sets(data)
    by_tp: dict[int, set[bool]] = {}
    for each in of(sets, GROUPS[0]):
        by_tp.setdefault(each.scenario["engine"]["tensor_parallel_size"], set()).add(each.is_training)
    assert sorted(map(sorted, by_tp.values())) == [[False], [True]]
    recipe = read_recipe(RECIPE_LLAMA)
    assert "gpu_memory_utilization=0.9," in configuration(ROW, recipe).recipe, "defaults of today do not redraw them"
    other = [{**row, "tpot_mean_ms": "1", "ttft_mean_ms": "1"} for row in (ROW, {**ROW, "tp": "8"})]
    assert {each.tp for each in training_half(configuration(row, recipe) for row in other)} == {
        tp for tp, halves in by_tp.items() if True in halves
    }


def test_runs_are_fitted_to_each_other_run_of_the_gpu_and_kind(data: Path) -> None:
    pairs = of(read_sets(data), LITE_FITTED)
    told = {(each.scenario["engine"]["model"], each.fitted_to.scenario["engine"]["model"]) for each in pairs}  # type: ignore[union-attr]
    assert told == {("qwen3-14b", "llama-3.1-8b"), ("llama-3.1-8b", "qwen3-14b")}


def test_single_runs_replay_their_workload_from_the_first_arrival_on(data: Path) -> None:
    runs = {each.name: each for each in of(read_sets(data), SINGLE)}
    trace = runs[RTX4090_LLAMA].trace
    assert trace is not None
    assert trace.splitlines() == ["arrival_s,input_tokens,output_tokens", "0.5,20,5", "2.5,20,5"]
    assert runs["Qwen3-8B, H200, 9,000 in / 30 out, 64 clients"].measured == {"mean_itl_ms": 308.8}


def test_the_two_ranks_are_predicted_with_the_link_of_their_machine_too(data: Path) -> None:
    runs = {each.name: each for each in of(read_sets(data), SINGLE)}
    plain, linked = runs[RTX_MOE], runs[RTX_MOE_LINK]
    assert linked.scenario == {**plain.scenario, "latency": OWNERS_LINK}
    assert (linked.measured, linked.trace) == (plain.measured, plain.trace)
    assert plain.scenario["latency"] == {}


def test_runs_under_a_fit_use_it_and_fit_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit itself is tested elsewhere; here one run's stands for 30 % slower matrices."""
    fitted_to = []

    def fit_to(run: Experiment, folder: Path) -> Path:
        fitted_to.append(run)
        parameters = "{matrices: 1.3, client_ms: 4}"
        (folder / "FIT.yaml").write_text(f"{{fit: 1, kind: profile, gpu: h100-sxm, parameters: {parameters}}}")
        return folder / "FIT.yaml"

    monkeypatch.setattr("benchmarks.accuracy_runs.fit_to", fit_to)
    first, second = of(read_sets(data), LITE_0151)
    under = [replace(each, group=LITE_FITTED, fitted_to=first) for each in (second, replace(second, name="again"))]
    plain, fitted, again = predict_all([second, *under])
    assert fitted_to == [first]
    assert fitted.experiment is under[0]
    assert 1.1 < fitted.predicted["mean_tpot_ms"] / plain.predicted["mean_tpot_ms"] < 1.3
    assert again.predicted == fitted.predicted


def test_runs_whose_fit_fails_say_so(data: Path) -> None:
    first, second = of(read_sets(data), LITE_0151)
    broken = replace(first, measured={"mean_tpot_ms": -1.0})
    (found,) = predict_all([replace(second, fitted_to=broken)])
    assert found.failure.startswith("fit: ")


def test_half_of_the_set_with_a_chosen_assumption_is_for_training(data: Path) -> None:
    experiments = read_sets(data).experiments
    assert next(each.group for each in experiments if each.is_training) == QWEN
    assert sum(each.is_training for each in experiments if each.group == QWEN) == 1
    again = [each.is_training for each in read_sets(data).experiments]
    assert again == [each.is_training for each in experiments]


def test_scenarios_are_valid(data: Path, tmp_path: Path) -> None:
    for each in read_sets(data).experiments:
        scenario = each.scenario
        if each.trace is not None:
            (tmp_path / "trace.csv").write_text(each.trace)
            scenario["workload"]["trace"]["path"] = str(tmp_path / "trace.csv")
        assert load(scenario).scenario.engine.gpu in GPUS


def test_runs_are_replayed_in_order_of_arrival_at_the_engine(data: Path) -> None:
    run = of(read_sets(data), RTX_LLAMA)[0]
    assert run.trace is not None
    assert run.trace.splitlines() == [
        "arrival_s,input_tokens,output_tokens,request_id",
        "0.000000,20,6,a",
        "0.500000,30,5,b",
        "1.000000,20,1,c",
    ]
    assert run.measured["mean_ttft_ms"] == pytest.approx(30.0)
    assert run.measured["mean_tpot_ms"] == pytest.approx(30.0)  # of the two that have one


def test_statistics_are_those_of_the_summary() -> None:
    found = statistics_ms({"ttft": [0.001, 0.002, 0.003, 0.010]})
    assert found["mean_ttft_ms"] == pytest.approx(4.0)
    assert found["p50_ttft_ms"] == pytest.approx(2.5)
    assert found["p90_ttft_ms"] == pytest.approx(7.9)


def test_without_data_there_is_nothing_to_run(tmp_path: Path) -> None:
    assert read_sets(tmp_path) == Sets()


# --- running -----------------------------------------------------------------------------------


def test_predictions_stand_beside_measurements(data: Path) -> None:
    chosen = [of(read_sets(data), group)[0] for group in (LLAMA, RTX_LLAMA)]
    for outcome in predict_all(chosen):
        assert not outcome.failure
        assert set(outcome.predicted) == set(outcome.experiment.measured)
        key = "mean_tpot_ms"
        expected = outcome.predicted[key] / outcome.experiment.measured[key] - 1
        assert outcome.error(key) == pytest.approx(expected)


def test_what_cannot_be_simulated_says_why(data: Path) -> None:
    experiment = of(read_sets(data), LLAMA)[0]
    engine = {**experiment.scenario["engine"], "model": "no-such-model"}
    outcome = predict(replace(experiment, scenario={**experiment.scenario, "engine": engine}))
    assert "no-such-model" in outcome.failure
    assert outcome.error("mean_tpot_ms") is None


def test_the_owners_link_is_stated_and_slower(data: Path) -> None:
    experiments = [of(read_sets(data), group)[0] for group in (RTX_QWEN, RTX_QWEN_LINK)]
    assert [each.scenario["latency"].get("link_bandwidth_gb_s") for each in experiments] == [None, 16.0]
    plain, linked = (predict(each) for each in experiments)
    assert linked.predicted["mean_tpot_ms"] > plain.predicted["mean_tpot_ms"]


def test_the_hosts_time_is_fitted_on_training_points_alone(data: Path) -> None:
    experiments = read_sets(data).experiments
    assert training(experiments) == []  # its one training point has too few tokens out
    point = next(each for each in experiments if each.is_training)
    workload = {**point.scenario["workload"], "output_tokens": {"dist": "fixed", "value": 1000}}
    long = replace(point, scenario={**point.scenario, "workload": workload})
    (chosen,) = training([*experiments[:2], long])
    assert chosen.scenario["latency"]["host_overhead_ms"] == 0
    assert "host_overhead_ms" not in long.scenario["latency"]


def test_a_known_host_is_found_again_beside_an_outlier() -> None:
    def at(clients: int, host_ms: float) -> Outcome:
        arrival = {"process": "closed_loop", "concurrency": clients}
        measured = {"mean_tpot_ms": 10.0 + host_ms}
        return Outcome(Experiment(QWEN, "x", {"workload": {"arrival": arrival}}, measured), {"mean_tpot_ms": 10.0})

    found = fit([*(at(clients, 0.5 + 0.03 * clients) for clients in (8, 16, 32, 64, 128)), at(32, 9.0)])
    assert found.step_ms == pytest.approx(0.5, abs=0.02)
    assert found.request_us == pytest.approx(30, rel=0.02)
    assert "6 points" in str(found)
    with pytest.raises(ValueError, match="too few"):
        fit([at(8, 1.0)])
