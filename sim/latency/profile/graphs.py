"""CUDA graphs: which batch sizes vLLM captures, and what a batch is padded to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def graph_sizes(
    max_num_seqs: int, max_num_batched_tokens: int, tokens_per_decode: int = 1, largest_captured: int | None = None
) -> list[int]:
    """Token counts that vLLM captures CUDA graphs for by default (``CompilationConfig.cudagraph_capture_sizes``,
    ``vllm/config/vllm.py``): 1, 2, 4, every 8 below 256, every 16 up to twice ``max_num_seqs`` and at most 512.

    ``largest_captured`` (``max_cudagraph_capture_size``) takes the place of that most.

    Under speculative decoding a decode has ``tokens_per_decode`` tokens; then batches of that many tokens each are
    captured too, and every size is a multiple of it (``adjust_cudagraph_sizes_for_spec_decode``).
    """
    by_seats = min(max_num_seqs * tokens_per_decode * 2, 512)
    largest = min(by_seats if largest_captured is None else largest_captured, max_num_batched_tokens)
    sizes = _grid(largest)
    if tokens_per_decode == 1:
        return sizes
    decodes = {n * tokens_per_decode for n in (*_grid(min(max_num_seqs, 512)), max_num_seqs)}
    sizes = sorted({*sizes, *(size for size in decodes if size <= largest)})
    raised = {-(-size // tokens_per_decode) * tokens_per_decode for size in sizes}
    return sorted(size for size in raised if size <= sizes[-1])


def _grid(largest: int) -> list[int]:
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
