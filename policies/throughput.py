"""Cheapest next step first."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.base import DecodeRanks, EngineLimits, Policy, RankChanges, RequestView
from policies.expected import uncomputed_tokens


@dataclass(kw_only=True)
class Throughput(Policy):
    """Fewest tokens in the next step first, which packs the most requests into it.

    Prompts of the whole step's budget and more are equal, and go by arrival. Long prompts can starve
    while shorter ones keep arriving.
    """

    name = "throughput"
    summary = "cheapest next step first (packs most requests)"
    rank_changes = RankChanges.PROGRESS
    decode_ranks = DecodeRanks.STAY

    _token_budget: int | None = field(init=False, repr=False, default=None)

    def bind(self, limits: EngineLimits) -> None:
        self._token_budget = limits.max_num_batched_tokens

    def rank(self, request: RequestView, now_ns: int) -> int:
        """Tokens not computed yet, up to the step's budget."""
        tokens = uncomputed_tokens(request)
        return tokens if self._token_budget is None else min(tokens, self._token_budget)
