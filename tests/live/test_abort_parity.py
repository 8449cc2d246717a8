"""With clients that leave, several outputs of one prompt and salted caches too, decisions are vLLM's."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from real_scheduler import RealScheduler, drive
from sim_scheduler import SimScheduler
from test_parity import POLICIES, first_difference
from test_speculative_parity import KINDS, RealSpeculativeScheduler, SimSpeculativeScheduler, draw_speculative_case
from test_window_parity import draw_window_case
from traces import GROUPS, TIGHT_GROUPS, Case, CaseRequest, Policy, draw_case, with_aborts, with_children, with_salts

from sim.engine.request import Request
from sim.engine.variants.drafts import Acceptance

SEEDS = range(10)
"""Seeds of each kind, policy and depth: 13 x 2 x 2 x 10 traces for aborts, and the same with a window."""
CACHED = ("prefix", "prefix_pressure", "identical_prompts", "sessions", "everything")


def both(case: Case) -> tuple[str | None, int, Counter[str]]:
    """The first difference between the schedulers; vLLM's steps; aborts by state."""
    ours = SimScheduler(case)
    theirs = drive(case, RealScheduler(case))
    return first_difference(case, theirs, drive(case, ours)), len(theirs.records), ours.aborted_in


def compare(cases: list[Case], record_property: Callable[[str, object], None]) -> Counter[str]:
    differences = []
    steps, aborted = 0, Counter[str]()
    for case in cases:
        difference, num_steps, states = both(case)
        if difference is not None:
            differences.append(difference)
        steps += num_steps
        aborted += states
    record_property("parity traces", len(cases))
    record_property("parity steps", steps)
    assert not differences, f"{len(differences)} of {len(cases)} traces differ\n" + "\n".join(differences)
    return aborted


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("group", GROUPS)
def test_aborts(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    cases = [with_aborts(draw_case(group, policy, async_scheduling, seed)) for seed in SEEDS]
    assert sum(compare(cases, record_property).values()) > 0


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("group", GROUPS)
def test_aborts_behind_a_window(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    cases = [with_aborts(draw_window_case(group, policy, async_scheduling, seed)) for seed in SEEDS]
    assert sum(compare(cases, record_property).values()) > 0


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("group", KINDS)
def test_aborts_with_drafts(group: str, async_scheduling: bool, record_property: Callable[[str, object], None]) -> None:
    differences = []
    steps, aborted = 0, Counter[str]()
    for seed in SEEDS:
        for policy in POLICIES:
            drawn, acceptance = draw_speculative_case(group, policy, async_scheduling, seed)
            case = with_aborts(drawn)
            theirs = drive(case, RealSpeculativeScheduler(case, acceptance))
            ours = SimSpeculativeScheduler(case, Acceptance(acceptance.rates, case.seed))
            difference = first_difference(case, theirs, drive(case, ours))
            if difference is not None:
                differences.append(difference)
            steps += len(theirs.records)
            aborted += ours.aborted_in
    record_property("parity traces", 2 * len(SEEDS))
    record_property("parity steps", steps)
    assert not differences, f"{len(differences)} of {2 * len(SEEDS)} traces differ\n" + "\n".join(differences)
    assert sum(aborted.values()) > 0


def aborted_when_preempted(case: Case, rng: random.Random) -> Case | None:
    """The case with a client that leaves in the step that preempts its request, or in the one after."""
    events = [
        (record.step, name) for record in drive(case, SimScheduler(case)).records[:500] for name in record.preempted
    ]
    if not events:
        return None
    step, name = rng.choice(events)
    later = rng.choice([0, 0, 1])
    return replace(
        case,
        requests=tuple(
            replace(request, abort_step=step + later, aborts_in_flight=not later)
            if request.request_id == name
            else request
            for request in case.requests
        ),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_aborts_of_preempted_requests(policy: Policy, record_property: Callable[[str, object], None]) -> None:
    cases = []
    for group in sorted(TIGHT_GROUPS):
        for async_scheduling in (False, True):
            for seed in range(20):
                case = draw_case(group, policy, async_scheduling, seed)
                aborted = aborted_when_preempted(case, random.Random(case.name))
                cases += [] if aborted is None else [aborted]
    states = compare(cases, record_property)
    assert states["preempted"] >= 20, states
    assert states["preempted, with output in flight"] >= 20, states


def test_requests_are_aborted_in_every_other_state() -> None:
    states = Counter[str]()
    for async_scheduling in (False, True):
        for seed in SEEDS:
            states += both(with_aborts(draw_case("pressure", "fcfs", async_scheduling, seed)))[2]
    assert min(states[state] for state in ("waiting", "running", "running, in flight")) >= 5, states


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("group", CACHED)
def test_several_outputs_of_one_prompt(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    cases = []
    for seed in SEEDS:
        case = with_children(draw_case(group, policy, async_scheduling, seed))
        cases += [case, with_aborts(case)]
    compare(cases, record_property)


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("group", CACHED)
def test_salted_caches(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    cases = [with_salts(draw_case(group, policy, async_scheduling, seed)) for seed in SEEDS]
    cases += [with_aborts(with_children(case)) for case in cases]
    compare(cases, record_property)


def test_salts_and_children_change_what_is_found() -> None:
    """Else the two tests above would hold nothing."""
    drawn = [draw_case("prefix", "fcfs", False, seed) for seed in range(30)]
    salted = [with_salts(case) for case in drawn]
    unsalted = [replace(case, settings=replace(case.settings, has_salts=False)) for case in salted]
    shared = [with_children(case) for case in drawn]
    separate = [
        replace(case, requests=tuple(replace(request, segments=()) for request in case.requests)) for case in shared
    ]
    for some, others in ((salted, unsalted), (shared, separate)):
        differing = sum(
            drive(one, RealScheduler(one)).records != drive(other, RealScheduler(other)).records
            for one, other in zip(some, others, strict=True)
        )
        assert differing >= 5


def test_four_outputs_of_one_prompt_hold_its_full_blocks_once() -> None:
    """40 tokens of blocks of 16: two full ones in common, the third each has for itself."""
    settings = replace(draw_case("plain", "fcfs", False, 0).settings, block_size=16, num_gpu_blocks=100)
    settings = replace(settings, max_num_batched_tokens=256, max_num_seqs=8, enable_prefix_caching=True)
    children = tuple(CaseRequest(f"{child}_r", 0, 40, 8, 8, segments=((7, 40),)) for child in range(4))
    for requests, used in ((children, 2 + 4), (tuple(replace(each, segments=()) for each in children), 4 * 3)):
        case = Case("hand", 0, settings, requests)
        for scheduler in (RealScheduler(case), SimScheduler(case)):
            records = drive(case, scheduler).records
            assert settings.usable_blocks - records[0].free_blocks == used


def mistake_late(ours: SimScheduler) -> None:
    """Blocks of an aborted request are kept."""
    ours.scheduler._release = lambda finished: None  # type: ignore[method-assign]


def mistake_running(ours: SimScheduler) -> None:
    """A running request is not aborted."""
    original = ours.scheduler.abort

    def abort(request: Request, now_ns: int) -> None:
        if request not in ours.scheduler.running:
            original(request, now_ns)

    ours.scheduler.abort = abort  # type: ignore[method-assign]


@pytest.mark.parametrize("mistake", [mistake_late, mistake_running], ids=lambda each: each.__name__)
def test_a_planted_mistake_shows(mistake: Callable[[SimScheduler], None]) -> None:
    differing = 0
    for seed in SEEDS:
        case = with_aborts(draw_case("pressure", "fcfs", False, seed))
        wrong = SimScheduler(case)
        mistake(wrong)
        differing += first_difference(case, drive(case, RealScheduler(case)), drive(case, wrong)) is not None
    assert differing > 0
