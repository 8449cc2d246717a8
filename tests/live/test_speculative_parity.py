"""With draft tokens too, the simulator decides as vLLM's scheduler does, on random workloads under KV pressure.

Which drafts are accepted is drawn by the simulator's ``Acceptance`` on both sides; what follows from it (tokens of a
step, blocks, rejected tokens taken back, preemptions, ends) is each scheduler's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from real_scheduler import STOP_TOKEN, RealScheduler, drive
from sim_scheduler import SimScheduler, scheduler_settings
from test_parity import first_difference
from traces import Case, CaseRequest, Policy, Replay, draw_case

from policies.fcfs import Fcfs
from policies.priority import Priority
from sim.engine.variants.drafts import Acceptance, SpeculativeScheduler

SEEDS = range(10)
KINDS = ("plain", "pressure", "prefix_pressure", "sessions", "long_prefill", "unchunked", "model_len", "everything")
"""Groups of ``traces``: x 2 policies x 2 depths x 10 seeds."""


def draw_speculative_case(group: str, policy: Policy, async_scheduling: bool, seed: int) -> tuple[Case, Acceptance]:
    """A case of ``traces`` with drafts, and which of them are accepted."""
    case = draw_case(group, policy, async_scheduling, seed)
    rng = random.Random(f"drafts/{case.name}")
    settings, num_drafts = case.settings, rng.choice([1, 2, 3, 5])
    threshold = settings.long_prefill_token_threshold
    longest = max(
        min(request.prompt_tokens + request.max_tokens - 1 + 2 * num_drafts, settings.max_model_len)
        for request in case.requests
    )
    settings = replace(
        settings,
        num_speculative_tokens=num_drafts,
        # vLLM refuses n-grams with asynchronous scheduling.
        has_draft_model=async_scheduling or rng.random() < 0.5,
        # vLLM fails on a padded decode that the threshold cuts.
        long_prefill_token_threshold=max(threshold, num_drafts + 1) if threshold else 0,
        num_gpu_blocks=max(settings.num_gpu_blocks, -(-longest // settings.block_size) + 1),
    )
    rates = [rng.choice([0.0, 0.3, 0.6, 0.9, 1.0]) for _ in range(num_drafts)]
    return replace(case, settings=settings), Acceptance(rates, seed)


class RealSpeculativeScheduler(RealScheduler):
    """vLLM's scheduler, with a worker that verifies drafts and proposes new ones."""

    def __init__(self, case: Case, acceptance: Acceptance) -> None:
        super().__init__(case)
        self.acceptance = acceptance
        self.num_accepted = 0
        self.num_padded = 0

    def _complete_oldest(self) -> list[str]:
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

        output, samples = self._in_flight.popleft()
        ids = list(output.num_scheduled_tokens)
        result = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={request_id: row for row, request_id in enumerate(ids)},
                sampled_token_ids=[
                    self._tokens(request_id, output) if request_id in samples else [] for request_id in ids
                ],
            ),
        )
        if not self.settings.async_scheduling and ids:
            drafts = [[self._requests[request_id][0]] * self.settings.num_speculative_tokens for request_id in ids]
            self.scheduler.update_draft_token_ids(DraftTokenIds(ids, drafts))
        return [
            item.request_id for outputs in result.values() for item in outputs.outputs if item.finish_reason is not None
        ]

    def _tokens(self, request_id: str, output: Any) -> list[int]:
        """The accepted drafts of a request and the token after them."""
        index, request = self._requests[request_id]
        live = self.scheduler.requests.get(request_id)
        generated = 0 if live is None else live.num_output_tokens
        num_drafts = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
        joined = {each.req_id for each in output.scheduled_new_reqs} | output.scheduled_cached_reqs.resumed_req_ids
        if request_id in joined:
            self.num_padded += bool(num_drafts)
            num_drafts = 0  # padding: there are no drafts of a request that comes in
        accepted = 0
        if num_drafts and live is not None:
            who: Any = SimpleNamespace(
                row=index, num_output_tokens=generated, _stop_at_output_tokens=self._stop(request)
            )
            accepted = self.acceptance.num_accepted(who, num_drafts)
            self.num_accepted += accepted
        return [self._token(request, index, generated + place) for place in range(accepted + 1)]

    def _stop(self, request: CaseRequest) -> int:
        return min(request.output_tokens, request.max_tokens, self.settings.max_model_len - request.prompt_tokens)

    def _token(self, request: CaseRequest, index: int, position: int) -> int:
        if request.output_tokens < request.max_tokens and position + 1 >= request.output_tokens:
            return STOP_TOKEN
        # Generated content is the request's own, or its conversation's.
        return 4_000_000 + index if request.session is None else 2_000_000 + request.session


class SimSpeculativeScheduler(SimScheduler):
    """The simulator's scheduler with drafts."""

    def __init__(self, case: Case, acceptance: Acceptance) -> None:
        super().__init__(case)
        settings, k = case.settings, case.settings.num_speculative_tokens
        self.scheduler = SpeculativeScheduler(
            replace(
                scheduler_settings(settings),
                num_speculative_tokens=k,
                num_lookahead_tokens=k if settings.has_draft_model or settings.draft_head else 0,
                draft_slots=int(settings.has_draft_model),
                drops_last_block=bool(settings.draft_head) and settings.enable_prefix_caching,
            ),
            Fcfs() if settings.policy == "fcfs" else Priority(),
            acceptance,
        )


Real = TypeVar("Real", bound=RealSpeculativeScheduler)


def replay_both(case: Case, acceptance: Acceptance, real_type: type[Real]) -> tuple[Replay, Replay, Real]:
    """The case on vLLM's scheduler and on the simulator's."""
    real = real_type(case, acceptance)
    theirs = drive(case, real)
    own = Acceptance(acceptance.rates, case.seed)
    return theirs, drive(case, SimSpeculativeScheduler(case, own)), real


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("group", KINDS)
def test_parity_with_drafts(
    group: str, policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None]
) -> None:
    differences = []
    steps = preemptions = 0
    for seed in SEEDS:
        case, acceptance = draw_speculative_case(group, policy, async_scheduling, seed)
        theirs, ours, _ = replay_both(case, acceptance, RealSpeculativeScheduler)
        difference = first_difference(case, theirs, ours)
        if difference is not None:
            differences.append(difference)
        steps += len(theirs.records)
        preemptions += theirs.preemptions
    record_property("parity traces", len(SEEDS))
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    assert not differences, f"{len(differences)} of {len(SEEDS)} traces differ\n" + "\n".join(differences)


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
def test_the_traces_accept_pad_and_preempt(async_scheduling: bool) -> None:
    accepted = padded = preemptions = 0
    for group in ("prefix_pressure", "everything"):
        for seed in SEEDS:
            case, acceptance = draw_speculative_case(group, "fcfs", async_scheduling, seed)
            theirs, _, real = replay_both(case, acceptance, RealSpeculativeScheduler)
            accepted += real.num_accepted
            padded += real.num_padded
            preemptions += theirs.preemptions
    assert accepted > 500
    assert padded > 0
    assert preemptions > 20
