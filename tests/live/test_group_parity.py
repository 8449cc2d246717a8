"""With layers of several kinds too, the simulator decides as vLLM's scheduler does, on random workloads."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import lcm
from typing import Any

import pytest
from real_scheduler import RealScheduler, drive
from sim_scheduler import SimScheduler, scheduler_settings
from test_parity import POLICIES, first_difference
from traces import GROUPS, TIGHT_GROUPS, Case, CaseGroup, CaseRequest, CaseSettings, Policy, draw_case

from sim.engine.variants.groups import GroupedHit, GroupedKVCache

SEEDS = range(10)
"""Seeds of each kind, policy and depth: 13 x 2 x 2 x 10 traces."""
RECIPES = (
    ("full", "window"),
    ("full", "window", "same"),
    ("full", "window", "window"),
    ("window", "window"),
    ("full", "latent"),
    ("latent", "window", "full"),
    ("full", "chunk"),
    ("chunk", "window", "full"),
    ("full", "state"),
    ("state", "full", "same"),
    ("latent", "state"),
    ("full", "window", "state"),
)


def draw_groups(rng: random.Random, settings: CaseSettings) -> CaseSettings:
    """Two or three groups, with blocks of their own."""
    recipe = rng.choice(RECIPES)
    smallest = settings.block_size
    if settings.enable_prefix_caching and smallest > 8 and rng.random() < 0.7:
        smallest = rng.choice([2, 4, 8])
    factors = (1, 1, 1, 2, 3, 4) if "chunk" not in recipe and rng.random() < 0.5 else (1,)
    groups: list[CaseGroup] = []
    alignment = rng.choice([None, 1, smallest]) if factors == (1,) else None
    for kind in recipe:
        size = smallest * (1 if kind == "state" else rng.choice(factors))
        window = rng.choice([1, 2, size, size + 1, rng.randint(1, 5 * size), rng.randint(8, 64)])
        if kind == "same":
            groups.append(groups[-1] if groups[-1].kind != "full" else groups[0])
        elif kind in ("window", "chunk"):
            groups.append(CaseGroup(kind, size, window))  # type: ignore[arg-type]
        else:
            groups.append(CaseGroup(kind, size, None, alignment if kind == "state" else None))  # type: ignore[arg-type]
    together = lcm(*(group.block_size for group in groups))
    retention: int | None = 0
    if settings.enable_prefix_caching and any(group.kind in ("window", "state") for group in groups):
        retention = rng.choice([0, 0, 0, None, together, 3 * together])
    return replace(
        settings,
        block_size=smallest,
        kv_groups=tuple(groups),
        prefix_cache_retention_interval=retention,
        enable_chunked_prefill=settings.enable_chunked_prefill or "state" in recipe,
    )


def longest_need(settings: CaseSettings, requests: tuple[CaseRequest, ...]) -> int:
    """Blocks that the largest request may have to find free."""
    cache = GroupedKVCache(scheduler_settings(settings))
    most = [min(each.prompt_tokens + each.max_tokens, settings.max_model_len) for each in requests]
    return max(cache.blocks_to_reserve(tokens) for tokens in most)


def with_groups(case: Case) -> Case:
    """The case with several groups, most steps small, and a pool to fit."""
    rng = random.Random(f"groups/{case.name}")
    settings = draw_groups(rng, case.settings)
    if case.settings.enable_chunked_prefill and rng.random() < 0.6:
        budget = max(settings.max_num_seqs, rng.choice([8, 16, 17, 24]))
        settings = replace(settings, max_num_batched_tokens=budget)
    if any(group.kind == "state" for group in settings.kv_groups):
        settings = replace(settings, long_prefill_token_threshold=0)
    need = longest_need(settings, case.requests)
    largest = need + rng.choice([0, 0, 1, 2, need // 4, need // 2, need])
    if not (case.group in TIGHT_GROUPS or rng.random() < 0.4):
        largest = max(need * 8, case.settings.num_gpu_blocks)
    return replace(case, settings=replace(settings, num_gpu_blocks=largest + 1))


def draw_group_case(group: str, policy: Policy, async_scheduling: bool, seed: int) -> Case:
    """A case of ``traces`` with several groups; most of them find content again."""
    case = draw_case(group, policy, async_scheduling, seed)
    if random.Random(f"caching/{case.name}").random() < 0.8:
        case = replace(case, settings=replace(case.settings, enable_prefix_caching=True))
    return with_groups(case)


class CountingScheduler(SimScheduler):
    """Counts what the cache of several groups comes through."""

    def __init__(self, case: Case, counts: Counter[str]) -> None:
        super().__init__(case)
        self.counts = counts
        cache = self.scheduler.kv
        if not isinstance(cache, GroupedKVCache):
            raise AssertionError("no cache of several groups")
        admit, blocks_to_admit, drop = cache.admit, cache.blocks_to_admit, cache.drop_behind

        def counted_admit(request: Any, hit: Any, num_tokens: int) -> None:
            if hit.num_tokens:
                counts["hits"] += 1
                counts["hits after a preemption"] += request.num_preemptions > 0
                counts["hits with null blocks"] += any(0 in table for table in hit.tables)
            counts["longer hits of one group"] += isinstance(hit, GroupedHit) and hit.shared_prefix > 0
            admit(request, hit, num_tokens)
            counts["states in mid-chunk"] += any(
                table.has_checkpoint for table in cache._held[request.request_id].tables
            )

        def counted_need(request: Any, hit: Any, num_tokens: int, *, is_whole: bool = False) -> int:
            need = blocks_to_admit(request, hit, num_tokens, is_whole=is_whole)
            counts["waits for a new state"] += need > 1 << 50
            return need

        def counted_drop(request: Any, num_processed: int) -> None:
            before = cache.num_free_blocks
            drop(request, num_processed)
            counts["drops"] += cache.num_free_blocks - before

        wrapped: Any = cache
        wrapped.admit, wrapped.blocks_to_admit, wrapped.drop_behind = counted_admit, counted_need, counted_drop


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("group", GROUPS)
def test_parity_with_groups(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    differences = []
    steps = preemptions = 0
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        case = draw_group_case(group, policy, async_scheduling, seed)
        theirs = drive(case, RealScheduler(case))
        difference = first_difference(case, theirs, drive(case, CountingScheduler(case, counts)))
        if difference is not None:
            differences.append(difference)
        steps += len(theirs.records)
        preemptions += theirs.preemptions
    record_property("parity traces", len(SEEDS))
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    assert not differences, f"{len(differences)} of {len(SEEDS)} traces differ\n" + "\n".join(differences)
    assert preemptions > 0 or group not in TIGHT_GROUPS


@pytest.mark.parametrize(
    ("group", "least"),
    [
        ("prefix_pressure", {"hits": 100, "hits after a preemption": 50, "longer hits of one group": 100}),
        ("identical_prompts", {"hits with null blocks": 50, "waits for a new state": 5}),
        ("sessions", {"hits": 50, "longer hits of one group": 50}),
        ("overcommit", {"states in mid-chunk": 100, "drops": 10_000}),
    ],
)
def test_every_way_is_taken(group: str, least: dict[str, int]) -> None:
    counts: Counter[str] = Counter()
    for policy in POLICIES:
        for async_scheduling in (False, True):
            for seed in SEEDS:
                case = draw_group_case(group, policy, async_scheduling, seed)
                drive(case, CountingScheduler(case, counts))
    assert all(counts[name] >= count for name, count in least.items()), counts


def mistake_order(cache: GroupedKVCache) -> None:
    """A request gives its blocks back in one piece, not group by group."""

    def give_back_all(request: Any) -> None:
        held = cache._held.pop(request.request_id, None)
        if held is not None:
            cache._give_back([block for table in held.tables for block in table.blocks if block])
        cache._forget(request)

    wrapped: Any = cache
    wrapped._give_back_all = give_back_all


def mistake_reserve(cache: GroupedKVCache) -> None:
    """Admission reserves for the whole request in a group with a window."""
    for kind in cache.kinds:
        kind.most_blocks = None


def mistake_one_round(cache: GroupedKVCache) -> None:
    """Groups are asked once for a prefix, whatever the last one makes of it."""
    cache._is_simple = True


def mistake_dense(cache: GroupedKVCache) -> None:
    """Blocks behind a window and states are cached wherever they are."""
    for kind in cache.kinds:
        wrapped: Any = kind
        wrapped.reachable = lambda first, end, boundaries: range(first, end)


def mistake_junction(cache: GroupedKVCache) -> None:
    """That some group has more of a prefix is forgotten."""
    find = cache.lookup

    def lookup(request: Any) -> Any:
        hit = find(request)
        return replace(hit, shared_prefix=0) if isinstance(hit, GroupedHit) else hit

    wrapped: Any = cache
    wrapped.lookup = lookup


def mistake_new_states(cache: GroupedKVCache) -> None:
    """A request goes on from a state of the same step."""
    wrapped: Any = cache
    wrapped._new_states = Forgetful()


def mistake_cut(cache: GroupedKVCache) -> None:
    """Chunks of prompts end anywhere."""
    cache.cuts_chunks = False


class Forgetful(set[int]):
    """Holds nothing."""

    def add(self, element: int) -> None:
        """Forget it."""


MISTAKES = (
    mistake_order,
    mistake_reserve,
    mistake_one_round,
    mistake_dense,
    mistake_junction,
    mistake_new_states,
    mistake_cut,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each.__name__)
def test_a_planted_mistake_shows(mistake: Callable[[GroupedKVCache], None]) -> None:
    differing = 0
    for group in ("prefix_pressure", "identical_prompts", "sessions"):
        for seed in SEEDS:
            case = draw_group_case(group, "fcfs", True, seed)
            wrong: Any = SimScheduler(case)
            mistake(wrong.scheduler.kv)
            wrong.scheduler.why_never = lambda request: None  # what reserves too much is to wait, not to be refused
            differing += first_difference(case, drive(case, RealScheduler(case)), drive(case, wrong)) is not None
    print(mistake.__name__, differing)
    assert differing > 0


def test_the_settings_reach_both() -> None:
    case = draw_group_case("prefix", "fcfs", True, 0)
    manager = RealScheduler(case).scheduler.kv_cache_manager
    ours = GroupedKVCache(scheduler_settings(case.settings))
    theirs = manager.coordinator.single_type_managers
    assert [each.block_size for each in theirs] == [kind.block_size for kind in ours.kinds]
    assert manager.coordinator.scheduler_block_size == ours.lookup_tokens
    assert manager.coordinator.retention_interval == case.settings.prefix_cache_retention_interval
