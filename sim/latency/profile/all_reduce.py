"""Which kernel reduces the hidden state over the GPUs of a tensor-parallel group, by version, GPU and size.

vLLM's own dispatch (its two kernels, torch's symmetric memory, NCCL, each for a range of sizes) is what its table was
timed through: over 8 B200s 9 us at 128 KiB, 26 us at 256 and 512 KiB, where its kernel takes two stages (in four
collections of two engines alike), 17 us at 1 MiB through symmetric memory. From 0.17 on small messages go another way:
FlashInfer's kernel of TensorRT-LLM does all-reduce, residual and norm in one, 8 us at 256 KiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from sim.scenario.vllm_version import version_of

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

FUSED_LIMITS: Mapping[str, Mapping[int, int]] = MappingProxyType(
    {
        "9.0": MappingProxyType({2: 64 << 20, 4: 2 << 20, 8: 512 << 10}),
        "10.0": MappingProxyType({2: 64 << 20, 4: 32 << 20, 8: 1 << 20}),
        "10.3": MappingProxyType({2: 64 << 20, 4: 64 << 20, 8: 4 << 20}),
    }
)
"""Bytes up to which all-reduce and norm are one kernel, by compute capability and GPUs
(``FI_ALLREDUCE_FUSION_MAX_SIZE_MB``, ``vllm/compilation/passes/fusion/allreduce_rms_fusion.py``)."""
FUSED_FROM = (0, 17, 0)
"""The first version that fuses unasked (vLLM's pull request 34299 of 11 February 2026; 0.16 was cut on the 8th)."""
FUSED_ALONE_BELOW = (0, 32, 0)
"""Before, a deployment of several data-parallel ranks was left out (pull request 34392); since when it is not is not
known here, 0.32.0 asks for tensor parallelism alone."""
FUSES_COMPILED = (0, 11, 1)
"""The first version whose fusion finds norms and quantising that were compiled (pull request 24604). Before, a
deployment that asks for it runs them as vLLM's own operators (``custom_ops``), one by one where it finds nothing."""

SYMMETRIC_SINCE = (0, 11, 0)
"""In 0.10.2 torch's symmetric memory is off (``VLLM_ALLREDUCE_USE_SYMM_MEM``), so that NCCL takes what is too large for
vLLM's own kernel; tables of 0.18 and later have it. Since when it is on is not known here."""
OWN_KERNEL_BYTES = 8 << 20
"""The largest message of vLLM's own kernel without it (``CustomAllreduce``)."""


def nccl_from_bytes(engine: EngineConfig) -> int | None:
    """Bytes beyond which this engine's all-reduce is NCCL's; None = as in the table."""
    return OWN_KERNEL_BYTES if version_of(engine.vllm_version) < SYMMETRIC_SINCE else None


def quantises_apart(engine: EngineConfig) -> bool:
    """Whether kernels of their own make 8 bits of 16, rather than the norm or the activation before."""
    asked = engine.compilation_config.pass_config.fuse_allreduce_rms
    return engine.enforce_eager or (bool(asked) and version_of(engine.vllm_version) < FUSES_COMPILED)


def fused_limit_bytes(engine: EngineConfig, compute_capability: str | None) -> int:
    """Bytes up to which this engine reduces in one kernel with the norm; 0 = it does not."""
    tp, version = engine.tensor_parallel_size, version_of(engine.vllm_version)
    limit = FUSED_LIMITS.get(compute_capability or "", {}).get(tp, 0)
    asked = engine.compilation_config.pass_config.fuse_allreduce_rms
    if asked is None:
        is_alone = engine.data_parallel_size == 1 or version >= FUSED_ALONE_BELOW
        asked = version >= FUSED_FROM and is_alone
    return limit if asked and not engine.enforce_eager else 0
