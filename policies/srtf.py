"""Shortest remaining time first, with preemption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from policies.base import EngineLimits, EngineState, RankChanges, RequestView
from policies.checks import check_not_negative
from policies.eviction import evict_until_room, has_room, work_until_room
from policies.expected import PredictingPolicy


@dataclass(kw_only=True)
class Srtf(PredictingPolicy):
    """Least expected remaining work first; the longest running ones are evicted for a shorter waiting one.

    An output token counts by default (``output_weight: null``) as the prompt tokens that take the engine as long: with
    one seat, exact predictions and equal steps this is Schrage's SRPT rule, which has the least mean E2E of all.
    Counting in steps instead (``output_weight: max_num_batched_tokens``) lets one output token weigh as much as a whole
    step of prompt: long prompts with short answers then go first, and all others wait for them.

    The shortest waiting request evicts only if there is no seat or not enough blocks, only requests longer
    than itself, and only if it would be done, the tokens the evicted compute again included, before the
    running ones make room by ending. With one seat these are exactly the cases in which changing over
    lowers the sum of two ends. With many seats room comes soon by itself, and evicting the longest
    whenever a shorter one waits costs more in recomputation than it gains.

    Progress: the request with the least remaining work is admitted first and nothing may evict it, and
    an evicted request does not come back looking shorter, so two requests cannot evict one another in
    turn. Many short arrivals can still evict a long request again and again (thrash): each time its
    tokens are computed anew. ``preemption_margin_tokens`` holds that down.
    """

    name = "srtf"
    summary = "shortest expected remaining work first, evicting longer running ones"
    rank_changes = RankChanges.PROGRESS

    output_weight: int | None = field(
        default=None, metadata=PredictingPolicy.__dataclass_fields__["output_weight"].metadata
    )
    preemption_margin_tokens: int = field(
        default=0,
        metadata={"help": "a waiting request evicts only as if it were so many output tokens longer than it is"},
    )
    _limits: EngineLimits | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self.name, "preemption_margin_tokens", self.preemption_margin_tokens)

    def bind(self, limits: EngineLimits) -> None:
        super().bind(limits)
        self._limits = limits

    def rank(self, request: RequestView, now_ns: int) -> int:
        """Prompt tokens left plus weighted expected output tokens left."""
        return self.remaining_work(request)

    def preempt(
        self, running: Sequence[RequestView], waiting: Sequence[RequestView], state: EngineState
    ) -> Sequence[RequestView]:
        """The longest running requests whose room lets the shortest waiting one in; none if it would not."""
        limits, head = self._limits, waiting[0]
        if limits is None or has_room(head, limits, state):
            return ()
        own = self.remaining_work(head) + self._weight * self.preemption_margin_tokens
        by_end: list[tuple[int, int, int]] = []
        if work_until_room(head, self._ending_by(own, running, by_end), limits, state) is not None:
            return ()  # found without an order, mostly among the first few: most steps end here
        if max(by_end)[0] <= own:
            return ()
        by_end.sort()
        room_in = work_until_room(head, ((work, running[position]) for work, _, position in by_end), limits, state)
        if room_in is None:
            return ()
        longer = (
            running[position]
            for work, _, position in reversed(by_end)
            if own + running[position].num_computed_tokens < work
        )
        victims = evict_until_room(head, longer, limits, state)
        return victims if own + sum(victim.num_computed_tokens for victim in victims) < room_in else ()

    def _ending_by(
        self, work_left: int, running: Sequence[RequestView], looked_at: list[tuple[int, int, int]]
    ) -> Iterator[tuple[int, RequestView]]:
        """Those with no more than ``work_left``; (work left, arrival, position) of all goes to ``looked_at``."""
        for position, request in enumerate(running):
            work = self.remaining_work(request)
            looked_at.append((work, request.arrival_ns, position))
            if work <= work_left:
                yield work, request
