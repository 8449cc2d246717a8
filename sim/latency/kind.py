"""Which latency model a scenario gets. Apart from ``build``, so that checking a scenario imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sim.latency.profile.library import profile_for_gpu

if TYPE_CHECKING:
    from sim.scenario.schema import LatencyConfig


def latency_kind(gpu: str, latency: LatencyConfig) -> Literal["roofline", "constant", "profile"]:
    """The kind that is used: as said, else a profile where one is named or the GPU has a built-in one."""
    if latency.kind is not None:
        return latency.kind
    return "profile" if latency.profile is not None or profile_for_gpu(gpu) is not None else "roofline"
