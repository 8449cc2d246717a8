"""Step shares: how many of a step's tokens each group of requests may use (simulator only; P9, P13)."""

from __future__ import annotations

from policies.base import Policy, RequestView
from policies.checks import wrong_answer
from sim.errors import SimulationError


class StepShares:
    """What each share group has left of one step."""

    def __init__(self, policy: Policy, budgets: dict[str, int]) -> None:
        self._policy = policy
        self._left = dict(budgets)
        self._names = list(budgets)

    @classmethod
    def of(cls, policy: Policy, token_budget: int) -> StepShares | None:
        """Return the shares of a step of ``token_budget`` tokens, or None where the policy has none."""
        budgets = policy.share_budgets(token_budget)
        if budgets is None:
            return None
        if not isinstance(budgets, dict) or not all(isinstance(each, int) for each in budgets.values()):
            expected = "whole tokens by share group in a dict, or None"
            raise SimulationError(wrong_answer(policy, "share_budgets", budgets, expected))
        return cls(policy, budgets)

    def left(self, request: RequestView) -> int:
        """Return the tokens that ``request`` may still be given in this step."""
        bounds = self._bounds(request)
        return max(min((self._left[name] for name in bounds), default=1 << 62), 0)

    def use(self, request: RequestView, num_tokens: int) -> None:
        """Count ``num_tokens`` of ``request`` as scheduled (negative: as given back)."""
        for name in self._bounds(request):
            self._left[name] -= num_tokens

    def _bounds(self, request: RequestView) -> list[str]:
        group = self._policy.share(request)
        if group is None or group not in self._left:
            return []
        # A figure that accumulates bounds its group together with the groups before it.
        return self._names[self._names.index(group) :] if self._policy.shares_accumulate else [group]
