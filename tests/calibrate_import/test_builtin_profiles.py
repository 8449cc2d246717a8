"""The profiles that come with the simulator: sound, small, and honest about their errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_calibrate.importers import builtin, page
from gpu_calibrate.importers.builtin import without_slow_links
from sim.latency.gpus import GPUS
from sim.latency.profile.file import Profile, load_profile
from sim.latency.profile.library import BUILTIN, builtin_names
from sim.latency.profile.predict import Predictor

NAMES = ("a100-80gb-sxm", "b200-sxm", "b300-sxm", "gb200", "h100-sxm", "h200-sxm", "l40s", "rtx-pro-6000")
MAX_BYTES = 500_000
BARS = {"h100-sxm": 0.04, "h200-sxm": 0.04, "a100-80gb-sxm": 0.08}
"""Median error of random points of matrices and attention that issue and page promise."""


@pytest.fixture(scope="module")
def profiles() -> dict[str, Profile]:
    return {name: load_profile(BUILTIN / f"{name}.json.gz") for name in NAMES}


def test_these_are_all() -> None:
    assert tuple(builtin_names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_small_passes_its_gates_and_says_where_from(name: str, profiles: dict[str, Profile]) -> None:
    profile = profiles[name]
    assert (BUILTIN / f"{name}.json.gz").stat().st_size < MAX_BYTES
    assert profile.gates
    assert not profile.failed_gates
    assert profile.name == profile.device.gpu == name
    assert profile.source.kind == "imported"
    assert "Apache-2.0" in profile.source.origin or "MIT" in profile.source.origin
    assert profile.software["vllm"]
    assert all(operator.kernel and operator.origin for operator in profile.operators.values())


@pytest.mark.parametrize("name", NAMES)
def test_its_errors_are_stated(name: str, profiles: dict[str, Profile]) -> None:
    profile = profiles[name]
    for operator in ("gemm", "prefill_attention", "decode_attention"):
        error = profile.errors[operator]["random_points"]
        assert error.num_points >= 20
        assert 0.0 < error.median < BARS.get(name, 0.08)
    assert profile.errors["gemm"]["held_out_curves"].median < 0.08


@pytest.mark.parametrize("name", NAMES)
def test_less_kv_takes_no_longer_by_far(name: str, profiles: dict[str, Profile]) -> None:
    for curve in profiles[name].operators["decode_attention"].curves:
        if len(curve.at) > 2:
            assert curve.time_ns[0] <= 2.0 * max(curve.time_ns[1:3]), curve.key


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_a_common_model_is_near_its_bound(name: str, profiles: dict[str, Profile]) -> None:
    """Llama-3.1-8B: weights and KV at 50-100 % of the peak bandwidth, prefill over a third of the arithmetic."""
    predictor = Predictor(profiles[name])
    n, k = 28672, 4096
    reading_ns = n * k * 2 / GPUS[name].memory_bandwidth * 1e9
    assert 1.0 < predictor.time_ns("gemm", ("bfloat16", n, k), 64) / reading_ns < 2.0
    heads = ("bfloat16", "bfloat16", 32, 8, 128, 0)
    kv_ns = 64 * 8192 * 4096 / GPUS[name].memory_bandwidth * 1e9
    assert 1.0 < predictor.time_ns("decode_attention", (*heads, 64), 8192) / kv_ns < 2.0
    flops_ns = 4 * 32 * 128 * 8192 * 8193 / 2 / GPUS[name].fp16_flops * 1e9
    assert 1.0 < predictor.time_ns("prefill_attention", (*heads, 1, 0), 8192) / flops_ns < 3.0


def test_missing_tables_are_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert builtin.main(["--path", str(tmp_path), "--out", str(tmp_path), "h100-sxm"]) == 2
    told = capsys.readouterr().err
    assert "no aiconfigurator-core there" in told
    assert told.count("\n") == 1


def test_the_page_tells_what_the_files_say() -> None:
    told = page.PAGE.read_text(encoding="utf-8").split(page.START)[1].split(page.END)[0]
    assert told.strip() == page.tables().strip(), "run python -m gpu_calibrate.importers.page"


def test_collectives_that_tell_of_one_machines_wiring_are_left_out() -> None:
    """4 GPUs at a fifth of the bandwidth of 2 go, and are then predicted at the share of the link that 2 reach."""
    profile = load_profile(BUILTIN / "h100-sxm.json.gz")
    reduce = profile.operators["all_reduce"]
    slow = tuple(
        curve.model_copy(update={"time_ns": tuple(5 * time for time in curve.time_ns)})
        if curve.key == ("nccl", 4)
        else curve
        for curve in reduce.curves
    )
    operators = {**profile.operators, "all_reduce": reduce.model_copy(update={"curves": slow})}
    kept = without_slow_links(profile.model_copy(update={"operators": operators}))
    keys = {curve.key for curve in kept.operators["all_reduce"].curves}
    assert keys == {curve.key for curve in reduce.curves} - {("nccl", 4)}
    assert "all_reduce: left out as the wiring of one machine: nccl over 4" in kept.source.notes[-1]
    assert without_slow_links(profile) == profile
    size = 1 << 28
    four, two = (
        share * size / Predictor(kept).time_ns("all_reduce", ("nccl", n), size) for n, share in ((4, 1.5), (2, 1))
    )
    assert four > 0.5 * two
