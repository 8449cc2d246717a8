"""What the specialisations of the other tests cover: any two values of head size, block size, formats and kernel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import test_kernels_decode as decode
import test_kernels_elementwise as elementwise
import test_kernels_prefill as prefill
from kernels_cpu import FULL_MATRIX, SPECIALISATIONS

from gpu_calibrate.launches import kernels
from gpu_calibrate.launches.plans import DECODE_LADDER

VALUES: dict[str, tuple[Any, ...]] = {
    "head_size": kernels.HEAD_SIZES,
    "block_size": kernels.BLOCK_SIZES,
    "dtype": kernels.DTYPES,
    "kv_dtype": kernels.KV_DTYPES,
    "kernel": (*DECODE_LADDER, "contiguous_attention", "paged_prefill", "reshape_and_cache", "rotary"),
}
TESTS: dict[str, Callable[..., None]] = {
    **dict.fromkeys((*DECODE_LADDER, "contiguous_attention"), decode.test_every_rung_and_format),
    "paged_prefill": prefill.test_chunks_over_prior_context,
    "reshape_and_cache": elementwise.test_cache_writes,
    "rotary": elementwise.test_rotary,
}
"""The test that compares a kernel with float64 over specialisations."""


def parameters(test: Callable[..., None], name: str) -> list[Any]:
    """What a test is run with, as pytest will."""
    marks = [mark for mark in test.pytestmark if mark.args[0] == name]  # type: ignore[attr-defined]
    return [value for mark in marks for value in mark.args[1]]


def cases() -> list[dict[str, Any]]:
    """Every kernel with every specialisation that its test takes."""
    found = []
    for kernel, test in TESTS.items():
        if test is not decode.test_every_rung_and_format or kernel in parameters(test, "op"):
            found += [{**each.shape(), "kernel": kernel} for each in parameters(test, "specialisation")]
    return found


def test_any_two_values_occur_together() -> None:
    run = cases()
    for first, second in combinations(VALUES, 2):
        together = {(case[first], case[second]) for case in run}
        missing = set(product(VALUES[first], VALUES[second])) - together
        assert not missing, f"{first} and {second}: {sorted(missing, key=str)}"


def test_no_fewer_would_do() -> None:
    assert len(SPECIALISATIONS) == (40 if FULL_MATRIX else len(kernels.HEAD_SIZES) * len(kernels.BLOCK_SIZES))
    assert len(set(SPECIALISATIONS)) == len(SPECIALISATIONS)


def test_kernels_without_heads_are_run_in_both_formats() -> None:
    """Norm and activation know of no heads and no cache."""
    for test in (elementwise.test_rms_norm, elementwise.test_silu_and_mul):
        assert {each.dtype for each in parameters(test, "specialisation")} == set(kernels.DTYPES)
    assert set(TESTS) | {"rms_norm", "silu_and_mul"} == set(kernels.FILES)
