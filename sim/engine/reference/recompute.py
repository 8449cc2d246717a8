"""Tokens that a request computes more than once, because a preemption took the KV that they had.

A request computes from the end of its cache hit on, until it is preempted, aborted or done: one span of its tokens each
time. Example: computed [32, 50), then preempted, then resumed with a hit of 16 tokens: the tokens of [16, 32) are
computed for the first time (another request had computed them), those of [32, 50) for the second.
"""

from __future__ import annotations

from sim.engine.request import Request


def note_resumed(request: Request, start: int) -> None:
    """Count what a preempted request computes again from token ``start`` on, as if it ran to its end."""
    request.resumed_at = start
    request.num_recomputed_tokens += _num_computed_from(request, start)


def note_stopped(request: Request, end: int) -> None:
    """Keep the span that ends at token ``end``, and take back what was counted and is not computed again yet."""
    start = request.resumed_at if request.num_preemptions else request.num_cached_tokens
    request.num_recomputed_tokens -= _num_computed_from(request, end)
    request.computed_spans = _with_span(request.computed_spans, start, end)


def _num_computed_from(request: Request, start: int) -> int:
    return sum(end - max(first, start) for first, end in request.computed_spans if end > start)


def _with_span(spans: tuple[tuple[int, int], ...], start: int, end: int) -> tuple[tuple[int, int], ...]:
    """Disjoint spans in order; those that touch are one."""
    if start >= end:
        return spans
    apart = []
    for span in spans:
        if span[1] < start or span[0] > end:
            apart.append(span)
        else:
            start, end = min(start, span[0]), max(end, span[1])
    return tuple(sorted([*apart, (start, end)]))
