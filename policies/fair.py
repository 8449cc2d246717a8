"""Weighted fair queueing by tenant, with rate limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm

from policies.base import Feedback, Policy, RankChanges, RequestView
from policies.checks import check_not_negative, check_positive, exact, refuse, seconds_ns

URGENCY = 1 << 96
OVER_LIMIT = 1 << 100
OVERDUE, HIGH, NORMAL = 0, 1, 2
BURST_SECONDS = 10
NS_PER_S = 1_000_000_000


class TokenBucket:
    """A tenant's token bucket in whole numbers: ``rate`` tokens per second, at most ``burst`` saved up.

    It keeps the instant at which the bucket would be full again (the virtual scheduling form of the
    generic cell rate algorithm, ITU-T I.371), in units of 1 / numerator(rate) ns, so that nothing is rounded.
    """

    def __init__(self, rate: Fraction, burst: int) -> None:
        self._scale = rate.numerator
        self._per_token = rate.denominator * NS_PER_S
        self._burst = burst
        self._full_at = 0

    def take(self, tokens: int, now_ns: int) -> int:
        """Take ``tokens`` for a request that arrives at ``now_ns``; the first instant at which it may run.

        A request larger than the bucket waits for a full one and leaves it in debt.
        """
        before = max(self._full_at, now_ns * self._scale)
        self._full_at = before + tokens * self._per_token
        may_run = before - (self._burst - min(tokens, self._burst)) * self._per_token
        return max(now_ns, -(-may_run // self._scale))

    def give_back(self, tokens: int) -> None:
        """Return tokens that were taken but not used. Instants already told stay."""
        self._full_at -= tokens * self._per_token


@dataclass(kw_only=True)
class Fair(Policy):
    """The tenant that got least service per weight first (virtual token counter, Sheng et al., OSDI 2024).

    Service is every scheduled token, recomputation included; cached prefixes are free. A tenant that
    comes back is lifted to the least counter among the waiting ones (to that of the tenant that last
    emptied the queue if no request waits), so that idling saves up nothing.

    Rate limits: a request's prompt and ``max_tokens`` are taken from its tenant's bucket on arrival, what
    was not generated is given back at its end. vLLM cannot hold a request back, so one over the limit
    runs behind all others until the bucket covers it: limits bite under load only.

    Shares (simulator only): a tenant's tokens in a step are bounded by its weight among the tenants that
    have requests, and overdue requests come before high ones (``priority`` below 0) before normal ones.
    """

    name = "fair"
    summary = "least served tenant first, by weight; token-bucket limits per tenant"
    rank_changes = RankChanges.ALWAYS
    feedback = Feedback.GROUPS

    weights: dict[str, float] = field(default_factory=dict, metadata={"help": "weight by tenant"})
    default_weight: float = field(default=1.0, metadata={"help": "weight of tenants not in weights"})
    rate_tokens_per_s: float | dict[str, float] | None = field(
        default=None, metadata={"help": "token-bucket rate, for every tenant or by tenant; null = no limit"}
    )
    burst_tokens: int | dict[str, int] | None = field(
        default=None, metadata={"help": f"token-bucket size likewise; null = {BURST_SECONDS} s of the rate"}
    )
    shares: bool = field(
        default=False, metadata={"help": "bound a tenant's tokens in a step by its weight; simulator only"}
    )
    overdue_after_s: float | None = field(
        default=30.0,
        metadata={"help": "with shares: a request without a deadline is overdue so many s after arrival; null = never"},
    )
    _counters: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    _live: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    """Requests not ended, by tenant."""
    _unstarted: dict[str, set[str]] = field(init=False, repr=False, default_factory=dict)
    """Requests never scheduled, by tenant: the queue of the virtual token counter."""
    _last_tenant: str | None = field(init=False, repr=False, default=None)
    _buckets: dict[str, TokenBucket] = field(init=False, repr=False, default_factory=dict)
    _may_run_ns: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    """By request that arrived over its tenant's limit."""

    def __post_init__(self) -> None:
        for tenant, weight in self.weights.items():
            check_positive(self.name, f"weights.{tenant}", weight)
        check_positive(self.name, "default_weight", self.default_weight)
        self._weights = {tenant: exact(weight) for tenant, weight in self.weights.items()}
        self._default_weight = exact(self.default_weight)
        # tokens / weight as an integer: weight p/q gives tokens * (common * q / p).
        common = lcm(self._default_weight.numerator, *(weight.numerator for weight in self._weights.values()))
        self._costs = {tenant: int(common / weight) for tenant, weight in self._weights.items()}
        self._default_cost = int(common / self._default_weight)
        rates, bursts = self.rate_tokens_per_s, self.burst_tokens
        for tenant, rate in (rates if isinstance(rates, dict) else {"*": rates}).items():
            if rate is not None:
                check_positive(self.name, f"rate_tokens_per_s ({tenant})", rate)
        for tenant, burst in (bursts if isinstance(bursts, dict) else {"*": bursts}).items():
            if burst is not None:
                check_positive(self.name, f"burst_tokens ({tenant})", burst)
        if rates is None and bursts is not None:
            raise refuse(self.name, "burst_tokens", bursts, "null without rate_tokens_per_s")
        self._overdue_ns: int | None = None
        if self.overdue_after_s is not None:
            check_not_negative(self.name, "overdue_after_s", self.overdue_after_s)
            self._overdue_ns = seconds_ns(self.overdue_after_s)

    # --- order -------------------------------------------------------------------------------

    def rank(self, request: RequestView, now_ns: int) -> int:
        """(over the limit, urgency with ``shares``, the tenant's counter) in one integer."""
        rank = self._counters.get(request.tenant, 0)
        if self.shares:
            rank += URGENCY * self._urgency(request, now_ns)
        may_run_ns = self._may_run_ns.get(request.request_id)
        if may_run_ns is not None and now_ns < may_run_ns:
            rank += OVER_LIMIT
        return rank

    def next_change_ns(self, request: RequestView, now_ns: int) -> int | None:
        instants = [self._may_run_ns.get(request.request_id), self._overdue_at_ns(request) if self.shares else None]
        return min((instant for instant in instants if instant is not None and instant > now_ns), default=None)

    def rank_group(self, request: RequestView) -> str | None:
        """Its tenant, for those whose ranks are the tenant's counter and nothing else."""
        return None if self.shares or request.request_id in self._may_run_ns else request.tenant

    def service_group(self, request: RequestView) -> str:
        """Its tenant."""
        return request.tenant

    def _overdue_at_ns(self, request: RequestView) -> int | None:
        if request.deadline_ns is not None:
            return request.deadline_ns
        return None if self._overdue_ns is None else request.arrival_ns + self._overdue_ns

    def _urgency(self, request: RequestView, now_ns: int) -> int:
        overdue_at = self._overdue_at_ns(request)
        if overdue_at is not None and now_ns >= overdue_at:
            return OVERDUE
        return HIGH if request.priority < 0 else NORMAL

    # --- service -----------------------------------------------------------------------------

    def on_arrival(self, request: RequestView, now_ns: int) -> None:
        tenant = request.tenant
        self._live[tenant] = self._live.get(tenant, 0) + 1
        if tenant not in self._unstarted:
            self._lift(tenant)
            self._unstarted[tenant] = set()
        self._unstarted[tenant].add(request.request_id)
        bucket = self._bucket(tenant)
        if bucket is not None:
            may_run_ns = bucket.take(request.num_prompt_tokens + request.max_tokens, now_ns)
            if may_run_ns > now_ns:
                self._may_run_ns[request.request_id] = may_run_ns

    def on_scheduled(self, request: RequestView, num_tokens: int) -> None:
        tenant = request.tenant
        cost = self._costs.get(tenant, self._default_cost)
        self._counters[tenant] = self._counters.get(tenant, 0) + num_tokens * cost
        self._leave_queue(request)

    def on_finished(self, request: RequestView) -> None:
        tenant = request.tenant
        self._leave_queue(request)
        self._may_run_ns.pop(request.request_id, None)
        bucket = self._buckets.get(tenant)
        if bucket is not None:
            bucket.give_back(max(0, request.max_tokens - request.num_output_tokens))
        live = self._live.get(tenant, 0) - 1
        if live > 0:
            self._live[tenant] = live
        else:
            self._live.pop(tenant, None)

    def _lift(self, tenant: str) -> None:
        counters = self._counters
        if self._unstarted:
            floor = min(counters.get(other, 0) for other in self._unstarted)
        else:
            floor = counters.get(self._last_tenant, 0) if self._last_tenant is not None else 0
        counters[tenant] = max(counters.get(tenant, 0), floor)

    def _leave_queue(self, request: RequestView) -> None:
        waiting = self._unstarted.get(request.tenant)
        if waiting and request.request_id in waiting:
            waiting.remove(request.request_id)
            if not waiting:
                del self._unstarted[request.tenant]
                self._last_tenant = request.tenant

    def _bucket(self, tenant: str) -> TokenBucket | None:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            rates, bursts = self.rate_tokens_per_s, self.burst_tokens
            rate = rates.get(tenant) if isinstance(rates, dict) else rates
            if rate is None:
                return None
            burst = bursts.get(tenant) if isinstance(bursts, dict) else bursts
            size = max(1, int(exact(rate) * BURST_SECONDS)) if burst is None else burst
            bucket = self._buckets[tenant] = TokenBucket(exact(rate), size)
        return bucket

    # --- shares ------------------------------------------------------------------------------

    def share(self, request: RequestView) -> str | None:
        return request.tenant if self.shares else None

    def share_budgets(self, max_num_batched_tokens: int) -> dict[str, int] | None:
        if not self.shares:
            return None
        weights = {tenant: self._weights.get(tenant, self._default_weight) for tenant in self._live}
        total = sum(weights.values(), Fraction(0))
        return {
            tenant: max(1, int(weight / total * max_num_batched_tokens)) for tenant, weight in sorted(weights.items())
        }

    def live_refusal(self) -> str | None:
        if not self.shares:
            return None
        return "`shares` bounds a tenant's tokens within a step, which vLLM's scheduler cannot do; it runs without"
