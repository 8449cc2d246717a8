"""Each policy that vLLM can express decides inside vLLM's scheduler as it does in the simulator, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from plugin_cases import LIVE_POLICIES, PolicySpec, draw_plugin_case
from real_scheduler import RealScheduler, drive
from sim_scheduler import SimScheduler
from test_parity import first_difference
from traces import GROUPS, Case, Replay

from policies.base import Policy
from policies.registry import build_policy, build_predictor

SEEDS = range(3)
"""Seeds of each kind, policy and depth: 13 x 10 x 2 x 3 traces."""
PLUGIN = "policies.vllm_plugin.PolicyScheduler"


def policy_of(spec: PolicySpec) -> Policy:
    """The policy as a scenario builds it, with what predictors know in a live engine: the hints."""
    predictor = {key: value for key, value in spec.predictor.items() if key != "name"}
    policy = {key: value for key, value in spec.policy.items() if key != "name"}
    return build_policy(
        spec.policy["name"],
        policy,
        build_predictor(spec.predictor["name"], predictor, true_output_tokens=None, seed=0),
    )


def replay_plugin(case: Case, spec: PolicySpec, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """Replay a case inside vLLM, the policy told by the environment."""
    monkeypatch.setenv("SIMRUN_POLICY", json.dumps(spec.policy))
    monkeypatch.setenv("SIMRUN_PREDICTOR", json.dumps(spec.predictor))
    return drive(case, RealScheduler(case, PLUGIN))


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_policies_decide_in_vllm_as_in_the_simulator(
    policy: str,
    async_scheduling: bool,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    differences = []
    traces = steps = preemptions = 0
    for group in GROUPS:
        for seed in SEEDS:
            case, spec = draw_plugin_case(group, policy, async_scheduling, seed)
            real = replay_plugin(case, spec, monkeypatch)
            simulated = drive(case, SimScheduler(case, policy_of(spec)))
            difference = first_difference(case, real, simulated)
            if difference is not None:
                differences.append(f"{spec}\n{difference}")
            traces += 1
            steps += len(real.records)
            preemptions += real.preemptions
    record_property("parity traces", traces)
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    assert not differences, f"{len(differences)} of {traces} traces differ\n" + "\n".join(differences)
