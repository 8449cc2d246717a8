"""CUDA graphs: which batch sizes vLLM captures, and what a batch is padded to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def graph_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> list[int]:
    """Token counts that vLLM captures CUDA graphs for by default (``CompilationConfig.cudagraph_capture_sizes``,
    ``vllm/config/vllm.py``): 1, 2, 4, every 8 below 256, every 16 up to twice ``max_num_seqs`` and at most 512."""
    largest = min(max_num_seqs * 2, 512, max_num_batched_tokens)
    sizes = [size for size in (1, 2, 4) if size <= largest]
    sizes += list(range(8, min(largest + 1, 256), 8))
    return sizes + list(range(256, largest + 1, 16))


def padded(tokens: npt.NDArray[np.float64], sizes: list[int]) -> npt.NDArray[np.float64]:
    """Each count raised to the next captured size; counts beyond the largest stay."""
    if not sizes:
        return tokens
    known = np.array([0, *sizes], dtype=np.float64)
    place = np.minimum(np.searchsorted(known, tokens), len(known) - 1)
    return np.where(tokens <= known[-1], known[place], tokens)
