"""Cache writes, norms, rotary embedding, gated activation against float64, with the CUDA sources run on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernels_cpu import COMMON, SPECIALISATIONS, Specialisation, error_of, exact, fresh_arrays, launch

from gpu_calibrate.launches.float64 import expected, to_float64, worst
from gpu_calibrate.launches.kernels import KernelError
from gpu_calibrate.launches.plans import plan

Compiled = Callable[[Specialisation], ctypes.CDLL]


def cache_plan(specialisation: Specialisation, **more: Any) -> Any:
    shape = {"num_tokens": 37, "num_kv_heads": 2, **specialisation.shape(), **more}
    return plan("reshape_and_cache", **shape)


@pytest.mark.parametrize("specialisation", SPECIALISATIONS, ids=str)
def test_cache_writes(compiled: Compiled, specialisation: Specialisation) -> None:
    planned = cache_plan(specialisation, k_scale=0.5, v_scale=0.25)
    for order in (0, 1, 9):
        assert error_of(compiled(specialisation), planned, order) <= 1.0


def test_only_the_named_slots_are_written(compiled: Compiled) -> None:
    """Padding (slot -1) goes nowhere; every other byte of the cache stays."""
    planned = cache_plan(COMMON)
    arrays = fresh_arrays(planned)
    arrays["slot_mapping"][[0, 20]] = -1
    want = expected(planned, arrays)
    launch(compiled(COMMON), planned, arrays)
    assert worst(planned, want, arrays) <= 1.0
    slots = arrays["slot_mapping"][arrays["slot_mapping"] >= 0]
    untouched = np.ones(arrays["k_cache"].shape[0] * 16, dtype=bool)
    untouched[slots] = False
    for name in ("k_cache", "v_cache"):
        rows = arrays[name].reshape(len(untouched), -1)
        assert (rows[untouched] == 0xFFFF).all()


def test_keys_and_values_may_be_slices_of_a_fused_projection(compiled: Compiled) -> None:
    """Token strides larger than a row: K and V as columns of [num_tokens, q + k + v]."""
    planned = cache_plan(COMMON)
    arrays = fresh_arrays(planned)
    want = expected(planned, arrays)
    fused = exact(np.zeros((37, 4 * 256), dtype=np.uint16))
    fused[:, 512:768] = arrays["key"].reshape(37, 256)
    fused[:, 768:] = arrays["value"].reshape(37, 256)
    arrays["key"], arrays["value"] = fused[:, 512:768], fused[:, 768:]
    call = planned.calls[0]
    strided = replace(call, args=(*call.args[:5], np.int64(1024), np.int64(1024), *call.args[7:]))
    launch(compiled(COMMON), replace(planned, calls=(strided,)), arrays)
    assert worst(planned, want, arrays) <= 1.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_number_rounds_to_the_nearest_fp8(compiled: Compiled, dtype: str) -> None:
    """All 65,536 bit patterns through the conversion of reshape_and_cache: nearest, ties to even, saturating."""
    specialisation = next(each for each in SPECIALISATIONS if each.kv_dtype == "fp8" and each.dtype == dtype)
    width = 2 * specialisation.head_size
    planned = cache_plan(specialisation, num_tokens=-(-65_536 // width))
    arrays = fresh_arrays(planned)
    bits = np.resize(np.arange(65_536, dtype=np.uint16), arrays["key"].shape)
    arrays["key"][...] = bits
    launch(compiled(specialisation), planned, arrays)
    rows = arrays["k_cache"].reshape(-1, width)[arrays["slot_mapping"]]
    numbers = to_float64(bits, dtype).reshape(rows.shape)
    codes = np.array([code for code in range(256) if code & 127 != 127 and code != 128], dtype=np.uint8)
    representable = to_float64(codes, "fp8")
    order = np.argsort(representable)
    codes, representable = codes[order], representable[order]
    finite = np.isfinite(numbers)
    clipped = np.clip(numbers[finite], -448.0, 448.0)
    upper = np.searchsorted(representable, clipped).clip(1, len(codes) - 1)
    below, above = clipped - representable[upper - 1], representable[upper] - clipped
    even = codes[upper] % 2 == 0
    nearest = np.where((above < below) | ((above == below) & even), codes[upper], codes[upper - 1])
    got = rows[finite]
    np.testing.assert_array_equal(to_float64(got, "fp8"), to_float64(nearest, "fp8"))
    assert (to_float64(rows[np.isinf(numbers)], "fp8") == 448.0 * np.sign(numbers[np.isinf(numbers)])).all()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("hidden_size", [64, 1_000, 8_192])
@pytest.mark.parametrize("specialisation", SPECIALISATIONS[:3], ids=str)
def test_rms_norm(compiled: Compiled, specialisation: Specialisation, hidden_size: int, residual: bool) -> None:
    planned = plan("rms_norm", num_tokens=3, hidden_size=hidden_size, dtype=specialisation.dtype, residual=residual)
    for order in (0, 1, 6):
        assert error_of(compiled(specialisation), planned, order) <= 1.0


@pytest.mark.parametrize("specialisation", SPECIALISATIONS, ids=str)
def test_rotary(compiled: Compiled, specialisation: Specialisation) -> None:
    """Whole heads or, in some specialisations, their first half; the rest of a head is not touched."""
    planned = plan(
        "rotary",
        num_tokens=5,
        num_q_heads=8,
        num_kv_heads=2,
        head_size=specialisation.head_size,
        rotary_dim=specialisation.rotary_dim,
        dtype=specialisation.dtype,
        max_position=100,
    )
    for order in (0, 1, 8):
        assert error_of(compiled(specialisation), planned, order) <= 1.0


@pytest.mark.parametrize("intermediate_size", [8, 1_000, 4_096])
@pytest.mark.parametrize("specialisation", SPECIALISATIONS[:3], ids=str)
def test_silu_and_mul(compiled: Compiled, specialisation: Specialisation, intermediate_size: int) -> None:
    planned = plan("silu_and_mul", num_tokens=3, intermediate_size=intermediate_size, dtype=specialisation.dtype)
    assert error_of(compiled(specialisation), planned) <= 1.0


@pytest.mark.parametrize(
    ("op", "shape", "message"),
    [
        ("rms_norm", {"num_tokens": 1, "hidden_size": 100}, "hidden_size 100 must be a multiple of 8"),
        ("silu_and_mul", {"num_tokens": 0, "intermediate_size": 64}, "num_tokens must be at least 1, is 0"),
        ("rotary", {"num_tokens": 1, "num_q_heads": 3, "num_kv_heads": 2, "head_size": 64}, "no multiple"),
        ("rms_norm", {"num_tokens": 1, "hidden_size": 64, "dtype": "float32"}, "dtype 'float32' is not supported"),
        ("reshape_and_cache", {"num_tokens": 1, "num_kv_heads": 1, "head_size": 72}, "head_size 72 is not supported"),
        ("layer_norm", {}, "unknown operation 'layer_norm': there are "),
        ("rms_norm", {"tokens": 1}, "unexpected keyword argument 'tokens'"),
    ],
)
def test_unsupported_shapes_are_refused(op: str, shape: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        plan(op, **shape)
