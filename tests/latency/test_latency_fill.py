"""Places that a curve lacks, from curves of like shape; and which curves stand in for others."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_calibrate.importers.devices import device_of
from sim.latency.profile.file import Curve, Key, Operator, Profile, Source
from sim.latency.profile.fill import Line, Lines
from sim.latency.profile.predict import Predictor


def line(places: list[float], multiples: list[float]) -> Line:
    return Line(np.array(places), np.array(multiples))


FULL = [0.0, 1.0, 2.0, 3.0]
STEP = [0.0, 0.0, 1.0, 1.0]


def test_a_step_that_others_have_is_taken_over_on_top_of_the_own_line() -> None:
    lines = [line(FULL, STEP), line(FULL, STEP), line(FULL, STEP), line([0.0, 1.0, 3.0], [5.0, 5.0, 6.5])]
    filled = Lines([[float(i)] for i in range(4)], lines).line(3)
    # Its own line is at 5.75 there; the others are 0.5 above the line between their neighbours.
    assert filled.log_at.tolist() == FULL
    assert filled.log_multiple.tolist() == pytest.approx([5.0, 5.0, 5.75 + 0.5, 6.5])


def test_measured_places_stay_and_nothing_is_added_outside() -> None:
    lines = [line(FULL, STEP)] * 3 + [line([1.0, 3.0], [7.0, 9.0])]
    filled = Lines([[float(i)] for i in range(4)], lines).line(3)
    assert filled.log_at.tolist() == [1.0, 2.0, 3.0]
    assert filled.log_multiple[0] == 7.0
    assert filled.log_multiple[2] == 9.0


def test_two_others_are_not_enough() -> None:
    lines = [line(FULL, STEP), line(FULL, STEP), line([0.0, 1.0, 3.0], [5.0, 5.0, 6.5])]
    assert Lines([[float(i)] for i in range(3)], lines).line(2).log_at.tolist() == [0.0, 1.0, 3.0]


def test_the_nearest_shapes_are_asked() -> None:
    near = [line(FULL, STEP)] * 12
    far = [line(FULL, [0.0, 0.0, -9.0, 1.0])] * 40
    own = line([0.0, 1.0, 3.0], [5.0, 5.0, 6.5])
    shapes = [[1.0 + i / 100] for i in range(12)] + [[50.0 + i] for i in range(40)] + [[1.0]]
    filled = Lines(shapes, [*near, *far, own]).line(52)
    assert filled.log_multiple[2] == pytest.approx(6.25)


def profile(operator: str, curves: dict[Key, tuple[tuple[int, ...], tuple[float, ...]]]) -> Profile:
    made = tuple(Curve(key=key, at=at, time_ns=times) for key, (at, times) in curves.items())
    return Profile(
        name="p",
        created="now",
        source=Source(kind="measured", tool="t", command="c", origin="o"),
        device=device_of("h100-sxm", "H100"),
        operators={operator: Operator(kernel="k", curves=made)},
    )


def test_the_predictor_knows_a_step_from_other_matrices() -> None:
    """A matrix timed at 64 and 512 rows only; the four beside it double between 128 and 129."""
    places, times = (64, 128, 129, 512), (10_000.0, 10_000.0, 20_000.0, 20_000.0)
    others = {("bfloat16", n, 4096): (places, times) for n in (1024, 2048, 4096, 8192)}
    own = {("bfloat16", 3072, 4096): ((64, 512), (10_000.0, 20_000.0))}
    predictor = Predictor(profile("gemm", {**others, **own}))
    before = predictor.time_ns("gemm", ("bfloat16", 3072, 4096), 128)
    after = predictor.time_ns("gemm", ("bfloat16", 3072, 4096), 129)
    assert after / before == pytest.approx(2.0, rel=0.03)
    assert predictor.time_ns("gemm", ("bfloat16", 3072, 4096), 64) == pytest.approx(10_000)


def test_heads_of_the_same_size_stand_in_before_heads_of_another() -> None:
    """Groups of 4 were timed with heads of 64 only; with heads of 128, groups of 2 and 8 were, at twice the time."""

    def key(heads: int, size: int) -> Key:
        return ("bfloat16", "bfloat16", heads, 8, size, 0, 64)

    at = (1024, 8192)
    curves = {key(heads, 128): (at, (200_000.0, 1_600_000.0)) for heads in (16, 64)}
    curves[key(32, 64)] = (at, (50_000.0, 400_000.0))
    predictor = Predictor(profile("decode_attention", curves))
    assert predictor.time_ns("decode_attention", key(32, 128), 8192) == pytest.approx(1_600_000, rel=0.02)
