"""Every step takes the same time, or that and a time per token: for tests against theory, and for scheduling alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.latency.base import StepShape, shape_of
from sim.latency.fitted import Fitted
from sim.latency.parts import one_part


class ConstantCost:
    """A step of ``step_ns`` whatever it holds, and ``token_ns`` for each of its tokens; the host takes no time."""

    kind = "constant"
    pipeline_stages = 1

    def __init__(
        self, step_ns: int, token_ns: int = 0, *, time_scale: float = 1.0, fitted: Fitted | None = None
    ) -> None:
        """``time_scale`` and ``fitted`` are in the times already; ``describe`` tells them."""
        self._step_ns = max(1, step_ns)
        self._token_ns = token_ns
        self.fitted = fitted
        self.time_scale = time_scale

    def gpu_ns(self, shape: StepShape) -> int:
        """The same for every step, but for its tokens."""
        return self._step_ns + self._token_ns * shape.num_tokens

    def step_ns(self, *counts: int, **further: int) -> int:
        """``gpu_ns`` from the counts of a ``StepShape``."""
        return self._step_ns if not self._token_ns else self.gpu_ns(shape_of(*counts, **further))

    def tokens_ns(self, tokens: int) -> int:
        """The part of a step that goes by its tokens."""
        return self._token_ns * tokens

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
        return np.full(num_steps, self._step_ns + self._token_ns * num_decodes, dtype=np.int64)

    def empty_step_ns(self) -> int:
        """As a step without tokens."""
        return self._step_ns

    def describe(self) -> dict[str, object]:
        """Kind and step time."""
        return {
            "kind": self.kind,
            "estimate": False,
            "text": "every step takes the same time, as the scenario says",
            "evidence": {"all": one_part("assumption", 0.0, "step_s of the scenario")},
            "step_s": self._step_ns / 1e9,
            "time_scale": self.time_scale,
            **({} if not self._token_ns else {"token_s": self._token_ns / 1e9}),
            **({} if self.fitted is None else {"fit": self.fitted.describe()}),
        }
