"""The section ``kv.offloading`` of the summary: hits by tier, and what went over the links to host memory."""

from __future__ import annotations

from typing import Any

from sim.results.columns import host_cached_tokens
from sim.results.metrics import exact_sum
from sim.results.record import LinkCounts, RunRecord

NS_PER_S = 1e9


def offloading_section(record: RunRecord, hits: int, window: tuple[int, int]) -> dict[str, Any]:
    """``offloading``, or nothing where KV is not.

    ``hits``: cached prompt tokens of all tiers; ``window``: of the run, in ns.
    """
    counts = record.offloading
    if counts is None:
        return {}
    scheduled = record.requests["scheduled_ns"] >= 0
    from_host = exact_sum(host_cached_tokens(record)[scheduled])
    replicas = len(record.num_gpu_blocks)
    span_ns = max(window[1] - window[0], 1) * replicas

    def way(link: LinkCounts, gb_s: float) -> dict[str, Any]:
        transfers = link.num_transfers
        return {
            "gb_s": gb_s,
            "transfers": transfers,
            "bytes": link.num_bytes,
            "busy": link.busy_ns / span_ns,
            "mean_transfer_ms": link.busy_ns / transfers / 1e6 if transfers else None,
            "mean_queue_ms": link.queued_ns / transfers / 1e6 if transfers else None,
        }

    section = {
        "backend": "native",
        "num_host_blocks": counts.num_host_blocks * replicas,
        "gpu_hits": hits - from_host,
        "host_hits": from_host,
        "loads": way(counts.loads, counts.load_gb_s),
        "stores": way(counts.stores, counts.store_gb_s),
        "steps_blocked_s": counts.blocked_ns / NS_PER_S,
    }
    return {"offloading": section}


def offloading_words(kv: dict[str, Any]) -> str | None:
    """The section in one line; None where there is none."""
    found = kv.get("offloading")
    if found is None:
        return None
    asked = kv["prefix_cache_queries"]
    gpu, host = (100 * found[name] / asked if asked else 0.0 for name in ("gpu_hits", "host_hits"))
    loads, stores = found["loads"], found["stores"]
    return (
        f"{gpu:.1f} % of prompt tokens found on the GPU, {host:.1f} % in host memory; {loads['bytes'] / 1e9:,.1f} GB "
        f"loaded (link {loads['busy']:.1%} busy), {stores['bytes'] / 1e9:,.1f} GB stored ({stores['busy']:.1%})"
    )
