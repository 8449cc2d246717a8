"""Which replica gets a request. The list of replicas may change between two calls."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import ClassVar

from policies.base import PolicyError, ReplicaView, RoutedRequest, Router
from policies.checks import check_not_negative, check_positive, refuse

num_requests: Callable[[ReplicaView], int] = attrgetter("num_requests")
"""Requests a replica has, running or waiting."""


def position_of_least(replicas: Sequence[ReplicaView], load: Callable[[ReplicaView], int]) -> int:
    """Position of the least loaded replica, the first of equals."""
    if not replicas:
        raise PolicyError("no replica to route to")
    counts = getattr(replicas, "counts", None)
    loads = counts() if load is num_requests and counts is not None else list(map(load, replicas))
    return int(loads.index(min(loads)))


class Homes:
    """Which replica a key belongs to, for the ``capacity`` keys used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._replica_index: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._replica_index)

    def position(self, key: str, replicas: Sequence[ReplicaView]) -> int | None:
        """Position of ``key``'s replica; None if it has none or that is gone."""
        index = self._replica_index.pop(key, None)
        if index is None:
            return None
        if index < len(replicas) and replicas[index].index == index:
            position = index
        else:
            position = next((place for place, replica in enumerate(replicas) if replica.index == index), -1)
        if position < 0:
            return None
        self._replica_index[key] = index
        return position

    def settle(self, key: str, replica: ReplicaView) -> None:
        """Give ``key`` a replica; the key unused for longest is forgotten where there are too many."""
        self._replica_index.pop(key, None)
        if len(self._replica_index) >= self._capacity:
            del self._replica_index[next(iter(self._replica_index))]
        self._replica_index[key] = replica.index


@dataclass(kw_only=True)
class RoundRobin(Router):
    """One after the other."""

    name: ClassVar[str] = "round_robin"
    summary: ClassVar[str] = "one after the other"
    takes_turns: ClassVar[bool] = True
    """Request i of a fixed fleet of n goes to position i % n: the simulator need not ask."""

    _next: int = field(init=False, repr=False, default=0)

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        """The replica after the last one chosen."""
        if not replicas:
            raise PolicyError("no replica to route to")
        position = self._next % len(replicas)
        self._next = position + 1
        return position


@dataclass(kw_only=True)
class LeastOutstanding(Router):
    """The replica with least left to do; the first of equals."""

    name: ClassVar[str] = "least_outstanding"
    summary: ClassVar[str] = "fewest requests (or tokens) not finished"

    by: str = field(
        default="requests", metadata={"help": "what counts: requests, or tokens (expected outputs included)"}
    )

    def __post_init__(self) -> None:
        if self.by not in ("requests", "tokens"):
            raise refuse(self.name, "by", self.by, "requests or tokens")
        self._load = num_requests if self.by == "requests" else _outstanding_tokens

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        """Position of the replica with least outstanding."""
        return position_of_least(replicas, self._load)


def _outstanding_tokens(replica: ReplicaView) -> int:
    return replica.outstanding_tokens


@dataclass(kw_only=True)
class VllmDp(Router):
    """vLLM's own choice between its data-parallel ranks (``DPLBAsyncMPClient.get_core_engine_for_request``,
    ``vllm/v1/engine/core_client.py``, 0.32.0): fewest requests, a queue counting up to four times as its KV cache fills
    beyond half. Of equals, the first from a place that moves on by one with each request.

    vLLM's counts of other clients' requests are up to 0.1 s old; here all are as of now.
    """

    name: ClassVar[str] = "vllm_dp"
    summary: ClassVar[str] = "as vLLM chooses between data-parallel ranks"

    _start: int = field(init=False, repr=False, default=0)

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        """Position of the replica with the least score."""
        if not replicas:
            raise PolicyError("no replica to route to")
        order = [(self._start + i) % len(replicas) for i in range(len(replicas))]
        self._start = (self._start + 1) % len(replicas)
        return min(order, key=lambda position: _vllm_score(replicas[position]))


def _vllm_score(replica: ReplicaView) -> float:
    waiting = replica.num_waiting
    usage = 1.0 - replica.free_blocks / replica.num_gpu_blocks
    return num_requests(replica) + waiting * 6.0 * max(0.0, usage - 0.5)


@dataclass(kw_only=True)
class LeastKv(Router):
    """The replica with the smallest share of its KV blocks in use, then the fewest requests waiting."""

    name: ClassVar[str] = "least_kv"
    summary: ClassVar[str] = "smallest share of KV blocks in use"

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        """Position of the replica with the largest free share; pools of different size compare by share."""
        if not replicas:
            raise PolicyError("no replica to route to")
        best = 0
        for position in range(1, len(replicas)):
            new, old = replicas[position], replicas[best]
            ahead = new.free_blocks * old.num_gpu_blocks - old.free_blocks * new.num_gpu_blocks
            if ahead > 0 or (ahead == 0 and new.num_waiting < old.num_waiting):
                best = position
        return best


@dataclass(kw_only=True)
class PowerOfTwo(Router):
    """The one with fewer requests of two replicas drawn at random (Mitzenmacher, IEEE TPDS 2001)."""

    name: ClassVar[str] = "power_of_two"
    summary: ClassVar[str] = "the less loaded of two drawn at random"

    seed: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(f"{self.seed}/routing")

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        """Position of the winner; of equals the one drawn first."""
        if not replicas:
            raise PolicyError("no replica to route to")
        if len(replicas) == 1:
            return 0
        first = self._random.randrange(len(replicas))
        second = self._random.randrange(len(replicas) - 1)
        second += second >= first
        return second if num_requests(replicas[second]) < num_requests(replicas[first]) else first


@dataclass(kw_only=True)
class StickySession(Router):
    """All requests of a session to one replica; a new session, or a request without one, to the least loaded."""

    name: ClassVar[str] = "sticky_session"
    summary: ClassVar[str] = "a session stays on its replica"

    max_sessions: int = field(default=100_000, metadata={"help": "sessions remembered, the last used ones"})

    def __post_init__(self) -> None:
        check_positive(self.name, "max_sessions", self.max_sessions)
        self._homes = Homes(self.max_sessions)

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        """The session's replica while it is there."""
        session = request.session
        home = None if session is None else self._homes.position(session, replicas)
        if home is not None:
            return home
        position = position_of_least(replicas, num_requests)
        if session is not None:
            self._homes.settle(session, replicas[position])
        return position


@dataclass(kw_only=True)
class PrefixAffinity(Router):
    """Requests with the same prefix to the replica that has it cached, unless that one is overloaded.

    Overloaded: more than ``overload_factor`` times the requests of the least loaded replica plus
    ``overload_slack``. Then the least loaded one serves the request and the prefix keeps its home.
    New prefixes, and requests without one, go to the least loaded replica.
    """

    name: ClassVar[str] = "prefix_affinity"
    summary: ClassVar[str] = "same prefix to the same replica, unless it is overloaded"

    overload_factor: float = field(
        default=1.5, metadata={"help": "a replica is overloaded above this times the least loaded one's requests"}
    )
    overload_slack: int = field(default=8, metadata={"help": "... plus so many requests"})
    max_prefixes: int = field(default=100_000, metadata={"help": "prefixes remembered, the last used ones"})

    def __post_init__(self) -> None:
        if not self.overload_factor >= 1:
            raise refuse(self.name, "overload_factor", self.overload_factor, "at least 1")
        check_positive(self.name, "overload_factor", self.overload_factor)
        check_not_negative(self.name, "overload_slack", self.overload_slack)
        check_positive(self.name, "max_prefixes", self.max_prefixes)
        self._homes = Homes(self.max_prefixes)

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        """The prefix's home unless it is overloaded, else the least loaded."""
        least = position_of_least(replicas, num_requests)
        key = request.prefix_key
        if key is None:
            return least
        home = self._homes.position(key, replicas)
        if home is None:
            self._homes.settle(key, replicas[least])
            return least
        most = self.overload_factor * num_requests(replicas[least]) + self.overload_slack
        return least if num_requests(replicas[home]) > most else home
