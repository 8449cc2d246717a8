"""The roofline: step times from model and GPU figures alone. An estimate, and it says so."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from sim.latency.base import StepShape
from sim.latency.experts import ExpertGroup
from sim.latency.fitted import Fitted
from sim.latency.gpus import GpuSpec
from sim.latency.model_spec import ModelSpec
from sim.latency.operators import Efficiency, Floats, Operators
from sim.latency.parts import UNMEASURED_ERROR, one_part
from sim.latency.pipelining import is_asynchronous
from sim.latency.precision import resolve_precision
from sim.latency.sliding_window import within
from sim.latency.tables import AttentionRates, Rate, Table, TabulatedCost

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

HOST_STEP_NS = 1_000_000
"""Host time of a step: schedule, prepare inputs, replay the graph, copy tokens back, stream them out.
An engineer's figure for vLLM V1 (about 1 ms small, 3 ms at 256 requests), not fitted to any measurement."""
HOST_REQUEST_NS = 8_000
"""More of it for each scheduled request."""
HOST_PARALLEL_NS = 200_000
"""More of it where worker processes of several GPUs have to be told."""


class RooflineCost(TabulatedCost):
    """Datasheet peaks times stated efficiencies; see ``operators`` for every term.

    With pipeline parallelism all stages are equal: layers, embedding and LM head are spread evenly,
    so that their sum is right and the last stage (which alone has the LM head) a little too fast.
    """

    kind = "roofline"

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        engine: EngineConfig,
        *,
        host_overhead_ms: float | None = None,
        efficiency: Efficiency | None = None,
        time_scale: float = 1.0,
        expert_load_imbalance: float | None = None,
        fitted: Fitted | None = None,
    ) -> None:
        """``host_overhead_ms`` replaces all of the default host time, its part per request included; ``time_scale``
        multiplies all other times. ``fitted``: ``attention``, ``matrices`` (all the rest of a step) and host times."""
        self.model = model
        self.gpu = gpu
        self.precision = resolve_precision(engine, gpu, model)
        self.efficiency = efficiency or Efficiency()
        self.experts = ExpertGroup.of(engine, model, expert_load_imbalance)
        self.enforce_eager = engine.enforce_eager and not self.experts.is_lockstep
        self.time_scale = time_scale
        self.fitted = fitted
        self._matrices = 1.0 if fitted is None else fitted.factor("matrices")
        self._exposed = fitted if is_asynchronous(engine) else None
        attention_ns = time_scale * 1e9 * (1.0 if fitted is None else fitted.factor("decode_attention"))
        ns = time_scale * 1e9
        tp, pp = engine.tensor_parallel_size, engine.pipeline_parallel_size
        self.operators = Operators(model, gpu, self.precision, tp, pp, self.efficiency, self.experts)
        ops = self.operators
        host_step_ns, host_request_ns = _host_ns(host_overhead_ms, fitted, is_alone=self.experts.dp * tp * pp == 1)
        self._host_basis = ("estimate", UNMEASURED_ERROR, "the default host time, an engineer's figure")
        if host_overhead_ms is not None:
            self._host_basis = ("assumption", 0.0, "host_overhead_ms of the scenario")
        super().__init__(
            tokens=Table(
                lambda tokens: self._tokens_s(tokens) * time_scale * self._matrices,
                engine.max_num_batched_tokens,
                least_ns=1,
            ),
            sampled=Table(self._rows_s, engine.max_num_seqs, least_ns=0),
            attention=[
                AttentionRates(
                    each.window,
                    Rate(each.context_s / pp * attention_ns),
                    Rate(each.pair_s / pp * attention_ns),
                    Rate(each.chunk_context_s / pp * attention_ns),
                )
                for each in ops.attention_times()
            ],
            swap=Rate(ns / (gpu.pcie_bandwidth * self.efficiency.link * tp * pp)),
            pipeline_stages=pp,
            host_step_ns=host_step_ns,
            host_request_ns=host_request_ns,
        )

    def _tokens_s(self, tokens: Floats) -> Floats:
        """One stage's time that depends on the number of tokens alone."""
        ops = self.operators
        layers = ops.layers_s(tokens)
        if self.enforce_eager:
            layers = np.where(tokens > 0, np.maximum(layers, ops.eager_floor_s()), layers)
        return (layers + ops.embedding_s(tokens)) / ops.pp + ops.send_receive_s(tokens)

    def _rows_s(self, rows: Floats) -> Floats:
        """One stage's time that depends on the number of rows sampled alone."""
        head = self.operators.head_s(rows) * self.time_scale / self.operators.pp * self._matrices
        return head if self._exposed is None else head + self._exposed.exposed_ns(rows) / 1e9 / self.operators.pp

    def group_terms_ns(self, tokens: Floats) -> dict[str, Floats]:
        """What ranks that step together do together with ``tokens`` tokens of them all, padding included, by term."""
        scale = self.time_scale * 1e9 * self._matrices
        return {name: seconds * scale for name, seconds in self.operators.group_terms_s(tokens).items()}

    def launch_floor_ns(self) -> int:
        """Without CUDA graphs, what launching a step's operators one by one takes at least."""
        return round(self.operators.eager_floor_s() * self.time_scale * 1e9)

    def breakdown(self, shape: StepShape) -> dict[str, float]:
        """Seconds of one stage by term; their sum is ``gpu_ns`` up to rounding."""
        ops = self.operators
        tokens, rows = np.array([float(shape.num_tokens)]), np.array([float(shape.num_sampled)])
        blocks = sum(count * kind.num_blocks for kind, count in self.model.kinds)
        collectives = float(blocks) * ops.all_reduce_s(tokens)
        attention = decode_attention = 0.0
        for each in ops.attention_times():
            seen = shape if each.window is None else within(shape, each.window)
            attention += max(
                seen.prefill_attention_pairs * each.pair_s, seen.prefill_context_tokens * each.chunk_context_s
            )
            decode_attention += max(
                seen.decode_context_tokens * each.context_s, 2 * seen.verify_attention_pairs * each.pair_s
            )
        terms = {
            "layers": float((self._tokens_s(tokens) - collectives / ops.pp - ops.send_receive_s(tokens))[0]),
            "all_reduce": float(collectives[0]) / ops.pp,
            "send_receive": float(ops.send_receive_s(tokens)[0]),
            "prefill_attention": attention / ops.pp if shape.num_prefill_tokens else 0.0,
            "decode_attention": decode_attention / ops.pp,
            "head_and_sampler": float(ops.head_s(rows)[0]) / ops.pp,
        }
        of_attention = 1.0 if self.fitted is None else self.fitted.factor("decode_attention")
        scaled = {
            name: seconds * self.time_scale * (of_attention if name.endswith("attention") else self._matrices)
            for name, seconds in terms.items()
        }
        if self._exposed is not None:
            scaled["exposed_host"] = self._rows_s(rows)[0] - scaled["head_and_sampler"]
        return {**scaled, "swap": self._swap.ns(shape.swap_bytes) / 1e9}

    def describe(self) -> dict[str, object]:
        """Kind, that it is an estimate, and every constant it stands on."""
        return {
            "kind": self.kind,
            "estimate": True,
            "text": "roofline estimate from datasheet figures; not measured",
            "evidence": {
                "all": one_part("estimate", UNMEASURED_ERROR, "datasheet peaks at stated efficiencies"),
                "host": one_part(*self._host_basis),
            },
            "model": self.model.name,
            "gpu": self.gpu.name,
            "gpu_source": self.gpu.source,
            "dtype": self.precision.weights,
            "kv_cache_dtype": self.precision.kv,
            "tensor_parallel_size": self.operators.tp,
            "pipeline_parallel_size": self.operators.pp,
            "efficiency": asdict(self.efficiency),
            "time_scale": self.time_scale,
            "host_overhead_ms": self.host_step_ns / 1e6,
            "host_overhead_per_request_ms": self.host_request_ns / 1e6,
            **({} if self.fitted is None else {"fit": self.fitted.describe()}),
        }


def _host_ns(told_ms: float | None, fitted: Fitted | None, *, is_alone: bool) -> tuple[int, int]:
    """Host time of a step and of each of its requests: as fitted, else as told, else the default, which is more where
    the GPU is not alone."""
    step_ns, request_ns = HOST_STEP_NS + (0 if is_alone else HOST_PARALLEL_NS), HOST_REQUEST_NS
    if told_ms is not None:
        step_ns, request_ns = round(told_ms * 1e6), 0
    if fitted is not None:
        fitted_step_ns, fitted_request_ns = fitted.ns("host_step_ms"), fitted.ns("host_request_us")
        step_ns = step_ns if fitted_step_ns is None else fitted_step_ns
        request_ns = request_ns if fitted_request_ns is None else fitted_request_ns
    return step_ns, request_ns
