"""The files beside the built-in profiles: each holds what it is named for, and is read when it is asked for only."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.latency.gpus import GPUS
from sim.latency.profile.file import Profile, load_profile
from sim.latency.profile.layout import FAMILIES, family_of
from sim.latency.profile.library import BUILTIN, builtin_names, family_files, find_profile
from sim.latency.profile.predict import Predictor
from sim.latency.profile.written import WrittenProfile

FILES = sorted((BUILTIN / "families").iterdir())
MAX_BYTES = 1_000_000
MEDIAN_ERROR = 0.05
"""Of points left out, in every file."""
H200 = [
    ("block_decode", ("mla", "fp8_block", "bfloat16", 16, 64), 4096, 184.6 - 45.0),
    ("block_decode", ("mla", "fp8_block", "bfloat16", 16, 1), 1024, 52.4),
    ("block_prefill", ("mla", "bfloat16", "bfloat16", 16, 4), 2048, 1292.0),
    ("block_decode", ("dsa", "fp8_block", "fp8", 16, 64), 8192, 282.9),
    ("block_prefill", ("dsa", "fp8_block", "fp8", 16, 1), 8192, 10310.0),
    ("moe", ("mxfp4", 2880, 2880, 128, 4, 2, 1), 64, None),
    ("expert_exchange", ("deepep_ht", "combine", 7168, 8, 8), 8192, 2727.0),
]
"""Operator, key, place, and the table's microseconds: of latent attention's decodes those of TensorRT-LLM's, or 45
less than vLLM's, which is what its collection launched."""


@pytest.fixture(scope="module")
def parts() -> dict[str, Profile]:
    return {path.name.removesuffix(".json.gz"): load_profile(path) for path in FILES}


def test_every_file_is_of_a_profile_and_of_a_family() -> None:
    found = {path.name for path in FILES}
    told = {path.name for name in builtin_names() for path in family_files(name).values()}
    assert found == told
    assert {path.name.split(".")[1] for path in FILES} == set(FAMILIES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_small_and_holds_its_family_alone(path: Path, parts: dict[str, Profile]) -> None:
    profile = parts[path.name.removesuffix(".json.gz")]
    gpu, family = profile.name.split(".")
    assert path.stat().st_size < MAX_BYTES
    assert profile.device.gpu == gpu
    assert "Apache-2.0" in profile.source.origin
    for name, operator in profile.operators.items():
        assert operator.kernel
        assert {family_of(name, curve.key) for curve in operator.curves} == {family}
        assert profile.errors[name]["random_points"].median < MEDIAN_ERROR


@pytest.mark.parametrize(("operator", "key", "at", "microseconds"), H200)
def test_a_prediction_is_what_the_table_says(
    operator: str, key: tuple[str | int, ...], at: int, microseconds: float | None
) -> None:
    """Within what thinning may add, and what a stretch that fell was changed by."""
    predictor = Predictor(find_profile("h200-sxm", GPUS["h200-sxm"]).profile)
    assert predictor.has_exactly(operator, key)
    if microseconds is not None:
        assert predictor.time_ns(operator, key, at) == pytest.approx(microseconds * 1e3, rel=0.02)


def test_a_file_is_read_when_a_curve_of_it_is_asked_for() -> None:
    profile = find_profile("h200-sxm", GPUS["h200-sxm"]).profile
    assert isinstance(profile, WrittenProfile)
    predictor = Predictor(profile)
    assert predictor.has("gemm", ("bfloat16", 4096, 4096))
    assert predictor.has("moe", ("fp8", 2048, 768, 128, 8, 1, 1))
    assert not profile.read_families
    assert predictor.has("block_decode", ("mla", "bfloat16", "bfloat16", 16, 1))
    assert not predictor.has("gemm", ("nvfp4", 4096, 4096))  # Hopper has no 4-bit arithmetic
    assert sorted(profile.read_families) == ["four_bit", "latent"]
    assert predictor.stated_errors("block_decode", ("mla", "bfloat16", "bfloat16", 16, 1))


def test_a_gpu_without_such_tables_has_none() -> None:
    predictor = Predictor(find_profile("a100-80gb-sxm", GPUS["a100-80gb-sxm"]).profile)
    assert not predictor.has("block_decode", ("mla", "bfloat16", "bfloat16", 16, 1))


@pytest.mark.parametrize("family", ["latent", "sparse", "state"])
def test_more_requests_take_no_less_time_by_far(family: str, parts: dict[str, Profile]) -> None:
    """Twice the requests at one place are not charged half (an L40S's L2 holds a block's weights at some batches and
    not at others; the step cost takes no less for more)."""
    for name in builtin_names():
        profile = parts.get(f"{name}.{family}")
        if profile is None:
            continue
        predictor = Predictor(profile)
        for operator in (each for each in profile.operators if "batch" in _names(each)):
            keys = sorted({curve.key for curve in profile.operators[operator].curves}, key=str)
            for key in keys:
                more = (*key[:-1], int(key[-1]) * 2)
                if more in keys:
                    less, longer = (predictor.time_ns(operator, each, 256) for each in (key, more))
                    assert longer > 0.45 * less, (name, operator, key)


def _names(operator: str) -> tuple[str, ...]:
    from sim.latency.profile.layout import OPERATORS

    return OPERATORS[operator].key
