"""What a launch of each kernel consists of: arrays, macros, grid, block, shared memory, arguments, bytes and FLOPs.

Pure Python and NumPy: the GPU (``launch``) and the tests that run the kernels on the CPU execute the same ``Plan``, so
that the two cannot disagree on a geometry, an argument or a count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_calibrate.launches.attention_plans import DECODE_LADDER, plan_decode, plan_prefill
from gpu_calibrate.launches.elementwise_plans import (
    plan_reshape_and_cache,
    plan_rms_norm,
    plan_rotary,
    plan_silu_and_mul,
)
from gpu_calibrate.launches.kernels import KernelError
from gpu_calibrate.launches.plan_types import Plan

__all__ = ["DECODE_LADDER", "PLANNERS", "Plan", "plan"]

PLANNERS: dict[str, Callable[..., Plan]] = {
    **dict.fromkeys((*DECODE_LADDER, "contiguous_attention"), plan_decode),
    "paged_prefill": plan_prefill,
    "reshape_and_cache": plan_reshape_and_cache,
    "rms_norm": plan_rms_norm,
    "rotary": plan_rotary,
    "silu_and_mul": plan_silu_and_mul,
}


def plan(op: str, **shape: Any) -> Plan:
    """The plan of operation ``op`` (a key of ``PLANNERS``) for the keyword arguments of its planner.

    Raises:
        KernelError: unknown operation, unknown or missing argument, or a shape that the kernel does not support.
    """
    planner = PLANNERS.get(op)
    if planner is None:
        raise KernelError(f"unknown operation {op!r}: there are {', '.join(PLANNERS)}")
    try:
        return planner(op, **shape)
    except TypeError as error:
        raise KernelError(f"{op}: {error}") from error
