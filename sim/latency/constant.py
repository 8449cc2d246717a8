"""Every step takes the same time: for tests against theory and for looking at scheduling alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.latency.base import StepShape


class ConstantCost:
    """A step of ``step_ns`` whatever it holds; the host takes no time."""

    kind = "constant"
    pipeline_stages = 1

    def __init__(self, step_ns: int, *, time_scale: float = 1.0) -> None:
        """``time_scale`` is in ``step_ns`` already; ``describe`` tells it."""
        self._step_ns = max(1, step_ns)
        self.time_scale = time_scale

    def gpu_ns(self, shape: StepShape) -> int:
        """The same for every step."""
        return self._step_ns

    def step_ns(self, *counts: int, **further: int) -> int:
        """The same for every step."""
        return self._step_ns

    def tokens_ns(self, tokens: int) -> int:
        """Zero: nothing of a step goes by its tokens."""
        return 0

    def group_terms_ns(self, tokens: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Nothing: what ranks do together is in the time of a step."""
        return {}

    def launch_floor_ns(self) -> int:
        """Zero."""
        return 0

    def host_ns(self, shape: StepShape) -> int:
        """Zero."""
        return 0

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> npt.NDArray[np.int64]:
        """``num_steps`` times the same."""
        return np.full(num_steps, self._step_ns, dtype=np.int64)

    def empty_step_ns(self) -> int:
        """As any other step."""
        return self._step_ns

    def describe(self) -> dict[str, object]:
        """Kind and step time."""
        return {
            "kind": self.kind,
            "estimate": False,
            "text": "every step takes the same time, as the scenario says",
            "step_s": self._step_ns / 1e9,
            "time_scale": self.time_scale,
        }
