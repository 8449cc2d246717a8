"""How unevenly the tables of experts were routed: so that an imbalance that a scenario states is not counted twice.

The built-in tables (NVIDIA's aiconfigurator, ``power_law_1.01``) draw the load of each expert from a power law, put the
GPU with most tokens first and time that one. So a measured time of experts that are spread whole over several GPUs is
that of the busiest GPU of such a draw. Those of few experts were laid out evenly
(``gpu_calibrate.importers.expert_tables`` says why; the A100's, which had no even table, were drawn).
"""

from __future__ import annotations

from functools import cache

import numpy as np

ALPHA = 1.01
"""Exponent of the power law."""
TOKENS = 1024
"""Of a step, for which the loads are drawn here: they reach from 1 to 0.8 of it."""
DRAWS = 2000
FEW_EXPERTS = 16
"""Most experts of a model whose tables are of tokens laid out evenly."""


@cache
def table_imbalance(num_experts: int, experts_per_token: int, ep: int) -> float:
    """Tokens on the busiest of ``ep`` GPUs over the mean, in the mean over draws; to two digits, since every point of a
    table is one draw."""
    if ep == 1 or num_experts <= FEW_EXPERTS:
        return 1.0
    low, high = 1.0, (0.8 * TOKENS) ** (1.0 - ALPHA)
    uniform = np.random.default_rng(0).random((DRAWS, num_experts))
    loads = ((high - low) * uniform + low) ** (1.0 / (1.0 - ALPHA))
    # A token chooses an expert once at most.
    shares = np.minimum(loads / loads.sum(axis=1, keepdims=True), 1.0 / experts_per_token)
    by_gpu = shares.reshape(DRAWS, ep, -1).sum(axis=2)
    return round(float((by_gpu.max(axis=1) / by_gpu.mean(axis=1)).mean()), 2)
