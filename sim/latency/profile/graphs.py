"""CUDA graphs: which batch sizes vLLM captures, and what a batch is padded to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def graph_sizes(max_num_seqs: int, max_num_batched_tokens: int, tokens_per_decode: int = 1) -> list[int]:
    """Token counts that vLLM captures CUDA graphs for by default (``CompilationConfig.cudagraph_capture_sizes``,
    ``vllm/config/vllm.py``): 1, 2, 4, every 8 below 256, every 16 up to twice ``max_num_seqs`` and at most 512.

    Under speculative decoding a decode has ``tokens_per_decode`` tokens; then batches of that many tokens each are
    captured too, and every size is a multiple of it (``adjust_cudagraph_sizes_for_spec_decode``).
    """
    if tokens_per_decode > 1:
        largest = min(max_num_seqs * tokens_per_decode * 2, 512, max_num_batched_tokens)
        counts = {1, 2, 4, max_num_seqs, *range(8, min(max_num_seqs + 1, 256), 8), *range(256, max_num_seqs + 1, 16)}
        grid = {1, 2, 4, *range(8, min(largest + 1, 256), 8), *range(256, largest + 1, 16)}
        sizes_in_decodes = {-(-size // tokens_per_decode) for size in grid} | {n for n in counts if n <= max_num_seqs}
        return sorted(n * tokens_per_decode for n in sizes_in_decodes if n * tokens_per_decode <= largest)
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
