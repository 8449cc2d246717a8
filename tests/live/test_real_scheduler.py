"""The driver itself: it plays the worker's side as an engine would, and the cases press where they should."""

from __future__ import annotations

import pytest
from real_scheduler import prompt_content, replay_real
from traces import GROUPS, MAX_RECORDS, TIGHT_GROUPS, Case, CaseRequest, CaseSettings, draw_case


def one_request_case(settings: CaseSettings, prompt_tokens: int, output_tokens: int, max_tokens: int) -> Case:
    request = CaseRequest("r0", 0, prompt_tokens, output_tokens, max_tokens)
    return Case("hand", 0, settings, (request,))


@pytest.mark.parametrize("group", GROUPS)
def test_every_request_ends_once_and_no_block_is_lost(group: str) -> None:
    for async_scheduling in (False, True):
        case = draw_case(group, "priority", async_scheduling, seed=0)
        replay = replay_real(case)
        ended = [name for record in replay.records for name in record.finished] + list(replay.last_finished)
        assert sorted(ended) == sorted(request.request_id for request in case.requests)
        assert replay.final_free_blocks == case.settings.usable_blocks


@pytest.mark.parametrize("group", sorted(TIGHT_GROUPS))
def test_tight_cases_preempt(group: str) -> None:
    assert sum(replay_real(draw_case(group, "fcfs", False, seed)).preemptions for seed in range(5)) > 0


def test_a_case_is_the_same_every_time() -> None:
    case = draw_case("everything", "fcfs", True, seed=3)
    assert draw_case("everything", "fcfs", True, seed=3) == case
    assert replay_real(case) == replay_real(case)


def test_one_request_alone_takes_one_step_per_chunk_and_per_further_token() -> None:
    replay = replay_real(one_request_case(CaseSettings(max_num_batched_tokens=64), 100, 3, 3))
    assert [record.scheduled for record in replay.records] == [
        (("r0", 64),),
        (("r0", 36),),
        (("r0", 1),),
        (("r0", 1),),
    ]
    assert replay.last_finished == ("r0",)


def test_a_known_end_costs_no_extra_step_at_depth_2_but_frees_one_step_later() -> None:
    replay = replay_real(one_request_case(CaseSettings(async_scheduling=True), 10, 3, 3))
    assert [record.scheduled for record in replay.records] == [(("r0", 10),), (("r0", 1),), (("r0", 1),), ()]
    assert replay.last_finished == ("r0",)


def test_a_stop_token_costs_one_discarded_step_at_depth_2() -> None:
    settings = CaseSettings(async_scheduling=True)
    replay = replay_real(one_request_case(settings, 10, 3, 50))
    assert [record.scheduled for record in replay.records] == [(("r0", 10),), *[(("r0", 1),)] * 3, ()]
    assert replay.records[-1].finished == ("r0",)


def test_shared_content_is_shared_as_far_as_segments_agree() -> None:
    one = prompt_content(CaseRequest("a", 0, 40, 1, 1, segments=((5, 20),)), 0)
    two = prompt_content(CaseRequest("b", 0, 30, 1, 1, segments=((5, 24),)), 1)
    agree = [mine == yours for mine, yours in zip(one, two, strict=False)]
    assert agree == [True] * 20 + [False] * 10


def test_a_shared_prompt_is_computed_once() -> None:
    settings = CaseSettings(enable_prefix_caching=True, max_num_batched_tokens=128)
    requests = tuple(CaseRequest(name, step, 64, 1, 1, segments=((1, 64),)) for step, name in enumerate(["a", "b"]))
    replay = replay_real(Case("hand", 0, settings, requests))
    # Whole blocks: the last one is computed again, since one token must be.
    assert [record.scheduled for record in replay.records] == [(("a", 64),), (("b", 16),)]


def test_a_request_larger_than_the_pool_waits_for_ever_and_the_replay_is_cut() -> None:
    replay = replay_real(one_request_case(CaseSettings(num_gpu_blocks=3), 100, 1, 1))
    assert not replay.has_ended
    assert len(replay.records) == MAX_RECORDS
    assert replay.preemptions == 0


def test_equal_requests_can_preempt_each_other_in_a_circle() -> None:
    # All tie, so vLLM's victim is the first of `running`: each takes the blocks the one before it has filled.
    settings = CaseSettings(
        policy="priority",
        block_size=1,
        num_gpu_blocks=100,
        long_prefill_token_threshold=1,
        scheduler_reserve_full_isl=False,
    )
    requests = tuple(CaseRequest(name, 0, 60, 20, 20) for name in "abcd")
    replay = replay_real(Case("hand", 0, settings, requests))
    assert not replay.has_ended
    assert replay.preemptions > 100
