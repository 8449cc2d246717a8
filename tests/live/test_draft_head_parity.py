"""With drafts of a head on the model's own hidden states (EAGLE, EAGLE-3, MTP), the simulator decides as vLLM's
scheduler does: slots ahead, no tokens of the budget, and prefixes that are found without their last block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from real_scheduler import drive
from test_parity import first_difference
from test_speculative_parity import (
    RealSpeculativeScheduler,
    SimSpeculativeScheduler,
    draw_speculative_case,
    replay_both,
)
from traces import Case, Policy

from sim.engine.variants.drafts import Acceptance

SEEDS = range(6)
KINDS = ("prefix_pressure", "sessions", "pressure", "unchunked", "everything")
"""Groups of ``traces``: x 2 policies x 2 depths x 6 seeds = 120 traces, a method each."""
HEADS = ("eagle", "eagle3", "mtp")


class WatchedScheduler(RealSpeculativeScheduler):
    """vLLM's scheduler, with a count of the hits that lost a block."""

    def __init__(self, case: Case, acceptance: Acceptance) -> None:
        super().__init__(case, acceptance)
        self.num_shortened = 0
        manager = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
        original = manager.find_longest_cache_hit

        def watched(**arguments: Any) -> Any:
            found, length = original(**arguments)
            whole, _ = original(**{**arguments, "drop_eagle_block": False})
            self.num_shortened += len(whole[0]) > len(found[0])
            return found, length

        manager.find_longest_cache_hit = watched


def draw_head_case(group: str, policy: Policy, async_scheduling: bool, seed: int) -> tuple[Case, Acceptance]:
    """A case whose drafts come from a head."""
    case, acceptance = draw_speculative_case(group, policy, async_scheduling, seed)
    settings = replace(case.settings, has_draft_model=False, draft_head=HEADS[seed % len(HEADS)])
    return replace(case, settings=settings), acceptance


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("group", KINDS)
def test_parity_with_draft_heads(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    differences = []
    steps = preemptions = shortened = accepted = 0
    for seed in SEEDS:
        case, acceptance = draw_head_case(group, policy, async_scheduling, seed)
        theirs, ours, real = replay_both(case, acceptance, WatchedScheduler)
        difference = first_difference(case, theirs, ours)
        if difference is not None:
            differences.append(difference)
        steps += len(theirs.records)
        preemptions += theirs.preemptions
        shortened += real.num_shortened
        accepted += real.num_accepted
    record_property("parity traces", len(SEEDS))
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    record_property("parity shortened hits", shortened)
    assert not differences, f"{len(differences)} of {len(SEEDS)} traces differ\n" + "\n".join(differences)
    assert accepted > 0
    if group in ("prefix_pressure", "sessions"):
        assert shortened > 0


def test_the_dropped_block_decides() -> None:
    """A scheduler that keeps the last block decides otherwise: the traces can tell."""
    differing = 0
    for seed in SEEDS:
        case, acceptance = draw_head_case("prefix_pressure", "fcfs", True, seed)
        theirs, _, _ = replay_both(case, acceptance, WatchedScheduler)
        keeping = SimSpeculativeScheduler(case, Acceptance(acceptance.rates, case.seed))
        keeping.scheduler.kv._num_dropped = 0  # type: ignore[attr-defined]
        differing += first_difference(case, theirs, drive(case, keeping)) is not None
    assert differing > 0
