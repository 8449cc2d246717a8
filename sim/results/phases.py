"""What a request goes through in turn: queued, prefill, decode; after a preemption it waits again and catches up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sim.results.record import RunRecord

Interruption = tuple[int, int, int]
"""Preempted, admitted again (or ended), next token (or negative), in nanoseconds."""
Phase = tuple[str, int, int]
"""Name, start and end in nanoseconds."""


def interruptions_by_row(record: RunRecord, rows: set[int]) -> dict[int, list[Interruption]]:
    """The interruptions of these requests, each request's in order."""
    found: dict[int, list[Interruption]] = {}
    names = ("row", "preempted_ns", "left_ns", "caught_up_ns")
    for row, *instants in zip(*(record.interruptions[name].tolist() for name in names), strict=True):
        if row in rows:
            preempted, left, caught_up = instants
            found.setdefault(row, []).append((preempted, left, caught_up))
    return found


def phases(
    arrival: int, scheduled: int, first_token: int, end: int, interruptions: Sequence[Interruption]
) -> Iterator[Phase]:
    """The phases of a request; instants that never came are negative. Empty ones are among them.

    Until its first token a request is in ``prefill``, also when it begins that anew; later it is in ``recompute`` until
    its next token.
    """
    began = scheduled if scheduled >= 0 else end
    yield "queued", arrival, began
    at = began
    mine = [each for each in interruptions if each[0] >= began]
    stops = [*(preempted for preempted, _, _ in mine[1:]), end]
    for (preempted, left, caught_up), stop in zip(mine, stops, strict=False):
        yield from _computing(at, min(preempted, end), first_token)
        yield "waiting again", min(preempted, end), min(left, end)
        at = min(left, end)
        if 0 <= first_token <= left:
            again = min(stop if caught_up < 0 else caught_up, end)
            yield "recompute", at, again
            at = again
    yield from _computing(at, end, first_token)


def _computing(start: int, stop: int, first_token: int) -> Iterator[Phase]:
    """From ``start`` to ``stop`` on the accelerator."""
    middle = stop if first_token < 0 else min(max(first_token, start), stop)
    yield "prefill", start, middle
    yield "decode", middle, stop
