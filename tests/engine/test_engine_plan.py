"""Plans: when their steps are formed and end, and what is written of them, against one step after the other."""

from __future__ import annotations

from random import Random

import numpy as np
import numpy.typing as npt
import pytest

from sim.engine.fast import sums as sums_module
from sim.engine.fast.plan import Plan
from sim.engine.fast.sums import LENGTH, DecodeSums
from sim.latency.base import StepShape
from sim.latency.constant import ConstantCost
from sim.results.record import DECODE_COLUMNS, Recorder


class Growing(ConstantCost):
    """A step takes 1,000 ns and one more for each token of context; the host 10."""

    def __init__(self, host_ns: int = 10) -> None:
        super().__init__(1000)
        self._host_ns = host_ns

    def gpu_ns(self, shape: StepShape) -> int:
        return 1000 + shape.decode_context_tokens

    def host_ns(self, shape: StepShape) -> int:
        return self._host_ns

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> npt.NDArray[np.int64]:
        return 1000 + decode_context_tokens + num_decodes * np.arange(num_steps, dtype=np.int64)


def step_by_step(
    now_ns: int, busy_ns: int, host_ns: int, context: int, size: int, steps: int, *, is_async: bool
) -> list[tuple[int, int, int]]:
    """(formed, started, ended) of each step."""
    found = []
    for step in range(steps):
        start_ns = max(now_ns + host_ns, busy_ns)
        busy_ns = start_ns + 1000 + context + step * size
        found.append((now_ns, start_ns, busy_ns))
        now_ns = start_ns if is_async else busy_ns
    return found


@pytest.mark.parametrize("seed", range(60))
def test_a_plan_is_its_steps_one_after_the_other(seed: int) -> None:
    rng = Random(seed)
    size, context, is_async = rng.randint(1, 40), rng.randint(40, 900), rng.random() < 0.7
    host_ns = rng.choice([0, 10, 900, 1100, 5000])
    now_ns = rng.randint(0, 10**6)
    busy_ns = now_ns + rng.choice([0, 5, 20, 3000]) if is_async else now_ns
    sums = DecodeSums(Growing(host_ns), Recorder())
    most = rng.choice([1, 2, 7, 30, 200])
    place, stretch = sums.get(size, context, most)
    plan = Plan(now_ns, busy_ns, host_ns, stretch, place, most, is_async=is_async)
    assert 1 <= plan.steps <= most
    steps = step_by_step(now_ns, busy_ns, host_ns, context, size, plan.steps, is_async=is_async)
    assert [plan.formed_ns(step) for step in range(plan.steps)] == [formed for formed, _, _ in steps]
    assert [plan.end_ns(step + 1) for step in range(plan.steps)] == [end for _, _, end in steps]
    for formed, _, end in steps:
        for at_ns in (formed, formed + 1, end):
            assert plan.num_formed(at_ns) == max(sum(each < at_ns for each, _, _ in steps), 1)
            assert plan.num_ended(at_ns, plan.steps) == sum(each <= at_ns for _, _, each in steps)
    # The row of the first steps.
    takes = [rng.randint(0, 3) for _ in range(plan.steps)]
    plan.index, plan.num_running, plan.num_waiting, plan.size, plan.context = 0, size, 2, size, context
    plan.takes, plan.free = takes, 1000
    for count in {1, plan.steps, rng.randint(1, plan.steps)}:
        row = dict(zip(DECODE_COLUMNS, plan.row(count), strict=True))
        formed = [each for each, _, _ in steps[:count]]
        free, blocks_ns = 1000, 0
        for step in range(count):
            free -= takes[step]
            if step + 1 < count:
                blocks_ns += free * (formed[step + 1] - formed[step])
        assert row == {
            "replica": 0,
            "scheduled_ns": now_ns,
            "start_ns": steps[0][1],
            "end_ns": steps[count - 1][2],
            "num_steps": count,
            "num_running": size,
            "num_waiting": 2,
            "num_decodes": size,
            "decode_context_tokens": context,
            "gpu_ns": sum(1000 + context + step * size for step in range(count)),
            "host_ns": host_ns * count,
            "free_blocks": free,
            "last_scheduled_ns": formed[-1],
            "free_block_ns": blocks_ns,
        }


def test_no_gap_is_lost_when_stretches_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are kept; a plan of a dropped one records its gaps all the same."""
    monkeypatch.setattr(sums_module, "MOST_STRETCHES", 2)
    recorder = Recorder()
    sums = DecodeSums(Growing(), recorder)
    expected: dict[int, int] = {}
    plans = []
    for series in range(6):
        size, context = 2 + series, 300
        place, stretch = sums.get(size, context, 20)
        plans.append((size, context, Plan(0, 10_000, 10, stretch, place, 20, is_async=True)))
        plans[-1][2].size = plans[-1][2].units = size
    assert len(sums.stretches) <= 2
    for size, context, plan in plans:
        plan.count_gaps(plan.steps, recorder.gaps.add)
        for step in range(plan.steps):
            gap = 1000 + context + step * size
            expected[gap] = expected.get(gap, 0) + size
    sums.record_gaps()
    values, weights = recorder.itl_columns()
    assert dict(zip(values.tolist(), weights.tolist(), strict=True)) == expected


def test_stretches_cover_their_series() -> None:
    """Whatever the context, the steps of a stretch from its place on cost what single steps do."""
    cost = Growing()
    sums = DecodeSums(cost, Recorder())
    for size, context in [(1, 1), (3, 5000), (24, LENGTH * 24 + 7), (25, 900), (200, 4000)]:
        place, stretch = sums.get(size, context, 40)
        found = [
            stretch.sums[place + i + 1] - stretch.sums[place + i] for i in range(min(40, len(stretch.sums) - 1 - place))
        ]
        assert found == [1000 + context + size * step for step in range(len(found))]
        assert found
        assert stretch.least_ns <= min(found)
