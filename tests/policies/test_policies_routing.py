"""Routers on fake replicas."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from policies.base import PolicyError
from policies.registry import ROUTERS, build_router
from policies.routing import (
    Homes,
    LeastKv,
    LeastOutstanding,
    PowerOfTwo,
    PrefixAffinity,
    RoundRobin,
    StickySession,
    VllmDp,
)


@dataclass
class Replica:
    index: int
    num_running: int = 0
    num_waiting: int = 0
    free_blocks: int = 100
    num_gpu_blocks: int = 100
    outstanding_tokens: int = 0
    model: str = "m"

    @property
    def num_requests(self) -> int:
        return self.num_running + self.num_waiting


@dataclass
class Arriving:
    session: str | None = None
    prefix_key: str | None = None
    request_id: str = "0"
    arrival_ns: int = 0
    num_prompt_tokens: int = 1
    max_tokens: int = 1
    tenant: str = "default"


def replicas(*running: int) -> list[Replica]:
    return [Replica(index, number) for index, number in enumerate(running)]


def choices(router: Any, fleet: list[Replica], number: int, **request: Any) -> list[int]:
    return [router.choose(Arriving(**request), fleet, 0) for _ in range(number)]


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_answers_a_position_whatever_the_fleet(name: str) -> None:
    router = build_router(name, {}, seed=0)
    for fleet in (replicas(0), replicas(5, 0, 3), replicas(1, 1), [Replica(7), Replica(3)]):
        for session in ("a", "b", None):
            assert router.choose(Arriving(session, session), fleet, 0) in range(len(fleet))
    with pytest.raises(PolicyError, match="no replica"):
        router.choose(Arriving(), [], 0)


def test_round_robin_takes_turns_and_survives_a_shrinking_fleet() -> None:
    router = RoundRobin()
    assert choices(router, replicas(9, 0, 0), 4) == [0, 1, 2, 0]
    assert choices(router, replicas(0, 0, 0), 2) == [1, 2]
    assert choices(router, replicas(0, 0), 3) == [1, 0, 1]


def test_least_outstanding_counts_running_and_waiting() -> None:
    fleet = replicas(3, 2, 2)
    fleet[1].num_waiting = 2
    assert choices(LeastOutstanding(), fleet, 2) == [2, 2]
    assert choices(LeastOutstanding(), replicas(1, 1), 1) == [0], "the first of equals"


def test_least_outstanding_by_tokens() -> None:
    fleet = replicas(1, 9)
    fleet[0].outstanding_tokens, fleet[1].outstanding_tokens = 5000, 90
    assert choices(LeastOutstanding(by="tokens"), fleet, 1) == [1]
    with pytest.raises(PolicyError, match="by is 'length', but it must be requests or tokens"):
        LeastOutstanding(by="length")


def test_vllm_dp_takes_the_fewest_requests_and_starts_one_further_on_each_time() -> None:
    assert choices(VllmDp(), replicas(2, 1, 2), 1) == [1]
    assert choices(VllmDp(), replicas(0, 0, 0), 4) == [0, 1, 2, 0], "equals: round robin"
    assert choices(VllmDp(), [Replica(0, 3, 0), Replica(1, 0, 2)], 2) == [1, 1], "a queue counts as what runs"


@pytest.mark.parametrize(("free", "waiting_counts"), [(100, 1.0), (50, 1.0), (25, 2.5), (0, 4.0)])
def test_vllm_dp_shuns_queues_before_a_full_cache(free: int, waiting_counts: float) -> None:
    """Ten wait: each counts once up to half of the KV cache in use, four times once all of it is."""
    queue = Replica(1, 0, num_waiting=10, free_blocks=free)
    for running, chosen in ((int(10 * waiting_counts) - 1, 0), (int(10 * waiting_counts) + 1, 1)):
        assert choices(VllmDp(), [Replica(0, running), queue], 1) == [chosen]


def test_least_kv_compares_shares_of_pools_of_any_size() -> None:
    fleet = [Replica(0, free_blocks=50, num_gpu_blocks=100), Replica(1, free_blocks=80, num_gpu_blocks=200)]
    assert choices(LeastKv(), fleet, 1) == [0]
    fleet[1].free_blocks = 101
    assert choices(LeastKv(), fleet, 1) == [1]
    fleet[1].free_blocks, fleet[0].num_waiting = 100, 4
    assert choices(LeastKv(), fleet, 1) == [1], "equal shares: fewer waiting"


def test_power_of_two_never_takes_the_most_loaded_and_is_repeatable() -> None:
    fleet = replicas(1, 2, 3, 99)
    drawn = choices(PowerOfTwo(seed=4), fleet, 600)
    assert drawn == choices(PowerOfTwo(seed=4), fleet, 600)
    assert drawn != choices(PowerOfTwo(seed=5), fleet, 600)
    count = Counter(drawn)
    assert set(count) == {0, 1, 2}
    # Of 6 pairs the least loaded is in 3, the next wins 2, the third 1.
    for position, expected in ((0, 300), (1, 200), (2, 100)):
        assert abs(count[position] - expected) < 60
    assert choices(PowerOfTwo(), replicas(5), 3) == [0, 0, 0]


def test_sessions_stick() -> None:
    router = StickySession()
    assert choices(router, replicas(3, 0), 1, session="a") == [1]
    assert choices(router, replicas(0, 9), 2, session="a") == [1, 1]
    assert choices(router, replicas(0, 9), 1, session="b") == [0]
    assert choices(router, replicas(9, 0), 1) == [1], "no session: the least loaded"


def test_a_session_follows_its_replica_and_moves_only_when_that_is_gone() -> None:
    router = StickySession()
    first, second, third = replicas(5, 0, 5)
    assert router.choose(Arriving("a"), [first, second, third], 0) == 1
    assert router.choose(Arriving("a"), [second, third], 0) == 0
    assert router.choose(Arriving("a"), [first, third], 0) == 0, "gone: placed anew"
    assert router.choose(Arriving("a"), [third, first], 0) == 1, "and it stays there"


def test_homes_forget_what_was_unused_for_longest() -> None:
    homes, fleet = Homes(2), replicas(0, 0, 0)
    homes.settle("a", fleet[0])
    homes.settle("b", fleet[1])
    assert homes.position("a", fleet) == 0
    homes.settle("c", fleet[2])
    assert [homes.position(key, fleet) for key in "abc"] == [0, None, 2]
    assert len(homes) == 2


def test_prefixes_stay_home_until_it_is_overloaded() -> None:
    router = PrefixAffinity(overload_factor=2.0, overload_slack=3)
    assert choices(router, replicas(4, 0), 1, prefix_key="p") == [1]
    assert choices(router, replicas(0, 3), 1, prefix_key="p") == [1]
    assert choices(router, replicas(0, 4), 1, prefix_key="p") == [0], "more than 2 x 0 + 3"
    assert choices(router, replicas(2, 7), 1, prefix_key="p") == [1], "7 = 2 x 2 + 3"
    assert choices(router, replicas(2, 8), 1, prefix_key="q") == [0]
    assert choices(router, replicas(2, 1), 1) == [1], "no prefix: the least loaded"


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (StickySession, {"max_sessions": 0}),
        (PrefixAffinity, {"overload_factor": 0.5}),
        (PrefixAffinity, {"overload_factor": float("nan")}),
        (PrefixAffinity, {"overload_factor": float("inf")}),
        (PrefixAffinity, {"overload_slack": -1}),
        (PrefixAffinity, {"max_prefixes": 0}),
    ],
)
def test_bad_parameters_are_refused(cls: Any, params: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(params))):
        cls(**params)
