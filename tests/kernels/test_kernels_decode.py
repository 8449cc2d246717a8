"""The decode ladder, its contiguous twin and their splits against float64, with the CUDA sources run on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernels_cpu import COMMON, SPECIALISATIONS, Specialisation, error_of, fresh_arrays, launch

from gpu_calibrate.launches.plans import DECODE_LADDER, plan

Compiled = Callable[[Specialisation], ctypes.CDLL]

ALL = (*DECODE_LADDER, "contiguous_attention")
SPLIT = ("paged_attention_split_kv", "contiguous_attention")
ORDERS = (0, 1, 7)
"""Threads forwards, backwards, shuffled."""
LENGTHS = [1, 15, 16, 17, 47, 129, 150]
"""One token, around a block of 16, partial last blocks of both sizes, more than one tile of every kernel."""


def heads(num_q_heads: int = 4, num_kv_heads: int = 1, specialisation: Specialisation = COMMON) -> dict[str, Any]:
    return {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, **specialisation.shape()}


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("specialisation", SPECIALISATIONS, ids=str)
def test_every_rung_and_format(compiled: Compiled, specialisation: Specialisation, op: str) -> None:
    """Unowned slots of the cache hold NaN: a token past the end that is read, or a wrong block, shows."""
    # The naive rung does HEAD_SIZE times the work.
    lengths, num_heads = (LENGTHS[:5], 2) if op == "paged_attention_naive" else (LENGTHS, 8)
    planned = plan(op, context_lens=lengths, **heads(num_heads, 2, specialisation))
    for order in ORDERS:
        assert error_of(compiled(specialisation), planned, order) <= 1.0


@pytest.mark.parametrize("op", ALL)
def test_long_sequences(compiled: Compiled, op: str) -> None:
    """More tokens than a fixed array of 2,048 scores would hold, and an odd tail."""
    planned = plan(op, context_lens=[2_309], **heads(2, 1))
    assert error_of(compiled(COMMON), planned) <= 1.0


@pytest.mark.parametrize(("num_q_heads", "num_kv_heads"), [(3, 3), (4, 1), (8, 1), (12, 1), (32, 2)])
@pytest.mark.parametrize("op", ALL)
def test_group_sizes(compiled: Compiled, op: str, num_q_heads: int, num_kv_heads: int) -> None:
    """1, 4 and 8 query heads per KV head, and more than the eight that one matrix instruction serves."""
    planned = plan(op, context_lens=[33, 70], **heads(num_q_heads, num_kv_heads))
    assert error_of(compiled(COMMON), planned, order=3) <= 1.0


@pytest.mark.parametrize("op", ALL)
def test_sequence_without_tokens_gives_zeros(compiled: Compiled, op: str) -> None:
    for lengths in ([0, 20, 0], [0]):
        assert error_of(compiled(COMMON), plan(op, context_lens=lengths, **heads())) <= 1.0


@pytest.mark.parametrize("op", ALL)
def test_scales_of_the_fp8_cache(compiled: Compiled, op: str) -> None:
    specialisation = next(each for each in SPECIALISATIONS if each.kv_dtype == "fp8")
    planned = plan(op, context_lens=[40], k_scale=0.5, v_scale=3.0, **heads(specialisation=specialisation))
    assert error_of(compiled(specialisation), planned) <= 1.0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("merge", ["last_block", "kernel"])
@pytest.mark.parametrize("tokens_per_split", [16, 48, 64, 512])
@pytest.mark.parametrize("op", SPLIT)
def test_splits_of_a_skewed_batch(compiled: Compiled, op: str, tokens_per_split: int, merge: str, order: int) -> None:
    planned = plan(op, context_lens=[1, 300, 0, 64, 65], tokens_per_split=tokens_per_split, merge=merge, **heads(10, 1))
    assert planned.details["num_splits"] == -(-300 // tokens_per_split)
    assert len(planned.calls) == (2 if merge == "kernel" and tokens_per_split < 300 else 1)
    assert error_of(compiled(COMMON), planned, order) <= 1.0


@pytest.mark.parametrize("op", SPLIT)
def test_counters_of_the_merge_are_left_at_zero(compiled: Compiled, op: str) -> None:
    """A captured graph launches again and again: the second launch must give what the first gave."""
    planned = plan(op, context_lens=[200, 20], tokens_per_split=64, **heads())
    arrays = fresh_arrays(planned)
    launch(compiled(COMMON), planned, arrays)
    first = arrays["out"].copy()
    assert not arrays["arrivals"].any()
    arrays["out"][...] = 0
    launch(compiled(COMMON), planned, arrays, order=1)
    np.testing.assert_array_equal(arrays["out"], first)


@pytest.mark.parametrize("num_warps", [1, 2, 8])
@pytest.mark.parametrize("op", ["paged_attention_gqa", *SPLIT])
def test_any_number_of_warps(compiled: Compiled, op: str, num_warps: int) -> None:
    """More warps than tiles: some have nothing to merge."""
    planned = plan(op, context_lens=[5, 100], num_warps=num_warps, **heads())
    assert error_of(compiled(COMMON), planned, order=4) <= 1.0


@pytest.mark.parametrize("op", ALL)
def test_the_order_of_threads_changes_nothing(compiled: Compiled, op: str) -> None:
    planned = plan(op, context_lens=[75, 131], **heads())
    results = []
    for order in (0, 1, 2, 3, 11):
        arrays = fresh_arrays(planned)
        launch(compiled(COMMON), planned, arrays, order)
        results.append(arrays["out"].copy())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("op", ALL)
def test_large_scores_do_not_overflow(compiled: Compiled, op: str) -> None:
    """Scores of several hundred: without subtracting the maximum every exponential would be infinite."""
    planned = plan(op, context_lens=[90], **heads())
    arrays = fresh_arrays(planned)
    arrays["query"][...] = 0x4200  # 32 in bfloat16
    arrays["k_cache"][...] = np.where(arrays["k_cache"] == 0xFFFF, 0xFFFF, 0x3F80)  # 1
    launch(compiled(COMMON), planned, arrays)
    values = arrays["v_cache"][arrays["v_cache"] != 0xFFFF].reshape(90, 1, 128)
    mean = (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64).mean(axis=0)
    got = (arrays["out"].astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(got[0], np.broadcast_to(mean, got[0].shape), atol=0.01)
