"""Number formats: bytes per weight, activation and KV element, and the rate each is multiplied at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.latency.formats import FLOATS, FORMATS, bytes_per_weight, rate
from sim.latency.gpus import GpuSpec
from sim.latency.layer_kinds import LayerKind
from sim.latency.model_spec import ModelSpec

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

BYTES_PER_ELEMENT = {name: found.bits / 8 for name, found in FORMATS.items()}
"""Of a weight alone, without scales."""


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
    gpu: GpuSpec
    follows_checkpoint: bool = True
    """Whether parts of layers that the checkpoint stores in another format keep it."""
    notes: tuple[str, ...] = ()

    def format_of(self, kind: LayerKind, part: str) -> str:
        """The format of one part of a layer's weights (``LayerKind.formats``)."""
        if not self.follows_checkpoint or not kind.formats:
            return self.weights
        found = kind.format_of.get(part, self.weights)
        return self.activations if found in FLOATS else found

    def bytes_of(self, kind: LayerKind, part: str) -> float:
        """Bytes per weight of that part, scales included."""
        name = self.format_of(kind, part)
        return self.linear_bytes if name == self.weights else bytes_per_weight(name)

    def flops_of(self, kind: LayerKind, part: str) -> float:
        """Dense peak of one GPU for that part."""
        name = self.format_of(kind, part)
        return self.gemm_flops if name == self.weights else rate(name, self.gpu) or self.plain_flops


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
    asked = model.kv_dtype if weights == model.dtype and engine.kv_cache_dtype == "auto" else ""
    kv = asked or (activations if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype)
    plain = gpu.fp32_flops if activations == "float32" else gpu.fp16_flops
    native = rate(weights, gpu)
    notes = notes_on_checkpoint(engine.dtype, model)
    if asked:
        notes.append(f"kv_cache_dtype auto: {asked}, as the checkpoint asks for")
    if FORMATS[weights].arithmetic and native is None:
        notes.append(f"{gpu.name} has no {weights} arithmetic: {weights} weights are read small, computed in 16 bits")
    if weights == "float32":
        notes.append("float32 weights run without tensor cores (TF32 is off by default) and take twice the memory")
    return Precision(
        weights=weights,
        activations=activations,
        kv=kv,
        linear_bytes=bytes_per_weight(weights),
        head_bytes=4 if activations == "float32" else 2,
        activation_bytes=4 if activations == "float32" else 2,
        kv_bytes=int(BYTES_PER_ELEMENT[kv]),
        gemm_flops=native or plain,
        plain_flops=plain,
        gpu=gpu,
        follows_checkpoint=weights == model.dtype,
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
