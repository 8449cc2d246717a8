"""Which latency model a scenario gets. Apart from ``build``, so that checking a scenario imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sim.latency.profile.library import profile_for_gpu

if TYPE_CHECKING:
    from sim.latency.fitted import Fitted
    from sim.scenario.schema import GpuConfig, LatencyConfig

CLIENT_OVERHEAD_MS = 6.0
"""HTTP, tokenisation of a prompt of about a thousand tokens, three hops between processes, detokenisation. To the
millisecond what TTFT lacks in eight runs of dense models below saturation (vLLM 0.15.1 and 0.23.0, two clients, three
GPUs): it was short by 1.2 to 2.3 ms with 4, by 4.5 ms at the highest rate."""


def latency_kind(gpu: str | GpuConfig, latency: LatencyConfig) -> Literal["roofline", "constant", "profile"]:
    """The kind that is used: as said, else a profile where one is named or the GPU has a built-in one."""
    if latency.kind is not None:
        return latency.kind
    has_profile = latency.profile is not None or (isinstance(gpu, str) and profile_for_gpu(gpu) is not None)
    return "profile" if has_profile else "roofline"


def client_overhead_ns(gpu: str | GpuConfig, latency: LatencyConfig, fitted: Fitted | None = None) -> int:
    """What lies between a client and the engine, there and back: as fitted, else as said, else a figure where times are
    to be real."""
    if fitted is not None and (found := fitted.ns("client_ms")) is not None:
        return found
    stated = latency.client_overhead_ms
    if stated is None:
        stated = CLIENT_OVERHEAD_MS if latency_kind(gpu, latency) == "profile" else 0.0
    return round(stated * 1e6)
