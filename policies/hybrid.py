"""Between latency and throughput, by one weight."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.base import EngineLimits, RankChanges, RequestView
from policies.checks import check_fraction
from policies.expected import PredictingPolicy, uncomputed_tokens


@dataclass(kw_only=True)
class Hybrid(PredictingPolicy):
    """Largest ``w / remaining + (1 - w) / next_tokens`` first: w = 1 is shortest remaining, w = 0 is ``throughput``.

    In measured mixes it is about ``sjf``, whatever the weight (``docs/claims.md``).
    """

    name = "hybrid"
    summary = "score = w / remaining + (1 - w) / next tokens, larger first (about as sjf)"
    rank_changes = RankChanges.PROGRESS

    latency_weight: float = field(
        default=0.5, metadata={"help": "w: 1 = shortest remaining first, 0 = cheapest next step first"}
    )
    _token_budget: int | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.name, "latency_weight", self.latency_weight)

    def bind(self, limits: EngineLimits) -> None:
        super().bind(limits)
        self._token_budget = limits.max_num_batched_tokens

    def rank(self, request: RequestView, now_ns: int) -> float:
        """Minus the score."""
        next_tokens = uncomputed_tokens(request)
        if self._token_budget is not None and next_tokens > self._token_budget:
            next_tokens = self._token_budget
        weight = self.latency_weight
        return -(weight / self.remaining_work(request) + (1.0 - weight) / next_tokens)
