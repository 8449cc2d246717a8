"""Measurements become a profile: medians as curves, and how wrong predictions from them are, four ways.

``repeat``: the same point measured twice in one run, the noise under everything else. ``random_points``: points off the
grid that no curve contains. ``held_out_curves``: whole matrices left out of the profile that predicts them.
``layers`` of ``mixed_steps``: whole layers on mixed batches against the sum that the simulator charges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_calibrate.device.base import DeviceFacts
from gpu_calibrate.fit.gates import all_gates
from gpu_calibrate.fit.held_out import held_out_errors, relative_error
from gpu_calibrate.fit.run_results import Results
from gpu_calibrate.plan.points import CURVE, ON_GPU, RANDOM, REPEAT, SKEW, Key
from gpu_calibrate.timing.replays import Measurement, Watch, quantile, spoiled
from gpu_calibrate.timing.store import measurement_record
from sim.latency.profile.file import Curve, Device, Error, Host, Operator, Profile, Source
from sim.latency.profile.predict import Predictor


def usable(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Those that may enter a profile: possible, and of a healthy card."""
    return [each for each in measurements if each.refused is None and not spoiled(each)]


def curves_of(measurements: Iterable[Measurement]) -> dict[str, Operator]:
    """Operators with their curves, of the points whose role is ``curve`` alone."""
    found: dict[str, dict[Key, dict[int, float]]] = {}
    kernels: dict[str, Counter[tuple[str, str | None]]] = {}
    for each in measurements:
        if each.point.role != CURVE or each.point.variant:
            continue
        operator = each.point.operator
        found.setdefault(operator, {}).setdefault(each.point.key, {})[each.point.at] = each.median_ns
        kernels.setdefault(operator, Counter())[each.kernel, each.kernel_hash] += 1
    operators = {}
    for operator, curves in sorted(found.items()):
        named = [name for (name, _), _ in kernels[operator].most_common()]
        hashes = {kernel_hash for _, kernel_hash in kernels[operator]}
        operators[operator] = Operator(
            kernel="; ".join(named),
            kernel_hash=hashes.pop() if len(hashes) == 1 else "; ".join(sorted(h for h in hashes if h)) or None,
            curves=tuple(
                Curve(key=key, at=tuple(sorted(times)), time_ns=tuple(round(times[at], 1) for at in sorted(times)))
                for key, times in sorted(curves.items(), key=lambda item: str(item[0]))
            ),
        )
    return operators


def device_of(facts: DeviceFacts, copy_bandwidth: float | None) -> Device:
    """The profile's view of the card: its preset's datasheet, its own counts."""
    gpu = facts.gpu
    flops = {"float32": gpu.fp32_flops, "bfloat16": gpu.fp16_flops}
    flops |= {"fp8": gpu.fp8_flops} if gpu.fp8_flops else {}
    flops |= {"int8": gpu.int8_flops} if gpu.int8_flops else {}
    return Device(
        name=facts.name,
        gpu=gpu.name,
        compute_capability=facts.compute_capability or None,
        num_sms=facts.num_sms,
        memory_bytes=facts.memory_bytes,
        l2_bytes=facts.l2_bytes,
        memory_bandwidth_bytes_per_s=gpu.memory_bandwidth,
        link_bandwidth_bytes_per_s=gpu.link_bandwidth,
        flops=flops,
        copy_bandwidth_bytes_per_s=copy_bandwidth,
    )


def host_of(results: Results) -> Host | None:
    """Host time of a step, where it was measured, and of a launch without a graph.

    What is measured is a floor, without an engine's scheduler: it only counts where it is above what the simulator
    assumes of engines anyway.
    """
    from sim.latency.profile.cost import HOST_REQUEST_NS, HOST_STEP_NS

    host = results.extras.get("host")
    if host is None:
        return None
    step_ns, request_ns = round(host["step_ns"]), round(host["request_ns"])
    eager = eager_launch_ns(results.measurements)
    return Host(
        step_ns=max(step_ns, HOST_STEP_NS),
        request_ns=max(request_ns, HOST_REQUEST_NS),
        eager_launch_ns=None if eager is None else round(eager),
        origin=f"assumed of engines, or {host['origin']} ({step_ns / 1e3:,.0f} us a step, "
        f"{request_ns / 1e3:.2f} us a request), whichever is more; launch without a graph: measured",
    )


def eager_launch_ns(measurements: Iterable[Measurement]) -> float | None:
    """What a launch without a graph takes: the median over kernels so short that the launch decides."""
    times = sorted(
        each.eager_ns
        for each in measurements
        if each.eager_ns is not None and each.median_ns < 0.67 * each.eager_ns and each.point.operator != "sampling"
    )
    return quantile(times, 0.5) if times else None


def copy_bandwidth(watch: Watch) -> float | None:
    """Bytes read plus written per second by a device-to-device copy: the anchor's median over the run."""
    for name, times in watch.anchors.items():
        if ON_GPU in name:
            return COPY_BYTES / (quantile(sorted(times), 0.5) * 1e-9)
    return None


COPY_BYTES = 2 << 30


def predictions(predictor: Predictor, measured: Iterable[Measurement]) -> list[tuple[Measurement, float]]:
    """Each measurement with what the profile says of its point; those that it says nothing of are left out."""
    return [
        (each, predictor.time_ns(each.point.operator, each.point.key, each.point.at))
        for each in measured
        if predictor.has(each.point.operator, each.point.key)
    ]


def point_errors(predictor: Predictor, measured: Sequence[Measurement], role: str) -> dict[str, Error]:
    """Errors of the points of a role, by operator."""
    found = {}
    for operator in sorted({each.point.operator for each in measured if each.point.role == role}):
        chosen = [each for each in measured if each.point.role == role and each.point.operator == operator]
        error = relative_error([(told, each.median_ns) for each, told in predictions(predictor, chosen)])
        if error is not None:
            found[operator] = error
    return found


def repeat_errors(measured: Sequence[Measurement]) -> dict[str, Error]:
    """First against second measurement of the same point, by operator."""
    first = {(m.point.operator, m.point.key, m.point.at): m.median_ns for m in measured if m.point.role == CURVE}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for each in measured:
        before = first.get((each.point.operator, each.point.key, each.point.at))
        if each.point.role == REPEAT and before is not None:
            pairs.setdefault(each.point.operator, []).append((before, each.median_ns))
    return {name: error for name, values in sorted(pairs.items()) if (error := relative_error(values)) is not None}


def all_errors(profile: Profile, measured: Sequence[Measurement], extras: Mapping[str, Any]) -> Mapping[str, Any]:
    """By operator and kind, as the profile file has them."""
    predictor = Predictor(profile)
    errors: dict[str, dict[str, Error]] = {}
    for kind, by_operator in (
        ("random_points", point_errors(predictor, measured, RANDOM)),
        ("skewed", point_errors(predictor, measured, SKEW)),
        ("repeat", repeat_errors(measured)),
    ):
        for operator, error in by_operator.items():
            errors.setdefault(operator, {})[kind] = error
    for operator, kinds in held_out_errors(profile).items():
        if "held_out_curves" in kinds:
            errors.setdefault(operator, {})["held_out_curves"] = kinds["held_out_curves"]
    mixed = extras.get("mixed")
    if mixed:
        from gpu_calibrate.fit.mixed_errors import step_error

        mixed_error = step_error(profile, mixed)
        if mixed_error is not None:
            errors["mixed_steps"] = {"layers": mixed_error}
    return errors


def build_profile(results: Results, name: str) -> Profile:
    """The profile of a run: curves, stated errors, gates, and in ``details`` every statistic."""
    good = usable(results.measurements)
    facts = results.facts
    notes = ["element-wise kernels, and decode attention where no engine's kernel is installed, are this project's own"]
    if results.left_out:
        notes.append(f"{results.left_out} points of the plan were left out for lack of time")
    if results.watch.throttle:
        notes.append(f"clocks were lowered at times: {', '.join(results.watch.throttle)}")
    profile = Profile(
        name=name,
        created=results.created,
        source=Source(
            kind="measured",
            tool="gpu-calibrate",
            command=results.command,
            origin=f"{facts.name}, driver {facts.software.get('driver', 'unknown')}",
            notes=tuple(notes),
        ),
        device=device_of(facts, copy_bandwidth(results.watch)),
        software=dict(facts.software),
        operators=curves_of(good),
        host=host_of(results),
    )
    return profile.model_copy(
        update={
            "errors": all_errors(profile, good, results.extras),
            "gates": all_gates(results, profile),
            "details": _details(results),
        }
    )


def _details(results: Results) -> dict[str, object]:
    watch = results.watch
    clocks = [state.sm_clock_mhz for state in watch.states if state.sm_clock_mhz is not None]
    heat = [state.temperature_c for state in watch.states if state.temperature_c is not None]
    return {
        "seconds": round(results.seconds, 1),
        "peak_memory_bytes": watch.peak_bytes,
        "left_out": results.left_out,
        "anchors": {anchor: [round(value, 1) for value in values] for anchor, values in watch.anchors.items()},
        "sm_clock_mhz": [min(clocks), max(clocks)] if clocks else None,
        "temperature_c": [min(heat), max(heat)] if heat else None,
        "throttle": list(watch.throttle),
        "extras": dict(results.extras),
        "failures": [{"point": str(each.point), "reason": each.reason} for each in results.failures],
        "measurements": [measurement_record(each) for each in results.measurements],
    }
