"""Which policy a live vLLM runs: read from the environment or a file, every problem one message with its remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policies.base import Policy, PolicyError, RequestView
from policies.predictors import Exact
from policies.registry import POLICIES, build_policy
from policies.vllm_settings import (
    VARIABLES,
    Settings,
    build,
    check_scheduling_policy,
    check_version,
    read_settings,
    why_not_live,
)


def read(**environ: str) -> Settings:
    return read_settings({"PATH": "/bin", **environ}, json.loads)


def parse_names(text: str) -> object:
    """As YAML does: a bare word is a text."""
    return json.loads(text) if text[:1] in "{[" or text.isdigit() else text


def test_a_name_alone_takes_all_defaults() -> None:
    settings = read_settings({"SIMRUN_POLICY": "srtf"}, parse_names)
    assert settings == Settings("srtf", {}, "exact", {}, 0)
    assert settings.describe() == "policy srtf, predictor exact"


def test_parameters_predictor_and_seed_are_passed_on() -> None:
    settings = read(
        SIMRUN_POLICY='{"name": "hybrid", "latency_weight": 0.25}',
        SIMRUN_PREDICTOR='{"name": "noisy", "sigma": 0.1}',
        SIMRUN_SEED="7",
    )
    assert settings == Settings("hybrid", {"latency_weight": 0.25}, "noisy", {"sigma": 0.1}, 7)
    policy: Any = build(settings)
    assert (policy.latency_weight, policy.predictor.sigma, policy.predictor.seed) == (0.25, 0.1, 7)
    assert settings.describe() == "policy hybrid(latency_weight=0.25), predictor noisy(sigma=0.1)"


def test_a_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"policy": {"name": "tiered", "age_promote_s": 60}, "predictor": "learned", "seed": 3}')
    assert read(SIMRUN_POLICY_FILE=str(path)) == Settings("tiered", {"age_promote_s": 60}, "learned", {}, 3)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "no policy is set: set SIMRUN_POLICY"),
        ({"SIMRUN_POLICIES": "x"}, "environment variable SIMRUN_POLICIES is not known; did you mean 'SIMRUN_POLICY'?"),
        ({"SIMRUN_POLICY": "{"}, "SIMRUN_POLICY: cannot be read as YAML"),
        ({"SIMRUN_POLICY": "3"}, "SIMRUN_POLICY: must be a name or {name: ..., parameter: value}, is 3"),
        ({"SIMRUN_POLICY": '{"latency_weight": 1}'}, "SIMRUN_POLICY: must be a name or"),
        ({"SIMRUN_POLICY": '"srtf"', "SIMRUN_SEED": '"x"'}, "SIMRUN_SEED: must be a whole number, is 'x'"),
        ({"SIMRUN_POLICY": '"srtf"', "SIMRUN_SEED": "true"}, "SIMRUN_SEED: must be a whole number, is True"),
        ({"SIMRUN_POLICY_FILE": "/nowhere/policy.yaml"}, "SIMRUN_POLICY_FILE=/nowhere/policy.yaml: No such file"),
        (
            {"SIMRUN_POLICY_FILE": "x.yaml", "SIMRUN_POLICY": '"srtf"'},
            "SIMRUN_POLICY_FILE and SIMRUN_POLICY are both set",
        ),
    ],
)
def test_problems_are_told_with_their_remedy(environ: dict[str, str], said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read(**environ)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "must be a mapping with the key policy"),
        ('{"predictor": "exact"}', "must be a mapping with the key policy"),
        ('{"policy": "srtf", "predictors": "exact"}', "unknown key 'predictors'; did you mean 'predictor'?"),
        ('{"policy": []}', "policy: must be a name or"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_problems_of_a_file_name_it(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        read(SIMRUN_POLICY_FILE=str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_other_programs_variables_do_not_matter() -> None:
    assert read(SIMRUN_POLICY='"srtf"', SIMRUN_TRACEBACK="1", VLLM_X="1").policy == "srtf"
    assert all(name.startswith("SIMRUN_") for name in VARIABLES)


class OwnVictims(Policy):
    name = "own_victims"

    def victim(self, running: Any, needy: RequestView) -> RequestView | None:
        return running[0]


class PassesOver(Policy):
    name = "passes_over"
    pass_over = True


class Shares(Policy):
    name = "shares"

    def share_budgets(self, max_num_batched_tokens: int) -> dict[str, int] | None:
        return {"a": max_num_batched_tokens}


@pytest.mark.parametrize(
    ("policy", "said"),
    [(OwnVictims(), "own victims"), (PassesOver(), "passes over"), (Shares(), "bounds groups of requests")],
)
def test_what_a_policy_asks_is_seen_without_its_word(policy: Policy, said: str) -> None:
    assert policy.is_live, "it does not know itself"
    assert said in (why_not_live(policy) or "")


def test_all_but_packed_and_shares_can_run_live() -> None:
    refused = {name for name in POLICIES if why_not_live(build_policy(name, {}, Exact())) is not None}
    assert refused == {"packed"}
    for name, params in (("fair", {"shares": True}), ("tiered", {"shares": {"premium": 0.5}})):
        with pytest.raises(PolicyError, match=f"policy {name} cannot run in vLLM: `shares` bounds"):
            build(Settings(name, params, "exact", {}))


@pytest.mark.parametrize(("version", "allowed"), [("0.32.0", None), ("0.32.0+cpu", None), ("0.40.1+cpu", "0.40.1")])
def test_tested_and_allowed_versions_pass(version: str, allowed: str | None) -> None:
    check_version(version, allowed)


@pytest.mark.parametrize(("version", "allowed"), [("0.31.9", None), ("0.32.1", "0.33.0"), ("dev", "")])
def test_other_versions_are_refused_naming_both(version: str, allowed: str | None) -> None:
    with pytest.raises(PolicyError) as caught:
        check_version(version, allowed)
    assert f"this is vLLM {version}" in str(caught.value)
    assert "tested with vLLM 0.32.0" in str(caught.value)
    assert f"SIMRUN_ALLOW_VLLM={version}" in str(caught.value)


def test_only_priority_scheduling_will_do() -> None:
    check_scheduling_policy("priority")
    with pytest.raises(PolicyError, match="--scheduling-policy priority"):
        check_scheduling_policy("fcfs")
