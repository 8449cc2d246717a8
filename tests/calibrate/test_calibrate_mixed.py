"""Whole layers against the sum that the simulator charges."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_calibrate.commands.calibration import Calibration, profile_of
from gpu_calibrate.device.simulated import SimulatedDevice
from gpu_calibrate.fit.build_profile import all_errors
from gpu_calibrate.fit.mixed_errors import step_error, step_errors, step_shape
from gpu_calibrate.plan.grid import QUICK_S, plan
from gpu_calibrate.plan.points import Point
from gpu_calibrate.timing.mixed_steps import MODELS_TIMED, Mix, mixes
from gpu_calibrate.timing.store import Store
from sim.latency.models import MODELS
from sim.latency.profile.file import Profile


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    device = SimulatedDevice(noise=0.001)
    with Store(tmp_path_factory.mktemp("mixed") / "x.jsonl", device.facts) as store:
        calibration = Calibration(device, plan(device.gpu, QUICK_S), store, 1e9)
        calibration.measure()
        return profile_of(calibration, "simulated", "test")


def truth(name: str, mix: Mix, layers: int) -> dict[str, Any]:
    """What the simulated device would take for the layers, kernel by kernel."""
    device, model, tokens = SimulatedDevice(), MODELS[name], mix.num_tokens
    heads = ("bfloat16", "bfloat16", model.num_attention_heads, model.num_kv_heads, model.head_size, 0)
    points = [
        Point("gemm", ("bfloat16", model.q_size + 2 * model.kv_size, model.hidden_size), tokens),
        Point("gemm", ("bfloat16", model.hidden_size, model.q_size), tokens),
        Point("gemm", ("bfloat16", 2 * model.intermediate_size, model.hidden_size), tokens),
        Point("gemm", ("bfloat16", model.hidden_size, model.intermediate_size), tokens),
        *([Point("elementwise", ("rms_norm", model.hidden_size), tokens)] * 2),
        Point("elementwise", ("rotary", model.q_size + model.kv_size), tokens),
        Point("elementwise", ("reshape_and_cache", 2 * model.kv_size), tokens),
        Point("elementwise", ("silu_and_mul", model.intermediate_size), tokens),
        *(Point("prefill_attention", (*heads, 1, prior), chunk) for chunk, prior in mix.chunks),
    ]
    if mix.decodes:
        mean = sum(mix.decodes) // len(mix.decodes)
        points.append(Point("decode_attention", (*heads, len(mix.decodes)), mean))
    ns = layers * sum(device.true_ns(point) for point in points)
    chunks = [list(chunk) for chunk in mix.chunks]
    return {"model": name, "layers": layers, "chunks": chunks, "decodes": list(mix.decodes), "ns": ns}


def test_the_simulators_sum_is_found_in_the_layers(profile: Profile) -> None:
    """Decodes alone, whose terms have no approximation but the profile's, are predicted to a few percent."""
    steps = [truth("llama-3.1-8b", mix, 4) for mix in mixes() if not mix.chunks]
    assert len(steps) >= 3
    for predicted, measured in step_errors(profile, {"steps": steps}):
        assert predicted == pytest.approx(measured, rel=0.05)


def test_mixed_steps_are_an_error_of_the_profile(profile: Profile) -> None:
    mixed = {"steps": [truth("llama-3.1-8b", mix, 4) for mix in mixes()], "failures": []}
    error = step_error(profile, mixed)
    assert error is not None
    assert error.num_points == len(mixes())
    assert error.mean < 0.15
    assert all_errors(profile, [], {"mixed": mixed})["mixed_steps"]["layers"] == error
    slower = {"steps": [{**step, "ns": 2 * step["ns"]} for step in mixed["steps"]]}
    worse = step_error(profile, slower)
    assert worse is not None
    assert worse.bias == pytest.approx(-0.5, abs=0.1)
    assert step_error(profile, {"steps": []}) is None


def test_batches_are_off_the_grid_and_of_every_kind() -> None:
    found = mixes()
    assert found == mixes(), "the same every time"
    assert any(not mix.chunks for mix in found)
    assert any(not mix.decodes for mix in found)
    assert any(mix.chunks and mix.decodes for mix in found)
    assert any(prior for mix in found for _, prior in mix.chunks)
    assert all(len(mix.decodes) not in (1, 2, 4, 8, 16, 32, 64, 128, 256) for mix in found)
    assert set(MODELS_TIMED) <= set(MODELS)
    assert all(mix.num_tokens % 16 == 0 or mix.num_tokens > 512 or mix.num_tokens in (24, 40, 120) for mix in found)


def test_sums_of_a_step() -> None:
    shape = step_shape({"chunks": [[100, 0], [50, 200]], "decodes": [10, 20]})
    assert (shape.num_prefills, shape.num_prefill_tokens, shape.num_decodes, shape.num_tokens) == (2, 150, 2, 152)
    assert shape.prefill_context_tokens == 350
    assert shape.prefill_attention_pairs == 100 * 100 + 50 * (400 + 50)
    assert shape.decode_context_tokens == 30
