"""The step's token cap follows the load."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from policies.base import EngineLimits, Feedback, Policy, PolicyError, RankChanges, RequestView, StepLimits
from policies.checks import check_fraction, check_positive, exact, refuse


@dataclass(kw_only=True)
class Adaptive(Policy):
    """Arrival order, with small steps while there is little to do and large ones under load.

    It helps at low load where the limit is on ITL: on azure-conv-2023 (8B, H100) at 14 % load the p99 ITL is 14 ms in
    place of 30, the mean TTFT 55 in place of 48. From some 70 % on it does not: the same p99 ITL, and a longer TTFT
    (``docs/claims.md``).

    Load is the share of the last ``window_steps`` steps' token budgets that was used, each step
    measured against the cap it ran under (against the engine's own a small cap could never look
    full). Below ``low_load`` prompts that fit the cap are not split, unless a step admitted no request
    though some waited: beside a few decodes a prompt of nearly the cap would find no room for long.
    """

    name = "adaptive"
    summary = "arrival order; the token cap follows the load (shorter ITL at low load only)"
    rank_changes = RankChanges.NEVER
    feedback = Feedback.FIRST

    low_load: float = field(default=0.3, metadata={"help": "below this load the cap is low_tokens, unchunked"})
    high_load: float = field(default=0.7, metadata={"help": "below this load the cap is mid_tokens, else high_tokens"})
    low_tokens: int = field(default=512, metadata={"help": "cap at low load"})
    mid_tokens: int = field(default=2048, metadata={"help": "cap at medium load"})
    high_tokens: int = field(default=4096, metadata={"help": "cap at high load"})
    window_steps: int = field(default=64, metadata={"help": "steps the load is measured over"})
    _limits: EngineLimits | None = field(init=False, repr=False, default=None)
    _runs: deque[list[int]] = field(init=False, repr=False, default_factory=deque)
    """Runs of equal steps, oldest first: [tokens, budget, steps]; together at most ``window_steps``."""
    _unstarted: set[str] = field(init=False, repr=False, default_factory=set)
    _has_started_one: bool = field(init=False, repr=False, default=False)
    _is_stuck: bool = field(init=False, repr=False, default=False)
    _num_steps: int = field(init=False, repr=False, default=0)
    _tokens: int = field(init=False, repr=False, default=0)
    _budget: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        for parameter in ("low_tokens", "mid_tokens", "high_tokens", "window_steps"):
            check_positive(self.name, parameter, getattr(self, parameter))
        check_fraction(self.name, "low_load", self.low_load)
        check_fraction(self.name, "high_load", self.high_load)
        if self.high_load < self.low_load:
            raise refuse(self.name, "high_load", self.high_load, f"at least low_load ({self.low_load})")
        self._low, self._high = exact(self.low_load), exact(self.high_load)

    def bind(self, limits: EngineLimits) -> None:
        if not limits.enable_chunked_prefill:
            raise PolicyError(
                f"{self.name}: enable_chunked_prefill is False, but prompts above the cap must be chunked;"
                " turn it on or choose another policy"
            )
        self._limits = limits

    def rank(self, request: RequestView, now_ns: int) -> int:
        """The instant of arrival."""
        return request.arrival_ns

    @property
    def load(self) -> float:
        """Share of the recent steps' token budgets in use; 0 before the first step."""
        return self._tokens / self._budget if self._budget else 0.0

    def step_limits(self, now_ns: int) -> StepLimits:
        """The cap for the present load, within the engine's own."""
        low, high = self._low, self._high
        if not self._budget or self._tokens * low.denominator < low.numerator * self._budget:
            cap, chunked = self.low_tokens, self._is_stuck
        elif self._tokens * high.denominator < high.numerator * self._budget:
            cap, chunked = self.mid_tokens, True
        else:
            cap, chunked = self.high_tokens, True
        if self._limits is not None:
            cap = min(cap, self._limits.max_num_batched_tokens)
        return StepLimits(cap, chunked)

    def on_arrival(self, request: RequestView, now_ns: int) -> None:
        self._unstarted.add(request.request_id)

    def on_scheduled(self, request: RequestView, num_tokens: int) -> None:
        if request.request_id in self._unstarted:
            self._unstarted.remove(request.request_id)
            self._has_started_one = True

    def on_finished(self, request: RequestView) -> None:
        self._unstarted.discard(request.request_id)

    def on_step(self, num_tokens: int, token_budget: int, num_steps: int) -> None:
        # Of several equal steps only the first can have started any request.
        self._is_stuck = bool(self._unstarted) and not (self._has_started_one and num_steps == 1)
        self._has_started_one = False
        runs = self._runs
        if runs and runs[-1][0] == num_tokens and runs[-1][1] == token_budget:
            runs[-1][2] += num_steps
        else:
            runs.append([num_tokens, token_budget, num_steps])
        self._add(num_tokens, token_budget, num_steps)
        while self._num_steps > self.window_steps:
            oldest = runs[0]
            gone = min(oldest[2], self._num_steps - self.window_steps)
            self._add(oldest[0], oldest[1], -gone)
            oldest[2] -= gone
            if not oldest[2]:
                runs.popleft()

    def _add(self, num_tokens: int, token_budget: int, num_steps: int) -> None:
        self._num_steps += num_steps
        self._tokens += num_steps * num_tokens
        self._budget += num_steps * token_budget
