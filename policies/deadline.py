"""Earliest due first."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.base import Policy, RankChanges, RequestView
from policies.checks import check_not_negative, check_positive, milliseconds_ns

NO_DUE = 1 << 80
GIVEN_UP = 1 << 81


@dataclass(kw_only=True)
class Deadline(Policy):
    """By slack: requests already late first (the latest of them first of all), then those about to be late.

    Slack is due minus now, so its order is the order of the due instants. A request is due at its own
    deadline, else ``e2el_slo_ms`` after arrival; before its first token also ``ttft_slo_ms`` after
    arrival, whichever is first. Without any of these it goes behind those that have one, by arrival.

    Hopeless requests: by default the late stay in front, for they are the ones violating. Under
    sustained overload that makes every request late; with ``give_up_after_ms`` a request later than that
    goes behind all others, which saves those that can still be on time. It is still served when
    there is room.
    """

    name = "deadline"
    summary = "late and soon-to-be-late first (earliest due)"
    rank_changes = RankChanges.PROGRESS | RankChanges.TIME

    ttft_slo_ms: float | None = field(
        default=None, metadata={"help": "ms from arrival to first token, where a request has no token yet; null = none"}
    )
    e2el_slo_ms: float | None = field(
        default=None, metadata={"help": "ms from arrival to end, for requests without a deadline; null = none"}
    )
    give_up_after_ms: float | None = field(
        default=None, metadata={"help": "a request this many ms late goes behind all others; null = never"}
    )

    def __post_init__(self) -> None:
        for parameter in ("ttft_slo_ms", "e2el_slo_ms"):
            value = getattr(self, parameter)
            if value is not None:
                check_positive(self.name, parameter, value)
        if self.give_up_after_ms is not None:
            check_not_negative(self.name, "give_up_after_ms", self.give_up_after_ms)
        self._ttft_ns = None if self.ttft_slo_ms is None else milliseconds_ns(self.ttft_slo_ms)
        self._e2el_ns = None if self.e2el_slo_ms is None else milliseconds_ns(self.e2el_slo_ms)
        self._give_up_ns = None if self.give_up_after_ms is None else milliseconds_ns(self.give_up_after_ms)

    def rank(self, request: RequestView, now_ns: int) -> int:
        """The due instant in ns; behind all of these the requests without one, then those given up."""
        due = self._due_ns(request)
        if due is None:
            if self._ttft_ns is not None:
                # Its first token is out: it keeps its place, or newcomers would starve it once evicted.
                return request.arrival_ns + self._ttft_ns
            return NO_DUE + request.arrival_ns
        if self._give_up_ns is not None and now_ns >= due + self._give_up_ns:
            return GIVEN_UP + due
        return due

    def next_change_ns(self, request: RequestView, now_ns: int) -> int | None:
        due = self._due_ns(request)
        if due is None or self._give_up_ns is None:
            return None
        change = due + self._give_up_ns
        return change if change > now_ns else None

    def _due_ns(self, request: RequestView) -> int | None:
        due = request.deadline_ns
        if due is None and self._e2el_ns is not None:
            due = request.arrival_ns + self._e2el_ns
        if self._ttft_ns is not None and request.num_output_tokens == 0:
            first_token_due = request.arrival_ns + self._ttft_ns
            due = first_token_due if due is None else min(due, first_token_due)
        return due
