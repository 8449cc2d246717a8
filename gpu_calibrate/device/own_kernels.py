"""This project's kernels over rotating buffers, launched through CuPy.

An attention launch reads KV that no other layer has read, so each set of a rotation has blocks of its own. They come
from one cache: a plan for all sets' requests together gives the cache and the block tables, a plan for one set gives
grid and arguments, and each set gets its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from gpu_calibrate.device.base import PointError
from gpu_calibrate.device.operations import Call, Operation
from gpu_calibrate.launches import kernels, launch
from gpu_calibrate.launches.plans import plan

PER_REQUEST = ("out", "query", "block_tables")
"""Arrays with a row per request."""
CACHES = ("k_cache", "v_cache")


def operation(cupy: Any, num_sms: int, op: str, sets: int, **shape: Any) -> Operation:
    """Calls of kernel ``op`` over ``sets`` buffer sets. Raises PointError where it does not support the shape."""
    try:
        if "context_lens" in shape:
            return _attention(cupy, num_sms, op, sets, **shape)
        seed = int(shape.pop("seed", 0))
        prepared = [launch.prepare(op, seed=seed + number, **shape) for number in range(sets)]
    except kernels.KernelError as error:
        raise PointError(str(error)) from error
    first = prepared[0]
    return Operation([each.call for each in prepared], first.kernel_name, first.kernel_hash, keep=[prepared])


def _attention(cupy: Any, num_sms: int, op: str, sets: int, *, context_lens: list[int], **shape: Any) -> Operation:
    if op.endswith("split_kv") or op == "contiguous_attention":
        shape["sm_count"] = num_sms
    one = plan(op, context_lens=context_lens, **shape)
    everything = plan(op, context_lens=context_lens * sets, **shape)
    shared = {name: spec for name, spec in everything.arrays.items() if name in (*PER_REQUEST, *CACHES)}
    seed = int(shape.get("seed", 0))
    large = launch.allocate(cupy, replace(everything, arrays=shared), seed)
    small = launch.allocate(
        cupy, replace(one, arrays={name: spec for name, spec in one.arrays.items() if name not in shared}), seed
    )
    module = kernels.load_module(one.file, one.defines)
    functions = {call.entry: module.get_function(call.entry) for call in one.calls}
    paged = "block_tables" in one.arrays
    calls: list[Call] = []
    for number in range(sets):
        rows = slice(number * len(context_lens), (number + 1) * len(context_lens))
        arrays: Mapping[str, Any] = {
            **small,
            **{name: array if paged and name in CACHES else array[rows] for name, array in large.items()},
        }
        bound = [launch.bind(functions[call.entry], call, arrays) for call in one.calls]
        calls.append(partial(_each, bound))
    return Operation(calls, op, kernels.source(one.file).hash, keep=[large, small])


def _each(bound: list[Call]) -> None:
    for call in bound:
        call()
