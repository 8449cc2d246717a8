"""How much arithmetic and memory traffic steps are worth, for MFU and bandwidth use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.latency.experts import ExpertGroup
from sim.latency.gpus import GpuSpec
from sim.latency.model_spec import ModelSpec
from sim.latency.operators import distinct_experts
from sim.latency.parallel import kv_heads_per_gpu
from sim.latency.precision import resolve_precision
from sim.latency.sliding_window import decode_context_within, prefill_within

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

Floats = npt.NDArray[np.float64]
Columns = Mapping[str, npt.NDArray[np.int64]]


class WorkModel:
    """FLOPs and bytes of one replica, all its GPUs together.

    Columns are named as StepShape's fields (as in ``RunRecord.steps``). A row is ``num_steps`` steps
    (1 where there is no such column) whose decode context grows by ``num_decodes`` each step.
    """

    def __init__(self, model: ModelSpec, gpu: GpuSpec, engine: EngineConfig) -> None:
        tp, pp = engine.tensor_parallel_size, engine.pipeline_parallel_size
        self.model = model
        self.precision = resolve_precision(engine, gpu, model)
        self.peak_flops = tp * pp * self.precision.gemm_flops
        """Dense FLOP/s at the weights' number format."""
        self.peak_bandwidth = tp * pp * gpu.memory_bandwidth
        kv_heads = tp * kv_heads_per_gpu(model.num_kv_heads, tp)
        self._dp = ExpertGroup.of(engine, model).dp
        """Ranks that share the experts: each is charged its part of what the group reads of them."""
        self.kv_bytes_per_token = 2 * model.num_layers * kv_heads * model.head_size * self.precision.kv_bytes
        """Of all GPUs, replicated heads counted as often as they are stored."""

    def flops(self, columns: Columns) -> Floats:
        """Useful FLOPs of each row (a multiply-add counts two): matrices that each token passes, attention, LM head."""
        model = self.model
        columns = prefill_within(columns, model.sliding_window)
        steps, tokens, decode_context = _totals(columns, model.sliding_window)
        decode_pairs = columns.get("verify_attention_pairs", decode_context)
        matrices = 2.0 * model.active_linear_parameters * tokens
        pair = 4.0 * model.num_layers * model.q_size
        attention = pair * (decode_pairs + 0.5 * columns["prefill_attention_pairs"] * steps)
        head = 2.0 * model.vocab_size * model.hidden_size * columns["num_sampled"] * steps
        result: Floats = matrices + attention + head
        return result

    def bytes(self, columns: Columns) -> Floats:
        """Bytes from and to GPU memory of each row: weights once a step (only experts that some token chose),
        KV read and written. Activations, mostly kept in cache, are left out."""
        model, precision = self.model, self.precision
        columns = prefill_within(columns, model.sliding_window)
        steps, tokens, decode_context = _totals(columns, model.sliding_window)
        per_step = tokens / np.maximum(steps, 1.0)
        busy = np.where(per_step > 0, steps, 0.0)
        fixed = model.linear_parameters - model.num_moe_layers * model.num_experts * model.expert_parameters
        weights = busy * fixed
        if model.num_experts:
            touched = self._touched(columns.get("group_tokens", per_step).astype(np.float64))
            weights = weights + steps * model.num_moe_layers * model.expert_parameters * touched
        head = np.where(columns["num_sampled"] > 0, steps, 0.0) * model.vocab_size * model.hidden_size
        kv = decode_context + columns["prefill_context_tokens"] * steps + tokens
        result: Floats = weights * precision.linear_bytes + head * precision.head_bytes + kv * self.kv_bytes_per_token
        return result

    def _touched(self, tokens: Floats) -> Floats:
        """Experts of a layer that one rank's GPUs read in a step of so many tokens, of all ranks together."""
        return distinct_experts(self.model.num_experts, self.model.experts_per_token, tokens) / self._dp

    def total_flops(self, columns: Columns) -> float:
        """FLOPs of all rows, from exact integer sums: the same however steps are grouped into rows."""
        window = self.model.sliding_window
        return float(self.flops(_summed(prefill_within(columns, window), window))[0])

    def total_bytes(self, columns: Columns) -> float:
        """Bytes of all rows, from exact integer sums: the same however steps are grouped into rows.

        Weights are read once a step whatever its size, experts as often as the step's tokens choose them, so
        these two are summed by the size of the step.
        """
        model, precision = self.model, self.precision
        per_step = tokens_per_step(columns)
        steps_of_rows = _steps(columns)
        experts = model.num_moe_layers * model.num_experts * model.expert_parameters
        weights = float(steps_of_rows[per_step > 0].sum()) * (model.linear_parameters - experts)
        if model.num_experts:
            if "group_tokens" in columns:
                sizes, steps_of_size = np.unique(columns["group_tokens"], return_counts=True)
            else:
                sizes, place = np.unique(per_step, return_inverse=True)
                steps_of_size = np.zeros(len(sizes), dtype=np.int64)
                np.add.at(steps_of_size, place, steps_of_rows)
            for size, steps in zip(sizes.tolist(), steps_of_size.tolist(), strict=True):
                touched = self._touched(np.array([float(size)]))
                weights += steps * model.num_moe_layers * model.expert_parameters * float(touched[0])
        heads = int(steps_of_rows[columns["num_sampled"] > 0].sum()) * model.vocab_size * model.hidden_size
        window = model.sliding_window
        summed = _summed(prefill_within(columns, window), window)
        kv = int((summed["decode_context_tokens"] + summed["prefill_context_tokens"])[0]) + int(
            tokens_per_step(summed)[0]
        )
        return weights * precision.linear_bytes + heads * precision.head_bytes + kv * self.kv_bytes_per_token

    def is_compute_bound(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """Rows whose steps' matrix products take longer for arithmetic than for reading weights, at peak rates."""
        model = self.model
        tokens = tokens_per_step(columns).astype(np.float64)
        weights = np.full_like(tokens, model.linear_parameters)
        if model.num_experts:
            touched = self._touched(columns.get("group_tokens", tokens).astype(np.float64))
            weights += model.num_moe_layers * model.expert_parameters * (touched - model.num_experts)
        compute_s = 2.0 * model.active_linear_parameters * tokens / self.peak_flops
        result: npt.NDArray[np.bool_] = compute_s > weights * self.precision.linear_bytes / self.peak_bandwidth
        return result


def tokens_per_step(columns: Columns) -> npt.NDArray[np.int64]:
    """Tokens that each step of a row computes, drafts included."""
    tokens = columns["num_prefill_tokens"] + columns["num_decodes"]
    return tokens + columns["num_draft_tokens"] if "num_draft_tokens" in columns else tokens


def _steps(columns: Columns) -> npt.NDArray[np.int64]:
    return columns["num_steps"] if "num_steps" in columns else np.ones_like(columns["num_decodes"])


def _summed(columns: Columns, window: int | None) -> dict[str, npt.NDArray[np.int64]]:
    """All steps of all rows as the columns of one imaginary step, in exact integers."""
    steps = _steps(columns)
    per_step = (
        "num_prefill_tokens",
        "num_decodes",
        "num_sampled",
        "prefill_context_tokens",
        "prefill_attention_pairs",
    )
    drafts = ("num_draft_tokens", "verify_attention_pairs") if "num_draft_tokens" in columns else ()
    prefills = ("num_prefills",) if "num_prefills" in columns else ()
    sums = {name: int((columns[name] * steps).sum()) for name in (*per_step, *drafts, *prefills)}
    sums["decode_context_tokens"] = int(decode_context_within(columns, steps, window).sum())
    return {name: np.array([value], dtype=np.int64) for name, value in sums.items()}


def _totals(columns: Columns, window: int | None) -> tuple[Floats, Floats, Floats]:
    """(steps, tokens of all steps, decode context of all steps) of each row."""
    steps = _steps(columns)
    tokens = tokens_per_step(columns).astype(np.float64) * steps
    context = decode_context_within(columns, steps, window)
    return steps.astype(np.float64), tokens, context.astype(np.float64)
