"""Which latency model a scenario gets. Apart from ``build``, so that checking a scenario imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sim.latency.profile.library import profile_for_gpu

if TYPE_CHECKING:
    from sim.latency.fitted import Fitted
    from sim.scenario.schema import GpuConfig, LatencyConfig

CLIENT_OVERHEAD_MS = 4.0
"""HTTP, three hops between processes, detokenisation."""
CLIENT_TOKEN_US = 2.0
"""Tokenising a prompt and sending its tokens between processes, for each. TTFT of eight runs of dense models below
saturation with prompts of about a thousand tokens (vLLM 0.15.1 and 0.23.0, two clients, three GPUs) was short by 1.2 to
2.3 ms with 4 ms alone; what InferenceX's training half lacks with 8,192 tokens, beyond what it lacks with 1,024, is 2
to 8 us a token on H100 and H200."""


def latency_kind(gpu: str | GpuConfig, latency: LatencyConfig) -> Literal["roofline", "constant", "profile"]:
    """The kind that is used: as said, else a profile where one is named or the GPU has a built-in one."""
    if latency.kind is not None:
        return latency.kind
    has_profile = latency.profile is not None or (isinstance(gpu, str) and profile_for_gpu(gpu) is not None)
    return "profile" if has_profile else "roofline"


def client_token_ns(gpu: str | GpuConfig, latency: LatencyConfig) -> int:
    """What a client and the server in front of the engine take for each token of a prompt: as said, else a figure where
    times are to be real and nothing is said of client times."""
    stated = latency.client_token_us
    if stated is None:
        is_default = latency.client_overhead_ms is None and latency_kind(gpu, latency) == "profile"
        stated = CLIENT_TOKEN_US if is_default else 0.0
    return round(stated * 1e3)


def client_overhead_ns(gpu: str | GpuConfig, latency: LatencyConfig, fitted: Fitted | None = None) -> int:
    """What lies between a client and the engine, there and back: as fitted, else as said, else a figure where times are
    to be real."""
    if fitted is not None and (found := fitted.ns("client_ms")) is not None:
        return found
    stated = latency.client_overhead_ms
    if stated is None:
        stated = CLIENT_OVERHEAD_MS if latency_kind(gpu, latency) == "profile" else 0.0
    return round(stated * 1e6)
