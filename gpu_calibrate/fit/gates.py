"""Sanity of a profile: whether its numbers can be what a healthy card does, and whether a step can be formed of them.

A profile that fails is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_calibrate.device.base import harmful
from gpu_calibrate.plan.points import CURVE
from gpu_calibrate.timing.replays import spoiled
from sim.latency.profile.file import Gate, Profile

if TYPE_CHECKING:
    from gpu_calibrate.fit.run_results import Results

MAX_DRIFT = 0.05
"""An anchor's medians may stray this far from their median."""
MAX_NOISY_SHARE = 0.15
NOISY = 0.02
"""A median's interval above this is noise; up to ``MAX_NOISY_SHARE`` of points may have it (the shortest ones do)."""
MAX_FAILED_SHARE = 0.10
MAX_DROP = 0.30
"""A time may fall by this share from one place of a curve to the next (libraries change kernels), not by more."""
MAX_DROPS_SHARE = 0.02
COPY_SHARE = (0.6, 1.05)
"""Of the datasheet's bandwidth: less is another card or one that others use, more is a mistake."""
NEEDED = ("gemm", "prefill_attention", "decode_attention")
"""Operators without which no step of any model can be formed."""
OPERATORS_GATE = "operators"


def all_gates(results: Results, profile: Profile) -> tuple[Gate, ...]:
    """Every gate, passed or not."""
    return (
        _possible(results),
        _throttling(results),
        _drift(results),
        _noise(results),
        _failures(results),
        _complete(profile),
        _rising(profile),
        _copy(profile),
    )


def _possible(results: Results) -> Gate:
    refused = [each for each in results.measurements if each.refused is not None]
    detail = f"{refused[0].point}: {refused[0].refused}" if refused else "no time is beyond the datasheet"
    more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
    return Gate(name="possible", passed=not refused, detail=detail + more)


def _throttling(results: Results) -> Gate:
    seen = sorted({reason for state in results.watch.states for reason in harmful(state)})
    lost = sum(spoiled(each) for each in results.measurements)
    if lost:
        reasons = ", ".join(seen) or "throttling"
        detail = f"{reasons} while {lost} points were timed, also when timed again; cool the card, then measure again"
        return Gate(name="throttling", passed=False, detail=detail)
    detail = f"{', '.join(seen)} seen for a while; the points were timed again" if seen else "none that matters"
    return Gate(name="throttling", passed=True, detail=detail)


def _drift(results: Results) -> Gate:
    worst = max(((results.watch.drift(name), name) for name in results.watch.anchors), default=(0.0, ""))
    detail = f"{worst[1] or 'anchors'} strayed by {worst[0]:.1%} from its median over the run"
    return Gate(name="drift", passed=worst[0] <= MAX_DRIFT, detail=detail)


def _noise(results: Results) -> Gate:
    points = [each for each in results.measurements if each.point.role == CURVE]
    noisy = sum(each.interval > NOISY for each in points)
    detail = f"{noisy} of {len(points)} medians are known to less than {NOISY:.0%}"
    return Gate(name="noise", passed=noisy <= MAX_NOISY_SHARE * max(1, len(points)), detail=detail)


def _failures(results: Results) -> Gate:
    total = len(results.measurements) + len(results.failures)
    reason = f"; {results.failures[0].point}: {results.failures[0].reason}" if results.failures else ""
    detail = f"{len(results.failures)} of {total} points could not be timed{reason}"
    return Gate(name="failures", passed=len(results.failures) <= MAX_FAILED_SHARE * max(1, total), detail=detail)


def imported_gates(profile: Profile) -> tuple[Gate, ...]:
    """What must hold of tables that others measured. Their makers' cards are not at hand: only what is there counts."""
    return (operators_gate(profile),)


def operators_gate(profile: Profile) -> Gate:
    """Every profile needs the operators of a dense layer, wherever it was measured."""
    missing = missing_operators(profile)
    detail = f"missing: {', '.join(missing)}" if missing else "gemm, prefill and decode attention are there"
    return Gate(name=OPERATORS_GATE, passed=not missing, detail=detail)


def missing_operators(profile: Profile) -> list[str]:
    """Those of ``NEEDED`` that have no curve."""
    return [name for name in NEEDED if name not in profile.operators or not profile.operators[name].curves]


def _complete(profile: Profile) -> Gate:
    missing = missing_operators(profile)
    detail = f"without {', '.join(missing)}" if missing else "all that a dense model needs"
    return Gate(name="complete", passed=not missing, detail=detail)


def _rising(profile: Profile) -> Gate:
    drops: list[tuple[float, str]] = []
    steps = 0
    for name, operator in profile.operators.items():
        for curve in operator.curves:
            for left, right, at in zip(curve.time_ns, curve.time_ns[1:], curve.at[1:], strict=False):
                steps += 1
                if right < left * (1.0 - MAX_DROP):
                    drops.append((right / left - 1.0, f"{name}{list(curve.key)} at {at:,}"))
    detail = f"{len(drops)} of {steps} steps along curves fall by more than {MAX_DROP:.0%}"
    if drops:
        worst = min(drops)
        detail += f"; worst {worst[0]:+.0%}: {worst[1]}"
    return Gate(name="rising", passed=len(drops) <= MAX_DROPS_SHARE * max(1, steps), detail=detail)


def _copy(profile: Profile) -> Gate:
    device = profile.device
    reached = device.copy_bandwidth_bytes_per_s
    if reached is None:
        return Gate(name="copy bandwidth", passed=False, detail="not measured")
    share = reached / device.memory_bandwidth_bytes_per_s
    detail = f"{reached / 1e9:,.0f} GB/s, {share:.0%} of the datasheet's of {device.gpu}"
    return Gate(name="copy bandwidth", passed=COPY_SHARE[0] <= share <= COPY_SHARE[1], detail=detail)
