"""Speculative decoding in the engine: steps by hand, expected lengths, gaps, and nothing lost under pressure.

That the decisions are vLLM's: ``tests/live/test_speculative_parity.py``.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from engine_driver import Driver, make_request
from engine_runs import ENGINE, ONE_SECOND, backlog, simulate

from policies.base import Policy
from policies.fcfs import Fcfs
from policies.priority import Priority
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.variants.drafts import Acceptance, SpeculativeScheduler
from sim.results.record import DraftCounts
from sim.results.results import Results
from sim.run import load, run

DEPTHS = pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])


def drafting(rates: list[float], policy: Policy | None = None, seed: int = 0, **settings: Any) -> Driver:
    """A driver whose scheduler verifies a draft for each of ``rates``."""
    settings = {"num_gpu_blocks": 100_000, "max_model_len": 1 << 20, **settings}
    driver = Driver(async_scheduling=settings.get("async_scheduling", False))
    driver.scheduler = SpeculativeScheduler(
        SchedulerSettings(num_speculative_tokens=len(rates), **settings), policy or Fcfs(), Acceptance(rates, seed)
    )
    return driver


def counts(driver: Driver) -> DraftCounts:
    found = driver.scheduler.recorder.drafts
    assert found is not None
    return found


def test_all_drafts_accepted_by_hand() -> None:
    """A token from the prefill, then four a step; of the last step's four only one is wanted."""
    driver = drafting([1.0, 1.0, 1.0])
    request = make_request(0, 10, 10)
    driver.add(request)
    assert driver.run() == [{"r0": 10}, {"r0": 4}, {"r0": 4}, {"r0": 4}]
    assert request.num_output_tokens == 10
    assert (counts(driver).num_draft_tokens, counts(driver).num_accepted_tokens) == (9, 9)
    assert counts(driver).num_output_tokens == 9
    shapes = [batch.shape for batch in driver.batches]
    assert [(s.num_prefills, s.num_decodes, s.num_draft_tokens, s.num_sampled) for s in shapes] == [
        (1, 0, 0, 1),
        *[(0, 1, 3, 4)] * 3,
    ]
    assert [s.decode_context_tokens for s in shapes] == [0, 14, 18, 22]
    assert [s.verify_attention_pairs for s in shapes] == [0, 4 * 14, 4 * 18, 4 * 22]


@DEPTHS
def test_rejected_drafts_are_taken_back(async_scheduling: bool) -> None:
    """Nothing accepted: as many steps as without drafts, and the same contexts but for the drafts themselves."""
    driver = drafting([0.0, 0.0], async_scheduling=async_scheduling)
    driver.add(make_request(0, 10, 5))
    driver.run()
    busy = [batch.shape for batch in driver.batches if batch.scheduled]
    assert [s.num_tokens for s in busy] == [10, 3, 3, 3, 3]
    if not async_scheduling:
        assert [s.decode_context_tokens for s in busy[1:]] == [13, 14, 15, 16]
    assert counts(driver).num_accepted_tokens == 0
    driver.scheduler.kv.check_empty()


def test_the_budget_cuts_drafts_and_the_draft_model_takes_its_slot() -> None:
    plain = drafting([1.0] * 3, max_num_batched_tokens=6, max_num_seqs=2)
    slotted = drafting([1.0] * 3, max_num_batched_tokens=7, max_num_seqs=2, draft_slots=1)
    for driver in (plain, slotted):
        driver.add(make_request(0, 2, 9), make_request(1, 2, 9))
    assert [plain.one_step(), plain.one_step()] == [{"r0": 2, "r1": 2}, {"r0": 4, "r1": 2}]
    # 7 = (2 + 1) + (2 + 1) with one left; then (4 + 1) leaves 2, of which the slot of the second takes one.
    assert [slotted.one_step(), slotted.one_step()] == [{"r0": 2, "r1": 2}, {"r0": 4, "r1": 1}]


def test_lookahead_takes_blocks() -> None:
    """A draft model writes its own KV ahead of what is scheduled."""
    held = []
    for lookahead in (0, 3):
        driver = drafting([1.0] * 3, block_size=1, num_lookahead_tokens=lookahead)
        request = make_request(0, 4, 20)
        driver.add(request)
        driver.one_step()
        held.append(request.num_blocks)
    assert held == [4, 7]


def test_no_drafts_beyond_the_longest_request() -> None:
    driver = drafting([1.0] * 3, max_model_len=12)
    request = make_request(0, 8, 4, max_tokens=100, max_model_len=12)
    driver.add(request)
    assert driver.run() == [{"r0": 8}, {"r0": 3}]
    assert request.num_output_tokens == 4


@DEPTHS
@pytest.mark.parametrize(("rate", "k"), [(0.3, 2), (0.7, 3), (0.7, 5), (0.9, 4)])
def test_mean_length_is_the_geometric_sum(rate: float, k: int, async_scheduling: bool) -> None:
    """Expected tokens of a verification: 1 + a + a^2 + ... + a^k."""
    driver = drafting([rate] * k, async_scheduling=async_scheduling, max_num_seqs=16)
    driver.add(*(make_request(row, 5, 2000) for row in range(8)))
    driver.run()
    found = counts(driver)
    expected = (1 - rate ** (k + 1)) / (1 - rate)
    assert found.num_verifications > 2000
    mean = 1 + found.num_accepted_tokens / found.num_verifications
    assert mean == pytest.approx(expected, abs=4 * 0.5 * k / found.num_verifications**0.5)
    assert found.num_output_tokens <= found.num_accepted_tokens + found.num_verifications
    assert sum(found.num_accepted_at) == found.num_accepted_tokens


def test_rates_are_of_each_position_given_the_ones_before() -> None:
    driver = drafting([0.9, 0.5, 0.2])
    driver.add(*(make_request(row, 5, 3000) for row in range(4)))
    driver.run()
    found = counts(driver)
    shares = np.array(found.num_accepted_at) / found.num_verifications
    assert shares == pytest.approx([0.9, 0.45, 0.09], abs=0.03)


def test_draws_do_not_depend_on_what_else_runs() -> None:
    """The same request accepts the same drafts alone, in a crowd, and under another budget."""

    def steps_of_first(*others: int, **settings: Any) -> list[int]:
        driver = drafting([0.6] * 4, seed=3, **settings)
        first = make_request(0, 5, 200)
        driver.add(first, *(make_request(row, 5, 50) for row in others))
        done = []
        while first.num_output_tokens < 200:
            driver.one_step()
            done.append(first.num_output_tokens)
        return [n for n in dict.fromkeys(done) if n]

    alone = steps_of_first()
    assert alone == steps_of_first(1, 2, 3, 4)
    assert alone == steps_of_first(1, 2, max_num_batched_tokens=64, max_num_seqs=3)
    assert len(alone) < 120


@DEPTHS
@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_under_pressure(seed: int, async_scheduling: bool) -> None:
    rng = random.Random(seed)
    k = rng.choice([1, 3, 6])
    driver = drafting(
        [rng.random() for _ in range(k)],
        rng.choice([Fcfs(), Priority()]),
        seed,
        async_scheduling=async_scheduling,
        block_size=rng.choice([1, 4, 16]),
        num_gpu_blocks=60 if seed % 2 else 200,
        max_num_batched_tokens=rng.choice([16, 64]),
        max_num_seqs=8,
        enable_prefix_caching=rng.random() < 0.5,
        num_lookahead_tokens=rng.choice([0, k]),
        draft_slots=rng.choice([0, 1]),
    )
    requests = [make_request(row, rng.randint(1, 20), rng.randint(1, 25), priority=row % 3) for row in range(20)]
    requests = [each for each in requests if driver.scheduler.why_never(each) is None]
    driver.add(*requests)
    driver.run()
    assert len(requests) > 10
    assert [each.num_output_tokens for each in requests] == [each.max_tokens for each in requests]
    assert len(driver.finished) == len(requests)
    assert driver.scheduler.outstanding_tokens == 0
    driver.scheduler.kv.check_empty()


def test_a_preempted_request_has_no_drafts() -> None:
    driver = drafting([0.5] * 3, block_size=1, num_gpu_blocks=40, enable_prefix_caching=False)
    requests = [make_request(row, 8, 20) for row in range(3)]
    driver.add(*requests)
    seen = 0
    while driver.scheduler.has_requests():
        driver.one_step()
        for victim in driver.batches[-1].preempted:
            seen += 1
            assert victim.num_draft_tokens == 0
            assert victim.num_computed_tokens == 0
    assert seen


SCENARIO: dict[str, Any] = {
    "name": "drafts",
    "workload": backlog([100] * 6, [40] * 6),
    "latency": ONE_SECOND,
    "engine": {
        **ENGINE,
        "speculative": {"method": "draft_model", "draft_model": "llama-2-7b", "acceptance": [0.9, 0.7, 0.5]},
    },
}


def results(**engine: Any) -> Results:
    return run(load({**SCENARIO, "engine": {**SCENARIO["engine"], **engine}}))


def test_tokens_of_a_step_arrive_together() -> None:
    """Gaps of 0 within a step; all gaps of all requests together fill the time from first to last token."""
    record = results().record
    requests = record.requests
    assert record.itl_weight.sum() == (requests["output_tokens"] - 1).sum()
    assert (record.itl_ns * record.itl_weight).sum() == (requests["finish_ns"] - requests["first_token_ns"]).sum()
    assert set(record.itl_ns.tolist()) == {0, 1_000_000_000}


def test_both_steppers_are_the_reference_and_plain_runs_have_no_trace_of_it() -> None:
    fast, reference = results(stepping="fast"), results(stepping="reference")
    for name, column in reference.record.requests.items():
        assert (fast.record.requests[name] == column).all(), name
    section = fast.summary["speculative"]
    assert section == reference.summary["speculative"]
    assert section["accepted_tokens"] == round(section["acceptance_rate"] * section["draft_tokens"])
    assert "num_draft_tokens" in fast.record.steps
    plain = results(speculative=None)
    assert plain.summary["speculative"] is None
    assert "num_draft_tokens" not in plain.record.steps
    assert plain.summary["duration"] > 2 * fast.summary["duration"]


def test_ngrams_are_scheduled_synchronously() -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 1.0}
    plan = simulate(backlog([10], [7]), speculative=ngram, async_scheduling=True).plan
    assert plan == [(0.0, {"0": 10}), (1.0, {"0": 3}), (2.0, {"0": 3})]
