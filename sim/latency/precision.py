"""Number formats: bytes per weight, activation and KV element, and the rate each is multiplied at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.latency.gpus import GpuSpec
from sim.latency.model_spec import ModelSpec

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

BYTES_PER_ELEMENT = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8": 1.0,
    "int4": 0.5,
}

INT4_GROUP_BYTES = (2.0 + 0.5) / 128
"""AWQ and GPTQ keep an FP16 scale and a 4-bit zero point per group of 128 weights."""
FP8_BLOCK_BYTES = 4.0 / (128 * 128)
"""A 32-bit scale per block of weights."""
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Precision:
    """How an engine stores and multiplies numbers."""

    weights: str
    """The scenario's dtype, ``auto`` resolved."""
    activations: str
    kv: str
    linear_bytes: float
    """Bytes per weight of the layers' matrices, quantisation scales included."""
    head_bytes: int
    """Bytes per weight of the embedding and the LM head, which quantised checkpoints keep in 16 bits."""
    activation_bytes: int
    kv_bytes: int
    gemm_flops: float
    """Dense peak of one GPU for the layers' matrices."""
    plain_flops: float
    """Dense peak of one GPU for attention and the LM head, computed in the activations' type."""
    notes: tuple[str, ...] = ()


def parameter_bytes(num_parameters: int, dtype: str) -> float:
    """Bytes of that many weights at the plain size of ``dtype``: 4, 2, 1 or 0.5 each."""
    return num_parameters * BYTES_PER_ELEMENT[dtype]


def resolve_dtype(dtype: str, stored: str) -> str:
    """The weights' format under ``engine.dtype`` of a checkpoint that is ``stored`` so; FP8 is as it has it."""
    return stored if dtype == "auto" or (dtype == "fp8" and stored == "fp8_block") else dtype


def resolve_precision(engine: EngineConfig, gpu: GpuSpec, model: ModelSpec) -> Precision:
    """The number formats of ``model`` in ``engine`` on ``gpu``. A GPU without FP8 or INT8 multiplies in 16 bits
    and only reads less: the weights are widened on their way (as Marlin kernels do)."""
    weights = resolve_dtype(engine.dtype, model.dtype)
    activations = weights if weights in FLOATS else "bfloat16"
    kv = activations if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype
    plain = gpu.fp32_flops if activations == "float32" else gpu.fp16_flops
    native = {"fp8": gpu.fp8_flops, "fp8_block": gpu.fp8_flops, "int8": gpu.int8_flops}.get(weights)
    notes = notes_on_checkpoint(engine.dtype, model)
    if weights in ("fp8", "fp8_block", "int8") and native is None:
        notes.append(f"{gpu.name} has no {weights} arithmetic: {weights} weights are read small, computed in 16 bits")
    if weights == "float32":
        notes.append("float32 weights run without tensor cores (TF32 is off by default) and take twice the memory")
    linear = BYTES_PER_ELEMENT[weights] + {"int4": INT4_GROUP_BYTES, "fp8_block": FP8_BLOCK_BYTES}.get(weights, 0.0)
    return Precision(
        weights=weights,
        activations=activations,
        kv=kv,
        linear_bytes=linear,
        head_bytes=4 if activations == "float32" else 2,
        activation_bytes=4 if activations == "float32" else 2,
        kv_bytes=int(BYTES_PER_ELEMENT[kv]),
        gemm_flops=native or plain,
        plain_flops=plain,
        notes=tuple(notes),
    )


def notes_on_checkpoint(dtype: str, model: ModelSpec) -> list[str]:
    """Which format the checkpoint has, where ``auto`` follows it or another one is taken in its place."""
    if dtype == "auto":
        source = model.dtype_source
        return [f"engine.dtype auto: {model.dtype} (by {source})"] if source else []
    if model.dtype not in FLOATS and dtype != model.dtype and not (dtype == "fp8" and model.dtype == "fp8_block"):
        told = f"the checkpoint is in {model.dtype} (by {model.dtype_source})"
        return [f"{told}; engine.dtype {dtype} is taken, auto would follow it"]
    return []
