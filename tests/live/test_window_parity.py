"""With a sliding window too, the simulator decides as vLLM's scheduler does, on random workloads under KV pressure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plugin_cases import LIVE_POLICIES, draw_plugin_case
from real_scheduler import RealScheduler, drive
from sim_scenario import as_trace
from sim_scheduler import SimScheduler, replay_sim, scheduler_settings
from test_fast_forward_parity import compare
from test_parity import first_difference
from test_plugin_parity import policy_of, replay_plugin
from test_speculative_parity import RealSpeculativeScheduler, draw_speculative_case
from test_speculative_parity import replay_both as replay_both_with_drafts
from traces import GROUPS, TIGHT_GROUPS, Case, CaseRequest, CaseSettings, Policy, Replay, draw_case

from sim.engine.reference.batch import SchedulerSettings
from sim.engine.variants.window import WindowKVCache

SEEDS = range(20)
"""Seeds of each kind, policy and depth: 13 x 2 x 2 x 20 traces."""
DRAFT_KINDS = ("pressure", "prefix_pressure", "sessions", "everything")


def longest_need(settings: CaseSettings, requests: tuple[CaseRequest, ...], beyond: int = 0) -> int:
    """Blocks that the largest request may have to find free."""
    cache = WindowKVCache(scheduler_settings(settings))
    most = [min(each.prompt_tokens + each.max_tokens + beyond, settings.max_model_len) for each in requests]
    return max(cache.blocks_to_reserve(tokens) for tokens in most)


def with_window(case: Case, beyond: int = 0) -> Case:
    """The case with a window of a few blocks (or less than one), most steps small, and a pool to fit."""
    rng = random.Random(f"window/{case.name}")
    settings = case.settings
    block_size = settings.block_size
    window = rng.choice([1, 2, block_size, block_size + 1, rng.randint(1, 5 * block_size), rng.randint(8, 64)])
    if settings.enable_chunked_prefill and rng.random() < 0.6:
        budget = max(settings.max_num_seqs, rng.choice([8, 16, 17, 24]))
        settings = replace(settings, max_num_batched_tokens=budget)
    settings = replace(settings, sliding_window=window, enable_prefix_caching=rng.random() < 0.8)
    retention = rng.choice([0, 0, None, block_size, 3 * block_size])
    settings = replace(settings, prefix_cache_retention_interval=retention)
    need = longest_need(settings, case.requests, beyond)
    if case.group in TIGHT_GROUPS or rng.random() < 0.4:
        num_blocks = need + rng.choice([0, 0, 1, 2, need // 4, need // 2, need])
        settings = replace(settings, num_gpu_blocks=num_blocks + 1)
    else:
        settings = replace(settings, num_gpu_blocks=max(settings.num_gpu_blocks, need + 1))
    return replace(case, settings=settings)


def draw_window_case(group: str, policy: Policy, async_scheduling: bool, seed: int) -> Case:
    """A case of ``traces`` with a window."""
    return with_window(draw_case(group, policy, async_scheduling, seed))


def replay_counting_drops(case: Case) -> tuple[Replay, int]:
    """The case on vLLM's scheduler, and how many blocks it gave back behind the window."""
    real = RealScheduler(case)
    (manager,) = real.scheduler.kv_cache_manager.coordinator.single_type_managers
    original = manager._remove_blocks_in_range
    num_dropped = 0

    def remove(request_id: str, first_block: int, last_block: int) -> None:
        nonlocal num_dropped
        before = sum(block.is_null for block in manager.req_to_blocks.get(request_id, ()))
        original(request_id, first_block, last_block)
        num_dropped += sum(block.is_null for block in manager.req_to_blocks.get(request_id, ())) - before

    manager._remove_blocks_in_range = remove
    return drive(case, real), num_dropped


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("group", GROUPS)
def test_parity_with_a_window(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    differences = []
    steps = preemptions = drops = 0
    for seed in SEEDS:
        case = draw_window_case(group, policy, async_scheduling, seed)
        theirs, num_dropped = replay_counting_drops(case)
        difference = first_difference(case, theirs, replay_sim(case))
        if difference is not None:
            differences.append(difference)
        steps += len(theirs.records)
        preemptions += theirs.preemptions
        drops += num_dropped
    record_property("parity traces", len(SEEDS))
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    assert not differences, f"{len(differences)} of {len(SEEDS)} traces differ\n" + "\n".join(differences)
    assert drops > 0, "no block was ever behind the window"
    assert preemptions > 0 or group not in TIGHT_GROUPS


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("group", DRAFT_KINDS)
def test_parity_with_a_window_and_drafts(
    group: str, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    differences = []
    steps = preemptions = 0
    for seed in range(10):
        drawn, acceptance = draw_speculative_case(group, "fcfs", async_scheduling, seed)
        case = with_window(drawn, beyond=2 * drawn.settings.num_speculative_tokens)
        theirs, ours, _ = replay_both_with_drafts(case, acceptance, RealSpeculativeScheduler)
        difference = first_difference(case, theirs, ours)
        if difference is not None:
            differences.append(difference)
        steps += len(theirs.records)
        preemptions += theirs.preemptions
    record_property("parity traces", 10)
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    assert not differences, f"{len(differences)} of 10 traces differ\n" + "\n".join(differences)


@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_policies_decide_in_vllm_as_in_the_simulator(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    differences = []
    for group in sorted(TIGHT_GROUPS):
        for async_scheduling in (False, True):
            drawn, spec = draw_plugin_case(group, policy, async_scheduling, seed=0)
            case = with_window(drawn)
            real = replay_plugin(case, spec, monkeypatch)
            difference = first_difference(case, real, drive(case, SimScheduler(case, policy_of(spec))))
            if difference is not None:
                differences.append(f"{spec}\n{difference}")
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_whole_runs(policy: Policy, async_scheduling: bool, tmp_path: Path) -> None:
    """From the model's config.json on, fast and step by step."""
    differences = []
    for group in GROUPS:
        for seed in range(2):
            case = as_trace(draw_window_case(group, policy, async_scheduling, seed))
            case = replace(case, settings=replace(case.settings, prefix_cache_retention_interval=0))
            differences += compare(case, tmp_path, None, policy, "exact")[0]
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("group", ["prefix", "sessions", "prefix_pressure"])
def test_a_window_that_nobody_outgrows_is_full_attention_to_vllm(group: str) -> None:
    """What fast stepping stands on: without a prefix cache it then runs without a window."""
    for seed in range(10):
        case = draw_case(group, "fcfs", True, seed)
        case = replace(case, settings=replace(case.settings, enable_prefix_caching=False))
        longest = max(each.prompt_tokens + each.output_tokens for each in case.requests)
        windowed = replace(case, settings=replace(case.settings, sliding_window=longest))
        assert drive(windowed, RealScheduler(windowed)) == drive(case, RealScheduler(case))


def mistake_capacity(cache: WindowKVCache) -> None:
    """Admission reserves for the whole request."""
    cache.max_blocks_per_request = 1 << 30


def mistake_off_by_one(cache: WindowKVCache) -> None:
    """The window is a token longer."""
    cache.sliding_window += 1


def mistake_hit(cache: WindowKVCache) -> None:
    """A hit needs a cached block more than the window has."""
    cache._num_blocks_of_hit += 1


@pytest.mark.parametrize("mistake", [mistake_capacity, mistake_off_by_one, mistake_hit], ids=lambda each: each.__name__)
def test_a_planted_mistake_shows(mistake: Callable[[WindowKVCache], None]) -> None:
    differing = 0
    for seed in SEEDS:
        case = draw_window_case("prefix_pressure", "fcfs", True, seed)
        wrong: Any = SimScheduler(case)
        cache = wrong.scheduler.kv
        if not isinstance(cache, WindowKVCache):
            continue
        mistake(cache)
        wrong.scheduler.why_never = lambda request: None  # what reserves too much is to wait, not to be refused
        differing += first_difference(case, drive(case, RealScheduler(case)), drive(case, wrong)) is not None
    assert differing > 0


def test_the_settings_reach_both() -> None:
    case = draw_window_case("plain", "fcfs", True, 0)
    ours: SchedulerSettings = scheduler_settings(case.settings)
    (manager,) = RealScheduler(case).scheduler.kv_cache_manager.coordinator.single_type_managers
    assert manager.sliding_window == case.settings.sliding_window == ours.sliding_window
    assert manager.max_admission_blocks_per_request == WindowKVCache(ours).max_blocks_per_request
