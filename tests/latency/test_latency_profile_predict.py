"""Interpolation between measured curves: exact at measured places, sensible between and beyond them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import AXES, DEVICE, KEYS, curve, hand_made

from sim.errors import InputError
from sim.latency.profile.file import Curve, Operator, Profile
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.predict import Predictor
from sim.latency.profile.speed_of_light import LAUNCH_NS, bound_ns, causal_pairs

PROFILE = hand_made(2.0)
PREDICTOR = Predictor(PROFILE)


def bound(operator: str, key: tuple[str | int, ...], at: float) -> float:
    fields = dict(zip(OPERATORS[operator].key, key, strict=True))
    return float(bound_ns(operator, DEVICE, fields, np.array([at]))[0])


@pytest.mark.parametrize("operator", list(KEYS))
def test_exact_at_measured_places(operator: str) -> None:
    for each in PROFILE.operators[operator].curves:
        for at, time_ns in zip(each.at, each.time_ns, strict=True):
            assert PREDICTOR.time_ns(operator, each.key, at) == pytest.approx(time_ns, rel=1e-12)


@given(n=st.integers(1, 200_000), k=st.integers(1, 200_000), m=st.integers(1, 100_000))
def test_a_constant_multiple_is_found_everywhere(n: int, k: int, m: int) -> None:
    key = ("bfloat16", n, k)
    assert PREDICTOR.time_ns("gemm", key, m) == pytest.approx(2.0 * bound("gemm", key, m), rel=1e-9)


def test_between_two_curves_the_multiple_is_their_geometric_mean() -> None:
    gemm = Operator(
        kernel="x", curves=tuple(curve("gemm", ("bfloat16", n, 1023), float(m)) for n, m in ((1023, 1), (16383, 4)))
    )
    predictor = Predictor(Profile.model_validate({**PROFILE.model_dump(), "operators": {"gemm": gemm.model_dump()}}))
    halfway = ("bfloat16", 4095, 1023)  # in the logarithm of n + 1
    assert predictor.time_ns("gemm", halfway, 64) == pytest.approx(2.0 * bound("gemm", halfway, 64), rel=1e-9)


def test_along_a_curve_the_multiple_is_linear_in_the_logarithm() -> None:
    key = ("bfloat16", 1024, 1024)
    times = (3.0 * bound("gemm", key, 1), 5.0 * bound("gemm", key, 100))
    gemm = Operator(kernel="x", curves=(Curve(key=key, at=(1, 100), time_ns=times),))
    predictor = Predictor(Profile.model_validate({**PROFILE.model_dump(), "operators": {"gemm": gemm.model_dump()}}))
    assert predictor.time_ns("gemm", key, 10) == pytest.approx(15**0.5 * bound("gemm", key, 10), rel=1e-9)
    assert predictor.time_ns("gemm", key, 10_000) == pytest.approx(5.0 * bound("gemm", key, 10_000), rel=1e-9)


def test_attention_of_many_heads_is_that_of_more_requests() -> None:
    """4 requests of 32 KV heads have as many heads to serve as 16 of 8, the most that were measured."""
    few = tuple(
        curve("decode_attention", ("bfloat16", "bfloat16", 8, 8, 128, 0, batch), multiple)
        for batch, multiple in ((4, 1.0), (16, 3.0))
    )
    document = {**PROFILE.model_dump(), "operators": {"decode_attention": {"kernel": "x", "curves": few}}}
    predictor = Predictor(Profile.model_validate(document))
    asked = ("bfloat16", "bfloat16", 32, 32, 128, 0, 4)
    assert predictor.time_ns("decode_attention", asked, 512) == pytest.approx(
        3.0 * bound("decode_attention", asked, 512), rel=1e-9
    )


def test_number_formats_are_never_mixed() -> None:
    assert not PREDICTOR.has("gemm", ("fp8", 1024, 1024))
    with pytest.raises(InputError, match=r"hand-made: no curve of gemm like \['fp8', 1024, 1024\]"):
        PREDICTOR.time_ns("gemm", ("fp8", 1024, 1024), 1)
    assert not PREDICTOR.has("moe", ("bfloat16", 4096, 14336, 8, 2, 1, 1))


def test_another_formats_curves_can_be_followed() -> None:
    key, like = ("fp8", 8192, 8192), ("bfloat16", 8192, 8192)
    time_ns = float(PREDICTOR.times_ns("gemm", key, np.array([4096.0]), like=like)[0])
    assert time_ns == pytest.approx(2.0 * bound("gemm", key, 4096), rel=1e-9)
    assert time_ns < 0.6 * PREDICTOR.time_ns("gemm", like, 4096)


def test_another_device_scales_by_its_speed_of_light() -> None:
    slower = DEVICE.model_copy(update={"memory_bandwidth_bytes_per_s": 1.5e12})
    key = ("bfloat16", 8192, 8192)
    fast, slow = (Predictor(PROFILE, device).time_ns("gemm", key, 1) - 2 * LAUNCH_NS for device in (None, slower))
    assert slow == pytest.approx(2 * fast, rel=1e-6)


def test_speed_of_light() -> None:
    """Counted by hand: weights and activations of a GEMM; KV of a decode; pairs of a causal chunk."""
    assert bound("gemm", ("bfloat16", 4096, 4096), 1) == pytest.approx(
        (2 * 4096**2 + 4 * 4096) / 3e12 * 1e9 + LAUNCH_NS
    )
    assert bound("gemm", ("bfloat16", 4096, 4096), 16384) == pytest.approx(2 * 16384 * 4096**2 / 1e15 * 1e9 + LAUNCH_NS)
    kv = 32 * 1000 * 2 * 8 * 128 * 2
    io = 32 * 2 * 32 * 128 * 2
    decode = bound("decode_attention", ("bfloat16", "bfloat16", 32, 8, 128, 0, 32), 1000)
    assert decode == pytest.approx((kv + io) / 3e12 * 1e9 + LAUNCH_NS)
    windowed = bound("decode_attention", ("bfloat16", "bfloat16", 32, 8, 128, 500, 32), 1000)
    assert windowed == pytest.approx((kv / 2 + io) / 3e12 * 1e9 + LAUNCH_NS)
    assert bound("all_reduce", ("custom", 8), 1 << 26) == pytest.approx((1 << 26) * 1.75 / 400e9 * 1e9 + LAUNCH_NS)


@given(chunk=st.integers(1, 60), prior=st.integers(0, 60), window=st.integers(0, 60))
def test_causal_pairs_are_counted_one_by_one(chunk: int, prior: int, window: int) -> None:
    seen = [min(prior + i + 1, window) if window else prior + i + 1 for i in range(chunk)]
    assert causal_pairs(np.array([float(chunk)]), float(prior), float(window))[0] == pytest.approx(sum(seen))


def test_every_operator_has_an_axis_and_a_bound() -> None:
    texts = {"dtype": "bfloat16", "kv_dtype": "bfloat16", "implementation": "nccl", "name": "rms_norm"}
    numbers = {**texts, "block": "mla", "state": "gdn", "window": 0}
    for operator, layout in OPERATORS.items():
        fields = {name: numbers.get(name, 8) for name in layout.key}
        times = bound_ns(operator, DEVICE, fields, np.array([1.0, 1000.0]))
        assert LAUNCH_NS <= times[0] <= times[1]
    assert set(AXES) <= set(OPERATORS)
