"""What each term of a step stands on: whether a shape, a format, a number of GPUs, a GPU was measured."""

from __future__ import annotations

from typing import Any

import pytest

from sim.latency.build import build_step_cost
from sim.latency.profile.evidence import BEYOND, OTHER_FORMAT, OTHER_MEMORY
from sim.latency.profile.file import load_profile
from sim.latency.profile.library import BUILTIN
from sim.latency.profile.predict import Basis, Predictor
from sim.latency.validated import FIGURES, validated_sets, whole_runs
from sim.run import load


def evidence(**engine: Any) -> dict[str, list[dict[str, Any]]]:
    told = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_model_len": 4096, **engine}
    workload = {
        "requests": 1,
        "arrival": {"process": "constant", "rate": 1},
        "input_tokens": {"dist": "fixed", "value": 9},
        "output_tokens": {"dist": "fixed", "value": 9},
    }
    scenario = load({"name": "evidence", "workload": workload, "engine": told}).scenario
    found: Any = build_step_cost(scenario.engine, scenario.latency).describe()["evidence"]
    return found  # type: ignore[no-any-return]


def kinds(parts: list[dict[str, Any]]) -> set[str]:
    return {part["kind"] for part in parts}


def test_shares_of_a_term_sum_to_one() -> None:
    for parts in evidence(tensor_parallel_size=2).values():
        assert sum(part["share"] for part in parts) == pytest.approx(1.0)


def test_a_measured_shape_has_the_profiles_own_error() -> None:
    profile = load_profile(BUILTIN / "h100-sxm.json.gz")
    found = evidence()["decode_attention"]
    assert kinds(found) == {"measured"}
    assert found[0]["error"] == profile.errors["decode_attention"]["random_points"].median


def test_a_format_that_was_not_measured_says_whose_curves_it_has() -> None:
    found = [part for part in evidence(dtype="int8")["matrices"] if part["kind"] == "other_format"]
    assert found
    assert all(part["error"] >= OTHER_FORMAT["gemm"] for part in found)
    assert "int8 from curves of" in found[0]["what"]


def test_another_gpus_profile_counts_with_its_own_error() -> None:
    found = evidence(gpu="a100-40gb-sxm")["decode_attention"]
    assert kinds(found) == {"other_gpu"}
    assert found[0]["error"] == OTHER_MEMORY["decode_attention"]
    assert "a100-80gb-sxm" in found[0]["what"]


def test_small_kernels_and_the_host_were_not_measured_on_most_gpus() -> None:
    h100, pro = evidence(), evidence(gpu="rtx-pro-6000")
    assert kinds(h100["elementwise"]) == {"stand_in"}
    assert sum(part["share"] for part in pro["elementwise"] if part["kind"] == "measured") > 0.7
    assert kinds(h100["step_overhead"]) == kinds(h100["host"]) == {"estimate"}


def test_the_link_of_the_scenario_stands_in_for_measured_collectives() -> None:
    told = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "tensor_parallel_size": 2}
    workload = {"requests": 1, "preset": "azure-conv-2023", "arrival": {"process": "constant", "rate": 1}}
    scenario = load(
        {"name": "link", "workload": workload, "engine": told, "latency": {"link_bandwidth_gb_s": 20}}
    ).scenario
    found: Any = build_step_cost(scenario.engine, scenario.latency).describe()["evidence"]
    assert found["all_reduce"][0]["what"] == "all_reduce: the link as the scenario states it"


def test_how_near_a_key_is_to_what_was_measured() -> None:
    predictor = Predictor(load_profile(BUILTIN / "h100-sxm.json.gz"))
    assert predictor.basis("all_reduce", ("nccl", 4)) is Basis.MEASURED
    assert predictor.basis("all_reduce", ("nccl", 3)) is Basis.BETWEEN
    assert predictor.basis("all_reduce", ("nccl", 4096)) is Basis.BEYOND
    assert predictor.basis("all_reduce", ("unknown", 4)) is None
    assert BEYOND["all_reduce"] > 0


# -- whole runs ---------------------------------------------------------------------------------------


def entry(**told: Any) -> dict[str, Any]:
    return {
        "set": "s",
        "model": "qwen3-32b",
        "model_kind": "dense",
        "gpu": "h100-sxm",
        "dtype": "bfloat16",
        "tensor_parallel": [2, 4],
        "link_stated": False,
        "vllm_version": "0.23.0",
        "runs": 5,
        "tpot_median": 0.02,
        "ttft_median": 0.06,
        "e2e_median": None,
        "how": "validation",
        **told,
    }


def asked(**told: Any) -> dict[str, Any]:
    known = {"is_moe": False, "gpu": "h100-sxm", "dtype": "bfloat16", "tp": 2, "version": "0.23.1", **told}
    return whole_runs("qwen3-14b", sets=[entry()], **known)


def test_a_set_of_this_kind_validates() -> None:
    found = asked()
    assert found["validated"]
    assert found["text"] == "5 runs of qwen3-32b (TP2/4, vLLM 0.23.0) have median errors of TPOT 2.0%, TTFT 6.0%"


@pytest.mark.parametrize("told", [{"is_moe": True}, {"gpu": "h200-sxm"}, {"dtype": "fp8"}])
def test_another_kind_gpu_or_format_is_not_validated(told: dict[str, Any]) -> None:
    found = asked(**told)
    assert not found["validated"]
    assert found["text"].startswith("not validated: no measured runs of ")
    assert not found["sets"]


@pytest.mark.parametrize("told", [{"version": "0.32.0"}, {"tp": 8}])
def test_another_version_or_size_names_the_nearest_set(told: dict[str, Any]) -> None:
    found = asked(**told)
    assert not found["validated"]
    assert "nearest: 5 runs of qwen3-32b" in found["text"]


def test_a_set_whose_version_was_not_recorded_validates_none() -> None:
    known: dict[str, Any] = {"is_moe": False, "gpu": "h100-sxm", "dtype": "bfloat16", "tp": 2, "version": "0.23.0"}
    assert not whole_runs("qwen3-32b", sets=[entry(vllm_version=None)], **known)["validated"]


def test_the_files_entries_are_complete() -> None:
    assert validated_sets()
    for each in validated_sets():
        assert set(each) == set(entry())
        assert each["model_kind"] in ("dense", "moe")
        assert any(each[key] is not None for _, key in FIGURES)


def test_runs_that_causes_were_looked_for_in_are_named_and_validate_nothing() -> None:
    known: dict[str, Any] = {"is_moe": False, "gpu": "h100-sxm", "dtype": "bfloat16", "tp": 2, "version": "0.23.0"}
    seen, unseen = entry(how="training", model="qwen3-14b"), entry(tensor_parallel=[4])
    alone = whole_runs("qwen3-14b", sets=[seen], **known)
    assert not alone["validated"]
    assert alone["text"].endswith("(causes of errors were looked for in them)")
    both = whole_runs("qwen3-14b", sets=[seen, unseen], **known)
    assert both["sets"][0] == unseen


@pytest.mark.parametrize("term", ["decode_attention", "prefill_attention"])
def test_measured_blocks_of_latent_attention_stand_behind_their_term(term: str) -> None:
    found = evidence(model="deepseek-v3", gpu="h200-sxm", tensor_parallel_size=8)[term]
    assert kinds(found) == {"measured"}
    assert found[0]["what"].startswith("block_")


def test_layers_with_a_measured_state_share_the_term_of_attention() -> None:
    told = evidence(model="qwen3-next-80b-a3b", tensor_parallel_size=4)
    for term, operators in {
        "decode_attention": {"decode_attention", "state_decode"},
        "prefill_attention": {"prefill_attention", "state_prefill"},
    }.items():
        assert {part["what"] for part in told[term]} == operators
        assert sum(part["share"] for part in told[term]) == pytest.approx(1.0)


@pytest.mark.parametrize("term", ["decode_attention", "prefill_attention"])
def test_layers_by_formula_beside_measured_attention_are_said_to_be_estimated(term: str) -> None:
    """23 of Nemotron's layers are Mamba-2, which no table has; 6 have attention."""
    found = evidence(model="nemotron-3-nano-30b-a3b")[term]
    shares = {part["kind"]: part["share"] for part in found}
    assert set(shares) == {"stand_in", "measured"}
    assert shares["stand_in"] > 0.5
