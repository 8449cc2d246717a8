"""A step cost with further terms on top of a model's: adapters, images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.latency.base import StepCost, StepShape, decode_run_by_steps, shape_of

IntColumn = npt.NDArray[np.int64]


class AddedCost(ABC):
    """The cost of ``target``, a profile's or a roofline, and what ``added_ns`` says by term."""

    columns: tuple[str, ...]
    """Fields of ``StepShape`` that the terms depend on: columns of recorded steps."""

    def __init__(self, target: Any) -> None:
        self.target: StepCost = target
        self.kind = target.kind
        self.pipeline_stages = target.pipeline_stages

    @abstractmethod
    def added_ns(self, shape: StepShape) -> dict[str, int]:
        """Accelerator time of this step beyond the target's, by term."""

    def gpu_ns(self, shape: StepShape) -> int:
        """Accelerator time of one stage of this step."""
        return self.target.gpu_ns(shape) + sum(self.added_ns(shape).values())

    def step_ns(self, *counts: int, **further: int) -> int:
        """``gpu_ns`` from the counts of a ``StepShape``."""
        return self.gpu_ns(shape_of(*counts, **further))

    def host_ns(self, shape: StepShape) -> int:
        """As the target's."""
        return self.target.host_ns(shape)

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> IntColumn:
        """``gpu_ns`` of ``num_steps`` decode steps in a row to which nothing is added."""
        return decode_run_by_steps(self, num_decodes, decode_context_tokens, num_steps)

    def empty_step_ns(self) -> int:
        """As the target's."""
        return self.target.empty_step_ns()

    def breakdown(self, shape: StepShape) -> dict[str, float]:
        """All terms, in the target's unit; their sum is ``gpu_ns`` up to rounding."""
        ns_per_unit = 1e9 if self.kind == "roofline" else 1
        terms: dict[str, float] = self.target.breakdown(shape)  # type: ignore[attr-defined]
        return {**terms, **{name: ns / ns_per_unit for name, ns in self.added_ns(shape).items()}}

    def terms(self, columns: Mapping[str, IntColumn]) -> dict[str, IntColumn]:
        """Nanoseconds by term of recorded steps. Profiles only."""
        rows = zip(*(columns[name].tolist() for name in self.columns), strict=True)
        by_row = [self.added_ns(StepShape(**dict(zip(self.columns, row, strict=True)))) for row in rows]
        names = self.added_ns(StepShape())
        added = {name: np.array([each[name] for each in by_row], dtype=np.int64) for name in names}
        rest = columns["gpu_ns"] - np.sum(list(added.values()), axis=0, dtype=np.int64)
        terms: dict[str, IntColumn] = self.target.terms({**columns, "gpu_ns": rest})  # type: ignore[attr-defined]
        return {**terms, **added}

    def described(self, evidence: Mapping[str, object], **more: object) -> dict[str, object]:
        """The target's description with the ``evidence`` of the terms, and ``more``."""
        known = self.target.describe()
        if isinstance(of_target := known.get("evidence"), dict):
            known = {**known, "evidence": {**of_target, **evidence}}
        return {**known, **more}

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """The target's description, and what is added."""
