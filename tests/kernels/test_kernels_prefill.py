"""Chunked prefill over paged KV against float64, with the CUDA source run on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
from kernels_cpu import COMMON, SPECIALISATIONS, Specialisation, error_of

from gpu_calibrate.launches.kernels import KernelError
from gpu_calibrate.launches.plans import plan

Compiled = Callable[[Specialisation], ctypes.CDLL]


@pytest.mark.parametrize("specialisation", SPECIALISATIONS, ids=str)
def test_chunks_over_prior_context(compiled: Compiled, specialisation: Specialisation) -> None:
    """Whole prompts, chunks after prior tokens, a decode, and more queries than a block takes, in one batch."""
    shape = {"query_lens": [1, 17, 66], "context_lens": [33, 17, 101]}
    planned = plan("paged_prefill", num_q_heads=4, num_kv_heads=2, **shape, **specialisation.shape())
    for order in (0, 5):
        assert error_of(compiled(specialisation), planned, order) <= 1.0


@pytest.mark.parametrize(("query_len", "prior"), [(1, 0), (2, 31), (16, 16), (15, 1), (64, 0), (65, 32), (130, 70)])
def test_edges_of_tiles(compiled: Compiled, query_len: int, prior: int) -> None:
    planned = plan(
        "paged_prefill",
        num_q_heads=2,
        num_kv_heads=1,
        query_lens=[query_len],
        context_lens=[prior + query_len],
        **COMMON.shape(),
    )
    assert error_of(compiled(COMMON), planned, order=1) <= 1.0


def test_a_chunk_longer_than_its_context_is_refused() -> None:
    with pytest.raises(KernelError, match="no chunk be longer than its context"):
        plan("paged_prefill", num_q_heads=2, num_kv_heads=1, query_lens=[5], context_lens=[4], **COMMON.shape())
