"""The policies of this project inside a live vLLM: the one file that imports vllm; imported by no other here.

    SIMRUN_POLICY=srtf vllm serve MODEL \\
        --scheduling-policy priority --scheduler-cls policies.vllm_plugin.PolicyScheduler

vLLM resolves the name and builds the class with its own arguments (``vllm/config/scheduler.py``,
``vllm/v1/engine/core.py``); where it schedules asynchronously, ``PolicyScheduler(...)`` is an ``AsyncPolicyScheduler``.

How a rank becomes a decision: vLLM admits the head of ``waiting``, which is here a heap by (rank, arrival, id), and
evicts ``max(running, key=(priority, arrival))``, for which a request's ``priority`` is its rank. A running request's
rank is asked for when vLLM asks for its priority, in steps that are short of KV blocks, and in no others.
"""

from __future__ import annotations

import copy
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vllm import __version__ as vllm_version  # type: ignore[import-not-found,unused-ignore]
from vllm.logger import init_logger  # type: ignore[import-not-found,unused-ignore]
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # type: ignore[import-not-found,unused-ignore]
from vllm.v1.core.sched.interface import PauseState  # type: ignore[import-not-found,unused-ignore]
from vllm.v1.core.sched.request_queue import RequestQueue  # type: ignore[import-not-found,unused-ignore]
from vllm.v1.core.sched.scheduler import Scheduler  # type: ignore[import-not-found,unused-ignore]
from vllm.v1.request import Request, RequestStatus  # type: ignore[import-not-found,unused-ignore]

from policies.base import (
    DecodeRanks,
    EngineLimits,
    EngineState,
    Feedback,
    Policy,
    PolicyError,
    RankChanges,
    RequestView,
    declared,
)
from policies.vllm_queue import RankedHeap
from policies.vllm_settings import (
    ALLOW_VERSION,
    PREDICTOR,
    build,
    check_scheduling_policy,
    check_version,
    read_settings,
)
from policies.vllm_view import LiveRequest, MonotonicClock, Views, read_hints, view_of

logger = init_logger("vllm.plugins.simrun")


class RankOnDemand:
    """``priority`` of a request that has none of its own at the moment: its rank, kept until the next step.

    Not a data descriptor, so that a value in the request itself is found without coming here.
    """

    def __get__(self, request: Any, owner: type | None = None) -> Any:
        if request is None:
            return self
        return request.scheduler.rank_now(request)


class PolicyRequest(Request):  # type: ignore[misc,unused-ignore]
    """What vLLM's requests become when they join a ``PolicyScheduler``."""

    priority: Any = RankOnDemand()
    scheduler: PolicyScheduler
    view: LiveRequest


class PolicyQueue(RankedHeap, RequestQueue):  # type: ignore[misc,unused-ignore]
    """A ``RankedHeap`` under the names that vLLM's scheduler uses."""

    def add_request(self, request: Any) -> None:
        """Enter a request."""
        self.add(request)

    def prepend_request(self, request: Any) -> None:
        """Enter a request that was preempted or passed over: there is no front, only ranks."""
        self.add(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Enter requests that were passed over."""
        for request in requests:
            self.add(request)

    def pop_request(self) -> Any:
        """Take the first out."""
        return self.pop()

    def peek_request(self) -> Any:
        """The first."""
        return self.peek()

    def remove_request(self, request: Any) -> None:
        """Take a request out."""
        self.discard(request)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Take requests out, as far as they wait here."""
        self.discard_all(requests)


class PolicyScheduler(Scheduler):  # type: ignore[misc,unused-ignore]
    """vLLM's scheduler with the priorities of a policy; what is synchronous and asynchronous is in its bases."""

    max_num_scheduled_tokens: Any
    scheduler_config: Any

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """The asynchronous one where vLLM has decided to schedule asynchronously."""
        if cls is PolicyScheduler and vllm_config.scheduler_config.async_scheduling:
            cls = AsyncPolicyScheduler
        return super().__new__(cls)

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        """Raises PolicyError where the policy cannot run here: see ``policies.vllm_settings``."""
        check_version(vllm_version, os.environ.get(ALLOW_VERSION))
        config = vllm_config.scheduler_config
        check_scheduling_policy(config.policy)
        if isinstance(self, AsyncScheduler) and not config.async_scheduling:
            raise PolicyError(
                f"{type(self).__name__} is for asynchronous scheduling, which is off: name PolicyScheduler"
            )
        settings = read_settings(os.environ, _parse_yaml)
        policy = build(settings)
        super().__init__(vllm_config, *args, **kwargs)
        self.clock: Any = MonotonicClock()
        """``now_ns()`` and ``arrival_ns(arrival_time)``; tests put their own here, before the first request."""
        self.use_policy(policy)
        logger.info("Scheduling by %s (%s)", settings.describe(), policy.summary)
        if PREDICTOR in os.environ and not policy.uses_predictor:
            logger.warning("%s has no effect: policy %s uses no predictor", PREDICTOR, policy.name)

    def use_policy(self, policy: Policy) -> None:
        """Schedule by ``policy`` from the next request on; no request may be here.

        Raises:
            PolicyError: the policy cannot work within the engine's limits, or requests are here.
        """
        if self.requests:
            raise PolicyError(f"{len(self.requests)} requests are here: a policy can only change while there are none")
        self.ranks_by = policy
        pool = self.kv_cache_manager.block_pool
        policy.bind(
            EngineLimits(
                max_num_batched_tokens=self.max_num_scheduled_tokens,
                max_num_seqs=self.max_num_active_reqs,
                block_size=self.block_size,
                num_gpu_blocks=pool.num_gpu_blocks - 1,
                enable_chunked_prefill=self.scheduler_config.enable_chunked_prefill,
            )
        )
        # vLLM's own fcfs goes by the order in which requests joined, not by their time stamps.
        rank = _join_order if policy.stock_mode == "fcfs" else policy.rank
        self.waiting = PolicyQueue(policy, rank, view_of)
        self.kv_holding_waiting = PolicyQueue(policy, rank, view_of)
        self.now_ns = 0
        self._ranks_stay = declared(policy, "rank_changes", RankChanges.ALWAYS) == RankChanges.NEVER
        decode_ranks = declared(policy, "decode_ranks", DecodeRanks.MOVE)
        self._decode_ranks_stay = decode_ranks is DecodeRanks.STAY and not self.num_spec_tokens
        self._ranked_running: list[Any] = []
        """Running requests whose ``priority`` is their rank of this step, and no longer."""
        self._num_joined = 0
        self._stale: list[Any] = []
        """Preempted with output in flight: what comes of it may move their ranks."""
        self._problems: set[str] = set()
        feedback = declared(policy, "feedback", Feedback.EACH)
        self._feedback = feedback if _defines(policy, "on_scheduled") else None
        self._wants_steps = _defines(policy, "on_step")
        self._group_of: dict[str, Any] = {}
        self._member_of: dict[Any, RequestView] = {}
        """By service group: any request of it that was scheduled."""
        self._own_token_budget = self.max_num_scheduled_tokens
        self._own_chunking = self.scheduler_config.enable_chunked_prefill
        self._chunk_cap = 0
        self._has_step_limits = _defines(policy, "step_limits")
        if self._has_step_limits:
            # Its chunking follows the policy from step to step; no other part is to see that.
            self.scheduler_config = copy.copy(self.scheduler_config)

    # --- requests come and go ----------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """A request joins; an invalid hint of its client is told once per kind, and left out."""
        if request.request_id in self.requests:
            super().add_request(request)  # the next turn of one that is here
            return
        now_ns = self.clock.now_ns()
        params = request.sampling_params
        hints, problems = read_hints(None if params is None else params.extra_args)
        for problem in problems:
            self._tell_once(request.request_id, problem)
        self._num_joined += 1
        arrival_ns = self.clock.arrival_ns(request.arrival_time)
        view = LiveRequest(request, request.priority, arrival_ns, self._num_joined, hints)
        request.__class__ = PolicyRequest
        request.scheduler, request.view = self, view
        del request.priority
        self.ranks_by.on_arrival(view, now_ns)
        if self._feedback is Feedback.GROUPS:
            self._group_of[request.request_id] = self.ranks_by.service_group(view)
        super().add_request(request)

    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> Any:
        self._group_of.pop(request.request_id, None)
        self.ranks_by.on_finished(request.view)
        request.view.end()
        return super()._free_request(request, delay_free_blocks)

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        super()._update_request_as_session(session, update)
        session.view.renew()
        _forget_rank(session)

    def _tell_once(self, request_id: str, problem: str) -> None:
        kind = problem.split()[0]
        if kind not in self._problems:
            self._problems.add(kind)
            logger.warning("Request %s: hint %s (told once for %s)", request_id, problem, kind)

    # --- ranks -------------------------------------------------------------------------------

    def rank_now(self, request: Any) -> float:
        """The rank of ``request`` in this step. vLLM asks when it looks for a victim, so all that run get theirs."""
        rank, now_ns = self.waiting.rank, self.now_ns
        stay, decodes_stay = self._ranks_stay, self._decode_ranks_stay
        for each in self.running:
            if "priority" not in each.__dict__:
                each.priority = rank(each.view, now_ns)
                if not (stay or (decodes_stay and each._output_token_ids and not each.is_prefill_chunk)):
                    self._ranked_running.append(each)
        own: float = self.waiting.ask(request.view)
        return own

    def _forget_ranks(self) -> None:
        ranked, self._ranked_running = self._ranked_running, []
        for request in ranked:
            _forget_rank(request)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        _forget_rank(request)
        super()._preempt_request(request, *args, **kwargs)
        if request.num_stale_output_tokens:
            self._stale.append(request)

    def _rank_stale_anew(self) -> None:
        for request in self._stale:
            self.waiting.touch(request)
        self._stale = [request for request in self._stale if request.num_stale_output_tokens]

    # --- a step ------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """One step: ranks as of now, the policy's own evictions, vLLM's step under the policy's cap, feedback."""
        now_ns = self.now_ns = self.clock.now_ns()
        if self._ranked_running:
            self._forget_ranks()
        if self._stale:
            self._rank_stale_anew()
        waiting = self.waiting
        waiting.refresh(now_ns)
        if self.kv_holding_waiting:
            self.kv_holding_waiting.refresh(now_ns)
        if waiting and self.running and self.ranks_by.preempts and self._pause_state == PauseState.UNPAUSED:
            self._preempt_proactively(now_ns)
        if self._has_step_limits:
            output = self._schedule_within_limits(now_ns, throttle_prefills)
        else:
            output = super().schedule(throttle_prefills)
            self._tell_policy(output, self._own_token_budget)
        return output

    def _preempt_proactively(self, now_ns: int) -> None:
        waiting, running = self.waiting, self.running
        if _waits_for_grammar(waiting.peek()):
            return  # it could not take the room made for it
        free_blocks = self.kv_cache_manager.block_pool.get_num_free_blocks()
        state = EngineState(now_ns, free_blocks, len(running), len(waiting))
        victims = self.ranks_by.preempt(
            Views(running, len(running), None), Views(waiting, len(waiting), waiting.peek().view), state
        )
        for view in list(victims):
            victim = view.request if isinstance(view, LiveRequest) else None
            if victim is None or victim not in self.running:
                raise PolicyError(f"policy {self.ranks_by.name} preempts {view!r}, which does not run")
            if not self._request_blocks_can_be_freed(victim):
                continue  # a KV transfer still uses them: nothing would be gained
            self.running.remove(victim)
            self._preempt_request(victim, time.monotonic(), drop_stale_output=self.requires_kv_delivery)
            # It may be admitted again in this very step, and must then be told to the worker anew.
            self.prev_step_scheduled_req_ids.discard(victim.request_id)

    def _schedule_within_limits(self, now_ns: int, throttle_prefills: bool) -> Any:
        limits = self.ranks_by.step_limits(now_ns)
        budget, chunking = self._own_token_budget, self._own_chunking
        if limits is not None:
            budget, chunking = min(budget, limits.max_num_batched_tokens), limits.enable_chunked_prefill
        self.max_num_scheduled_tokens = budget
        self.scheduler_config.enable_chunked_prefill = chunking
        self._whole_prompts_to = 0 if chunking else budget
        try:
            self._chunk_cap = self._long_prefill_cap()
            output = super().schedule(throttle_prefills)
        finally:
            self.max_num_scheduled_tokens = self._own_token_budget
            self.scheduler_config.enable_chunked_prefill = self._own_chunking
        self._tell_policy(output, budget)
        return output

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        hit = super()._get_local_prefix_cache_hit(request)
        if self._has_step_limits and self._whole_prompts_to:
            # Whole prompts only: but one that no step could hold is chunked all the same, or it would never run.
            num_new = request.num_tokens - hit[1]
            if self._chunk_cap:
                num_new = min(num_new, self._chunk_cap)
            self.scheduler_config.enable_chunked_prefill = num_new > self._whole_prompts_to
        return hit

    def _long_prefill_cap(self) -> int:
        """``long_prefill_token_threshold`` as ``schedule`` will apply it to this step; 0 = off."""
        cap: int = self.scheduler_config.long_prefill_token_threshold
        num_requests = sum(self.get_request_counts())
        if not cap or num_requests <= 1:
            return 0
        if self.adaptive_long_prefill_threshold:
            cap = max(cap, self.scheduler_config.max_num_batched_tokens // num_requests)
        return cap

    # --- feedback ----------------------------------------------------------------------------

    def _tell_policy(self, output: Any, token_budget: int) -> None:
        num_tokens = output.total_num_scheduled_tokens
        if not num_tokens:
            return
        policy, scheduled = self.ranks_by, output.num_scheduled_tokens
        if self._feedback is Feedback.EACH:
            requests = self.requests
            for request_id, count in scheduled.items():
                policy.on_scheduled(requests[request_id].view, count)
        elif self._feedback is not None:
            for data in output.scheduled_new_reqs:
                policy.on_scheduled(self.requests[data.req_id].view, scheduled[data.req_id])
            if self._feedback is Feedback.GROUPS:
                self._tell_groups(output.scheduled_new_reqs, scheduled, num_tokens)
        if self._wants_steps:
            policy.on_step(num_tokens, token_budget, 1)

    def _tell_groups(self, told: Sequence[Any], scheduled: dict[str, int], num_tokens: int) -> None:
        """The tokens of all but those already ``told``, by group: counting is done in C, whatever the batch."""
        group_of = self._group_of
        sums = Counter(map(group_of.__getitem__, scheduled))  # one token for each ...
        if num_tokens > len(scheduled):
            for request_id, count in scheduled.items():
                if count > 1:  # ... and the rest of the prefills'
                    sums[group_of[request_id]] += count - 1
        for data in told:
            group = group_of[data.req_id]
            sums[group] -= scheduled[data.req_id]
            self._member_of[group] = self.requests[data.req_id].view
        for group, count in sums.items():
            if count:
                self.ranks_by.on_scheduled(self._member_of[group], count)


class AsyncPolicyScheduler(PolicyScheduler, AsyncScheduler):  # type: ignore[misc,unused-ignore]
    """``PolicyScheduler`` where a step is formed while the one before it runs: vLLM's default on GPUs."""


def _join_order(request: RequestView, now_ns: int) -> float:
    sequence: int = request.sequence  # type: ignore[attr-defined]
    return sequence


def _waits_for_grammar(request: Any) -> bool:
    if request.status != RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
        return False
    structured = request.structured_output_request
    return structured is None or structured.grammar is None


def _forget_rank(request: Any) -> None:
    if "priority" in request.__dict__:
        del request.priority


def _defines(policy: Policy, method: str) -> bool:
    return getattr(type(policy), method) is not getattr(Policy, method)


def _parse_yaml(text: str) -> object:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)
