"""First come, first served: vLLM's default."""

from __future__ import annotations

from dataclasses import dataclass

from policies.base import DecodeRanks, Policy, RankChanges, RequestView


@dataclass(kw_only=True)
class Fcfs(Policy):
    """Arrival order; under KV shortage the last admitted yields (vLLM's stock mode ``fcfs``)."""

    name = "fcfs"
    summary = "arrival order (vLLM's default)"
    rank_changes = RankChanges.NEVER
    decode_ranks = DecodeRanks.STAY
    stock_mode = "fcfs"

    def rank(self, request: RequestView, now_ns: int) -> int:
        """The instant of arrival."""
        return request.arrival_ns
