"""With KV offloaded to host memory too, the simulator decides as vLLM's scheduler does, on random workloads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import zip_longest

import pytest
from feature_traces import with_offloading
from offloading_worlds import RealOffloading, SimOffloading
from real_scheduler import drive
from test_parity import POLICIES, first_difference
from traces import GROUPS, Policy, draw_case, with_aborts

SEEDS = range(5)
"""Seeds of each kind, policy and depth: 13 x 2 x 2 x 5 traces."""


AT_LEAST = {
    "loads": 80,
    "blocks loaded": 300,
    "blocks stored": 2000,
    "stores waited for": 80,
    "aborts in RUNNING": 30,
    "aborts in WAITING": 50,
    "preemptions": 100,
}
"""How often what is compared happens, in the 65 traces of one policy and depth."""


def first_transfer_that_differs(theirs: RealOffloading, ours: SimOffloading) -> str | None:
    """The first step in which the transfers begun, waited for or done differ, in words, or None."""
    for step, (real, simulated) in enumerate(zip_longest(theirs.begun, ours.begun)):
        if real != simulated:
            return f"schedule {step}\n  vllm:   {real}\n  simrun: {simulated}\n  {theirs.settings}"
    return None


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", POLICIES)
def test_parity_with_offloading(
    policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    differences = []
    counts: Counter[str] = Counter()
    for group in GROUPS:
        for seed in SEEDS:
            case = with_offloading(draw_case(group, policy, async_scheduling, seed))
            if seed % 2:
                case = with_aborts(case)
            theirs, ours = RealOffloading(case), SimOffloading(case)
            real = drive(case, theirs)
            difference = first_difference(case, real, drive(case, ours)) or first_transfer_that_differs(theirs, ours)
            if difference is not None:
                differences.append(difference)
            counts += theirs.counts
            counts += Counter(traces=1, steps=len(real.records), preemptions=real.preemptions)
    for name, count in counts.items():
        record_property(f"parity {name}", count)
    assert not differences, f"{len(differences)} of {counts['traces']} traces differ\n" + "\n".join(differences[:3])
    assert {name: counts[name] for name, least in AT_LEAST.items() if counts[name] < least} == {}
    if async_scheduling:
        assert counts["frees put off"] > 100


def test_requests_are_aborted_while_they_load() -> None:
    counts: Counter[str] = Counter()
    for seed in range(100):
        case = with_aborts(with_offloading(draw_case("identical_prompts", "priority", bool(seed % 2), seed)))
        theirs, ours = RealOffloading(case), SimOffloading(case)
        real = drive(case, theirs)
        assert first_difference(case, real, drive(case, ours)) is None
        assert first_transfer_that_differs(theirs, ours) is None
        counts += theirs.counts
    assert counts["aborts in WAITING_FOR_REMOTE_KVS"] > 5
