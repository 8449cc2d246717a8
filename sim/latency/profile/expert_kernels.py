"""Which kernel multiplies a layer's routed experts, by version, GPU and number format.

The profiles' tables of experts (vLLM 0.24.0) are of the kernel that this version chooses. FP8 in blocks of 128 has
several, and two of vLLM's own choices lead elsewhere:

- 0.16 puts FlashInfer's CUTLASS experts first on every GPU that has them; from 0.17 on Hopper takes Triton's where
  experts are split and FlashInfer's where they are whole (``fused_moe/oracle/fp8.py`` of both; pull request 34260).
  FlashInfer packages TensorRT-LLM's kernel. Split over 4 H200s it takes 123 us for 4 tokens of MiniMax-M2.5 and 2.6 ms
  for 8,192, Triton's 63 us and 1.5 ms. Where experts are whole, so that both are measured, TensorRT-LLM's table and
  vLLM's of the same kernel differ by 6 % in the median.
- MXFP4 (gpt-oss): the tables have Triton's kernel on Hopper, TensorRT-LLM's under 16-bit activations on Blackwell and
  Marlin's elsewhere, which are vLLM's choices. A deployment may ask for Marlin's (``VLLM_MXFP4_USE_MARLIN=1``) or for
  activations in MXFP8 (``VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1``), vLLM's own names of which are taken here.
- a deployment may ask for Triton's (``moe_backend``; before it, ``VLLM_USE_FLASHINFER_MOE_FP8=0`` with
  ``VLLM_MOE_USE_DEEP_GEMM=0``): on a B200 1.6 ms for 8,192 tokens, where TensorRT-LLM's own take 0.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from sim.scenario.vllm_version import version_of

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

OPERATORS: Mapping[str, str] = MappingProxyType({"triton": "moe_triton", "flashinfer_cutlass": "moe_cutlass"})
"""Backends with curves beside the table's own, and the operator that these are."""
HOPPER = "9.0"
CUTLASS_FROM, CUTLASS_BELOW = (0, 16, 0), (0, 17, 0)
"""Versions in which FlashInfer's CUTLASS experts come first on Hopper, split or whole."""


def expert_backend(engine: EngineConfig, compute_capability: str | None, weights: str) -> str | None:
    """Name the kernel of the engine's routed experts; None = the one that the profile's table has."""
    if engine.moe_backend != "auto":
        return engine.moe_backend
    version = version_of(engine.vllm_version)
    is_first = compute_capability == HOPPER and CUTLASS_FROM <= version < CUTLASS_BELOW
    return "flashinfer_cutlass" if is_first and weights == "fp8_block" else None


MARLIN, MXFP8_ACTIVATIONS = "marlin", "flashinfer_trtllm_afp8"
MXFP4_BACKENDS = ("triton", MARLIN, MXFP8_ACTIVATIONS)
"""Backends that can be chosen for experts in MXFP4."""
OF_MXFP4: Mapping[str, str] = MappingProxyType({MARLIN: "mxfp4_marlin", MXFP8_ACTIVATIONS: "mxfp4_mxfp8"})
"""Backend -> the profiles' name of MXFP4 by that kernel."""
MARLIN_ROWS, MARLIN_COLUMNS = 128, 256
"""Multiples that Marlin's MXFP4 experts are padded to: width on one GPU, hidden size
(``fused_moe/oracle/mxfp4.py``): 2,880 becomes 3,072, and 360 of 8 GPUs 384. Its own tables include it."""


def padded_for_marlin(width: int, hidden: int, num_shares: int) -> tuple[int, int]:
    """(width over all GPUs, hidden size) of experts as Marlin's kernel multiplies them."""
    share = -(-(width // num_shares) // MARLIN_ROWS) * MARLIN_ROWS
    return share * num_shares, -(-hidden // MARLIN_COLUMNS) * MARLIN_COLUMNS
