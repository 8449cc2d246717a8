"""A calibration on the simulated device: the fit recovers the truth, results survive interrupts, crashes and time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_calibrate.cli import DEFAULT_LIMIT_S
from gpu_calibrate.commands.calibration import Calibration, default_name, limited, profile_of
from gpu_calibrate.commands.check import check
from gpu_calibrate.device.base import DeviceError, Prepared
from gpu_calibrate.device.simulated import SimulatedDevice
from gpu_calibrate.fit.build_profile import build_profile, usable
from gpu_calibrate.fit.held_out import relative_error
from gpu_calibrate.fit.run_results import Results
from gpu_calibrate.plan.grid import DEFAULT_S, PREPARE_S, QUICK_S, Plan, plan
from gpu_calibrate.plan.points import CURVE, Point
from gpu_calibrate.timing.replays import Settings
from gpu_calibrate.timing.store import Store, partial_path
from sim.errors import InputError
from sim.latency.gpus import GPUS
from sim.latency.profile.file import Profile, load_profile, save_profile
from sim.latency.profile.predict import Predictor

SHORT = Plan(
    tuple(Point("gemm", ("bfloat16", n, 4096), m) for n in (1024, 4096, 6144) for m in (1, 16, 128, 1024))
    + tuple(Point("decode_attention", ("bfloat16", "bfloat16", 32, 8, 128, 0, 8), at) for at in (64, 512, 4096))
    + tuple(Point("prefill_attention", ("bfloat16", "bfloat16", 32, 8, 128, 0, 1, 0), at) for at in (64, 512, 4096)),
    1.0,
    0,
)
FEW = Settings(batch_points=4)


def calibrate(
    device: SimulatedDevice,
    path: Path,
    points: Plan = SHORT,
    limit_s: float = 1e9,
    clock: Callable[[], float] | None = None,
    settings: Settings = FEW,
) -> Calibration:
    with Store(path, device.facts) as store:
        calibration = Calibration(device, points, store, limit_s, settings=settings)
        if clock is not None:
            calibration.clock = clock
        calibration.measure()
    return calibration


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = tmp_path_factory.mktemp("run") / "x.partial.jsonl"
    return profile_of(calibrate(SimulatedDevice(), path, plan(SimulatedDevice().gpu, QUICK_S)), "simulated", "test")


def test_the_fit_recovers_the_truth(profile: Profile) -> None:
    device, predictor = SimulatedDevice(), Predictor(profile)
    for operator in profile.operators.values():
        assert operator.kernel.startswith("simulated_")
    for name, operator in profile.operators.items():
        for curve in operator.curves:
            for at in curve.at:
                truth = device.true_ns(Point(name, curve.key, at))
                assert predictor.time_ns(name, curve.key, at) == pytest.approx(truth, rel=0.01)
    assert profile.device.copy_bandwidth_bytes_per_s == pytest.approx(0.85 * 4.8e12, rel=0.02)


class Stopwatch(SimulatedDevice):
    """Adds up the time that its kernels take."""

    __slots__ = ("busy_s",)

    def replay(self, order: Sequence[Prepared]) -> list[float]:
        times = SimulatedDevice.replay(self, order)
        self.busy_s += sum(time * each.launches for time, each in zip(times, order, strict=True)) / 1e9
        return times


@pytest.mark.parametrize("gpu", ["h200-sxm", "a100-80gb-sxm"])
def test_a_default_run_takes_what_is_planned(gpu: str, tmp_path: Path) -> None:
    """On a device at usual shares of its peaks, with 30 ms to prepare a point; 45 s are left for all but points."""
    device = Stopwatch(gpu=GPUS[gpu])
    device.busy_s = 0.0
    planned = plan(device.gpu, DEFAULT_S)
    calibration = calibrate(device, tmp_path / "x.jsonl", planned, settings=Settings())
    assert calibration.num_untimed == 0
    assert 0.5 * planned.seconds < device.busy_s + PREPARE_S * len(planned.points) < DEFAULT_LIMIT_S <= 300 - 45


def test_errors_are_stated_and_small_where_the_truth_is_smooth(profile: Profile) -> None:
    assert profile.errors["gemm"]["random_points"].median < 0.02
    assert profile.errors["decode_attention"]["random_points"].median < 0.02
    assert profile.errors["gemm"]["repeat"].p90 < 0.01
    assert profile.errors["gemm"]["held_out_curves"].num_points > 20
    # The simulated kernel takes 15 % more for batches of unequal lengths: the mean alone cannot know.
    assert 0.02 < profile.errors["decode_attention"]["skewed"].median < 0.15


def test_a_healthy_device_passes_every_gate_and_check(profile: Profile) -> None:
    assert not profile.failed_gates, profile.failed_gates
    verdict = check(profile)
    assert verdict.passed
    assert {(bar.operator, bar.kind): bar.met for bar in verdict.bars}["gemm", "random_points"]
    assert verdict.errors["gemm"]["random_points"] == profile.errors["gemm"]["random_points"]


def test_the_file_reads_back_as_it_was(profile: Profile, tmp_path: Path) -> None:
    save_profile(profile, tmp_path / "p.json.gz")
    assert load_profile(tmp_path / "p.json.gz") == profile
    assert check(load_profile(tmp_path / "p.json.gz")).errors == check(profile).errors


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"
    first = calibrate(SimulatedDevice(), path)
    device = SimulatedDevice(seed=1)
    again = calibrate(device, path)
    assert device.replays == 0
    assert again.store.kept.measurements == first.store.kept.measurements
    assert again.watch.anchors == first.watch.anchors
    assert profile_of(again, "a", "c").operators == profile_of(first, "a", "c").operators


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"

    class Interrupted(SimulatedDevice):
        __slots__ = ()

        def replay(self, order: Sequence[Prepared]) -> list[float]:
            if self.replays > 250:
                raise KeyboardInterrupt
            return super().replay(order)

    first = calibrate(Interrupted(), path)
    assert first.interrupted
    kept = set(first.store.kept.measurements)
    assert 0 < len(kept) < len(SHORT.points)
    assert not +first.store.kept.crashes, "an interrupt is no crash"
    second = calibrate(SimulatedDevice(), path)
    assert not second.interrupted
    assert set(second.store.kept.measurements) == {point.id for point in SHORT.points}
    assert second.num_untimed == 0


def test_a_gpu_that_stops_is_taken_up_again_and_the_culprit_left_out(tmp_path: Path) -> None:
    path, culprit = tmp_path / "x.partial.jsonl", SHORT.points[5]

    class Breaking(SimulatedDevice):
        __slots__ = ()

        def prepare(self, point: Point) -> Prepared:
            if point == culprit:
                raise DeviceError("illegal memory access")
            return super().prepare(point)

    for attempt in range(2):
        with pytest.raises(DeviceError):
            calibrate(Breaking(), path)
        with Store(path, SimulatedDevice().facts) as store:
            assert store.kept.crashes[culprit.id] == attempt + 1
    last = calibrate(Breaking(), path)
    assert set(last.store.kept.measurements) == {point.id for point in SHORT.points} - {culprit.id}
    assert "twice" in last.store.kept.failures[culprit.id].reason


def test_a_cut_off_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"
    calibrate(SimulatedDevice(), path)
    text = path.read_text()
    lines = [number for number, line in enumerate(text.splitlines()) if '"measurement"' in line]
    cut = "\n".join(text.splitlines()[: lines[-1]]) + '\n{"kind": "measurement", "value": {"poi'
    path.write_text(cut)
    with Store(path, SimulatedDevice().facts) as store:
        assert len(store.kept.measurements) == len(lines) - 1
    assert len(calibrate(SimulatedDevice(), path).store.kept.measurements) == len(SHORT.points)


def test_nothing_is_lost_behind_a_cut_off_line(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"
    calibrate(SimulatedDevice(), path)
    with path.open("a") as stream:
        stream.write('{"kind": "measurement", "value": {"poi')
    with Store(path, SimulatedDevice().facts) as store:
        store.extra("host", 7)
    with Store(path, SimulatedDevice().facts) as store:
        assert store.kept.extras["host"] == 7


def test_bytes_that_are_no_text_are_dropped_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"
    calibrate(SimulatedDevice(), path)
    with path.open("ab") as stream:
        stream.write(b'{"kind": "extra", "name": "\xff\xfe')
    assert len(calibrate(SimulatedDevice(), path).store.kept.measurements) == len(SHORT.points)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="not a partial calibration"):
        calibrate(SimulatedDevice(), path)


@pytest.mark.parametrize("change", ["software", "device"])
def test_another_card_or_software_is_not_resumed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x.partial.jsonl"
    calibrate(SimulatedDevice(), path)
    other = SimulatedDevice()
    different = {"software": {"driver": "other"}} if change == "software" else {"name": "another card"}
    other.facts = replace(other.facts, **different)
    with pytest.raises(InputError, match=f"begun with another {change}.*--fresh"):
        calibrate(other, path)
    path.write_text("{}\n")
    with pytest.raises(InputError, match="not a partial calibration"):
        calibrate(SimulatedDevice(), path)


def test_when_time_is_up_the_rest_is_left_out_and_said(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    short = calibrate(SimulatedDevice(), tmp_path / "x.jsonl", limit_s=4.0, clock=lambda: float(next(ticks)))
    assert 0 < short.num_untimed < len(SHORT.points)
    profile = profile_of(short, "short", "c")
    assert profile.details["left_out"] == short.num_untimed
    assert any("left out for lack of time" in note for note in profile.source.notes)


def test_points_taken_on_a_hot_card_are_taken_again(tmp_path: Path) -> None:
    cooled = calibrate(SimulatedDevice(throttle_from=100, throttle_until=400), tmp_path / "a.jsonl")
    profile = profile_of(cooled, "cooled", "c")
    gates = {gate.name: gate for gate in profile.gates}
    assert gates["throttling"].passed
    assert "timed again" in gates["throttling"].detail
    hot = calibrate(SimulatedDevice(throttle_from=100), tmp_path / "b.jsonl")
    profile = profile_of(hot, "hot", "c")
    assert "throttling" in {gate.name for gate in profile.failed_gates}
    assert any("hw_thermal_slowdown" in gate.detail for gate in profile.failed_gates)


def failed(profile: Profile) -> set[str]:
    return {gate.name for gate in profile.failed_gates}


@pytest.mark.parametrize(
    ("device", "gate"),
    [
        (SimulatedDevice(drift=0.5, drift_replays=500), "drift"),
        (SimulatedDevice(noise=0.08), "noise"),
        (SimulatedDevice(flops_share=1.3), "possible"),
        (SimulatedDevice(bandwidth_share=0.4), "copy bandwidth"),
        (SimulatedDevice(failing=frozenset({"decode_attention"})), "complete"),
        (SimulatedDevice(failing=frozenset({"decode_attention"})), "failures"),
    ],
    ids=["drift", "noise", "possible", "copy", "complete", "failures"],
)
def test_a_sick_device_fails_its_gate(tmp_path: Path, device: SimulatedDevice, gate: str) -> None:
    points = replace(SHORT, points=(*SHORT.points, Point("gemm", ("bfloat16", 8192, 8192), 8192)))
    profile = profile_of(calibrate(device, tmp_path / "x.jsonl", points), "sick", "c")
    assert gate in failed(profile)
    save_profile(profile, tmp_path / "sick.json")
    with pytest.raises(InputError, match=f"gate {gate} failed"):
        load_profile(tmp_path / "sick.json")
    assert not check(load_profile(tmp_path / "sick.json", allow_failed_gates=True)).passed


def test_refused_times_never_reach_a_curve(tmp_path: Path) -> None:
    points = Plan((Point("gemm", ("bfloat16", 8192, 8192), 8192), *SHORT.points), 1.0, 0)
    calibration = calibrate(SimulatedDevice(flops_share=1.3), tmp_path / "x.jsonl", points)
    results = calibration.results("c")
    assert any(each.refused for each in results.measurements)
    good = usable(results.measurements)
    assert 0 < len(good) < len(results.measurements)
    keys = {curve.key for curve in build_profile(results, "x").operators["gemm"].curves}
    assert ("bfloat16", 8192, 8192) not in keys


def test_falling_curves_fail(profile: Profile) -> None:
    from gpu_calibrate.fit.gates import all_gates

    gemm = profile.operators["gemm"]
    wild = tuple(
        curve.model_copy(update={"time_ns": tuple(t / (1 + 9 * (i % 2)) for i, t in enumerate(curve.time_ns))})
        for curve in gemm.curves
    )
    changed = profile.model_copy(update={"operators": {"gemm": gemm.model_copy(update={"curves": wild})}})
    gates = {gate.name: gate for gate in all_gates(Results(SimulatedDevice().facts, ()), changed)}
    assert not gates["rising"].passed
    assert "worst" in gates["rising"].detail


def test_a_larger_error_than_the_bar_fails_the_check(profile: Profile) -> None:
    records = json.loads(json.dumps(profile.details["measurements"]))
    for record in records:
        if record["point"][0] == "gemm" and record["point"][3] == "random":
            record["median_ns"] *= 1.2
    worse = check(profile.model_copy(update={"details": {**profile.details, "measurements": records}}))
    assert not worse.passed
    missed = [bar for bar in worse.bars if bar.value is not None and not bar.met]
    assert [(bar.operator, bar.kind) for bar in missed] == [("gemm", "random_points")]


def test_errors_are_relative_to_what_was_measured() -> None:
    error = relative_error([(110.0, 100.0), (90.0, 100.0), (100.0, 100.0)])
    assert error is not None
    assert (error.median, error.mean, error.bias, error.num_points) == (0.1, pytest.approx(0.06667, abs=1e-5), 0.0, 3)
    assert relative_error([]) is None


def test_small_things(tmp_path: Path) -> None:
    assert default_name(Path("a/h200.json.gz")) == "h200"
    assert partial_path(tmp_path / "h200.json").name == "h200.json.partial.jsonl"
    assert {point.operator for point in limited(SHORT, ["gemm"]).points} == {"gemm"}
    assert limited(SHORT, ["gemm"]).left_out == 6
    assert limited(SHORT, []) == SHORT
    assert all(point.role == CURVE for point in SHORT.points)
