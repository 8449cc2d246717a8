"""Thinning: fewer points that give the others back; curves kept by name."""

from __future__ import annotations

import numpy as np

from gpu_calibrate.importers.builtin import wanted
from gpu_calibrate.importers.devices import device_of
from gpu_calibrate.importers.thin import keep_curves, thin_places, thin_points
from sim.latency.profile.file import Curve, Operator, Profile, Source
from sim.latency.profile.predict import Predictor
from sim.latency.profile.speed_of_light import bound_ns

DEVICE = device_of("h100-sxm", "H100")
PLACES = (1, 2, 4, 8, 16, 32, 64, 128, 129, 256, 512)


def curve(n: int, step: float = 1.0, noise: float = 0.0) -> Curve:
    """Twice the speed of light, ``step`` times that from 129 rows on."""
    at = np.array(PLACES, dtype=np.float64)
    multiple = np.where(at > 128, 2.0 * step, 2.0) * np.exp(noise * np.random.default_rng(n).standard_normal(len(at)))
    times = bound_ns("gemm", DEVICE, {"dtype": "bfloat16", "n": n, "k": 4096}, at) * multiple
    return Curve(key=("bfloat16", n, 4096), at=PLACES, time_ns=tuple(float(time) for time in times))


def profile(*curves: Curve) -> Profile:
    return Profile(
        name="p",
        created="now",
        source=Source(kind="imported", tool="t", command="c", origin="o"),
        device=DEVICE,
        operators={"gemm": Operator(kernel="k", curves=curves)},
    )


def test_a_straight_curve_keeps_its_ends_and_a_step_its_two_sides() -> None:
    assert thin_places("gemm", DEVICE, curve(4096), 0.01) == [0, len(PLACES) - 1]
    assert thin_places("gemm", DEVICE, curve(4096, step=2.0), 0.01) == [0, 7, 8, len(PLACES) - 1]


def test_every_point_comes_back_within_the_tolerance() -> None:
    full = profile(*(curve(1024 * i, step=1.0 + i % 3, noise=0.02) for i in range(1, 9)))
    thinned = thin_points(full, 0.03)
    predictor = Predictor(thinned)
    before = sum(len(each.at) for each in full.operators["gemm"].curves)
    after = sum(len(each.at) for each in thinned.operators["gemm"].curves)
    assert after < before * 0.9
    for each in full.operators["gemm"].curves:
        predicted = predictor.times_ns("gemm", each.key, np.array(each.at, dtype=np.float64))
        assert np.abs(predicted / np.array(each.time_ns) - 1.0).max() <= 0.03 + 1e-4
    assert f"gemm: {after} of {before} points kept, which give the others back within 3%" in thinned.source.notes


def test_neighbours_with_a_step_do_not_bend_a_curve_without() -> None:
    """Three curves step at 129 rows; the fourth is straight, so that thinning alone would leave its ends only."""
    full = profile(*(curve(1024 * i, step=3.0) for i in (1, 2, 3)), curve(4096))
    predictor = Predictor(thin_points(full, 0.01))
    straight = full.operators["gemm"].curves[3]
    predicted = predictor.times_ns("gemm", straight.key, np.array(straight.at, dtype=np.float64))
    assert np.abs(predicted / np.array(straight.time_ns) - 1.0).max() <= 0.01 + 1e-4


def test_curves_are_kept_by_what_models_need() -> None:
    kept = keep_curves(profile(curve(64), curve(128), curve(4096)), wanted)
    assert [each.key[1] for each in kept.operators["gemm"].curves] == [128, 4096]
    assert "gemm: 2 of 3 curves kept, those of common models" in kept.source.notes
    heads = {"num_heads": 32, "num_kv_heads": 8, "head_size": 128, "window": 0, "batch": 1}
    assert wanted("decode_attention", heads)
    assert not wanted("decode_attention", {**heads, "head_size": 192})
    assert not wanted("decode_attention", {**heads, "window": 128})
    assert wanted("decode_attention", {**heads, "head_size": 64, "window": 128})
    assert not wanted("moe", {"tp": 16, "ep": 1})
