"""A profile as text: what it is, what it holds, how wrong it is, and the figures one looks for first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gpu_calibrate.commands.utilisation import ceiling, decode_bandwidth, decode_heads, gemm_curves, utilisation
from sim.latency.profile.file import Error, Gate, Profile

Echo = Callable[[str], None]
UTILISATION_M = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BYTES_EDGES = (1 << 20, 8 << 20, 30 << 20, 130 << 20, 256 << 20, 1 << 30, 1 << 60)


def percent(value: float | None) -> str:
    """``4.2 %``; a dash for what is not known."""
    return "-" if value is None else f"{value:.1%}".replace("%", " %")


def heading(text: str, echo: Echo) -> None:
    """A line above a table."""
    echo(f"\n{text}")


def print_head(profile: Profile, echo: Echo) -> None:
    """What it is."""
    device, source = profile.device, profile.source
    echo(f"{profile.name}: {device.name} ({device.gpu}), {source.kind}, {profile.created}")
    echo(f"from {source.origin}")
    if profile.software:
        echo(", ".join(f"{name} {version}" for name, version in profile.software.items()))
    copy = device.copy_bandwidth_bytes_per_s
    measured = "" if copy is None else f", copy {copy / 1e9:,.0f} GB/s"
    echo(
        f"{device.num_sms} SMs, {device.memory_bytes / (1 << 30):.1f} GiB, L2 {device.l2_bytes / (1 << 20):.0f} MiB, "
        f"datasheet {device.memory_bandwidth_bytes_per_s / 1e9:,.0f} GB/s{measured}, "
        f"{device.flops['bfloat16'] / 1e12:,.0f} TFLOP/s in 16 bits"
    )
    if profile.host is not None:
        host = profile.host
        eager = "" if host.eager_launch_ns is None else f", launch without a graph {host.eager_launch_ns / 1e3:.1f} us"
        echo(f"host {host.step_ns / 1e3:,.0f} us a step, {host.request_ns / 1e3:.2f} us a request{eager}")
        echo(f"     ({host.origin})")
    for note in source.notes:
        echo(f"note: {note}")


def print_operators(profile: Profile, echo: Echo) -> None:
    """What it holds."""
    heading(f"{'operator':<30}{'curves':>8}{'points':>9}  kernel", echo)
    for name, operator in sorted(profile.operators.items()):
        points = sum(len(curve.at) for curve in operator.curves)
        echo(f"{name:<30}{len(operator.curves):>8,}{points:>9,}  {operator.kernel}")


def print_errors(errors: Mapping[str, Mapping[str, Error]], echo: Echo) -> None:
    """How wrong it is."""
    if not errors:
        heading("no errors are stated", echo)
        return
    heading(f"{'error':<44}{'median':>9}{'p90':>9}{'mean':>9}{'bias':>9}{'points':>9}", echo)
    for operator, kinds in sorted(errors.items()):
        for kind, error in kinds.items():
            bias = f"{error.bias:+.1%}".replace("%", " %")
            echo(
                f"{operator + ' ' + kind:<44}{percent(error.median):>9}{percent(error.p90):>9}"
                f"{percent(error.mean):>9}{bias:>9}{error.num_points:>9,}"
            )


def print_gates(gates: Sequence[Gate], echo: Echo) -> None:
    """Whether its numbers make sense."""
    if gates:
        heading("gates", echo)
    for gate in gates:
        echo(f"  {'passed' if gate.passed else 'FAILED'}  {gate.name}: {gate.detail}")


def print_utilisation(profile: Profile, echo: Echo) -> None:
    """Share of the peak that matrices reach."""
    curves = gemm_curves(profile)
    if not curves:
        return
    heading("GEMM, 16 bits: share of the datasheet's FLOP/s over M", echo)
    echo(f"{'n x k':>16}" + "".join(f"{m:>8,}" for m in UTILISATION_M))
    for curve in curves:
        known = dict(utilisation(profile, curve))
        cells = "".join(f"{percent(known.get(m)):>8}" for m in UTILISATION_M)
        echo(f"{f'{curve.key[1]} x {curve.key[2]}':>16}{cells}")


def print_decode(profile: Profile, echo: Echo) -> None:
    """Share of the copy bandwidth that decode attention reaches, by the bytes it reads."""
    heads = decode_heads(profile)
    if not heads:
        return
    top = ceiling(profile)
    against = "copy" if profile.device.copy_bandwidth_bytes_per_s else "datasheet's"
    heading(f"decode attention, 16 bits: share of the {against} bandwidth by KV read (median of the points)", echo)
    labels = ("< 1 MiB", "< 8", "< 30", "< 130", "< 256", "< 1 GiB", "more")
    echo(f"{'heads/KV heads/size':>20}" + "".join(f"{label:>9}" for label in labels))
    for key in heads[:8]:
        shares: list[list[float]] = [[] for _ in BYTES_EDGES]
        for _, size, rate in decode_bandwidth(profile, key):
            shares[next(i for i, edge in enumerate(BYTES_EDGES) if size < edge)].append(rate / top)
        cells = "".join(f"{percent(sorted(each)[len(each) // 2] if each else None):>9}" for each in shares)
        echo(f"{f'{key[2]}/{key[3]}/{key[4]}':>20}{cells}")


def print_profile(profile: Profile, echo: Echo) -> None:
    """All of it."""
    print_head(profile, echo)
    print_operators(profile, echo)
    print_utilisation(profile, echo)
    print_decode(profile, echo)
    print_errors(profile.errors, echo)
    print_gates(profile.gates, echo)
