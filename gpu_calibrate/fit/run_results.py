"""All that a run has found: the input of the fit and of the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_calibrate.device.base import DeviceFacts
from gpu_calibrate.timing.replays import Failure, Measurement, Watch


@dataclass(slots=True)
class Results:
    """All that a run has found."""

    facts: DeviceFacts
    measurements: Sequence[Measurement]
    failures: Sequence[Failure] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    command: str = ""
    created: str = ""
    seconds: float = 0.0
    left_out: int = 0
    """Points of the plan that the time did not suffice for."""
