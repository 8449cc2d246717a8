"""A built-in profile read as far as it is used says what the same file says when it is read whole."""

from __future__ import annotations

import random

import numpy as np
import pytest
from profiles import hand_made

from sim.errors import InputError
from sim.latency.profile.file import Gate, Profile, load_profile, profile_bytes, profile_hash, read_document
from sim.latency.profile.layout import OPERATORS
from sim.latency.profile.library import BUILTIN, SUFFIX, builtin_names
from sim.latency.profile.predict import EXACT_FIELDS, Predictor
from sim.latency.profile.written import WrittenProfile, hash_of


@pytest.mark.parametrize("name", builtin_names())
def test_every_curve_and_the_head_are_those_of_the_whole_file(name: str) -> None:
    path = BUILTIN / f"{name}{SUFFIX}"
    whole, written = load_profile(path), WrittenProfile(read_document(path), str(path))
    assert profile_bytes(whole) == read_document(path)
    assert hash_of(written) == profile_hash(whole) == hash_of(whole)
    for field in ("name", "source", "device", "host", "errors"):
        assert getattr(written, field) == getattr(whole, field)
    assert list(written.operators) == list(whole.operators)
    for operator, read in written.operators.items():
        assert read.kernel == whole.operators[operator].kernel
        curves = whole.operators[operator].curves
        assert read.curves.keys == [curve.key for curve in curves]
        for i, curve in enumerate(curves):
            assert tuple(read.curves.places(i).tolist()) == curve.at
            assert tuple(read.curves.times_ns(i).tolist()) == curve.time_ns


def test_predictions_are_the_same_to_the_last_bit() -> None:
    path = BUILTIN / f"h100-sxm{SUFFIX}"
    document = read_document(path)
    predictors = [Predictor(WrittenProfile(document, "")), Predictor(load_profile(path))]
    draw = random.Random(7)
    for operator, read in WrittenProfile(document, "").operators.items():
        names = OPERATORS[operator].key
        for key in draw.sample(list(read.curves.keys), min(12, len(read.curves.keys))):
            moved = tuple(
                value if name in EXACT_FIELDS or name == "head_size" else draw.choice([value, int(value) * 3 // 2])
                for name, value in zip(names, key, strict=True)
            )
            at = np.array([float(draw.randrange(1, 10_000)) for _ in range(20)])
            first, second = (predictor.times_ns(operator, moved, at) for predictor in predictors)
            assert first.tolist() == second.tolist()


def test_what_is_not_written_as_profiles_are_is_refused() -> None:
    whole = profile_bytes(hand_made())
    for damaged in (b"{}", whole[:200], whole.replace(b'"kernel"', b'"colonel"')):
        with pytest.raises(InputError, match=r"p\.json: a built-in profile is damaged: .*; install again"):
            WrittenProfile(damaged, "p.json")


def test_failed_gates_are_refused() -> None:
    gate = Gate(name="throttling", passed=False, detail="clock fell to 60 %")
    profile = Profile.model_validate({**hand_made().model_dump(), "gates": [gate.model_dump()]})
    with pytest.raises(InputError, match="gate throttling failed: clock fell to 60 %; not fit to predict from"):
        WrittenProfile(profile_bytes(profile), "p.json")
