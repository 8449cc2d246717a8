"""Service tiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from policies.base import EngineLimits, EngineState, Feedback, PolicyError, RankChanges, RequestView
from policies.checks import check_fraction, check_not_negative, check_positive, exact, refuse, seconds_ns
from policies.eviction import evict_until_room, has_room
from policies.expected import PredictingPolicy

FRONT = -1
"""Rank of a request that aged past the top tier; the engine orders these by arrival."""
LEVEL_SHIFT = 56
LARGEST_WORK = (1 << LEVEL_SHIFT) - 1
DEFAULT_TTFT_SLO_MS = {"premium": 500.0, "standard": 2000.0}
SHARE_MODES = ("fill", "reserve")


@dataclass(kw_only=True)
class Tiered(PredictingPolicy):
    """Tiers in order, shortest remaining first within a tier.

    Ageing: each ``age_promote_s`` since arrival moves a request one tier up, and one more takes it from
    the top tier to its very front, in order of arrival. So every request is at some time the first, and
    none starves. A promoted request is of its new tier in every respect, running or not, and
    keeps the promotion: it is not thrown out by the peers it left.

    Eviction: when a request without output has used ``risk_fraction`` of its tier's TTFT limit, the
    first of the queue may evict running requests of tiers below that one, the largest rank first. Under
    KV shortage the engine's own rule (largest rank) takes the lowest tier. So a premium
    request is never evicted for a lower tier, nor while a lower one runs.

    Shares (simulator only): ``fill`` lets a tier and those above it fill the step's token budget up to
    its figure (premium 0.6, standard 0.9, budget 1.0); ``reserve`` gives each tier its own part (0.4,
    0.4, the rest). Shares go by the request's own tier, promoted or not.

    A request whose tier is not listed counts as of the last one.
    """

    name = "tiered"
    summary = "tiers, shortest remaining within a tier, ageing; lower tiers yield when an SLO is at risk"
    rank_changes = RankChanges.PROGRESS | RankChanges.TIME
    feedback = Feedback.FIRST

    tiers: list[str] = field(
        default_factory=lambda: ["premium", "standard", "budget"], metadata={"help": "tier names, the best first"}
    )
    output_weight: int | None = field(
        default=None, metadata=PredictingPolicy.__dataclass_fields__["output_weight"].metadata
    )
    age_promote_s: float | None = field(
        default=300.0, metadata={"help": "s since arrival after which a request moves one tier up; null = never"}
    )
    ttft_slo_ms: dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "TTFT limit in ms by tier, for evictions; null = premium 500, standard 2000 where tiers have"
            " these names; {} = never evict"
        },
    )
    risk_fraction: float = field(
        default=0.5, metadata={"help": "an SLO is at risk once this share of its limit has passed without a token"}
    )
    shares: dict[str, float] | None = field(
        default=None,
        metadata={"help": "share of the step's token budget by tier; null = no shares; simulator only"},
    )
    share_mode: str = field(
        default="fill",
        metadata={"help": "fill: a tier and those above it together up to its share; reserve: each tier its own"},
    )
    _limits: EngineLimits | None = field(init=False, repr=False, default=None)
    _unstarted: dict[int, dict[str, int]] = field(init=False, repr=False, default_factory=dict)
    """By tier that has a TTFT limit: arrival of the requests never scheduled yet, oldest first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tiers or len(set(self.tiers)) != len(self.tiers):
            raise refuse(self.name, "tiers", self.tiers, "a list of different names, at least one")
        self._index = {tier: index for index, tier in enumerate(self.tiers)}
        self._last_index = len(self.tiers) - 1
        check_fraction(self.name, "risk_fraction", self.risk_fraction)
        self._age_ns: int | None = None
        if self.age_promote_s is not None:
            check_positive(self.name, "age_promote_s", self.age_promote_s)
            self._age_ns = max(1, seconds_ns(self.age_promote_s))
        slo = self.ttft_slo_ms
        if slo is None:
            slo = {tier: limit for tier, limit in DEFAULT_TTFT_SLO_MS.items() if tier in self._index}
        self._check_tier_names("ttft_slo_ms", slo)
        for tier, limit in slo.items():
            check_positive(self.name, f"ttft_slo_ms.{tier}", limit)
        risk = exact(self.risk_fraction)
        self._risk_ns = {self._index[tier]: int(exact(limit) * 1_000_000 * risk) for tier, limit in slo.items()}
        self._unstarted = {index: {} for index in sorted(self._risk_ns)}
        if self.share_mode not in SHARE_MODES:
            raise refuse(self.name, "share_mode", self.share_mode, " or ".join(SHARE_MODES))
        self._shares = None if self.shares is None else self._check_shares(self.shares)
        self.shares_accumulate = self.share_mode == "fill"

    def bind(self, limits: EngineLimits) -> None:
        super().bind(limits)
        self._limits = limits

    # --- order -------------------------------------------------------------------------------

    def tier_index(self, request: RequestView) -> int:
        """Position of the request's own tier; an unlisted one counts as the last."""
        return self._index.get(request.tier, self._last_index)

    def level(self, request: RequestView, now_ns: int) -> int:
        """The tier it has aged to at ``now_ns``, counted from 1; 0 = the front of the top tier."""
        level = self.tier_index(request) + 1
        if self._age_ns is not None and now_ns > request.arrival_ns:
            level -= (now_ns - request.arrival_ns) // self._age_ns
        return max(0, level)

    def rank(self, request: RequestView, now_ns: int) -> int:
        """(level, remaining work) in one integer."""
        # As in `level`: asked of every running request when blocks are short, so without calls.
        level = self._index.get(request.tier, self._last_index) + 1
        if self._age_ns is not None and now_ns > request.arrival_ns:
            level -= (now_ns - request.arrival_ns) // self._age_ns
        if level <= 0:
            return FRONT
        return (level << LEVEL_SHIFT) | min(self.remaining_work(request), LARGEST_WORK)

    def next_change_ns(self, request: RequestView, now_ns: int) -> int | None:
        """The next promotion, or the instant its SLO comes to be at risk."""
        instants = []
        if self._age_ns is not None and self.level(request, now_ns) > 0:
            promotions = max(0, now_ns - request.arrival_ns) // self._age_ns
            instants.append(request.arrival_ns + (promotions + 1) * self._age_ns)
        tier = self.tier_index(request)
        if request.request_id in self._unstarted.get(tier, ()):
            at_risk = request.arrival_ns + self._risk_ns[tier]
            if at_risk > now_ns:
                instants.append(at_risk)
        return min(instants, default=None)

    # --- eviction ----------------------------------------------------------------------------

    @property
    def preempts(self) -> bool:
        return bool(self._risk_ns)

    def preempt(
        self, running: Sequence[RequestView], waiting: Sequence[RequestView], state: EngineState
    ) -> Sequence[RequestView]:
        """Running requests of tiers below the best one at risk, the largest rank first, until the head gets in."""
        limits, now_ns = self._limits, state.now_ns
        at_risk = self._best_tier_at_risk(now_ns)
        if limits is None or at_risk is None:
            return ()
        head = waiting[0]
        if has_room(head, limits, state):
            return ()
        floor = max(at_risk + 1, self.level(head, now_ns))
        # Ageing only takes a request up: those whose own tier is not below are out without asking.
        own_tiers, last = self._index, self._last_index
        below = [request for request in running if own_tiers.get(request.tier, last) >= floor]
        lower = [request for request in below if self.level(request, now_ns) > floor]
        lower.sort(key=lambda request: (self.rank(request, now_ns), request.arrival_ns), reverse=True)
        return evict_until_room(head, lower, limits, state)

    def _best_tier_at_risk(self, now_ns: int) -> int | None:
        for tier, arrivals in self._unstarted.items():
            if arrivals and now_ns >= next(iter(arrivals.values())) + self._risk_ns[tier]:
                return tier
        return None

    def on_arrival(self, request: RequestView, now_ns: int) -> None:
        arrivals = self._unstarted.get(self.tier_index(request))
        if arrivals is not None:
            arrivals[request.request_id] = request.arrival_ns

    def on_scheduled(self, request: RequestView, num_tokens: int) -> None:
        arrivals = self._unstarted.get(self.tier_index(request))
        if arrivals:
            arrivals.pop(request.request_id, None)

    def on_finished(self, request: RequestView) -> None:
        super().on_finished(request)
        self.on_scheduled(request, 0)

    # --- shares ------------------------------------------------------------------------------

    def share(self, request: RequestView) -> str | None:
        return None if self._shares is None else self.tiers[self.tier_index(request)]

    def share_budgets(self, max_num_batched_tokens: int) -> dict[str, int] | None:
        if self._shares is None:
            return None
        return {tier: max(1, int(share * max_num_batched_tokens)) for tier, share in self._shares.items()}

    def live_refusal(self) -> str | None:
        if self.shares is None:
            return None
        return "`shares` bounds a tier's tokens within a step, which vLLM's scheduler cannot do; it runs without"

    def _check_tier_names(self, parameter: str, values: dict[str, float]) -> None:
        unknown = [tier for tier in values if tier not in self._index]
        if unknown:
            raise PolicyError(f"{self.name}: {parameter} names {unknown[0]!r}, but the tiers are {self.tiers}")

    def _check_shares(self, shares: dict[str, float]) -> dict[str, Fraction]:
        self._check_tier_names("shares", shares)
        for tier, share in shares.items():
            check_not_negative(self.name, f"shares.{tier}", share)
            check_fraction(self.name, f"shares.{tier}", share)
        given = {tier: exact(share) for tier, share in shares.items()}
        if self.share_mode == "fill":
            filled = {tier: given.get(tier, Fraction(1)) for tier in self.tiers}
            for above, below in zip(self.tiers, self.tiers[1:], strict=False):
                if filled[below] < filled[above]:
                    must = f"at least that of {above}: in mode fill a share includes the tiers above"
                    raise refuse(self.name, f"shares.{below}", float(filled[below]), must)
            return filled
        rest = 1 - sum(given.values(), Fraction(0))
        missing = [tier for tier in self.tiers if tier not in given]
        if rest < 0 or len(missing) > 1:
            raise refuse(self.name, "shares", shares, "a share for every tier but one, at most 1 together")
        return {tier: given.get(tier, rest) for tier in self.tiers}
