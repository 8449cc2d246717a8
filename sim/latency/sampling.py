"""What a step pays for drawing tokens from the most probable ones only (``top_p``, ``top_k``), by vLLM's version.

A client that states no sampling gets the model's own, as its ``generation_config.json`` has it: Llama 3 draws from the
top 90 % of the probability, Qwen3 from the 20 most probable tokens. vLLM has done that in three ways:

- 0.9.0 to 0.11.0: by FlashInfer's kernel, which costs about what plain sampling does;
- from 0.11.1 (pull request 26859): by sorting all logits with PyTorch;
- from 0.17.0 (33538): by a Triton kernel with a program per row; fewer than 8 rows are sorted still;
- from 0.21.0 (40376, 42472): by FlashInfer's kernel again.

Times are those printed in pull request 40376 (top-k and top-p, means of 32,768 and 131,072 logits), on a GPU that it
does not name and that is taken for Hopper's. Each line of cost is drawn through two points of that one pull request:
what lies between and beyond them was not measured. Sorting waits for the cores' shared memory, not for the GPU's: on
another GPU it goes by cores and clock. That is what the runs of vLLM 0.15.1 on H100, A100 and L40S show too
(``docs/accuracy.md``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from sim.scenario.vllm_version import Version, version_of

if TYPE_CHECKING:
    from sim.latency.gpus import GpuSpec

Floats = npt.NDArray[np.float64]
Way = Literal["flashinfer", "sorted", "triton"]

WAYS: tuple[tuple[Version, Way], ...] = (
    ((0, 9, 0), "flashinfer"),
    ((0, 11, 1), "sorted"),
    ((0, 17, 0), "triton"),
    ((0, 21, 0), "flashinfer"),
)
"""The first version of each."""
SORT_NS, SORT_NS_PER_LOGIT = 182_000.0, 0.1043
"""Two points: 0.401 ms for 64 rows of 32,768 logits, 1.057 ms for 64 of 131,072."""
TRITON_NS, TRITON_NS_PER_LOGIT = 116_000.0, 2.0
"""Of a row of logits, as many rows at a time as the GPU has SMs. Two points: 0.18 ms for 64 rows of 32,768, 0.38 of
131,072."""
LEAST_TRITON_ROWS = 8
"""Fewer are sorted."""
MEASURED_RATE = 132 * 1.98e9
"""SMs times clock of the GPU of these times."""
A100_LANES, LANES = 64, 128
"""Multiplications of 32 bits that an SM starts per cycle: of an A100, and of the GPUs after it."""


def way_of(vllm_version: str) -> Way:
    """How that version draws from the most probable tokens."""
    version = version_of(vllm_version)
    return [way for first, way in WAYS if version >= first][-1]


def core_rate(gpu: GpuSpec) -> float:
    """SMs times clock, from the datasheet's FLOP/s: 152e9 for an A100, 262e9 for an H100, 358e9 for an L40S."""
    lanes = A100_LANES if gpu.name.startswith("a100") else LANES
    return gpu.fp32_flops / (2 * lanes)


def filter_ns(way: Way, rows: Floats, vocab_size: int, gpu: GpuSpec) -> Floats:
    """Time beyond plain sampling of ``rows`` rows: 0.4 ms for 16 rows of 128,256 logits sorted on an H100."""
    slower = MEASURED_RATE / core_rate(gpu)
    if way == "flashinfer":
        return np.zeros_like(rows)
    sort = (SORT_NS + SORT_NS_PER_LOGIT * rows * vocab_size) * slower
    if way == "triton":
        waves = np.ceil(rows / gpu.num_sms)
        by_row = (TRITON_NS + TRITON_NS_PER_LOGIT * vocab_size * waves) * slower
        sort = np.where(rows < LEAST_TRITON_ROWS, sort, by_row)
    return np.where(rows > 0, sort, 0.0)
