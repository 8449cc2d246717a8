"""With LoRA adapters too, the simulator decides as vLLM's scheduler does, on random workloads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from feature_traces import with_loras
from real_scheduler import RealScheduler, drive
from sim_scheduler import replay_sim
from test_parity import POLICIES, first_difference
from traces import GROUPS, Case, Policy, Replay, draw_case

SEEDS = range(5)
"""Seeds of each kind, policy and depth: 13 x 2 x 2 x 5 traces."""


def replay_counting_waits(case: Case) -> tuple[Replay, int]:
    """The case on vLLM's scheduler, and in how many steps a request waited because its adapter had no place."""
    real = RealScheduler(case)
    num_waits = 0
    original = real.scheduler.schedule

    def schedule(*args: object) -> object:
        nonlocal num_waits
        output = original(*args)
        adapters = {
            real.scheduler.requests[name].lora_request.lora_int_id
            for name in output.num_scheduled_tokens
            if name in real.scheduler.requests and real.scheduler.requests[name].lora_request is not None
        }
        waiting = [each for each in real.scheduler.waiting if each.lora_request is not None]
        is_full = len(adapters) == case.settings.max_loras
        num_waits += is_full and any(each.lora_request.lora_int_id not in adapters for each in waiting)
        return output

    real.scheduler.schedule = schedule
    return drive(case, real), num_waits


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", POLICIES)
def test_parity_with_adapters(
    policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    differences = []
    traces = steps = waits = preemptions = 0
    for group in GROUPS:
        for seed in SEEDS:
            case = with_loras(draw_case(group, policy, async_scheduling, seed))
            real, num_waits = replay_counting_waits(case)
            difference = first_difference(case, real, replay_sim(case))
            if difference is not None:
                differences.append(difference)
            traces += 1
            steps += len(real.records)
            waits += num_waits
            preemptions += real.preemptions
    record_property("parity traces", traces)
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    record_property("steps in which an adapter had no place", waits)
    assert waits > 100
    assert not differences, f"{len(differences)} of {traces} traces differ\n" + "\n".join(differences[:3])
