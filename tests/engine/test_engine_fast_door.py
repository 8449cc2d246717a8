"""The fast replica from outside, at any instant: its load in the middle of a plan, and operations in every state."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from random_runs import FAMILIES
from shortcuts import Shortcuts
from simpy import Event
from test_engine_fast_forward import compare, kept_costs, outcome

from sim.cluster import simulate
from sim.cluster.acts import Act, What, schedule_acts
from sim.engine.clock import At, Turn
from sim.run import load

COSTS = kept_costs
LOADS = ("num_running", "num_waiting", "outstanding_tokens", "free_blocks")


def loads_of(scenario: dict[str, Any], stepping: str, instants: list[int], patch: pytest.MonkeyPatch) -> list[Any]:
    """What is read of each replica at ``instants``, one figure or all of them."""
    found: list[Any] = []
    rng = Random(len(instants))
    figures = [rng.sample(LOADS, rng.choice([1, 1, 4])) for _ in instants]

    def with_probes(env: Any, gateway: Any, speeds: Any, acts: Any) -> None:
        schedule_acts(env, gateway, speeds, acts)

        def read(event: Event) -> None:
            for replica in gateway.replicas:
                found.append((env.now, [(name, getattr(replica, name)) for name in event.value]))

        for at_ns, names in zip(instants, figures, strict=True):
            At(env, at_ns, Turn.ARRIVAL, names).callbacks.append(read)

    patch.setattr(simulate, "schedule_acts", with_probes)
    loaded = load({**scenario, "engine": {**scenario["engine"], "stepping": stepping}})
    # An act that does nothing: requests are not dealt out beforehand.
    simulate.simulate_cluster(loaded, acts=[Act(0, What.UNDRAIN, 0)])
    return found


@pytest.mark.parametrize("family", ["usual", "bounds", "tight", "shared", "windows", "ranks", "drafts"])
def test_loads_are_the_references_at_any_instant(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_read = 0
    for seed in range(12):
        rng = Random(f"loads/{family}/{seed}")
        scenario = FAMILIES[family](rng, f"loads-{family}-{seed}")
        reference = outcome(scenario, "reference")
        if reference is None or not reference.columns:
            continue
        last_ns = max(reference.instants)
        instants = [max(rng.choice(reference.instants) + rng.choice([-1, 0, 1]), 0) for _ in range(30)]
        instants = sorted({*instants, *(rng.randint(0, last_ns) for _ in range(20))})
        theirs, ours = (loads_of(scenario, stepping, instants, monkeypatch) for stepping in ("reference", "fast"))
        assert ours == theirs, f"seed {seed}: {scenario}"
        num_read += len(ours)
    assert num_read > 400


STATES = ["member", "leaving", "part", "skipped", "waiting", "preempted", "stale"]


def crowd(*, is_async: bool) -> dict[str, Any]:
    """Requests of several chunks that run out of blocks, and lose steps because one before them gave up its own."""
    workload = {
        "requests": 14,
        "arrival": {"process": "constant", "rate": 40.0},
        "input_tokens": {"dist": "values", "values": [30, 75, 20, 9]},
        "output_tokens": {"dist": "values", "values": [60, 25, 90, 6, 1]},
    }
    engine = {
        "model": "llama-2-7b",
        "gpu": "a100-80gb-sxm",
        "num_gpu_blocks_override": 17,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "scheduler_reserve_full_isl": False,
        "policy": "hybrid",
        "async_scheduling": is_async,
    }
    return {"name": "crowd", "workload": workload, "engine": engine, "latency": {"kind": "roofline"}}


@pytest.mark.parametrize("is_async", [False, True])
def test_requests_leave_and_replicas_crash_in_every_state(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just after each step that preempts one, and just before the ends of requests: one is cancelled, or all are
    lost."""
    scenario = crowd(is_async=is_async)
    plain = outcome(scenario, "reference")
    assert plain is not None
    counts: Counter[str] = Shortcuts(monkeypatch).counts
    preempting = sorted(at_ns for at_ns, times in Counter(plain.instants).items() if times > 5)
    spans = list(zip(plain.columns["row"], plain.columns["arrival_ns"], plain.columns["end_ns"], strict=True))
    assert len(preempting) > 8
    for at_ns in [*preempting, *(end_ns - 2 for _, _, end_ns in spans[:5])]:
        here = [row for row, start_ns, end_ns in spans if start_ns <= at_ns <= end_ns]
        trials = [[Act(at_ns + 1, What.CANCEL, row)] for row in here]
        trials += [[Act(at_ns + 1, What.CRASH, 0)], [Act(at_ns, What.CRASH, 0), Act(at_ns + 1, What.CANCEL, here[0])]]
        for acts in trials:
            reference = outcome(scenario, "reference", acts)
            assert reference is not None
            compare(scenario, acts, reference)
    possible = [state for state in STATES if is_async or state != "stale"]
    never = [f"{what} {state}" for what in ("abort", "crash") for state in possible if not counts[f"{what} {state}"]]
    assert not never
