"""What ranks that step together do together in MoE layers, from a profile: dispatch, routed experts, combine.

vLLM's default (``AgRsAll2AllManager``) gathers every token everywhere and reduces the results back, so that how evenly
tokens choose experts does not change what moves. DeepEP sends a token to the GPUs of its experts only: its kernels were
timed over 8 GPUs of one machine; elsewhere NCCL's all-to-all of as many bytes stands in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.latency.experts import DEEPEP_HT, dispatch_bytes
from sim.latency.profile.file import Key
from sim.latency.profile.predict import Basis

if TYPE_CHECKING:
    from sim.latency.profile.operator_tables import Floats
    from sim.latency.profile.profiled_operators import ProfiledOperators


DIRECTIONS = {"all_gather": "dispatch", "reduce_scatter": "combine"}
"""Collective of vLLM's default exchange -> the same way through DeepEP."""


def group_terms_ns(ops: ProfiledOperators, time_scale: float, tokens: Floats) -> dict[str, Floats]:
    """One step's time of what all ranks do together with ``tokens`` tokens of them all, padding included, by term."""
    model, count = ops.model, ops.model.num_moe_layers * time_scale
    size = dispatch_bytes(model, ops.precision)
    combined = float(model.hidden_size * ops.precision.activation_bytes)
    return {
        "experts": count * ops.routed_ns(tokens),
        "dispatch": count * exchange_ns(ops, "all_gather", tokens, size),
        "combine": count * exchange_ns(ops, "reduce_scatter", tokens, combined),
    }


def exchange_ns(ops: ProfiledOperators, operator: str, tokens: Floats, bytes_per_token: float) -> Floats:
    """One layer's tokens on their way to the experts (``all_gather``) or back (``reduce_scatter``)."""
    group = ops.experts
    if group.backend == DEEPEP_HT:
        direction = DIRECTIONS[operator]
        key: Key = ("deepep_ht", direction, ops.model.hidden_size, ops.model.experts_per_token, group.num_gpus)
        if ops.predictor.basis("expert_exchange", key) in (Basis.MEASURED, Basis.BETWEEN):
            ops.asked["expert_exchange", key] = key
            busiest = np.maximum(tokens / group.num_gpus * (group.imbalance or 1.0), 1.0)
            return np.where(tokens > 0, ops.predictor.times_ns("expert_exchange", key, busiest), 0.0)
        ops.stand_ins["all2all"] = "NCCL's all-to-all of as many bytes as DeepEP's kernels move"
        each = tokens / group.num_gpus * group.destinations(ops.model.experts_per_token) * (group.imbalance or 1.0)
        payload, operator, gpus = each * bytes_per_token, "all_to_all", group.num_gpus
    else:
        payload, gpus = tokens * bytes_per_token, group.exchange_gpus
    return np.where(tokens > 0, ops.settled_ns(operator, np.maximum(payload, 1.0), gpus), 0.0)
