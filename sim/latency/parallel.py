"""Arithmetic of splitting a model over GPUs: shares of heads and layers, collectives, bubbles. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import Problem
from sim.latency.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Link:
    """How GPUs of a machine are linked, as stated: latency of a collective and bytes/s per direction."""

    latency_ns: float
    bandwidth: float


def kv_heads_per_gpu(num_kv_heads: int, tensor_parallel_size: int) -> int:
    """KV heads that each GPU holds: at least one, so heads are replicated beyond ``num_kv_heads`` GPUs."""
    return max(1, num_kv_heads // tensor_parallel_size)


def pipeline_layers(num_layers: int, pipeline_parallel_size: int) -> list[int]:
    """Layers of each stage, as vLLM splits them (``get_pp_indices``): what is left over goes to the
    stages before the last one, from the back."""
    layers = [num_layers // pipeline_parallel_size] * pipeline_parallel_size
    for position in range(2, num_layers % pipeline_parallel_size + 2):
        layers[-position] += 1
    return layers


def parallel_problems(model: ModelSpec, tensor_parallel_size: int, pipeline_parallel_size: int) -> list[Problem]:
    """What vLLM would refuse about this split; empty when nothing."""
    tp, pp = tensor_parallel_size, pipeline_parallel_size
    where = f"engine.tensor_parallel_size: {tp}"
    problems: list[Problem] = []
    if model.num_attention_heads % tp:
        problems.append(
            Problem(f"{where} does not divide the {model.num_attention_heads} attention heads of {model.name}")
        )
    elif model.num_kv_heads % tp and tp % model.num_kv_heads:
        problems.append(
            Problem(f"{where} neither divides nor is a multiple of the {model.num_kv_heads} KV heads of {model.name}")
        )
    widths = (model.intermediate_size if model.num_moe_layers < model.num_layers else 0, model.moe_intermediate_size)
    problems.extend(
        Problem(f"{where} does not divide the MLP width {width} of {model.name}") for width in widths if width % tp
    )
    if pp > model.num_layers:
        problems.append(
            Problem(f"engine.pipeline_parallel_size: {pp} is more than the {model.num_layers} layers of {model.name}")
        )
    return problems


def all_reduce_bytes(num_tokens: int, hidden_size: int, element_bytes: int) -> int:
    """Payload of one all-reduce of a layer's output."""
    return num_tokens * hidden_size * element_bytes


def plain_transfer_s(num_bytes: float, bandwidth: float) -> float:
    """Bytes over bandwidth: the usual back-of-the-envelope figure for an all-reduce."""
    return num_bytes / bandwidth


def ring_all_reduce_s(num_bytes: float, num_gpus: int, bandwidth_per_direction: float) -> float:
    """A ring passes 2 (n - 1) / n of the payload over every link: bandwidth only, no latency."""
    return 2 * (num_gpus - 1) / num_gpus * num_bytes / bandwidth_per_direction


def pipeline_utilization(num_micro_batches: int, num_stages: int) -> float:
    """Share of the time that stages are busy when one flush of micro-batches passes: M / (M + S - 1)."""
    return num_micro_batches / (num_micro_batches + num_stages - 1)
