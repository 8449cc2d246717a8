"""Whole simulated runs, fast and step by step, decide as vLLM's scheduler does: stock, and with the plugin."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import pytest
from plugin_cases import LIVE_POLICIES, draw_plugin_case
from real_scheduler import RealScheduler
from sim_scenario import TimedRecord, as_trace, decisions_of, replay_at, scenario_of
from traces import GROUPS, Case, draw_case

SEEDS = range(3)
"""Seeds of each kind, depth and stock policy: 13 x 2 x 2 x 3 traces, and 13 x 2 x 10 with the plugin."""
PLUGIN = "policies.vllm_plugin.PolicyScheduler"
PREDICTORS = ({"name": "exact"}, {"name": "max_tokens"}, {"name": "learned", "by": "tenant", "min_samples": 2})
"""Those that know as much in a live engine as in a simulation: outputs here are as long as ``max_tokens``."""


def difference(case: Case, real: list[TimedRecord], simulated: list[TimedRecord], stepping: str) -> str | None:
    """The first step in which they differ, in words, or None."""
    for theirs, ours in zip_longest(real, simulated):
        if theirs != ours:
            return f"{case.name}, {stepping}:\n  vllm:   {theirs}\n  simrun: {ours}\n  {case.settings}"
    return None


def compare(
    case: Case, folder: Path, scheduler_cls: str | None, policy: Any, predictor: Any
) -> tuple[list[str], list[TimedRecord]]:
    """Differences of both kinds of stepping, and vLLM's own steps."""
    differences = []
    real: list[TimedRecord] = []
    for stepping in ("fast", "reference"):
        simulated = decisions_of(scenario_of(case, folder / "trace.csv", stepping, policy, predictor))
        instants = [each.time_s for each in simulated]
        if not real or instants != [each.time_s for each in real]:
            real = replay_at(case, RealScheduler(case, scheduler_cls), instants)
        found = difference(case, real, simulated, stepping)
        if found is not None:
            differences.append(found)
    return differences, real


def with_own_weight(policy: dict[str, Any]) -> dict[str, Any]:
    """The policy with a weight of output tokens given: else a simulated engine derives one from its step costs, which
    vLLM's does not know."""
    return {**policy, "output_weight": 3} if policy.get("output_weight", 1) is None else policy


def report(record_property: Callable[[str, object], None], runs: list[list[TimedRecord]]) -> None:
    record_property("parity traces", len(runs))
    record_property("parity steps", sum(len(run) for run in runs))
    record_property("parity preemptions", sum(len(each.record.preempted) for run in runs for each in run))


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_stock(
    policy: Literal["fcfs", "priority"],
    async_scheduling: bool,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    differences, runs = [], []
    for group in GROUPS:
        for seed in SEEDS:
            case = as_trace(draw_case(group, policy, async_scheduling, seed))
            found, real = compare(case, tmp_path, None, policy, "exact")
            differences += found
            runs.append(real)
    report(record_property, runs)
    assert not differences, f"{len(differences)} of {2 * len(runs)} runs differ\n" + "\n".join(differences)


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_policies(
    policy: str,
    async_scheduling: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    differences, runs = [], []
    for group in GROUPS:
        drawn, spec = draw_plugin_case(group, policy, async_scheduling, seed=100)
        case = as_trace(drawn)
        predictor = random.Random(f"{group}/{policy}").choice(PREDICTORS)
        chosen = with_own_weight(spec.policy)
        monkeypatch.setenv("SIMRUN_POLICY", json.dumps(chosen))
        monkeypatch.setenv("SIMRUN_PREDICTOR", json.dumps(predictor))
        found, real = compare(case, tmp_path, PLUGIN, chosen, predictor)
        differences += [f"{chosen} {predictor}\n{each}" for each in found]
        runs.append(real)
    report(record_property, runs)
    assert not differences, f"{len(differences)} of {2 * len(runs)} runs differ\n" + "\n".join(differences)
