"""Errors by leaving out: found where they are, nought where prediction is exact, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_calibrate.fit.held_out import error_of, held_out_errors, shape_of, without_points, without_shapes
from gpu_calibrate.importers.devices import device_of
from sim.latency.profile.file import Curve, Operator, Profile, Source
from sim.latency.profile.speed_of_light import bound_ns

DEVICE = device_of("h100-sxm", "H100")
PLACES = tuple(2**i for i in range(12))
SIDES = (1024, 2048, 4096, 8192, 16384)


def gemms(multiple: float = 2.0, noise: float = 0.0) -> Profile:
    """All (n, k) of ``SIDES`` at a constant multiple of the speed of light, which is predicted exactly."""
    rng = np.random.default_rng(5)
    curves = []
    for n in SIDES:
        for k in SIDES:
            bound = bound_ns("gemm", DEVICE, {"dtype": "bfloat16", "n": n, "k": k}, np.array(PLACES, dtype=np.float64))
            times = bound * multiple * np.exp(noise * rng.standard_normal(len(PLACES)))
            curves.append(Curve(key=("bfloat16", n, k), at=PLACES, time_ns=tuple(float(time) for time in times)))
    return Profile(
        name="p",
        created="now",
        source=Source(kind="measured", tool="t", command="c", origin="o"),
        device=DEVICE,
        operators={"gemm": Operator(kernel="k", curves=tuple(curves))},
    )


def test_what_follows_the_speed_of_light_has_no_error() -> None:
    errors = held_out_errors(gemms())["gemm"]
    assert set(errors) == {"random_points", "held_out_curves"}
    assert all(error.p90 < 1e-9 for error in errors.values())
    assert all(error.num_points >= 12 for error in errors.values())


def test_noise_shows_at_its_size() -> None:
    """A point off by a normal 5 %, its prediction by the mean of many: the median of |normal| is 0.67."""
    error = held_out_errors(gemms(noise=0.05), splits=20)["gemm"]["random_points"]
    assert 0.67 * 0.05 * 0.9 < error.median < 0.67 * 0.05 * np.sqrt(2) * 1.1


def test_the_same_seed_draws_the_same() -> None:
    profile = gemms(noise=0.05)
    assert held_out_errors(profile) == held_out_errors(profile)
    assert held_out_errors(profile) != held_out_errors(profile, seed=1)


def test_points_left_out_are_inner_and_gone_from_the_rest() -> None:
    profile = gemms()
    rest, held = without_points(profile, np.random.default_rng(0))
    left = {curve.key: set(curve.at) for curve in rest.operators["gemm"].curves}
    assert 15 < sum(len(some.at) for some in held) < 45  # a tenth of 25 curves' 8 inner points
    for some in held:
        assert not left[some.key] & set(some.at)
        assert {PLACES[0], PLACES[1], PLACES[-2], PLACES[-1]} <= left[some.key]
    assert sum(len(at) for at in left.values()) + sum(len(some.at) for some in held) == 25 * 12


def test_shapes_left_out_are_whole_and_between_others() -> None:
    rest, held = without_shapes(gemms(), np.random.default_rng(0))
    gone = {some.key for some in held}
    assert gone
    assert not gone & {curve.key for curve in rest.operators["gemm"].curves}
    assert all(some.at.tolist() == list(PLACES) for some in held)
    assert all(SIDES[0] < int(n) < SIDES[-1] for key in gone for n in key[1:])


def test_all_batches_of_one_kind_of_heads_go_together() -> None:
    heads = ("bfloat16", "bfloat16", 32, 8, 128, 0)
    assert shape_of("decode_attention", (*heads, 4)) == shape_of("decode_attention", (*heads, 64)) == heads
    assert shape_of("prefill_attention", (*heads, 1, 512)) == heads
    assert shape_of("mixed_attention", (*heads, 256, 0, 8)) == heads


def test_too_little_to_leave_out_gives_no_error() -> None:
    few = Curve(key=("bfloat16", 1024, 1024), at=(1, 2), time_ns=(5.0, 6.0))
    profile = gemms().model_copy(update={"operators": {"gemm": Operator(kernel="k", curves=(few,))}})
    assert held_out_errors(profile) == {}


def test_an_error_is_told_by_its_quantiles_and_sign() -> None:
    error = error_of(np.array([1.1, 0.8, 1.0, 1.0, 1.0]))
    assert (error.median, error.mean, error.bias, error.num_points) == pytest.approx((0.0, 0.06, -0.02, 5))
    assert error.p90 == pytest.approx(0.16)
