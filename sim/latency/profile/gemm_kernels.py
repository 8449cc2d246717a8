"""Which kernel multiplies FP8 matrices with one scale on H100 and H200, by rows and version.

vLLM's dispatch (``scaled_mm_sm90_fp8_dispatch.cuh``) has one kernel up to 16 rows, one for 17 to 64, one for 65 to 128
and one beyond; later versions have another one for 8,192 rows and more. A table's curve is measured on both sides of
such a step, and the line between lies where no kernel does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.scenario.vllm_version import version_of

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

Floats = npt.NDArray[np.float64]

HOPPER = "9.0"
"""Compute capability of the GPUs that this dispatch is for."""
FEW_ROWS, HALF_TILE = 16, 48
"""From 17 rows on the tile has 64 columns for them, most of them empty below 48. On H200s three of four shapes of the
table take 10 to 18 % longer at 17 and 32 rows than at 48, and InferenceX's steps of 32 clients are that much longer
than those of 16 and 64. sglang's pull request 25532 found the same zone there and added a kernel for it."""
WIDE_ROWS, WIDE_DEPTH = 8192, 6144
"""Rows and depth from which the kernel of 256 by 128 is taken."""
LAST_BELOW = 4096.0
"""The table's last place before that step. What multiplies 7,400 rows is the kernel of 4,096 rows."""
WIDE_SINCE = (0, 20, 0)
"""The first version that is known to have it. The binary of 0.10.2 has none of that tile; between is not known here."""


def has_wide_kernel(engine: EngineConfig) -> bool:
    """Whether this version multiplies 8,192 rows by the larger tile."""
    return version_of(engine.vllm_version) >= WIDE_SINCE


def is_dispatched(dtype: str, compute_capability: str | None) -> bool:
    """Whether these rules hold for a matrix of that number format."""
    return dtype == "fp8" and compute_capability == HOPPER


def few_rows_ns(rows: Floats, measured: Floats, falling: Floats) -> Floats:
    """``falling``, which has no hump, but ``measured`` where the kernel has one."""
    return np.where((rows > FEW_ROWS) & (rows < HALF_TILE), measured, falling)


def many_rows_ns(rows: Floats, times: Floats, at_last: float, depth: int, *, has_wide: bool) -> Floats:
    """``times``, or the rate of the kernel that took ``at_last`` for ``LAST_BELOW`` rows where it is taken for more."""
    if depth < WIDE_DEPTH:
        return times
    is_held = (rows > LAST_BELOW) & ((rows < WIDE_ROWS) | (not has_wide))
    return np.where(is_held, at_last * (rows / LAST_BELOW), times)
