"""The ranked queue stays in order, and what waits behind a head without room waits alike in both steppings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_driver import make_request
from hypothesis import given
from hypothesis import strategies as st
from test_engine_fast_forward import assert_same

from policies.base import Policy, RankChanges, RequestView
from policies.fcfs import Fcfs
from sim.engine.reference.waiting import RankedQueue
from sim.errors import SimulationError
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


@pytest.mark.parametrize("policy", ["fcfs", "hybrid", "sjf", "throughput", "srtf"])
@pytest.mark.parametrize("change", [{}, {"max_num_seqs": 6}, {"watermark": 0.2}, {"async_scheduling": False}])
def test_a_queue_whose_head_has_no_room_waits_alike_in_both_steppings(policy: str, change: dict[str, Any]) -> None:
    scenario = {
        "name": "queue",
        "workload": {
            "requests": 50,
            "arrival": {"process": "poisson", "rate": 60.0},
            "input_tokens": {"dist": "values", "values": [200, 90]},
            "output_tokens": {"dist": "values", "values": [50, 150, 5]},
        },
        "engine": {
            "model": "llama-2-7b",
            "gpu": "a100-80gb-sxm",
            "num_gpu_blocks_override": 80,
            "max_model_len": 1024,
            "policy": policy,
            **change,
        },
    }
    assert_same(scenario)
    assert max(run(load(scenario)).record.steps["num_waiting"]) > 5


class Answering(Policy):
    """The rank, and the instant of its next change, that a test asks for; request 3's is another."""

    name = "answering"
    rank_changes = RankChanges.TIME
    ranks: tuple[Any, Any] = (0, 0)
    instant: Any = None

    def rank(self, request: RequestView, now_ns: int) -> Any:
        return self.ranks[request.request_id.endswith("3")]

    def next_change_ns(self, request: RequestView, now_ns: int) -> Any:
        return self.instant


class Undecided(Answering):
    ranks = (0, None)


class Mixed(Answering):
    ranks = (1.0, "late")


class Pairs(Answering):
    ranks = (1, (1, 2))


class Unordered(Answering):
    ranks = (1, float("nan"))


class Timeless(Answering):
    instant = "soon"


class Borrowed(Fcfs):
    """A policy of one's own that only inherits a name."""

    stock_mode = None

    def rank(self, request: RequestView, now_ns: int) -> Any:
        return None


class Preempts(Answering):
    answer: Any = None

    def preempt(self, *_: Any) -> Any:
        return self.answer


class PreemptsText(Preempts):
    answer = "3"


class PreemptsOthers(Preempts):
    answer = ("3",)


class Limits(Answering):
    def step_limits(self, now_ns: int) -> Any:
        return 512


class Shares(Answering):
    def share_budgets(self, max_num_batched_tokens: int) -> Any:
        return ["a"]


class SharesOfNothing(Answering):
    def share_budgets(self, max_num_batched_tokens: int) -> Any:
        return {"a": None}


class Yields(Answering):
    def victim(self, running: Any, needy: Any) -> Any:
        return "3"


@pytest.mark.parametrize("stepping", ["fast", "reference"])
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Borrowed, ":Borrowed ranked request 0 None (NoneType), but a rank must be a number"),
        (Preempts, "policy answering answered preempt with None (NoneType); it must be the requests to preempt"),
        (PreemptsText, "policy answering answered preempt with '3' (str); it must be the requests to preempt"),
        (PreemptsOthers, "policy answering preempts '3', which does not run"),
        (Limits, "policy answering answered step_limits with 512 (int); it must be a StepLimits, or None"),
        (Shares, "policy answering answered share_budgets with ['a'] (list); it must be whole tokens by share group"),
        (SharesOfNothing, "policy answering answered share_budgets with {'a': None} (dict); it must be whole tokens"),
        (Yields, "policy answering answered victim with '3' (str); it must be a request that runs, or None"),
        (Undecided, "policy answering ranked request 3 None (NoneType), but a rank must be a number"),
        (Mixed, "policy answering ranked request 3 'late' (str), but a rank must be a number"),
        (Pairs, "policy answering ranked request 3 (1, 2) (tuple), but a rank must be a number"),
        (Unordered, "policy answering ranked request 3 NaN"),
        (Timeless, "policy answering named 'soon' (str) as the instant of the next change of request 0"),
    ],
)
def test_an_answer_without_an_order_names_policy_and_request(stepping: str, policy: type[Policy], message: str) -> None:
    scenario = {
        "name": "answers",
        "workload": {
            "requests": 8,
            "arrival": {"process": "constant", "rate": 1000.0},
            "input_tokens": {"dist": "fixed", "value": 64},
            "output_tokens": {"dist": "fixed", "value": 20},
        },
        "engine": {
            "model": "llama-3.1-8b",
            "gpu": "h100-sxm",
            "max_num_seqs": 2,
            "max_model_len": 128,
            "num_gpu_blocks_override": 10,
            "stepping": stepping,
            "policy": f"{policy.__module__}:{policy.__name__}",
        },
    }
    with pytest.raises(SimulationError) as raised:
        run(load(scenario))
    assert message in str(raised.value)


def test_numbers_of_other_libraries_are_ranks() -> None:
    class Numpy(Answering):
        ranks = (np.int64(2), np.float32(1))

    queue = RankedQueue(Numpy())
    for row in (2, 3):
        queue.add(make_request(row, 1, 1), 0)
    assert [request.row for request in queue] == [3, 2]
