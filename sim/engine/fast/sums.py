"""What steady decode steps take, as running sums: the time of any number of them is one subtraction.

Steps of the same requests differ only in the context, which grows by the number of requests with each step.
So steps fall into series (same size, same remainder of the context), and each series is summed up once.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from sim.latency.base import StepCost, StepShape
from sim.results.record import Recorder

LENGTH = 512
"""Steps in a stretch of a series; a power of two."""
MOST_STRETCHES = 4096
"""Kept at a time: 8 kB each."""
MOST_SIZE = 24
"""Steps of more requests than that have so many different contexts that ..."""
SHORT = 16
"""... so few of them are summed up anew each time."""


class Stretch:
    """``LENGTH`` consecutive steps of one series."""

    __slots__ = ("counts", "least_ns", "sums")

    def __init__(self, sums: Sequence[int], least_ns: int, counts: dict[int, int] | None = None) -> None:
        self.sums = sums
        """``sums[k]``: nanoseconds on the accelerator of the first k steps, one element more than steps."""
        self.least_ns = least_ns
        """The shortest step."""
        self.counts = counts
        """Step i was taken by the units that the counts up to i add up to; None where gaps are recorded one by one."""


class DecodeSums:
    """All stretches in use under one cost model; replicas share it."""

    def __init__(self, cost: StepCost, recorder: Recorder) -> None:
        self._cost = cost
        self._recorder = recorder
        self._shape = StepShape()
        self._host_ns: dict[int, int] = {}
        self.stretches: dict[tuple[int, int], Stretch] = {}
        """By (size, context of the first step)."""

    def host_ns(self, size: int) -> int:
        """Host time of a step of ``size`` decodes."""
        known = self._host_ns.get(size)
        if known is None:
            known = self._host_ns[size] = self._cost.host_ns(StepShape(num_decodes=size, num_sampled=size))
        return known

    def get(self, size: int, context: int, most: int) -> tuple[int, Stretch]:
        """Steps of ``size`` decodes whose first has ``context`` tokens of context: a stretch, and its place there."""
        place = context // size & LENGTH - 1
        first = context - place * size
        stretch = self.stretches.get((size, first))
        if stretch is not None:
            return place, stretch
        if size > MOST_SIZE:
            return 0, self.make_short(size, context, min(most, LENGTH))
        return place, self.make(size, first)

    def make(self, size: int, first_context: int) -> Stretch:
        """Steps of ``size`` decodes, the first with ``first_context`` tokens of context."""
        if len(self.stretches) >= MOST_STRETCHES:
            self.record_gaps()
            for stretch in self.stretches.values():
                stretch.counts = None  # a plan that still has it records its gaps itself
            self.stretches.clear()
        run = self._cost.decode_run_ns(size, first_context, LENGTH)
        sums = array("q", [0])
        sums.frombytes(run.cumsum(dtype=np.int64).tobytes())
        stretch = self.stretches[size, first_context] = Stretch(sums, int(run.min()), {})
        return stretch

    def make_short(self, size: int, first_context: int, num_steps: int) -> Stretch:
        """The same for a few steps that hardly come again: not kept, and their gaps are recorded one by one."""
        if num_steps > SHORT:
            run = self._cost.decode_run_ns(size, first_context, num_steps)
            return Stretch([0, *run.cumsum(dtype=np.int64).tolist()], int(run.min()))
        shape, gpu_ns = self._shape, self._cost.gpu_ns
        shape.num_decodes = shape.num_sampled = size
        total_ns, sums, least_ns = 0, [0], 1 << 62
        for context in range(first_context, first_context + num_steps * size, size):
            shape.decode_context_tokens = context
            step_ns = gpu_ns(shape)
            total_ns += step_ns
            if step_ns < least_ns:
                least_ns = step_ns
            sums.append(total_ns)
        return Stretch(sums, least_ns)

    def record_gaps(self) -> None:
        """Tell the recorder of the gaps between tokens since the last time: a step's length, once per request."""
        for stretch in self.stretches.values():
            if stretch.counts:
                sums = np.array(stretch.sums, dtype=np.int64)
                self._recorder.gaps.add_steps(sums[1:] - sums[:-1], stretch.counts)
                stretch.counts = {}
