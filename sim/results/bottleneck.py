"""What limits a run, in one sentence, by stated rules on its summary."""

from __future__ import annotations

from typing import Any

from sim.results.wording import mark, percent

IDLE_BELOW = 0.6
KV_FULL_ABOVE = 0.9
SEATS_FULL_ABOVE = 0.9
ADAPTERS_FULL_ABOVE = 0.8
COMPUTE_ABOVE = 0.5
QUEUE_SHARE_ABOVE = 0.25
PREEMPTED_ABOVE = 0.01
NO_RATE = "requests have no rate of their own, so there is no headroom"
TIMES_ABOVE = 3.0
"""Headroom from which on it is worded as a multiple."""


def bottleneck_words(summary: dict[str, Any]) -> str:
    """The name, and what it leaves: an accelerator that is busy all the time may serve far more in larger batches."""
    name, load = bottleneck(summary)[0], summary["load"]
    if load["headroom"] is None:
        return f"{name}; {NO_RATE}"
    if load["saturated"] and load["headroom"] >= 1:
        return f"{name}; requests pile up, if not by the mean rate"
    return f"{name}; {_left(load['headroom'])}{mark(load)}"


def busy_words(summary: dict[str, Any]) -> str:
    """Share of the time in which steps ran, and what it means: a step of one request counts as one of a hundred."""
    busy, headroom = percent(summary["utilization"]["busy_fraction"]), summary["load"]["headroom"]
    left = "" if headroom is None else f", headroom {headroom:.2f}"
    return f"busy {busy} (with steps of any size{left})"


def _left(headroom: float) -> str:
    if headroom < 1:
        return f"{1 - headroom:.0%} of the load is too much"
    if headroom >= TIMES_ABOVE:
        return f"{headroom:.{1 if headroom < 10 else 0}f} times the load could be served"
    return f"{headroom - 1:.0%} more load could be served"


def bottleneck(summary: dict[str, Any]) -> tuple[str, str]:
    """A name and sentences: what was counted, then what would help, marked as the estimate that it is.

    In this order: nothing completed; KV cache (over 1 % of requests preempted and use above 90 % at its peak, because a
    policy may also evict for a seat; or mean use above 90 % while requests spend a quarter of their time queued); seats
    (over 90 % of ``max_num_seqs`` taken while requests queue as long, and neither KV nor arithmetic is what is full);
    slots of LoRA adapters (over 80 % of ``max_loras`` in the steps while requests queue as long); host time above
    accelerator time; load too small to fill the accelerators (busy under 60 %, queueing under a quarter of E2E);
    otherwise the accelerator, by what bounds most of its time.
    """
    use, kv = summary["utilization"], summary["kv"]
    if not summary["completed"]:
        return "nothing completed", "No request completed: see the counts and the reasons in requests.parquet."
    e2el, queue = summary["mean_e2el_ms"] or 0.0, summary["queue"]["mean_queue_ms"] or 0.0
    queue_share = queue / e2el if e2el else 0.0
    busy = use["busy_fraction"] or 0.0
    waits = f"Requests spend {queue_share:.0%} of their time queued"
    preempted = summary["preemptions"]["requests"]
    is_short = preempted > PREEMPTED_ABOVE * summary["counts"]["submitted"] and (kv["max_usage"] or 0.0) > KV_FULL_ABOVE
    if is_short or ((kv["mean_usage"] or 0.0) > KV_FULL_ABOVE and queue_share > QUEUE_SHARE_ABOVE):
        return "KV cache", (
            f"{waits}; KV use peaks at {kv['max_usage'] or 0:.0%}, requests preempted: {preempted:,}. "
            "Estimate, not simulated: more KV memory (GPUs, FP8 KV) or fewer sequences at once would help."
        )
    bound = use["compute_bound_fraction"]
    seats = use["seat_usage"] or 0.0
    has_kv = (kv["max_usage"] or 0.0) <= KV_FULL_ABOVE
    if seats > SEATS_FULL_ABOVE and queue_share > QUEUE_SHARE_ABOVE and has_kv and (bound or 0.0) <= COMPUTE_ABOVE:
        return "seats", (
            f"{waits}; {seats:.0%} of the seats (max_num_seqs) are taken, KV use peaks at {kv['max_usage'] or 0:.1%}. "
            "Estimate, not simulated: more seats would help, at longer gaps between tokens."
        )
    adapters = use.get("adapter_usage") or 0.0
    if adapters > ADAPTERS_FULL_ABOVE and queue_share > QUEUE_SHARE_ABOVE:
        return "adapter slots", (
            f"{waits}; steps hold {adapters:.0%} of the LoRA adapters that they may (max_loras): requests wait for "
            "a place of their adapter. Estimate, not simulated: more slots would help."
        )
    if (use["host_fraction"] or 0.0) > busy:
        return "host", f"Host time per step exceeds accelerator time; accelerators are busy {busy:.0%} of the time."
    if busy < IDLE_BELOW and queue_share < QUEUE_SHARE_ABOVE:
        return "load", f"Accelerators are busy {busy:.0%} of the time and requests hardly queue."
    kind = "accelerator" if bound is None else "compute" if bound > COMPUTE_ABOVE else "memory bandwidth"
    detail = "" if bound is None else f", {bound:.0%} of it in steps bound by arithmetic"
    return kind, f"Accelerators are busy {busy:.0%} of the time{detail}. {waits}."
