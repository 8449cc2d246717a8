"""How much arithmetic and memory traffic steps are worth, for MFU and bandwidth use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.latency.attention_kinds import Reach
from sim.latency.experts import ExpertGroup
from sim.latency.gpus import GpuSpec
from sim.latency.memory_weights import weight_parts
from sim.latency.model_spec import ModelSpec
from sim.latency.operators import distinct_experts
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
        self.precision = precision = resolve_precision(engine, gpu, model)
        self.peak_flops = tp * pp * self.precision.gemm_flops
        """Dense FLOP/s at the weights' number format."""
        self.peak_bandwidth = tp * pp * gpu.memory_bandwidth
        self._dp = ExpertGroup.of(engine, model).dp
        """Ranks that share the experts: each is charged its part of what the group reads of them."""
        self._reaches = _reaches(model, tp, precision.kv_bytes)
        self.kv_bytes_per_token = sum(
            count * tp * (mixer.kept_bytes(tp, precision.kv_bytes) + mixer.index_bytes(precision.kv_bytes))
            for mixer, count in model.mixers
        )
        """Of all GPUs, replicated heads counted as often as they are stored."""
        fixed, self._experts = 0.0, list[tuple[int, int, float]]()
        for kind, count in model.kinds:
            for part, size, _ in weight_parts(kind, model.hidden_size, 1, 1):
                if part == "experts" and kind.experts is not None:
                    moe = kind.experts
                    each = size / moe.num * precision.bytes_of(kind, part)
                    self._experts.append((moe.num, moe.per_token, count * each))
                else:
                    fixed += count * size * precision.bytes_of(kind, part)
        self._fixed_bytes = fixed
        """Weights of all layers but their routed experts."""

    def flops(self, columns: Columns) -> Floats:
        """Useful FLOPs of each row (a multiply-add counts two): matrices that each token passes, attention, LM head."""
        model = self.model
        steps = _steps(columns)
        tokens = tokens_per_step(columns).astype(np.float64) * steps
        matrices = 2.0 * model.active_linear_parameters * tokens
        attention = np.zeros_like(tokens)
        for reach in self._reaches:
            seen = prefill_within(columns, reach.window)
            decode_context = decode_context_within(seen, steps, reach.window).astype(np.float64)
            decode_pairs = seen.get("verify_attention_pairs", decode_context)
            attention += reach.decode_flops * decode_pairs
            attention += reach.prefill_flops * (0.5 * seen["prefill_attention_pairs"] * steps)
        head = 2.0 * model.vocab_size * model.hidden_size * columns["num_sampled"] * steps
        result: Floats = matrices + attention + head
        return result

    def bytes(self, columns: Columns) -> Floats:
        """Bytes from and to GPU memory of each row: weights once a step (only experts that some token chose),
        KV read and written. Activations, mostly kept in cache, are left out."""
        model, precision = self.model, self.precision
        steps = _steps(columns)
        per_step = tokens_per_step(columns).astype(np.float64)
        busy = np.where(per_step > 0, steps, 0.0)
        weights = busy * self._fixed_bytes
        if self._experts:
            weights = weights + steps * self._expert_bytes(columns.get("group_tokens", per_step).astype(np.float64))
        head = np.where(columns["num_sampled"] > 0, steps, 0.0) * model.vocab_size * model.hidden_size
        kv = per_step * steps * self.kv_bytes_per_token
        for reach in self._reaches:
            seen = prefill_within(columns, reach.window)
            decode_context = decode_context_within(seen, steps, reach.window)
            chunks = 0 if reach.is_state else seen["prefill_context_tokens"] * steps
            kv = kv + (decode_context + chunks) * reach.read
        result: Floats = weights + head * precision.head_bytes + kv
        return result

    def _expert_bytes(self, tokens: Floats) -> Floats:
        """Weights of the experts that one rank's GPUs read in a step of so many tokens, of all ranks together."""
        total = np.zeros_like(tokens)
        for num, per_token, each in self._experts:
            total += each * distinct_experts(num, per_token, tokens) / self._dp
        return total

    def total_flops(self, columns: Columns) -> float:
        """FLOPs of all rows, from exact integer sums: the same however steps are grouped into rows."""
        total = 2.0 * self.model.active_linear_parameters * int((tokens_per_step(columns) * _steps(columns)).sum())
        for reach in self._reaches:
            seen = _summed(prefill_within(columns, reach.window), reach.window)
            pairs = seen.get("verify_attention_pairs", seen["decode_context_tokens"])
            total += reach.decode_flops * int(pairs[0])
            total += reach.prefill_flops * (0.5 * int(seen["prefill_attention_pairs"][0]))
        rows = int((columns["num_sampled"] * _steps(columns)).sum())
        return total + 2.0 * self.model.vocab_size * self.model.hidden_size * rows

    def total_bytes(self, columns: Columns) -> float:
        """Bytes of all rows, from exact integer sums: the same however steps are grouped into rows.

        Weights are read once a step whatever its size, experts as often as the step's tokens choose them, so
        these two are summed by the size of the step.
        """
        model, precision = self.model, self.precision
        per_step = tokens_per_step(columns)
        steps_of_rows = _steps(columns)
        weights = float(steps_of_rows[per_step > 0].sum()) * self._fixed_bytes
        if self._experts:
            if "group_tokens" in columns:
                sizes, steps_of_size = np.unique(columns["group_tokens"], return_counts=True)
            else:
                sizes, place = np.unique(per_step, return_inverse=True)
                steps_of_size = np.zeros(len(sizes), dtype=np.int64)
                np.add.at(steps_of_size, place, steps_of_rows)
            for size, steps in zip(sizes.tolist(), steps_of_size.tolist(), strict=True):
                weights += steps * float(self._expert_bytes(np.array([float(size)]))[0])
        heads = int(steps_of_rows[columns["num_sampled"] > 0].sum()) * model.vocab_size * model.hidden_size
        kv = int((per_step * steps_of_rows).sum()) * float(self.kv_bytes_per_token)
        for reach in self._reaches:
            seen = _summed(prefill_within(columns, reach.window), reach.window)
            chunks = 0 if reach.is_state else int(seen["prefill_context_tokens"][0])
            kv += (int(seen["decode_context_tokens"][0]) + chunks) * reach.read
        return weights + heads * precision.head_bytes + kv

    def is_compute_bound(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """Rows whose steps' matrix products take longer for arithmetic than for reading weights, at peak rates."""
        tokens = tokens_per_step(columns).astype(np.float64)
        weights = self._fixed_bytes + self._expert_bytes(columns.get("group_tokens", tokens).astype(np.float64))
        compute_s = 2.0 * self.model.active_linear_parameters * tokens / self.peak_flops
        result: npt.NDArray[np.bool_] = compute_s > weights / self.peak_bandwidth
        return result


def _reaches(model: ModelSpec, tp: int, kv_bytes: int) -> list[Reach]:
    """All layers' attention on all GPUs, by how far it looks back; ``read`` in bytes."""
    found: dict[tuple[int | None, bool], Reach] = {}
    for mixer, count in model.mixers:
        for each in mixer.reaches(tp):
            read = each.read * kv_bytes if each.read_bytes is None else each.read_bytes
            key, gpus = (each.window, each.is_state), count * tp
            known = found.get(key, Reach(each.window, 0.0, 0.0, 0.0, is_state=each.is_state))
            found[key] = known._replace(
                read=known.read + gpus * read,
                decode_flops=known.decode_flops + gpus * each.decode_flops,
                prefill_flops=known.prefill_flops + gpus * each.prefill_flops,
            )
    return list(found.values())


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
