"""Shortest job first."""

from __future__ import annotations

from dataclasses import dataclass

from policies.base import DecodeRanks, RankChanges, RequestView
from policies.expected import PredictingPolicy


@dataclass(kw_only=True)
class Sjf(PredictingPolicy):
    """Smallest expected total (prompt + predicted output tokens) first; never evicts for a waiting request.

    Long requests can starve while shorter ones keep arriving.
    """

    name = "sjf"
    summary = "shortest expected total first"
    rank_changes = RankChanges.NEVER
    decode_ranks = DecodeRanks.STAY

    def rank(self, request: RequestView, now_ns: int) -> int:
        """Prompt tokens plus weighted expected output tokens."""
        return self.total_work(request)
