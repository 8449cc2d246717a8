"""Speculative decoding: drafts are scheduled, verified and rolled back as vLLM's V1 scheduler does.

``update_from_output``, ``update_draft_token_ids`` and ``AsyncScheduler._update_after_schedule`` of
``vllm/v1/core/sched`` (0.32.0). Which drafts are accepted is drawn; everything else follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from policies.base import Policy
from sim.engine.reference.batch import Batch, SchedulerSettings, Step
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import NEVER, Request, State
from sim.results.record import DraftCounts, Recorder
from sim.seeds import rng


class Acceptance:
    """Which drafts the target model accepts.

    ``rates[i]``: probability that draft i is accepted, given that those before it are. There is one draw for each
    request and output position, and a position is drafted until it is decided once: so the draws are independent, and
    the same under every policy and batch.
    """

    def __init__(self, rates: Sequence[float], seed: int) -> None:
        self.rates = tuple(rates)
        self._seed = seed
        self._draws: dict[int, npt.NDArray[np.float64]] = {}

    def num_accepted(self, request: Request, num_drafts: int) -> int:
        """How many of the next ``num_drafts`` drafts of ``request`` are accepted, from the first on."""
        draws = self._draws.get(request.row)
        if draws is None:
            length = request._stop_at_output_tokens + len(self.rates)
            draws = self._draws[request.row] = rng(self._seed, "speculative", str(request.row)).random(length)
        first = request.num_output_tokens
        for index in range(num_drafts):
            if draws[first + index] >= self.rates[index]:
                return index
        return num_drafts

    def forget(self, request: Request) -> None:
        """``request`` has ended."""
        self._draws.pop(request.row, None)


class SpeculativeScheduler(Scheduler):
    """A scheduler whose decodes have ``num_speculative_tokens`` drafts each."""

    def __init__(
        self, settings: SchedulerSettings, policy: Policy, acceptance: Acceptance, recorder: Recorder | None = None
    ) -> None:
        super().__init__(settings, policy, recorder)
        self.acceptance = acceptance
        if self.recorder.drafts is None:
            self.recorder.drafts = DraftCounts(settings.num_speculative_tokens)
        self.drafts = self.recorder.drafts
        self._pads_first_in = self._pads_resumed = False

    # --- forming a step --------------------------------------------------------------------

    def _schedule_running(self, batch: Batch, step: Step, order: list[Request]) -> bool:
        none_preempted = super()._schedule_running(batch, step, order)
        # A request that runs without drafts was in the middle of its prefill when it was last scheduled.
        self._pads_resumed = all(request.num_draft_tokens for request in batch.scheduled)
        self._pads_first_in = self._pads_resumed and bool(batch.scheduled)
        return none_preempted

    def _padded(self, computed: int, step: Step) -> int:
        """A waiting request that needs one token only is made as long as the decodes beside it, with drafts that
        nothing accepts, so that the step keeps its CUDA graph; rather not at all than shorter."""
        if not (self._pads_first_in or (self._pads_resumed and computed)):
            return 1
        num_padded = 1 + self.settings.num_speculative_tokens
        if computed + num_padded + 1 > self.settings.max_model_len:
            return 1
        return num_padded if num_padded <= step.token_budget else 0

    def _advance(self, batch: Batch) -> None:
        """As in ``Scheduler``, with the drafts counted as computed until some are rejected."""
        shape = batch.shape
        is_async = self.settings.async_scheduling
        drafts: dict[Request, int] = {}
        for request, num_new in batch.scheduled.items():
            prior, known = request.num_computed_tokens, request.num_known_tokens
            computed = request.num_computed_tokens = prior + num_new
            num_drafts = max(computed - known, 0)
            if num_drafts:
                drafts[request] = num_drafts if request.num_draft_tokens else -num_drafts
            if num_drafts or (num_new == 1 and computed == known > request.num_prompt_tokens):
                shape.num_decodes += 1
                shape.decode_context_tokens += computed
                shape.num_draft_tokens += num_drafts
                shape.verify_attention_pairs += num_new * computed
            else:
                shape.num_prefills += 1
                shape.num_prefill_tokens += num_new
                shape.prefill_context_tokens += computed
                shape.prefill_attention_pairs += num_new * (prior + computed)
            request.num_draft_tokens = 0
            if computed >= known:
                batch.sampled.append(request)
                if is_async:
                    request.num_output_placeholders += 1 + num_drafts
                    request.num_known_tokens += 1 + num_drafts
                    request.num_draft_tokens = self.settings.num_speculative_tokens
            if self.steering.wants_scheduled:
                self.policy.on_scheduled(request, num_new)
        batch.drafts = drafts
        shape.num_sampled += len(batch.sampled) + shape.num_draft_tokens
        self._dispatch(batch)

    def _is_prefill(self, request: Request, num_tokens: int) -> bool:
        num_drafts = max(request.num_computed_tokens + num_tokens - request.num_known_tokens, 0)
        return super()._is_prefill(request, num_tokens - num_drafts)

    def _preempt(self, victim: Request, now_ns: int) -> None:
        super()._preempt(victim, now_ns)
        victim.num_draft_tokens = 0

    def _num_computed_for_good(self, request: Request) -> int:
        return min(request.num_computed_tokens, request.num_tokens)

    # --- the step has been computed --------------------------------------------------------

    def update(self, batch: Batch, now_ns: int) -> list[Request]:
        if self.in_flight and self.in_flight[0] is batch:
            self.in_flight.popleft()
        finished: list[Request] = []
        gaps = self.recorder.gaps
        for request in batch.sampled:
            if request.state is State.FINISHED:
                continue
            num_new = 1 + self._verify(request, batch)
            # vLLM drops what follows a stop: accepted drafts behind the last token never come out.
            num_new = min(num_new, request._stop_at_output_tokens - request.num_output_tokens)
            request.num_output_tokens += num_new
            request.num_tokens += num_new
            if batch.drafts.get(request, 0) > 0:
                self.drafts.num_output_tokens += num_new
            if not self.settings.async_scheduling or request in batch.stale:
                request.num_known_tokens += num_new
            else:
                request.num_output_placeholders -= num_new
                computed = request.num_computed_tokens - request.num_output_placeholders
                if computed >= request.next_cacheable_tokens:
                    self.kv.cache_blocks(request, computed)
            if request.first_token_ns == NEVER:
                request.first_token_ns = now_ns
            else:
                gaps.add((now_ns - request.last_token_ns, gaps.units[request.class_index]))
            if num_new > 1:
                gaps.add((0, (num_new - 1) * gaps.units[request.class_index]))
            request.last_token_ns = now_ns
            if request.is_catching_up:
                self.recorder.caught_up(request, now_ns)
            if request.num_output_tokens >= request._stop_at_output_tokens:
                finished.append(request)
            elif not self.settings.async_scheduling:
                request.num_draft_tokens = self.settings.num_speculative_tokens
        return self._end_update(batch, finished, now_ns)

    def _finish(self, request: Request) -> None:
        super()._finish(request)
        self.acceptance.forget(request)

    def _verify(self, request: Request, batch: Batch) -> int:
        """How many drafts of ``request`` are accepted; the others are no longer computed."""
        num_drafts = batch.drafts.get(request, 0)
        num_accepted = 0
        if num_drafts > 0:
            num_accepted = self.acceptance.num_accepted(request, num_drafts)
            self.drafts.add(num_drafts, num_accepted)
        num_rejected = abs(num_drafts) - num_accepted
        if num_rejected and request not in batch.stale:
            request.num_computed_tokens -= num_rejected
            self.outstanding_tokens += num_rejected
            if self.settings.async_scheduling:
                request.num_output_placeholders -= num_rejected
                request.num_known_tokens -= num_rejected
        return num_accepted
