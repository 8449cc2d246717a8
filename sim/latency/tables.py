"""Step costs as integers: tables over token counts and fixed-point rates, read without floating point.

What depends on the number of tokens or rows alone is tabulated; what grows linearly (attention over
context, bytes swapped) is an integer rate with a shift. Any latency model that can say its
costs like this gets the fast arithmetic from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import frexp, ldexp
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.latency.base import StepShape

Floats = npt.NDArray[np.float64]

RATE_BITS = 30
"""Bits of a rate's mantissa: with counts below 2**33 a product fits 64 bits."""
MAX_TABLE = 1 << 16
"""Entries that a table holds from the start; larger counts are computed when they come up."""
LONGEST_NS = 1e18
"""Where a table ends: 30 years, more than ``build_step_cost`` lets pass, and still an integer of 64 bits."""
_LARGEST = (1 << 63) - 1


class Rate:
    """Nanoseconds per unit as ``multiplier >> shift``: relative error below 2**-29, monotone in the count."""

    __slots__ = ("multiplier", "shift")

    def __init__(self, ns_per_unit: float) -> None:
        exponent = frexp(ns_per_unit)[1]
        self.shift = max(0, RATE_BITS - exponent)
        self.multiplier = round(ldexp(ns_per_unit, self.shift))

    def ns(self, count: int) -> int:
        """``count`` units, rounded down."""
        return count * self.multiplier >> self.shift

    def many_ns(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """``ns`` of each of ``counts``."""
        if int(counts.max(initial=0)) * self.multiplier > _LARGEST:
            return np.array([self.ns(count) for count in counts.tolist()], dtype=np.int64)
        return counts * self.multiplier >> self.shift


class Table:
    """Nanoseconds by count: an integer list, made at once up to a size and one by one beyond it.

    ``seconds`` maps counts to seconds. Values never fall as the count grows, unless they ``may_fall``.
    """

    __slots__ = ("_beyond", "_may_fall", "_seconds", "values")

    def __init__(
        self, seconds: Callable[[Floats], Floats], largest: int, *, least_ns: int, may_fall: bool = False
    ) -> None:
        self._seconds = seconds
        self._may_fall = may_fall
        counts = np.arange(min(largest, MAX_TABLE) + 1, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            ns = np.rint(np.fmin(seconds(counts) * 1e9, LONGEST_NS)).astype(np.int64)
        ns = np.maximum(ns, least_ns)
        self.values: list[int] = (ns if may_fall else np.maximum.accumulate(ns)).tolist()
        self._beyond: dict[int, int] = {}

    def ns(self, count: int) -> int:
        """The value at ``count``, any count from 0."""
        if count < len(self.values):
            return self.values[count]
        known = self._beyond.get(count)
        if known is None:
            exact = float(self._seconds(np.array([float(count)]))[0])
            least = 1 if self._may_fall else self.values[-1]
            known = self._beyond[count] = max(least, round(exact * 1e9))
        return known


class AttentionRates(NamedTuple):
    """What attention takes whose queries see ``window`` tokens at most (None = all), in all layers that have it."""

    window: int | None
    context: Rate
    """For each token of KV that decodes read."""
    pairs: Rate
    """For each unit of ``prefill_attention_pairs``."""
    chunk_context: Rate
    """For each token of context that prefill chunks read."""

    def step_ns(
        self,
        num_prefills: int,
        num_prefill_tokens: int,
        prefill_context_tokens: int,
        prefill_attention_pairs: int,
        num_decodes: int,
        decode_context_tokens: int,
        num_draft_tokens: int,
        verify_attention_pairs: int,
    ) -> int:
        """Of one step."""
        window = self.window
        if window is not None:  # as ``sliding_window.within``
            prefill_attention_pairs = min(prefill_attention_pairs, 2 * num_prefill_tokens * window)
            prefill_context_tokens = min(prefill_context_tokens, num_prefill_tokens + num_prefills * window)
            decode_context_tokens = min(decode_context_tokens, num_decodes * window)
            verify_attention_pairs = min(verify_attention_pairs, (num_decodes + num_draft_tokens) * window)
        ns = self.context.ns(decode_context_tokens)
        if verify_attention_pairs:
            # The KV is read once for all queries of a request, unless there are so many that arithmetic takes longer.
            ns = max(ns, self.pairs.ns(2 * verify_attention_pairs))
        if num_prefill_tokens:
            ns += max(self.pairs.ns(prefill_attention_pairs), self.chunk_context.ns(prefill_context_tokens))
        return ns

    def run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> npt.NDArray[np.int64]:
        """Of ``num_steps`` pure decode steps in a row: the same integers."""
        last = decode_context_tokens + num_steps * num_decodes
        if self.window is not None and last > (most := num_decodes * self.window):
            seen = decode_context_tokens + np.arange(num_steps, dtype=np.int64) * num_decodes
            return self.context.many_ns(np.minimum(seen, most))
        if last * self.context.multiplier > _LARGEST:
            context = range(decode_context_tokens, last, num_decodes) if num_decodes else [last] * num_steps
            return np.array([self.context.ns(tokens) for tokens in context], dtype=np.int64)
        steps = _STEPS[:num_steps] if num_steps <= len(_STEPS) else np.arange(num_steps, dtype=np.int64)
        run = steps * (num_decodes * self.context.multiplier)
        run += decode_context_tokens * self.context.multiplier
        run >>= self.context.shift
        return run


_STEPS = np.arange(4096, dtype=np.int64)


class TabulatedCost:
    """A step is a table by tokens, a table by sampled rows and linear terms."""

    def __init__(
        self,
        *,
        tokens: Table,
        sampled: Table,
        attention: Sequence[AttentionRates],
        swap: Rate,
        pipeline_stages: int,
        host_step_ns: int,
        host_request_ns: int,
    ) -> None:
        """``attention``: one for each reach that the layers have."""
        self.pipeline_stages = pipeline_stages
        self.host_step_ns = host_step_ns
        self.host_request_ns = host_request_ns
        self._tokens = tokens
        self._sampled = sampled
        self._tokens_ns = tokens.values
        self._sampled_ns = sampled.values
        first, *more = attention
        self._first = first
        self._more = tuple(more)
        """Attention of other layers, and of those that look back twice."""
        self._decode_multiplier = first.context.multiplier
        self._decode_shift = first.context.shift
        self._prefill_pairs = first.pairs
        self._prefill_context = first.chunk_context
        self._swap = swap
        self._window = first.window

    def tokens_ns(self, tokens: int) -> int:
        """One stage's time that depends on the number of tokens alone, as it is charged."""
        return self._tokens.ns(tokens)

    def step_ns(
        self,
        num_prefills: int,
        num_prefill_tokens: int,
        prefill_context_tokens: int,
        prefill_attention_pairs: int,
        num_decodes: int,
        decode_context_tokens: int,
        num_sampled: int,
        num_draft_tokens: int = 0,
        verify_attention_pairs: int = 0,
        swap_bytes: int = 0,
    ) -> int:
        """``gpu_ns`` from the counts of a ``StepShape``."""
        num_tokens = num_prefill_tokens + num_decodes + num_draft_tokens
        others = 0
        for attention in self._more:
            others += attention.step_ns(
                num_prefills,
                num_prefill_tokens,
                prefill_context_tokens,
                prefill_attention_pairs,
                num_decodes,
                decode_context_tokens,
                num_draft_tokens,
                verify_attention_pairs,
            )
        window = self._window
        if window is not None:  # as ``sliding_window.within``
            prefill_attention_pairs = min(prefill_attention_pairs, 2 * num_prefill_tokens * window)
            prefill_context_tokens = min(prefill_context_tokens, num_prefill_tokens + num_prefills * window)
            decode_context_tokens = min(decode_context_tokens, num_decodes * window)
            verify_attention_pairs = min(verify_attention_pairs, (num_decodes + num_draft_tokens) * window)
        try:
            ns = others + self._tokens_ns[num_tokens] + self._sampled_ns[num_sampled]
        except IndexError:
            ns = others + self._tokens.ns(num_tokens) + self._sampled.ns(num_sampled)
        decode_ns = decode_context_tokens * self._decode_multiplier >> self._decode_shift
        if verify_attention_pairs:
            # The KV is read once for all queries of a request, unless there are so many that arithmetic takes longer.
            decode_ns = max(decode_ns, self._prefill_pairs.ns(2 * verify_attention_pairs))
        ns += decode_ns
        if num_prefill_tokens:
            pairs_ns = self._prefill_pairs.ns(prefill_attention_pairs)
            context_ns = self._prefill_context.ns(prefill_context_tokens)
            ns += pairs_ns if pairs_ns > context_ns else context_ns
        if swap_bytes:
            ns += self._swap.ns(swap_bytes)
        return ns

    def gpu_ns(self, shape: StepShape) -> int:
        """Accelerator time of one stage of this step, at least 1."""
        return self.step_ns(
            shape.num_prefills,
            shape.num_prefill_tokens,
            shape.prefill_context_tokens,
            shape.prefill_attention_pairs,
            shape.num_decodes,
            shape.decode_context_tokens,
            shape.num_sampled,
            shape.num_draft_tokens,
            shape.verify_attention_pairs,
            shape.swap_bytes,
        )

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> npt.NDArray[np.int64]:
        """``gpu_ns`` of ``num_steps`` pure decode steps in a row, element by element the same integers."""
        run = self._first.run_ns(num_decodes, decode_context_tokens, num_steps)
        for attention in self._more:
            run = run + attention.run_ns(num_decodes, decode_context_tokens, num_steps)
        return run + (self._tokens.ns(num_decodes) + self._sampled.ns(num_decodes))

    def host_ns(self, shape: StepShape) -> int:
        """Host time of this step: a fixed part and a part per scheduled request."""
        return self.host_step_ns + self.host_request_ns * (shape.num_prefills + shape.num_decodes)

    def empty_step_ns(self) -> int:
        """The fixed host time, at least 1."""
        return max(1, self.host_step_ns)
