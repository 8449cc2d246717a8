"""The simulator decides as vLLM's scheduler does, step by step, on random workloads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import pytest
from real_scheduler import replay_real
from sim_scheduler import replay_sim
from traces import GROUPS, Case, Policy, Replay, draw_case

SEEDS = range(20)
"""Seeds of each kind, policy and depth: 13 x 2 x 2 x 20 traces."""

POLICIES: tuple[Policy, ...] = ("fcfs", "priority")


def first_difference(case: Case, real: Replay, simulated: Replay) -> str | None:
    """The first record in which two replays differ, in words, or None."""
    for index, (theirs, ours) in enumerate(zip_longest(real.records, simulated.records)):
        if theirs != ours:
            before = real.records[index - 1] if index else None
            return explain(case, f"record {index}, after {before}", theirs, ours)
    theirs_left, ours_left = (
        (replay.last_finished, replay.final_free_blocks, replay.has_ended) for replay in (real, simulated)
    )
    return None if theirs_left == ours_left else explain(case, "the end", theirs_left, ours_left)


def explain(case: Case, place: str, theirs: object, ours: object) -> str:
    """A difference with all that is needed to look into it."""
    return f"{case.name}: {place}\n  vllm:   {theirs}\n  simrun: {ours}\n  {case.settings}"


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("group", GROUPS)
def test_parity_on_random_traces(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    differences = []
    traces = steps = preemptions = 0
    for seed in SEEDS:
        case = draw_case(group, policy, async_scheduling, seed)
        real = replay_real(case)
        difference = first_difference(case, real, replay_sim(case))
        if difference is not None:
            differences.append(difference)
        traces += 1
        steps += len(real.records)
        preemptions += real.preemptions
    record_property("parity traces", traces)
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    assert not differences, f"{len(differences)} of {traces} traces differ\n" + "\n".join(differences)
