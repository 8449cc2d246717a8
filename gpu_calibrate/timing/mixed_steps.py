"""Whole layers on mixed batches: what a step's kernels take together, against the sum that the simulator charges.

A few layers of a model are captured as one CUDA graph: norms, matrices, rotary embedding, cache write, attention of
chunks and of decodes. Every kernel has buffers of its own, every layer its own weights and KV. The batches are on no
grid. ``fit.mixed_errors`` asks the simulator for the same layers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu_calibrate.device.base import DeviceError, PointError
from gpu_calibrate.timing.replays import interval_width, quantile
from sim.latency.model_spec import ModelSpec
from sim.latency.models import MODELS

if TYPE_CHECKING:
    from gpu_calibrate.device.cuda import CudaDevice
    from gpu_calibrate.device.flash import Flash

LAYERS = 4
REPLAYS = 12
MODELS_TIMED = ("llama-3.1-8b", "qwen2.5-7b")


@dataclass(frozen=True, slots=True)
class Mix:
    """One step's batch."""

    chunks: tuple[tuple[int, int], ...]
    """(chunk, prior tokens) of each prefill."""
    decodes: tuple[int, ...]
    """Tokens of KV of each decode, the new one included."""

    def __str__(self) -> str:
        chunks = ", ".join(f"{chunk:,} after {prior:,}" for chunk, prior in self.chunks)
        return f"chunks ({chunks}), {len(self.decodes)} decodes"

    @property
    def num_tokens(self) -> int:
        """Tokens in the step's matrices."""
        return sum(chunk for chunk, _ in self.chunks) + len(self.decodes)


def mixes() -> tuple[Mix, ...]:
    """Batches as an engine forms them, drawn with a fixed seed: decodes alone, chunks alone, both. Those that an engine
    would run as a CUDA graph have as many tokens as graphs are captured for, so that nothing is padded."""
    rng = random.Random(7)

    def decodes(count: int, low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randint(low, high) for _ in range(count))

    return (
        Mix((), decodes(24, 300, 900)),
        Mix((), decodes(40, 200, 2500)),
        Mix((), decodes(120, 100, 1800)),
        Mix(((777, 0),), ()),
        Mix(((1490, 0), (430, 0)), ()),
        Mix(((442, 0),), decodes(38, 200, 1500)),
        Mix(((1965, 3000),), decodes(83, 400, 3000)),
        Mix(((210, 1024), (615, 0), (90, 5000)), decodes(29, 150, 4000)),
    )


def layer_calls(device: CudaDevice, model: ModelSpec, mix: Mix, layers: int) -> tuple[list[Any], list[Any]]:
    """All launches of ``layers`` layers, in order, and what must be kept alive for them. On the device's stream."""
    ops, buffers = device.operations, device.operations.buffers
    torch, tokens = ops.torch, mix.num_tokens
    if ops.own is None:
        raise PointError("mixed steps need CuPy")
    heads = {"num_kv_heads": model.num_kv_heads, "head_size": model.head_size}
    queries = {"num_q_heads": model.num_attention_heads, **heads}
    keep: list[Any] = []

    def own(op: str, **shape: Any) -> list[Any]:
        operation = ops.own(op, layers, **shape)  # type: ignore[misc, unused-ignore]
        keep.append(operation)
        return operation.calls

    norms = [own("rms_norm", num_tokens=tokens, hidden_size=model.hidden_size) for _ in range(2)]
    rotary = own("rotary", num_tokens=tokens, **queries)
    cache = own("reshape_and_cache", num_tokens=tokens, **heads)
    silu = own("silu_and_mul", num_tokens=tokens, intermediate_size=model.intermediate_size)
    attention = _attention_calls(device, queries, mix, layers, keep)

    def matrix(n: int, k: int) -> Any:
        weights = buffers.take("bfloat16", n, k)
        return partial(torch.mm, buffers.take("bfloat16", tokens, k), weights.t(), out=buffers.scratch(tokens, n))

    hidden, width = model.hidden_size, model.intermediate_size
    calls: list[Any] = []
    for layer in range(layers):
        calls += [norms[0][layer], matrix(model.q_size + 2 * model.kv_size, hidden), rotary[layer], cache[layer]]
        calls += [each[layer] for each in attention]
        calls += [matrix(hidden, model.q_size), norms[1][layer]]
        calls += [matrix(2 * width, hidden), silu[layer], matrix(hidden, width)]
    return calls, keep


def _attention_calls(
    device: CudaDevice, queries: Mapping[str, int], mix: Mix, layers: int, keep: list[Any]
) -> list[list[Any]]:
    """Lists of one call per layer: one list where FlashAttention is paged and takes all of a batch, else two."""
    ops = device.operations
    flash = ops.flash
    new = [chunk for chunk, _ in mix.chunks]
    contexts = [chunk + prior for chunk, prior in mix.chunks]
    num_heads, num_kv_heads, head_size = queries["num_q_heads"], queries["num_kv_heads"], queries["head_size"]

    def flash_calls(tool: Flash, lengths: list[int], totals: list[int]) -> list[Any]:
        one = partial(tool.call, ops.buffers, lengths, totals, num_heads, num_kv_heads, head_size, "bfloat16")
        return [one() for _ in range(layers)]

    if flash is None and mix.chunks:
        raise PointError("no FlashAttention")
    if flash is not None and flash.paged:
        return [flash_calls(flash, new + [1] * len(mix.decodes), contexts + list(mix.decodes))]
    calls = []
    if flash is not None and mix.chunks:
        calls.append(flash_calls(flash, new, contexts))
    if mix.decodes and ops.own is not None:
        operation = ops.own("paged_attention_split_kv", layers, context_lens=list(mix.decodes), **queries)
        keep.append(operation)
        calls.append(operation.calls)
    return calls


def time_mix(device: CudaDevice, model: ModelSpec, mix: Mix) -> dict[str, Any]:
    """Median time of ``LAYERS`` layers, as it is kept in the partial file. Raises PointError, DeviceError."""
    from gpu_calibrate.device.operations import Operation

    with device.on_stream():
        calls, keep = layer_calls(device, model, mix, LAYERS)
        operation, name = Operation(calls, "layers", keep=keep), f"{LAYERS} layers of {model.name} on {mix}"
        handle = device.capture(operation, calls, launches=len(calls), warmup=len(calls), name=name)
    times, launches = sorted(device.time_handle(handle, REPLAYS)), len(calls)
    device.release_handle(handle)
    return {
        "model": model.name,
        "layers": LAYERS,
        "chunks": [list(each) for each in mix.chunks],
        "decodes": list(mix.decodes),
        "ns": quantile(times, 0.5),
        "interval": interval_width(times),
        "launches": launches,
    }


def time_mixes(device: CudaDevice) -> dict[str, Any]:
    """All mixes of all models: ``steps``, and ``failures`` with their reason. Raises DeviceError."""
    steps, failures = [], []
    for name in MODELS_TIMED:
        for mix in mixes():
            try:
                steps.append(time_mix(device, MODELS[name], mix))
            except DeviceError:
                raise
            except Exception as error:
                device.still_alive(error)
                failures.append(f"{name}, {mix}: {type(error).__name__}: {error}")
    return {"steps": steps, "failures": failures}
