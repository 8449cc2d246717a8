"""A step cost whose accelerator is slower than it was: throttled, or with a slow link."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sim.latency.base import StepCost, StepShape
from sim.latency.lockstep_cost import GroupCost, GroupStep


class SlowedCost:
    """``factor`` times the accelerator time of ``cost``; the host is as fast as before."""

    def __init__(self, cost: StepCost, factor: float) -> None:
        self.cost = cost
        self.factor = factor
        self.kind = cost.kind
        self.pipeline_stages = cost.pipeline_stages

    def gpu_ns(self, shape: StepShape) -> int:
        """Accelerator time of one stage of this step, at least 1."""
        return self._slowed(self.cost.gpu_ns(shape))

    def step_ns(self, *counts: int, **further: int) -> int:
        """``gpu_ns`` from the counts of a ``StepShape``."""
        return self._slowed(self.cost.step_ns(*counts, **further))

    def host_ns(self, shape: StepShape) -> int:
        """Host time of this step."""
        return self.cost.host_ns(shape)

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> npt.NDArray[np.int64]:
        """``gpu_ns`` of ``num_steps`` pure decode steps in a row."""
        run_ns = self.cost.decode_run_ns(num_decodes, decode_context_tokens, num_steps)
        slowed_ns: npt.NDArray[np.int64] = np.maximum(np.rint(run_ns * self.factor).astype(np.int64), 1)
        return slowed_ns

    def empty_step_ns(self) -> int:
        """Time of a step that schedules nothing."""
        return self.cost.empty_step_ns()

    def describe(self) -> dict[str, object]:
        """What it was, and the factor."""
        return {**self.cost.describe(), "slowed_by": self.factor}

    def _slowed(self, gpu_ns: int) -> int:
        # As numpy's ``rint``: half to even.
        return max(round(gpu_ns * self.factor), 1)


class SlowedGroupCost(SlowedCost):
    """The same of ranks that step together."""

    def __init__(self, cost: GroupCost, factor: float) -> None:
        super().__init__(cost, factor)
        self._group = cost

    def group_step(self, shapes: Sequence[StepShape]) -> GroupStep:
        """The step in which each rank computes its shape."""
        step = self._group.group_step(shapes)
        own_ns = [self._slowed(own_ns) for own_ns in step.own_ns]
        return GroupStep(self._slowed(step.gpu_ns), own_ns, step.padded_tokens, step.group_tokens)


def slowed(cost: StepCost, factor: float) -> StepCost:
    """``cost`` with ``factor`` times the accelerator time; itself where that is 1."""
    if factor == 1:
        return cost
    return SlowedGroupCost(cost, factor) if isinstance(cost, GroupCost) else SlowedCost(cost, factor)
