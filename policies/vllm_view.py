"""A live request as policies see it: vLLM's counters, and the client's hints from its extra arguments.

No vLLM here: the request is anything with the attributes of ``vllm/v1/request.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from policies.base import RequestView
from policies.parameters import suggestion

HINTS: Mapping[str, str] = {
    "expected_output_tokens": "a whole number, at least 1",
    "deadline_s": "seconds from arrival to end, above 0",
    "tenant": "a text",
    "tier": "a text",
    "class_name": "a text",
}
"""Keys of ``SamplingParams.extra_args`` (over HTTP: ``vllm_xargs``) that policies know, and what they must be."""
view_of = attrgetter("view")
"""What policies see of one of vLLM's requests."""
DEFAULT_NAME = "default"
NS_PER_S = 1_000_000_000
LARGEST_DEADLINE_S = 10 * 365 * 24 * 3600.0
CLOCK_SLACK_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Hints:
    """What a client says of its request."""

    expected_output_tokens: int | None = None
    deadline_s: float | None = None
    tenant: str = DEFAULT_NAME
    tier: str = DEFAULT_NAME
    """The tenant's name where none is given, as in scenarios."""
    class_name: str = DEFAULT_NAME


NO_HINTS = Hints()


def read_hints(extra_args: Mapping[str, Any] | None) -> tuple[Hints, list[str]]:
    """The hints among a request's extra arguments, and what is wrong with those that are left out.

    Other keys belong to others, unless they look like a misspelt hint.
    """
    if not extra_args:
        return NO_HINTS, []
    good: dict[str, Any] = {}
    problems = []
    for key, value in extra_args.items():
        if key not in HINTS:
            if isinstance(key, str) and (meant := suggestion(key, HINTS)):
                problems.append(f"{key!r} is no hint{meant}")
            continue
        known = _checked(key, value)
        if known is None:
            problems.append(f"{key} is {_short(value)}, but it must be {HINTS[key]}; it is ignored")
        else:
            good[key] = known
    if "tenant" in good:
        good.setdefault("tier", good["tenant"])
    return Hints(**good), problems


@dataclass(frozen=True, slots=True)
class _Ended:
    """What is left of a request that has ended."""

    num_computed_tokens: int


class LiveRequest:
    """A request inside vLLM. Satisfies ``policies.base.RequestView``; the counters are vLLM's own, always current."""

    __slots__ = (
        "_outputs",
        "_request",
        "arrival_ns",
        "arrival_time",
        "class_name",
        "deadline_ns",
        "expected_output_tokens",
        "max_tokens",
        "num_prompt_tokens",
        "priority",
        "request_id",
        "sequence",
        "tenant",
        "tier",
    )

    def __init__(self, request: Any, priority: int, arrival_ns: int, sequence: int, hints: Hints) -> None:
        """``priority``: the client's own. ``sequence``: position in the order in which requests came here."""
        self._request = request
        # Read for every running request in some steps: the list itself, not a property of a property.
        self._outputs = request._output_token_ids
        self.request_id: str = request.request_id
        self.arrival_time: float = request.arrival_time
        self.arrival_ns = arrival_ns
        self.sequence = sequence
        self.priority = priority
        self.num_prompt_tokens: int = request.num_prompt_tokens
        self.max_tokens: int = request.max_tokens
        self.tenant = hints.tenant
        self.tier = hints.tier
        self.class_name = hints.class_name
        self.expected_output_tokens = hints.expected_output_tokens
        self.deadline_ns: int | None = None
        if hints.deadline_s is not None:
            self.deadline_ns = arrival_ns + round(hints.deadline_s * NS_PER_S)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose KV is computed or being computed."""
        computed: int = self._request.num_computed_tokens
        return computed

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self._outputs)

    @property
    def request(self) -> Any:
        """vLLM's own request."""
        return self._request

    def renew(self) -> None:
        """A conversation's next turn has changed prompt and ``max_tokens`` of the request."""
        self.num_prompt_tokens = self._request.num_prompt_tokens
        self.max_tokens = self._request.max_tokens

    def end(self) -> None:
        """The request has ended: keep its counters and let go of vLLM's request and its tokens."""
        self._request = _Ended(self._request.num_computed_tokens)
        self._outputs = range(len(self._outputs))

    def __repr__(self) -> str:
        return (
            f"LiveRequest({self.request_id!r}, computed={self.num_computed_tokens}, prompt={self.num_prompt_tokens},"
            f" output={self.num_output_tokens})"
        )


class Views(Sequence[RequestView]):
    """What policies see of some requests, put together when the first beyond the head is looked at."""

    def __init__(self, requests: Iterable[Any], num_requests: int, head: RequestView | None) -> None:
        self._requests = requests
        self._num_requests = num_requests
        self._head = head
        self._views: list[RequestView] | None = None

    def __len__(self) -> int:
        return self._num_requests

    def __getitem__(self, index: Any) -> Any:
        if self._views is None:
            if index == 0 and self._head is not None:
                return self._head
            self._views = [request.view for request in self._requests]
        return self._views[index]

    def __iter__(self) -> Iterator[RequestView]:
        return map(view_of, self._requests) if self._views is None else iter(self._views)


class MonotonicClock:
    """The machine's monotonic clock, and the instants of arrival on it.

    vLLM stamps arrivals with the time of day, which can be set back; policies measure time from them.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """The present instant."""
        return time.monotonic_ns()

    def arrival_ns(self, arrival_time: float) -> int:
        """The instant of an arrival at ``arrival_time`` (s, time of day), never in the future."""
        now_ns = time.monotonic_ns()
        offset_ns = time.time_ns() - now_ns
        # The same offset as long as the clocks agree, so that arrivals keep their order to the nanosecond.
        if abs(offset_ns - self._offset_ns) > CLOCK_SLACK_NS:
            self._offset_ns = offset_ns
        return min(now_ns, round(arrival_time * NS_PER_S) - self._offset_ns)


def _checked(key: str, value: object) -> object | None:
    if key == "expected_output_tokens":
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        return int(value) if is_whole and value >= 1 else None  # type: ignore[call-overload,operator]
    if key == "deadline_s":
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if is_number and 0 < value <= LARGEST_DEADLINE_S else None  # type: ignore[arg-type,operator]
    return value if isinstance(value, str) and value.strip() else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
