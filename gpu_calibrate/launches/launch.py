"""Launch the kernels on the GPU: ``prepare`` allocates and compiles once, the result's ``call`` only enqueues.

    run = prepare("paged_attention_split_kv", num_q_heads=32, num_kv_heads=8, head_size=128, context_lens=[4096] * 64)
    run.call()                      # on CuPy's current stream; can be captured in a CUDA graph
    run.bytes_moved / seconds       # against the copy bandwidth

Operations and their shapes (all keyword arguments; ``plans`` has the defaults):

- the decode ladder (``plans.DECODE_LADDER``) and ``contiguous_attention``: ``num_q_heads, num_kv_heads, head_size,
  context_lens``; optionally ``dtype, kv_dtype, block_size, tokens_per_split, num_warps``
- ``paged_prefill``: ``num_q_heads, num_kv_heads, head_size, query_lens, context_lens``; ``dtype, kv_dtype, block_size``
- ``reshape_and_cache``: ``num_tokens, num_kv_heads, head_size``; ``dtype, kv_dtype, block_size``
- ``rms_norm``: ``num_tokens, hidden_size``; ``dtype, residual``
- ``rotary``: ``num_tokens, num_q_heads, num_kv_heads, head_size``; ``rotary_dim, max_position, dtype``
- ``silu_and_mul``: ``num_tokens, intermediate_size``; ``dtype``

``seed`` (all operations) draws block tables and data: prepare the same shape several times with different seeds for
rotating buffers. ``context_lens`` count the tokens whose K and V are read, the newest included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_calibrate.launches import kernels
from gpu_calibrate.launches.kernels import KernelError
from gpu_calibrate.launches.plan_types import ArraySpec, KernelCall, Plan
from gpu_calibrate.launches.plans import plan

STORED_AS = {"float16": "uint16", "bfloat16": "uint16", "fp8": "uint8"}
"""CuPy has neither bfloat16 nor fp8: 16- and 8-bit numbers are held as their bits."""
_RANDOM_ELEMENTS = 1 << 24
"""Random numbers drawn per array; larger arrays repeat them (64 MB of numbers, more than an L2 holds)."""
_DEFAULT_SHARED_BYTES = 48 * 1024


@dataclass(frozen=True, slots=True)
class Launchable:
    """An operation with its buffers on the device, ready to be enqueued any number of times."""

    op: str
    shape: Mapping[str, Any]
    call: Callable[[], None]
    """Enqueues the kernels on CuPy's current stream: no allocation, no synchronisation, fit for graph capture."""
    bytes_moved: int
    """Bytes that any implementation must move (inputs once, outputs once)."""
    flops: int
    kernel_name: str
    kernel_hash: str
    """Of the source text as compiled, includes and all (16 hex digits)."""
    buffer_bytes: int
    """Device memory held, to know how many copies make up 3 x L2."""
    arrays: Mapping[str, Any]
    """CuPy arrays by name (16- and 8-bit floats as their bits), to check results with ``reference``."""
    plan: Plan


def prepare(op: str, **shape: Any) -> Launchable:
    """Plan, allocate, fill with random data and compile ``op`` for the current device.

    Raises:
        KernelError: CuPy is missing, the shape is not supported, or a source does not compile.
    """
    try:
        import cupy  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise KernelError("CuPy is not installed: pip install 'simrun-llm[gpu-cu12]' or '[gpu-cu13]'") from error
    if op.endswith("split_kv") or op == "contiguous_attention":
        shape.setdefault("sm_count", int(cupy.cuda.Device().attributes["MultiProcessorCount"]))
    planned = plan(op, **shape)
    arrays = allocate(cupy, planned, int(shape.get("seed", 0)))
    module = kernels.load_module(planned.file, planned.defines)
    bound = [bind(module.get_function(call.entry), call, arrays) for call in planned.calls]

    def enqueue() -> None:
        for launch in bound:
            launch()

    return Launchable(
        op=op,
        shape=planned.shape,
        call=enqueue,
        bytes_moved=planned.bytes_moved,
        flops=planned.flops,
        kernel_name=planned.calls[0].entry,
        kernel_hash=kernels.source(planned.file).hash,
        buffer_bytes=sum(spec.size_bytes for spec in planned.arrays.values()),
        arrays=arrays,
        plan=planned,
    )


def allocate(xp: Any, planned: Plan, seed: int) -> dict[str, Any]:
    """The arrays in ``xp`` (cupy, numpy in tests): integers as planned, floating inputs normal, the rest zero."""
    arrays = {}
    for index, (name, spec) in enumerate(planned.arrays.items()):
        if spec.values is not None:
            arrays[name] = xp.asarray(spec.values)
        elif spec.role in ("input", "inout"):
            arrays[name] = _random(xp, spec, seed * 1009 + index)
        else:
            arrays[name] = xp.zeros(spec.shape, dtype=STORED_AS.get(spec.dtype, spec.dtype))
    return arrays


def _random(xp: Any, spec: ArraySpec, seed: int) -> Any:
    size = int(np.prod(spec.shape, dtype=np.int64))
    drawn = min(size, _RANDOM_ELEMENTS)
    generator = xp.random.default_rng(seed)
    bits = to_bits(xp, generator.standard_normal(drawn, dtype=np.float32), spec.dtype)
    if size > drawn:
        bits = xp.resize(bits, size)
    return xp.ascontiguousarray(bits.reshape(spec.shape))


def to_bits(xp: Any, values: Any, dtype: str) -> Any:
    """float32 ``values`` rounded to ``dtype`` and held as its bits; fp8 is drawn towards zero, saturated, never NaN."""
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    if dtype == "bfloat16":
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    # e4m3: bias 7 instead of 127, 3 bits of mantissa; smaller than 2^-6 becomes zero, larger than 448 is 448.
    magnitude = bits & 0x7FFFFFFF
    small = xp.where(magnitude < (121 << 23), 0, (magnitude >> 20) - (120 << 3))
    return (xp.minimum(small, 0x7E) | ((bits >> 24) & 0x80)).astype(np.uint8)


def bind(kernel: Any, call: KernelCall, arrays: Mapping[str, Any]) -> Callable[[], None]:
    """A function without arguments that launches ``kernel`` as ``call`` says."""
    if call.shared_bytes > _DEFAULT_SHARED_BYTES:
        kernel.max_dynamic_shared_size_bytes = call.shared_bytes
    args = tuple(arrays[arg] if isinstance(arg, str) else arg for arg in call.args)

    def launch() -> None:
        kernel(call.grid, call.block, args, shared_mem=call.shared_bytes)

    return launch
