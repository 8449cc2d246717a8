"""The accuracy benchmark: sets become the right scenarios, errors the right scores, and a miss is told."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from benchmarks.accuracy_experiment import Experiment, Section, Sets
from benchmarks.accuracy_fit import LITE_FITTED
from benchmarks.accuracy_front import front_page, kind_rows, missed_lines
from benchmarks.accuracy_host import fit, training
from benchmarks.accuracy_inferencex import (
    AS_STARTED,
    GROUPS,
    RECIPES,
    ROWS,
    configuration,
    distinct,
    scenario_of,
    training_half,
)
from benchmarks.accuracy_known import known_misses, write_known
from benchmarks.accuracy_open_loop import LITE, LITE_0151, POISSON, QWEN_0230
from benchmarks.accuracy_operators import OperatorScore, ProfileScore, operator_scores
from benchmarks.accuracy_page import experiment_table, run_table, score_table, tables_page
from benchmarks.accuracy_recipes import ALWAYS_EXPERT_PARALLEL, Recipe, engine_settings, read_recipe
from benchmarks.accuracy_runs import Outcome, predict, predict_all
from benchmarks.accuracy_scores import BARS, MARGIN, Bar, score, scores, slices
from benchmarks.accuracy_sets import (
    FIXED,
    LLAMA,
    META,
    MINIMAX,
    QWEN,
    REQUESTS,
    RTX_LLAMA,
    RTX_QWEN,
    RTX_QWEN_LINK,
    read_sets,
    statistics_ms,
)
from benchmarks.accuracy_single import OWNERS_LINK, RTX4090_LLAMA, RTX_MOE, RTX_MOE_LINK, SINGLE, WORKLOADS
from benchmarks.accuracy_text import ABOUT, flow
from benchmarks.accuracy_validated import validated
from sim.latency.gpus import GPUS
from sim.latency.profile.file import Error, load_profile
from sim.latency.profile.library import BUILTIN
from sim.run import load

GROUPS_OF_BEFORE = [LLAMA, MINIMAX, QWEN, RTX_LLAMA, RTX_QWEN, RTX_QWEN_LINK]
COLUMNS = (
    *("model_path", "system", "precision", "isl", "osl", "batch_size", "tp_size", "attention_dp_size"),
    *("silicon_ttft_ms", "silicon_tpot_ms"),
)
POINTS = (
    ("Qwen/Qwen3-32B", "h100_sxm", "", 64, 16, "2.0", "2.0", "", 50.0, 12.0),
    ("Qwen/Qwen3-32B", "h100_sxm", "", 64, 16, "4.0", "2.0", "", 60.0, 13.0),
    ("Qwen/Qwen3-32B", "h100_sxm", "fp8", 4000, 1000, "24.0", "1.0", "", 294.8, 16.8),
    ("meta-llama/Llama-3.1-70B", "h100_sxm", "fp8", 100, 20, "3.0", "4.0", "1.0", 80.0, 11.0),
    ("MiniMaxAI/MiniMax-M2.5", "h100_sxm", "fp8", 100, 20, "3.0", "4.0", "1.0", 80.0, 11.0),
    ("MiniMaxAI/MiniMax-M2.5", "h100_sxm", "fp8", 100, 20, "3.0", "4.0", "4.0", 80.0, 11.0),
    ("openai/gpt-oss-120b", "h100_sxm", "fp4", 100, 20, "3.0", "4.0", "1.0", 80.0, 11.0),
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "h200_sxm", "fp8", 100, 20, "3.0", "1.0", "", 80.0, 11.0),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder laid out as the public data is, with a handful of rows."""
    (tmp_path / "e2e").mkdir()
    with open(tmp_path / FIXED, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *POINTS])
    columns = ("gpu", "run", "input_toks", "output_toks", "queued_ts", "request_id", "ttft_s", "e2e_s", "tpot_s")
    runs = [
        ("RTX", "Llama-3.1-8B", 30, 5, 100.5, "b", 0.02, 0.1, 0.02),
        ("RTX", "Llama-3.1-8B", 20, 6, 100.0, "a", 0.04, 0.3, 0.04),
        ("RTX", "Llama-3.1-8B", 20, 1, 101.0, "c", 0.03, 0.03, ""),
        ("RTX", "Qwen3-32B", 20, 6, 7.0, "a", 0.04, 0.3, 0.04),
    ]
    with gzip.open(tmp_path / REQUESTS, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *runs])
    for run, tp in (("Llama-3.1-8B", 1), ("Qwen3-32B", 2)):
        told = {"tensor_parallel_size": tp, "max_num_seqs": 128, "max_num_batched_tokens": 2048}
        (tmp_path / META.format(gpu="RTX", run=run)).write_text(json.dumps({"engine_kwargs": told}))
    _write_open_loop(tmp_path)
    _write_inferencex(tmp_path)
    return tmp_path


LITE_ROW = {
    **{"model": "Qwen/Qwen3-14B", "hardware": "H100", "tp": 1, "max_num_batched_tokens": 2048, "max_num_seqs": 128},
    **{"gpu_mem_util": 0.9, "rates_rps": "2|4", "durations_s": "2|2", "system_prompt_len": 100, "question_len": 400},
    **{"output_len": 10, "num_unique_system_prompts": 3, "users_per_prompt": 2, "ttft_mean_ms": 40, "ttft_p90_ms": 41},
    **{"ttft_p99_ms": 42, "itl_mean_ms": 12, "e2e_mean_ms": 150, "e2e_p90_ms": 151, "e2e_p99_ms": 152},
}
LITE_ROWS = (LITE_ROW, {**LITE_ROW, "model": "meta-llama/Llama-3.1-8B-Instruct", "output_len": 100})


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_open_loop(folder: Path) -> None:
    measured = {
        f"{name}_{metric}_ms": 10.0 for metric in ("ttft", "tpot", "e2el") for name in ("mean", "p50", "p90", "p99")
    }
    run = {"model": "Qwen/Qwen3-14B", "gpu": "H100", "vllm": "0.23.0", "rate_rps": 2, "input_tokens": 98.6}
    _write(folder / POISSON, [{**run, "output_tokens": 8, **measured}])
    _write(folder / LITE, LITE_ROWS)


ROW = {
    **{"id": "a", "model": "meta-llama/Llama-3.1-70B", "system": "h100_sxm", "precision": "fp8", "mode": "agg"},
    **{"isl": "1024", "osl": "64", "concurrency": "2", "tp": "4", "dp": "1", "moe_ep": "1", "measured": "2025-10-29"},
    **{"backend_version": "", "ttft_mean_ms": "80", "tpot_mean_ms": "12", "recipe_commit": "c", "recipe_files": "l.sh"},
}
MOE_ROW = {**ROW, "id": "m", "model": "MiniMaxAI/MiniMax-M2.5", "backend_version": "0.18.0", "recipe_files": "m.sh"}
OSS_ROW = {**MOE_ROW, "id": "o", "model": "openai/gpt-oss-120b", "precision": "fp4", "recipe_files": "o.sh"}
KIMI_ROW = {
    **MOE_ROW,
    "id": "k",
    "model": "moonshotai/Kimi-K2.5",
    "precision": "int4",
    "tp": "8",
    "recipe_files": "k.sh",
}
INFERENCEX_ROWS = (
    *({**OSS_ROW, "system": system, "id": f"o {system}"} for system in ("h100_sxm", "h200_sxm", "b200_sxm")),
    *({**KIMI_ROW, "system": system, "id": f"k {system}"} for system in ("h200_sxm", "b200_sxm")),
    {**OSS_ROW, "id": "o seats", "concurrency": "512"},
    {**KIMI_ROW, "id": "k fp4", "system": "b200_sxm", "precision": "fp4"},
    *(
        {**row, "system": system, "id": f"{row['id']} {system}"}
        for row in (ROW, MOE_ROW)
        for system in ("h100_sxm", "h200_sxm", "b200_sxm")
    ),
    {**ROW, "id": "a h100_sxm again"},
    {**ROW, "id": "b", "tp": "8"},
    {**ROW, "id": "c", "tp": "8", "concurrency": "4"},
    {**MOE_ROW, "id": "d", "dp": "4", "moe_ep": "16"},
    {**MOE_ROW, "id": "e", "precision": "fp4"},
    {**MOE_ROW, "id": "f", "system": "b300_sxm"},
    {**MOE_ROW, "id": "g", "recipe_commit": "", "recipe_files": ""},
    {**ROW, "id": "h", "model": "openai/gpt-oss-120b"},
    {**ROW, "id": "i", "model": "Qwen/Qwen3-32B", "mode": "disagg"},
)
RECIPE_LLAMA = {
    "commit": "c",
    "file": "l.sh",
    "env": ["X=1"],
    "vllm_serve": "vllm serve $MODEL --config=config.yaml --gpu-memory-utilization=0.9 --max-num-seqs=$CONC",
    "config_yaml": "kv-cache-dtype: fp8\nasync-scheduling: true\nmax-num-batched-tokens: 8192\nmax-model-len: 10240",
}
RECIPE_MOE = {
    "commit": "c",
    "file": "m.sh",
    "env": ["VLLM_FLASHINFER_ALLREDUCE_BACKEND=mnnvl"],
    "vllm_serve": "vllm serve $MODEL --port $PORT --tensor-parallel-size=$TP $EP --gpu-memory-utilization 0.95 "
    '--max-model-len $MAX_MODEL_LEN --block-size=32 --max-num-batched-tokens "$((ISL * 2 ))" --stream-interval 20 '
    "--no-enable-prefix-caching --trust-remote-code",
    "config_yaml": "",
}


RECIPE_OSS = {
    "commit": "c",
    "file": "o.sh",
    "env": ["VLLM_MXFP4_USE_MARLIN=1"],
    "vllm_serve": "vllm serve $MODEL --config config.yaml --gpu-memory-utilization 0.9 --max-num-seqs $CONC",
    "config_yaml": "max-cudagraph-capture-size: 2048\nmax-num-batched-tokens: 8192\nmax-model-len: 10240",
}


def _write_inferencex(folder: Path) -> None:
    _write(folder / ROWS, INFERENCEX_ROWS)
    (folder / "workloads").mkdir()
    chats = {"workload": "sharegpt-llama-3.1-8b-300-sps10", "input_tokens": 20, "output_tokens": 5}
    of_ranks = {**chats, "workload": "sharegpt-qwen3-32b-300-sps10", "arrival_s": 0.5}
    _write(folder / WORKLOADS, [{**chats, "arrival_s": 2.5}, {**chats, "arrival_s": 0.5}, of_ranks])
    recipes = [RECIPE_LLAMA, RECIPE_MOE, RECIPE_OSS, {**RECIPE_MOE, "file": "k.sh", "env": []}]
    (folder / RECIPES).write_text(json.dumps(recipes))


def of(sets: Sets, group: str) -> list[Experiment]:
    return [each for each in sets.experiments if each.group == group]


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


# --- scores ------------------------------------------------------------------------------------


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
