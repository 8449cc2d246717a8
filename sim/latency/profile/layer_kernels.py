"""A layer's small kernels: norms, rotary embedding, KV write, activation, quantising; and what launching them takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.latency.profile.speed_of_light import LAUNCH_NS

if TYPE_CHECKING:
    from sim.latency.profile.operator_tables import Floats
    from sim.latency.profile.profiled_operators import ProfiledOperators

START_NS = 1000.0
"""Of an element-wise kernel beyond ``LAUNCH_NS``: the smallest take 2-3 us in published traces."""
SQUARES_BYTES = 4.0
"""Of a token's mean square on its way between GPUs."""
LAUNCH_ONE_NS = 32_000
"""Python, dispatcher and launch of one kernel outside CUDA graphs, where the host was not measured. From InferenceX's
training half: a prompt of 1,024 tokens, more than the largest graph, holds decodes up for 70 to 90 ms with
MiniMax-M2.5 over 8 H200 (62 layers of 37 launches) and for 45 ms with Llama-3.1-70B over 2 B200 (80 of 16), more than
its arithmetic takes; one machine in three was faster. A figure of those hosts: on H100s, another machine, TTFT of
MiniMax-M2.5 with prompts of 1,024 tokens is predicted 3 to 26 % too long with it. ``gpu-calibrate`` measures one's
own."""
QUERIES_IN_8_BITS = ("9.0", "10.0", "10.3")
"""GPUs whose attention (FlashAttention 3, FlashInfer's of TensorRT-LLM) takes queries in the KV cache's 8 bits, which
are made right before it (``FlashAttentionImpl.forward``, ``FlashInferImpl.forward``)."""
DENSE_LAUNCHES = 10
"""Of a layer: two norms, four matrices, rotary embedding, KV write, attention, activation."""
ALL_REDUCE_LAUNCHES = 2
"""Each of two: the reduction, and a copy into or out of the memory that the GPUs share."""
BLACKWELL = ("10.0", "10.3")
"""GPUs on which vLLM takes attention, all-reduce with norm and FP8 matrices with one scale from FlashInfer, whose
Python in front of a kernel (checks, look-up of the tuned kernel, workspace) takes as much again as a launch.
InferenceX's rows of Llama-70B in FP4, which are not scored, have a TTFT of 72 to 99 ms at 4 clients whether one, two,
four or eight B200s compute: about 60 ms of launches, as 80 layers of 24 take. The training half's stalls at TP 2 are of
61 to 67 ms."""
FLASHINFER_ATTENTION, FLASHINFER_MATRICES, FLASHINFER_REDUCTIONS = 2, 4, 2
"""Such calls of a layer: attention of prompts and of decodes, matrices, all-reduces."""
EXPERT_LAUNCHES = 12
"""More than an MLP: router, choice of experts (3), sorting of rows (3), quantising or permuting twice, sum, copies."""
WIDE_NORM_LAUNCHES = 4
"""More than a norm by head: squares, their all-reduce, a norm each of queries and keys."""


def elementwise_ns(ops: ProfiledOperators, tokens: Floats, width: int) -> Floats:
    """Two norms with residual, rotary embedding, KV write and activation of one layer whose MLP is ``width`` wide over
    all GPUs (0: the experts' own, which their times include)."""
    model, size = ops.model, ops.precision.activation_bytes
    norm = ops.kernel_ns("rms_norm", model.hidden_size, tokens, 4.0 * size)
    # In one kernel with the all-reduce a norm does not start by itself; what it reads and writes is as much.
    joined = np.maximum(norm - (LAUNCH_NS + START_NS), 0.0)
    total = 2.0 * np.where(ops.is_fused(tokens), joined, norm)
    rotary = (ops.heads + ops.kv_heads) * model.head_size
    total += ops.kernel_ns("rotary", rotary, tokens, 2.0 * size)
    total += ops.kernel_ns("reshape_and_cache", 2 * ops.kv_heads * model.head_size, tokens, 2.0 * size)
    if width:
        total += ops.kernel_ns("silu_and_mul", max(1, width // ops.tp), tokens, model.mlp_matrices * size)
    if model.qk_norm:
        total += ops.kernel_ns("rms_norm", rotary, tokens, 2.0 * size)
    if model.has_wide_qk_norm and ops.tp > 1:
        # Each GPU has some of the heads that one norm spans: their squares are added up over all.
        squares = np.maximum(tokens, 1.0) * (2.0 * SQUARES_BYTES)
        total += np.where(tokens > 0, ops.settled_ns("all_reduce", squares), 0.0) + ops.small_kernels_ns(tokens, 1)
    if ops.precision.weights == "fp8_block":
        total += _quantising_ns(ops, tokens)
    if ops.precision.kv == "fp8" and ops.device.compute_capability in QUERIES_IN_8_BITS:
        total += ops.quantising_ns(ops.heads * model.head_size, tokens)
    return total


def _quantising_ns(ops: ProfiledOperators, tokens: Floats) -> Floats:
    """What multiplies in blocks reads activations with a scale per 128: DeepGEMM's times are without making them. The
    compiler makes them in the norm or the activation before, but not of what attention or the fused all-reduce left."""
    of_attention = ops.quantising_ns(ops.heads * ops.model.head_size, tokens)
    of_norm = ops.quantising_ns(ops.model.hidden_size, tokens)
    return of_attention + np.where(ops.is_fused(tokens), of_norm, 0.0)


def launches_ns(ops: ProfiledOperators, tokens: Floats, *, is_compiled: bool) -> Floats:
    """What launching all layers' kernels one by one takes the host, in no CUDA graph.

    A compiled engine launches those that compiling left; an eager one its operators, and no less than a compiled one.
    """
    compiled = _compiled_launches_ns(ops, tokens)
    return compiled if is_compiled else np.maximum(ops.launches_ns(tokens), compiled)


def _compiled_launches_ns(ops: ProfiledOperators, tokens: Floats) -> Floats:
    model, host = ops.model, ops.profile.host
    each = host.eager_launch_ns if host is not None and host.eager_launch_ns is not None else LAUNCH_ONE_NS
    layer = DENSE_LAUNCHES + (2 * ALL_REDUCE_LAUNCHES if ops.tp > 1 else 0) + (1 if model.qk_norm else 0)
    if model.has_wide_qk_norm and ops.tp > 1:
        layer += WIDE_NORM_LAUNCHES
    layer += {"fp8": 2, "int8": 2, "fp8_block": 4}.get(ops.precision.weights, 0)
    if ops.device.compute_capability in BLACKWELL:
        layer += FLASHINFER_ATTENTION + (FLASHINFER_REDUCTIONS if ops.fused_bytes else 0)
        layer += FLASHINFER_MATRICES if ops.precision.weights == "fp8" else 0
    expert = EXPERT_LAUNCHES + (2 if model.has_float32_router else 0)
    kernels = model.num_layers * layer + model.num_moe_layers * expert
    return np.where(tokens > 0, float(kernels * each), 0.0)
