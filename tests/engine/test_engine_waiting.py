"""The ranked queue stays in order, and a queue whose head has no room costs a step nothing."""

from __future__ import annotations

from typing import Any

import pytest
from engine_driver import make_request
from hypothesis import given
from hypothesis import strategies as st
from test_engine_steady import assert_equal, scenario_of, traffic

from policies.base import Policy, RequestView
from sim.engine.fast.cohort import Cohort
from sim.engine.fast.fast_scheduler import FastScheduler
from sim.engine.reference.waiting import RankedQueue
from sim.run import load, run


class ByOutput(Policy):
    """A rank that falls with each output token."""

    name = "by_output"

    def rank(self, request: RequestView, now_ns: int) -> float:
        return request.priority - request.num_output_tokens


ACTIONS = st.lists(st.tuples(st.sampled_from(["add", "add", "pop", "remove", "progress"]), st.integers(0, 9)))


@given(actions=ACTIONS)
def test_the_queue_is_the_sorted_list(actions: list[tuple[str, int]]) -> None:
    queue = RankedQueue(ByOutput())
    here: list[Any] = []
    for row, (action, number) in enumerate(actions):
        if action == "add":
            request = make_request(row, 5, 9, priority=number, arrival_ns=number % 3)
            here.append(request)
            queue.add(request, row)
        elif here and action == "pop":
            here.sort(key=lambda r: (r.priority - r.num_output_tokens, r.arrival_ns, r.order))
            assert queue.peek() is here[0]
            assert queue.pop() is here.pop(0)
        elif here and action == "remove":
            queue.remove(here.pop(number % len(here)))
        elif here:
            request = here[number % len(here)]
            request.num_output_tokens += number
            gone = make_request(1000 + row, 1, 1)
            queue.mark_stale({request, gone})
            queue.refresh(row)
        order = sorted(here, key=lambda r: (r.priority - r.num_output_tokens, r.arrival_ns, r.order))
        assert list(queue) == order
        assert len(queue) == len(here)


@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.integers(2, 9)), min_size=1, max_size=9), steps=st.integers(0, 20)
)
def test_who_takes_blocks_are_as_many_as_take_them(rows: list[tuple[int, int]], steps: int) -> None:
    cohort = Cohort(4)
    for admission, (computed, output) in enumerate(rows):
        request = make_request(admission, 1, output)
        request.num_computed_tokens, request.admission = computed, -admission
        cohort.add(request, base_output=0, is_known_to_end=True)
        cohort.leave_before(cohort.latest + 1)
        if steps % 3 == admission % 3:
            cohort.advance(1)
    for batch in range(cohort.latest + 1, cohort.latest + 5):
        takers = cohort.takers(batch)
        assert len(takers) == cohort.growth[batch % 4]
        assert takers == sorted(takers, key=lambda r: r.admission)
        assert all((r.base_computed + batch - r.joined_at - 1) % 4 == 0 for r in takers)


@pytest.mark.parametrize("policy", ["fcfs", "hybrid", "sjf", "throughput", "srtf"])
@pytest.mark.parametrize("change", [{}, {"max_num_seqs": 6}, {"watermark": 0.2}, {"async_scheduling": False}])
def test_a_head_without_room_ends_the_step(
    policy: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions as the reference's; and the short way is taken by those that do not evict for the head."""
    answers = []
    real = FastScheduler._is_head_out

    def noted(self: FastScheduler) -> bool:
        answers.append(real(self))
        return answers[-1]

    monkeypatch.setattr(FastScheduler, "_is_head_out", noted)
    rows = traffic([200, 90], [50, 150, 5], rate=60.0, requests=50)
    scenario = scenario_of(rows, num_gpu_blocks_override=80, policy=policy, **change)
    assert_equal(scenario)
    assert any(answers) is (policy != "srtf")
    assert max(run(load(scenario)).record.steps["num_waiting"]) > 5
