"""What a policy says in a step: its limits and shares, requests to preempt beforehand, and those that yield blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from policies.base import EngineLimits, EngineState, Policy, StepLimits
from policies.checks import label, wrong_answer
from sim.engine.reference.batch import SchedulerSettings, Step
from sim.engine.reference.shares import StepShares
from sim.engine.reference.waiting import AdmissionOrder, WaitingQueue
from sim.engine.request import Request, State
from sim.errors import SimulationError


class Steering:
    """A policy, asked for what it overrides and for nothing else."""

    def __init__(self, settings: SchedulerSettings, policy: Policy, num_gpu_blocks: int) -> None:
        self.settings = settings
        self.policy = policy
        self.is_ranked = policy.stock_mode != "fcfs"
        self.wants_scheduled = _overrides(policy, "on_scheduled")
        self.wants_steps = _overrides(policy, "on_step")
        self._preempts = policy.preempts
        self._has_step_limits = _overrides(policy, "step_limits")
        self._has_shares = _overrides(policy, "share_budgets")
        self._has_own_victims = _overrides(policy, "victim")
        policy.bind(
            EngineLimits(
                max_num_batched_tokens=settings.max_num_batched_tokens,
                max_num_seqs=settings.max_num_seqs,
                block_size=settings.block_size,
                num_gpu_blocks=num_gpu_blocks,
                enable_chunked_prefill=settings.enable_chunked_prefill,
                prompt_tokens_per_output_token=settings.prompt_tokens_per_output_token,
            )
        )

    def begin_step(self, now_ns: int, num_requests: int) -> Step:
        """Return what the step at ``now_ns`` has to give, with ``num_requests`` waiting and running."""
        settings = self.settings
        budget = settings.max_num_batched_tokens - settings.draft_slots
        whole_prompts_only = not settings.enable_chunked_prefill
        largest_whole_prompt = settings.max_model_len
        if self._has_step_limits and (limits := self.policy.step_limits(now_ns)) is not None:
            if not isinstance(limits, StepLimits):
                raise SimulationError(wrong_answer(self.policy, "step_limits", limits, "a StepLimits, or None"))
            budget = largest_whole_prompt = min(budget, limits.max_num_batched_tokens)
            whole_prompts_only = not limits.enable_chunked_prefill
        # A threshold keeps a long prompt from starving others: alone, it starves none.
        chunk_cap = settings.long_prefill_token_threshold
        if num_requests <= 1:
            chunk_cap = 0
        elif chunk_cap and settings.long_prefill_token_threshold_adaptive:
            chunk_cap = max(chunk_cap, settings.max_num_batched_tokens // num_requests)
        return Step(
            now_ns,
            budget,
            settings.max_prefill_tokens_per_step or budget,
            chunk_cap,
            whole_prompts_only,
            largest_whole_prompt,
            StepShares.of(self.policy, budget) if self._has_shares else None,
            settings.draft_slots,
        )

    def preempted_first(
        self, running: list[Request], waiting: WaitingQueue, now_ns: int, num_free_blocks: int
    ) -> list[Request]:
        """Ask the policy which running requests it preempts before the step is formed.

        Raises SimulationError where one of them does not run.
        """
        if not self._preempts or not running:
            return []
        state = EngineState(now_ns, num_free_blocks, len(running), len(waiting))
        victims: list[Request] = []
        for victim in victims_in(self.policy, self.policy.preempt(running, AdmissionOrder(waiting), state)):
            if not isinstance(victim, Request) or victim.state is not State.RUNNING or victim in victims:
                raise SimulationError(f"policy {label(self.policy)} preempts {victim!r}, which does not run")
            victims.append(victim)
        return victims

    def pick_victim(self, running: Sequence[Request], needy: Request, now_ns: int) -> Request:
        """Choose the request that yields its blocks to ``needy``: the last admitted, or the largest (rank, arrival)."""
        if self._has_own_victims:
            chosen = self.policy.victim(running, needy)
            if isinstance(chosen, Request) and chosen.state is State.RUNNING:
                return chosen
            if chosen is not None:
                raise SimulationError(wrong_answer(self.policy, "victim", chosen, "a request that runs, or None"))
        if not self.is_ranked:
            return running[-1]
        rank = self.policy.rank
        return max(running, key=lambda request: (rank(request, now_ns), request.arrival_ns))

    def by_rank(self, running: list[Request], now_ns: int) -> list[Request]:
        """Sort running requests into the order in which shares are given out."""
        rank = self.policy.rank
        return sorted(running, key=lambda request: (rank(request, now_ns), request.arrival_ns, request.order))


def victims_in(policy: Policy, answer: object) -> Sequence[object]:
    """What a policy answered to ``preempt``, as a list. Raises SimulationError where it is no collection."""
    if not isinstance(answer, Iterable) or isinstance(answer, str):
        raise SimulationError(wrong_answer(policy, "preempt", answer, "the requests to preempt, () for none"))
    return list(answer)


def _overrides(policy: Policy, name: str) -> bool:
    return getattr(type(policy), name) is not getattr(Policy, name)
