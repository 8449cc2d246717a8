"""What decodes cost when prefill chunks are in the same batch, for attention kernels that then lose their decode path.

FlashAttention-2 packs the query heads of a group together and splits the context over thread blocks only in batches of
nothing but decodes. With a chunk beside them it runs every query head by itself: K and V are read once per head, and
few decodes hide in the shadow of the chunk. That time is arithmetic: a tile of queries is multiplied for one query that
counts. The time alone is memory's. So a GPU with less arithmetic for its bandwidth loses more.

``FLASH_ATTENTION_2`` is the ratio of what decodes add to a mixed batch to what they take alone: medians over chunks of
256 to 2,048 tokens of the public vLLM 0.19.0 tables for the RTX PRO 6000 that come with LLMServingSim 2.0 (MIT
licence), by query heads per KV head, KV heads of all decodes, and context.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.latency.profile.speed_of_light import LAUNCH_NS

Floats = npt.NDArray[np.float64]

MEASURED_FLOPS, MEASURED_BANDWIDTH = 503.8e12, 1792e9
"""Of the GPU whose ratios these are: its datasheet's 16-bit FLOP/s and bytes/s."""
CONTEXTS = (16, 64, 256, 1024, 4096)
UNITS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""KV heads (on one GPU) times decodes."""
FLASH_ATTENTION_2 = {
    4: (
        (0.07, 0.06, 0.07, 0.22, 3.07),
        (0.10, 0.12, 0.13, 0.35, 2.31),
        (0.24, 0.24, 0.31, 0.60, 1.98),
        (0.51, 0.51, 0.62, 0.92, 1.56),
        (0.99, 0.98, 1.00, 1.21, 1.53),
        (1.94, 1.81, 1.55, 1.42, 1.41),
        (2.86, 2.59, 2.13, 1.40, 1.47),
        (4.29, 3.74, 2.31, 1.62, 2.36),
        (4.88, 4.00, 2.23, 1.83, 2.94),
    ),
    8: (
        (0.13, 0.13, 0.16, 0.45, 3.21),
        (0.27, 0.28, 0.34, 0.79, 2.71),
        (0.48, 0.49, 0.65, 1.21, 2.44),
        (0.95, 0.96, 1.19, 1.72, 2.77),
        (1.86, 1.85, 1.96, 2.24, 2.53),
        (3.65, 3.29, 2.86, 2.70, 2.59),
        (5.27, 4.65, 3.62, 2.72, 2.97),
        (7.38, 6.10, 4.04, 3.02, 5.35),
        (8.92, 7.48, 4.86, 3.48, 5.61),
    ),
}


def uses_flash_attention_2(kernel: str) -> bool:
    """Whether a profile's decode attention is of that kind, by the name of what was timed."""
    return kernel in ("vllm_flash_attn", "flash_attn") or "fa2" in kernel


def on_another_gpu(ratio: Floats, read_bytes: Floats, flops: float, bandwidth: float) -> Floats:
    """What the ``ratio`` of the measured GPU is on one of these peaks, where the decodes read that many bytes of KV.

    Time beside chunks goes by ``flops``, time alone by ``bandwidth``: 1.5 is 2.7 on an A100 and 1 on an L40S, where
    many bytes are read. No less than what hides in a chunk's shadow.
    """
    alone = (read_bytes / bandwidth * 1e9 + LAUNCH_NS) / (read_bytes / MEASURED_BANDWIDTH * 1e9 + LAUNCH_NS)
    scaled: Floats = np.maximum(ratio * (MEASURED_FLOPS / flops) / alone, np.minimum(ratio, 1.0))
    return scaled


def mixed_ratio(group: float, units: float, contexts: Floats) -> Floats:
    """FlashAttention-2's time of decodes beside chunks over their time alone, at each context, on the measured GPU.

    Ratios of groups in between go by the logarithm of the group; a group of one has no packing to lose, so that only
    the shadow of the chunk is left to it.
    """
    rows = {size: _row(table, units, contexts) for size, table in FLASH_ATTENTION_2.items()}
    rows[1] = np.minimum(rows[4], 1.0)
    sizes = sorted(rows)
    stacked = np.log(np.stack([rows[size] for size in sizes]))
    place = np.interp(np.log2(max(group, 1.0)), np.log2(sizes), np.arange(len(sizes)))
    low = min(int(place), len(sizes) - 2)
    ratio: Floats = np.exp(stacked[low] * (low + 1 - place) + stacked[low + 1] * (place - low))
    return ratio


def _row(table: tuple[tuple[float, ...], ...], units: float, contexts: Floats) -> Floats:
    """The table at ``units``, linear in logarithms both ways, held outside."""
    logs = np.log(np.array(table))
    place = float(np.interp(np.log(units), np.log(UNITS), np.arange(len(UNITS))))
    low = min(int(place), len(UNITS) - 2)
    line = logs[low] * (low + 1 - place) + logs[low + 1] * (place - low)
    row: Floats = np.exp(np.interp(np.log(contexts), np.log(CONTEXTS), line))
    return row
