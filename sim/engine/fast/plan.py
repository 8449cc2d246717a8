"""Steps in which the same members decode and nothing else happens: when each is formed and ends, and its row.

Step 0 is formed at ``now_ns``, step i > 0 at ``before_ns + instants[place + i - 1]``. Under asynchronous scheduling,
while the accelerator never waits for the host, a step is formed when the one before it starts, which is when the one
before that ends: ``instants`` are then running sums of step times (``sums.py``). Otherwise they are worked out one by
one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import mul

from sim.engine.fast.sums import Stretch

MOST_ONE_BY_ONE = 128
"""Steps whose instants are worked out one by one, at most."""


class Plan:
    """See the module."""

    takes: list[int]
    """Blocks that each of its steps takes, once they are history."""
    index: int
    size: int
    units: int
    """Of its members, for gaps between tokens."""
    context: int
    free: int
    num_running: int
    num_waiting: int
    """The replica before the first step."""

    def __init__(
        self,
        now_ns: int,
        busy_ns: int,
        host_ns: int,
        stretch: Stretch,
        place: int,
        most: int,
        *,
        is_async: bool,
    ) -> None:
        """``stretch`` from ``place`` on: what the steps cost; ``busy_ns``: until when the accelerator is."""
        self.now_ns, self.host_ns = now_ns, host_ns
        self.stretch, self.stretch_place = stretch, place
        steps = len(stretch.sums) - 1 - place
        self.steps = most if most < steps else steps
        if is_async and host_ns <= stretch.least_ns and now_ns + host_ns <= busy_ns:
            self.instants, self.place = stretch.sums, place
            self.before_ns = busy_ns - stretch.sums[place]
            self.start_ns = busy_ns
            self.ends_ns: list[int] | None = None
        else:
            self._one_by_one(busy_ns, is_async=is_async)

    def _one_by_one(self, busy_ns: int, *, is_async: bool) -> None:
        sums, place, host_ns = self.stretch.sums, self.stretch_place, self.host_ns
        self.steps = min(self.steps, MOST_ONE_BY_ONE)
        formed, ends = [], []
        at_ns = self.now_ns
        self.start_ns = max(at_ns + host_ns, busy_ns)
        for i in range(place, place + self.steps):
            start_ns = max(at_ns + host_ns, busy_ns)
            busy_ns = start_ns + sums[i + 1] - sums[i]
            at_ns = start_ns if is_async else busy_ns
            formed.append(at_ns)
            ends.append(busy_ns)
        self.instants, self.place, self.before_ns, self.ends_ns = formed, 0, 0, ends

    def describe(self, row: Sequence[int], takes: list[int]) -> None:
        """Take over what ``row``, made of all its steps, says of the replica; ``takes``: blocks of each step."""
        self.index, self.num_running, self.num_waiting, self.size, self.context = row[0], *row[5:9]
        self.takes, self.free = takes, row[11] + sum(takes)

    def num_formed(self, now_ns: int) -> int:
        """Steps formed before ``now_ns``; the first one always is."""
        place = self.place
        return 1 + bisect_left(self.instants, now_ns - self.before_ns, place, place + self.steps - 1) - place

    def num_ended(self, now_ns: int, steps: int) -> int:
        """Of the first ``steps``, those whose end is ``now_ns`` or before."""
        return sum(self.end_ns(count) <= now_ns for count in range(1, steps + 1))

    def formed_ns(self, step: int) -> int:
        """When ``step`` (from 0) is formed."""
        return self.before_ns + self.instants[self.place + step - 1] if step else self.now_ns

    def end_ns(self, steps: int) -> int:
        """When the last of the first ``steps`` ends."""
        if self.ends_ns is not None:
            return self.ends_ns[steps - 1]
        return self.before_ns + self.instants[self.place + steps]

    def row(self, steps: int) -> tuple[int, ...]:
        """The first ``steps`` as a row of ``DECODE_COLUMNS``; ``takes`` is set."""
        end_ns = self.end_ns(steps)
        gpu_ns = end_ns - self.start_ns
        if self.ends_ns is not None:
            sums, first = self.stretch.sums, self.stretch_place
            gpu_ns = sums[first + steps] - sums[first]
        free, used_ns = self.free, 0
        last_ns = self.formed_ns(steps - 1)
        if steps > 1:
            used_ns = block_ns(self.takes[: steps - 1], self.now_ns, last_ns, self.instants, self.place, self.before_ns)
        times = (self.index, self.now_ns, self.start_ns, end_ns, steps, self.num_running, self.num_waiting)
        rest = (free - sum(self.takes[:steps]), last_ns, free * (last_ns - self.now_ns) - used_ns)
        return (*times, self.size, self.context, gpu_ns, self.host_ns * steps, *rest)

    def count_gaps(self, steps: int, add_gap: Callable[[tuple[int, int]], None]) -> None:
        """Tokens of the first ``steps`` are known: each member waited as long for it as the step took."""
        counts, place = self.stretch.counts, self.place
        if counts is not None and self.ends_ns is None:
            counts[place] = counts.get(place, 0) + self.units
            counts[place + steps] = counts.get(place + steps, 0) - self.units
            return
        instants, units = self.instants, self.units
        for i in range(place, place + steps):
            add_gap((instants[i + 1] - instants[i], units))


def block_ns(
    takes: Sequence[int], now_ns: int, last_ns: int, instants: Sequence[int], place: int, before_ns: int
) -> int:
    """Blocks times nanoseconds until ``last_ns`` of what steps take, one or more: the first is formed at ``now_ns``,
    the others at ``before_ns + instants[place]`` and so on."""
    blocks_ns = takes[0] * (last_ns - now_ns)
    inner = takes[1:]
    if any(inner):
        blocks_ns += (last_ns - before_ns) * sum(inner) - sum(map(mul, inner, instants[place : place + len(inner)]))
    return blocks_ns
