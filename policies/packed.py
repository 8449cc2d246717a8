"""Arrival order with lookahead: what does not fit does not hold up what does."""

from __future__ import annotations

from dataclasses import dataclass

from policies.base import DecodeRanks, Policy, RankChanges, RequestView


@dataclass(kw_only=True)
class Packed(Policy):
    """Arrival order; a request that does not fit this step is passed over and later ones are tried.

    Fuller steps, at the price of large requests: under steady load small ones can keep them waiting.
    """

    name = "packed"
    summary = "arrival order, passing over what does not fit"
    rank_changes = RankChanges.NEVER
    decode_ranks = DecodeRanks.STAY
    pass_over = True
    not_live_because = "vLLM's admission stops at the first request that does not fit; it cannot pass one over"

    def rank(self, request: RequestView, now_ns: int) -> int:
        """The instant of arrival."""
        return request.arrival_ns
