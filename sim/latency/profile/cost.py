"""The measured step cost: a profile's operator times put together as an engine's step, in whole nanoseconds.

A step = layers x (matrices and element-wise kernels at the step's tokens, two all-reduces under tensor parallelism,
attention of prefill chunks, attention of decodes) + embedding + LM head and sampler over its rows. Steps small enough
for a CUDA graph are padded to a captured size. All curves become integer tables with integer knots here; stepping reads
those only.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.latency.base import StepShape
from sim.latency.gpus import GpuSpec
from sim.latency.models import ModelSpec
from sim.latency.precision import resolve_precision
from sim.latency.profile.file import profile_hash
from sim.latency.profile.library import Found
from sim.latency.profile.operators import Floats, ProfiledOperators
from sim.latency.profile.speed_of_light import LAUNCH_NS
from sim.latency.tables import Rate, Table

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

SLOPE_BITS = 20
ONE = 1 << SLOPE_BITS
"""Fixed point of slopes between knots and of multiples."""


def graph_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> list[int]:
    """Token counts that vLLM captures CUDA graphs for by default (``CompilationConfig.cudagraph_capture_sizes``,
    ``vllm/config/vllm.py``): 1, 2, 4, every 8 below 256, every 16 up to twice ``max_num_seqs`` and at most 512."""
    largest = min(max_num_seqs * 2, 512, max_num_batched_tokens)
    sizes = [size for size in (1, 2, 4) if size <= largest]
    sizes += list(range(8, min(largest + 1, 256), 8))
    return sizes + list(range(256, largest + 1, 16))


def padded(tokens: npt.NDArray[np.float64], sizes: list[int]) -> npt.NDArray[np.float64]:
    """Each count raised to the next captured size; counts beyond the largest stay."""
    if not sizes:
        return tokens
    known = np.array([0, *sizes], dtype=np.float64)
    place = np.minimum(np.searchsorted(known, tokens), len(known) - 1)
    return np.where(tokens <= known[-1], known[place], tokens)


class Segments:
    """A function of a whole number, linear between integer knots, exact integer arithmetic."""

    __slots__ = ("knots", "slopes", "values")

    def __init__(self, knots: list[int], values: Floats) -> None:
        """``knots`` rise strictly; beyond the last the last slope goes on."""
        self.knots = knots
        self.values: list[int] = np.rint(values).astype(np.int64).tolist()
        self.slopes: list[int] = [
            ((high - low) << SLOPE_BITS) // (right - left)
            for (left, right), (low, high) in zip(pairwise(knots), pairwise(self.values), strict=True)
        ]
        self.slopes.append(self.slopes[-1] if self.slopes else 0)

    def at(self, count: int) -> int:
        """The value at ``count``, not below the first knot's."""
        place = max(0, bisect_right(self.knots, count) - 1)
        return self.values[place] + ((count - self.knots[place]) * self.slopes[place] >> SLOPE_BITS)

    def run(self, first: int, stride: int, length: int) -> npt.NDArray[np.int64]:
        """Values at ``first``, ``first + stride``, ...: element for element the same integers as ``at``."""
        counts = np.arange(first, first + stride * length, stride, dtype=np.int64)
        knots = self.knots
        left = max(0, bisect_right(knots, first) - 1)
        right = max(0, bisect_right(knots, first + stride * (length - 1)) - 1)
        values = np.empty(length, dtype=np.int64)
        begin = 0
        for place in range(left, right + 1):
            end = length if place == right else -((first - knots[place + 1]) // stride)
            stretch = counts[begin:end] - knots[place]
            stretch *= self.slopes[place]
            stretch >>= SLOPE_BITS
            stretch += self.values[place]
            values[begin:end] = stretch
            begin = end
        return values


def context_knots(longest: int) -> list[int]:
    """Contexts at which attention is tabulated: four to every doubling from 16 tokens on."""
    knots = [1]
    value = 16
    while value < longest:
        knots += [value, value * 5 // 4, value * 3 // 2, value * 7 // 4]
        value *= 2
    return [*knots, value]


class ProfileCost:
    """Step costs from a profile. See the module's text; ``breakdown`` names every term."""

    kind = "profile"

    def __init__(
        self,
        found: Found,
        model: ModelSpec,
        gpu: GpuSpec,
        engine: EngineConfig,
        *,
        host_overhead_ms: float | None = None,
    ) -> None:
        tp, pp = engine.tensor_parallel_size, engine.pipeline_parallel_size
        self.profile = found.profile
        self.model = model
        self.notes = found.notes
        self.precision = precision = resolve_precision(engine, gpu)
        self.pipeline_stages = pp
        self.operators = ProfiledOperators(found.profile, found.device, model, precision, tp, pp)
        self._graphs = [] if engine.enforce_eager else graph_sizes(engine.max_num_seqs, engine.max_num_batched_tokens)
        self._longest = engine.max_model_len
        self._layers = model.num_layers / pp
        ops = self.operators
        self._tokens = Table(lambda n: self._tokens_ns(n) / 1e9, engine.max_num_batched_tokens, least_ns=1)
        self._rows = Table(lambda n: ops.head_ns(n) / pp / 1e9, engine.max_num_seqs, least_ns=0)
        self._decode: dict[int, Segments] = {}
        self._mixed: dict[int, Segments] = {}
        self._prefill: dict[int, Segments] = {}
        self._pair = Rate(ops.pair_ns() * self._layers)
        self._context = Rate(ops.context_ns() * self._layers)
        self._query = Rate(ops.query_ns() * self._layers)
        self._launch_ns = round(LAUNCH_NS * self._layers)
        self._swap = Rate(1e9 / (gpu.pcie_bandwidth * 0.7 * tp * pp))
        self.host_step_ns = 1_000_000 if host_overhead_ms is None else round(host_overhead_ms * 1e6)
        self.host_request_ns = 8_000 if host_overhead_ms is None else 0

    # -- terms ------------------------------------------------------------------------------------

    def _tokens_ns(self, tokens: Floats) -> Floats:
        """One stage's time that depends on the number of tokens alone."""
        ops, model = self.operators, self.model
        padded_tokens = padded(tokens, self._graphs)
        each = ops.attention_projections_ns(padded_tokens) + 2.0 * ops.all_reduce_ns(padded_tokens)
        layers = model.num_layers * each
        num_dense = model.num_layers - model.num_moe_layers
        if num_dense:
            width = model.intermediate_size
            layers += num_dense * (ops.mlp_ns(padded_tokens, width) + ops.elementwise_ns(padded_tokens, width))
        if model.num_moe_layers:
            width = model.shared_expert_intermediate_size or model.moe_intermediate_size
            layers += model.num_moe_layers * (ops.experts_ns(padded_tokens) + ops.elementwise_ns(padded_tokens, width))
        return (layers + ops.embedding_ns(padded_tokens)) / ops.pp + ops.send_receive_ns(padded_tokens)

    def _decode_segments(self, batch: int) -> Segments:
        """All layers' decode attention of ``batch`` requests, by their context together."""
        known = self._decode.get(batch)
        if known is None:
            knots = context_knots(self._longest)
            times = self.operators.decode_attention_ns(batch, np.array(knots, dtype=np.float64))
            rising = np.maximum.accumulate(times) * self._layers
            known = self._decode[batch] = Segments([batch * knot for knot in knots], rising)
        return known

    def _mixed_segments(self, batch: int) -> Segments:
        """As ``_decode_segments``, for steps that hold prefill chunks too."""
        known = self._mixed.get(batch)
        if known is None:
            knots = context_knots(self._longest)
            times = self.operators.mixed_decode_attention_ns(batch, np.array(knots, dtype=np.float64))
            rising = np.maximum.accumulate(times) * self._layers
            known = self._mixed[batch] = Segments([batch * knot for knot in knots], rising)
        return known

    def _prefill_segments(self, batch: int) -> Segments:
        """Multiple of the speed of light of ``batch`` chunks, in 2**-SLOPE_BITS, by the size of one."""
        known = self._prefill.get(batch)
        if known is None:
            knots = context_knots(self._longest)
            multiples = np.array([self.operators.prefill_multiple(batch, knot) for knot in knots])
            known = self._prefill[batch] = Segments([*knots, knots[-1] + 1], np.append(multiples, multiples[-1]) * ONE)
        return known

    def _prefill_attention_ns(self, shape: StepShape) -> int:
        num, pairs = shape.num_prefills, shape.prefill_attention_pairs >> 1
        size = max(1, isqrt(2 * pairs // num))
        bound = max(
            self._pair.ns(pairs),
            self._context.ns(shape.prefill_context_tokens) + self._query.ns(shape.num_prefill_tokens),
        )
        return (bound + self._launch_ns) * self._prefill_segments(num).at(size) >> SLOPE_BITS

    # -- the interface of StepCost ----------------------------------------------------------------

    def gpu_ns(self, shape: StepShape) -> int:
        """Accelerator time of one stage of this step, at least 1."""
        num_decodes = shape.num_decodes
        ns = self._tokens.ns(shape.num_prefill_tokens + num_decodes) + self._rows.ns(shape.num_prefills + num_decodes)
        if num_decodes:
            segments = self._mixed_segments if shape.num_prefills else self._decode_segments
            ns += segments(num_decodes).at(shape.decode_context_tokens)
        if shape.num_prefills:
            ns += self._prefill_attention_ns(shape)
        if shape.swap_bytes:
            ns += self._swap.ns(shape.swap_bytes)
        return ns

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> npt.NDArray[np.int64]:
        """``gpu_ns`` of ``num_steps`` pure decode steps in a row, element by element the same integers."""
        fixed = self._tokens.ns(num_decodes) + self._rows.ns(num_decodes)
        if not num_decodes:
            return np.full(num_steps, fixed, dtype=np.int64)
        return fixed + self._decode_segments(num_decodes).run(decode_context_tokens, num_decodes, num_steps)

    def host_ns(self, shape: StepShape) -> int:
        """Host time of this step: a fixed part and a part per scheduled request."""
        return self.host_step_ns + self.host_request_ns * (shape.num_prefills + shape.num_decodes)

    def empty_step_ns(self) -> int:
        """The fixed host time, at least 1."""
        return max(1, self.host_step_ns)

    def describe(self) -> dict[str, object]:
        """Which profile, its stated errors, and what stands in for operators that it lacks."""
        source = self.profile.source
        return {
            "kind": self.kind,
            "estimate": False,
            "profile": self.profile.name,
            "profile_hash": profile_hash(self.profile),
            "source": source.kind,
            "origin": source.origin,
        }
