"""Which limits of an SLO are on latencies."""

from __future__ import annotations

from collections.abc import Mapping


def latency_limits(limits: Mapping[str, float]) -> dict[str, float]:
    """The limits in ms; the others are on shares of requests (``max_rejected``)."""
    return {name: limit for name, limit in limits.items() if name.endswith("_ms")}
