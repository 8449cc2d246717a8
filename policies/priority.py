"""The client's priority: vLLM's stock priority mode."""

from __future__ import annotations

from dataclasses import dataclass

from policies.base import DecodeRanks, Policy, RankChanges, RequestView


@dataclass(kw_only=True)
class Priority(Policy):
    """Smaller ``priority`` first, then arrival; the victim is the largest (priority, arrival)."""

    name = "priority"
    summary = "the client's priority, smaller first, then arrival (vLLM's stock mode)"
    rank_changes = RankChanges.NEVER
    decode_ranks = DecodeRanks.STAY
    stock_mode = "priority"

    def rank(self, request: RequestView, now_ns: int) -> int:
        """The client's priority; the engine breaks ties by arrival."""
        return request.priority
