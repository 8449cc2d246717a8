"""The live engine's queue: always the order of ranks asked for anew, at a fraction of the asking."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from policies.base import Policy, PolicyError, RankChanges, RequestView
from policies.vllm_queue import RankedHeap


@dataclass(eq=False)
class Waiting:
    """A request with a rank that tests move by hand; its own view."""

    request_id: str
    arrival_time: float
    base: int
    group: str | None = None
    change_at: int | None = None
    """From here on the rank is -base."""

    @property
    def view(self) -> Any:
        return self


@dataclass
class ByHand(Policy):
    """Ranks by ``base`` and its group's shift; counts how often it is asked."""

    name = "by_hand"
    summary = ""
    shifts: dict[str | None, int] = field(default_factory=dict)
    num_asked: int = 0

    def rank(self, request: Any, now_ns: int) -> float:
        self.num_asked += 1
        if request.group is not None:
            return self.shifts.get(request.group, 0)
        is_changed = request.change_at is not None and now_ns >= request.change_at
        rank: int = -request.base if is_changed else request.base
        return rank

    def next_change_ns(self, request: Any, now_ns: int) -> int | None:
        change: int | None = request.change_at
        return change if change is not None and change > now_ns else None

    def rank_group(self, request: Any) -> str | None:
        group: str | None = request.group
        return group


class Timed(ByHand):
    rank_changes = RankChanges.PROGRESS | RankChanges.TIME


class Moved(ByHand):
    rank_changes = RankChanges.ALWAYS


def heap_of(policy: ByHand) -> RankedHeap:
    return RankedHeap(policy, policy.rank, lambda request: request.view)


def expected(policy: ByHand, waiting: list[Waiting], now_ns: int) -> list[Waiting]:
    return sorted(waiting, key=lambda each: (policy.rank(each, now_ns), each.arrival_time, each.request_id))


@pytest.mark.parametrize("kind", [ByHand, Timed, Moved])
def test_the_head_is_that_of_ranks_asked_for_anew(kind: type[ByHand]) -> None:
    """Random arrivals, departures, time and shifts, against sorting."""
    for seed in range(60):
        rng = random.Random(seed)
        policy = kind()
        heap, waiting, now_ns = heap_of(policy), list[Waiting](), 0
        for number in range(150):
            action = rng.random()
            if action < 0.45 or not waiting:
                one = Waiting(f"r{(number * 7) % 1000}", float(rng.randrange(9)), rng.randrange(5))
                if kind is Timed or kind is Moved:
                    one.change_at = rng.choice([None, now_ns + rng.randrange(1, 40)])
                if kind is Moved:
                    one.group = rng.choice([None, "a", "b", "c"])
                waiting.append(one)
                heap.add(one)
            elif action < 0.6:
                assert heap.pop() is waiting.pop(waiting.index(expected(policy, waiting, now_ns)[0]))
            elif action < 0.7:
                gone = waiting.pop(rng.randrange(len(waiting)))
                heap.discard_all([gone, gone])
            elif action < 0.8 and kind is not Moved:
                one = rng.choice(waiting)
                one.base += rng.randrange(-3, 4)
                heap.touch(one)
            elif action < 0.9 and kind is not ByHand:
                now_ns += rng.randrange(30)
                policy.shifts[rng.choice(["a", "b", "c"])] = rng.randrange(-4, 5)
                heap.refresh(now_ns)
            assert len(heap) == len(waiting)
            assert bool(heap) is bool(waiting)
            order = expected(policy, waiting, now_ns)
            assert list(heap) == order
            if order:
                assert heap.peek() is order[0]


def test_ranks_that_did_not_change_are_not_asked_for() -> None:
    policy = Timed()
    heap = heap_of(policy)
    for number in range(100):
        heap.add(Waiting(f"r{number}", 0.0, number, change_at=1000 + number))
    heap.peek()
    policy.num_asked = 0
    for now_ns in range(0, 1000, 10):
        heap.refresh(now_ns)
        heap.peek()
    assert policy.num_asked == 0
    heap.refresh(1002)
    assert heap.peek().request_id == "r2"
    assert policy.num_asked == 3, "only those whose time has come"


def test_a_group_is_asked_for_once() -> None:
    policy = Moved()
    heap = heap_of(policy)
    for number in range(300):
        heap.add(Waiting(f"r{number:03d}", 0.0, 0, group="abc"[number % 3]))
    policy.num_asked = 0
    for step in range(1, 11):
        policy.shifts["b"] = -step
        heap.refresh(step)
        assert heap.peek().group == "b"
    assert policy.num_asked == 30


def test_what_no_longer_holds_does_not_pile_up() -> None:
    policy = Timed()
    heap = heap_of(policy)
    one = Waiting("r", 0.0, 1, change_at=10**9)
    for _ in range(5000):
        heap.add(one)
    assert len(heap) == 1
    assert len(heap._alone) + len(heap._changes) < 300


def test_nobody_waits_is_told() -> None:
    with pytest.raises(IndexError):
        heap_of(ByHand()).peek()


class NotANumber(Policy):
    name = "nan"
    rank_changes = RankChanges.NEVER

    def rank(self, request: RequestView, now_ns: int) -> float:
        return float("nan")


def test_nan_is_refused_naming_policy_and_request() -> None:
    policy = NotANumber()
    heap = RankedHeap(policy, policy.rank, lambda request: request.view)
    with pytest.raises(PolicyError, match="policy nan ranked request r1 NaN"):
        heap.add(Waiting("r1", 0.0, 1))


@pytest.mark.parametrize(
    ("answer", "shown"), [(None, "None (NoneType)"), ("soon", "'soon' (str)"), ((1, 2), "(tuple)")]
)
def test_a_rank_that_is_no_number_is_refused(answer: Any, shown: str) -> None:
    heap = RankedHeap(NotANumber(), lambda view, now_ns: answer, lambda request: request.view)
    with pytest.raises(PolicyError, match="policy nan ranked request r1") as raised:
        heap.add(Waiting("r1", 0.0, 1))
    assert shown in str(raised.value)
