"""How numbers and facts are worded, the same in the terminal and in the report."""

from __future__ import annotations

import math
from typing import Any

from sim.results.charged_error import unmeasured_parts
from sim.results.record import Status

KIND_WORDS = {
    "measured": "measured",
    "interpolated": "interpolated",
    "extrapolated": "extrapolated",
    "other_format": "from another number format",
    "other_gpu": "scaled from another GPU",
    "stand_in": "stand-in",
    "estimate": "estimated",
    "assumption": "assumed",
}
LEAST_SHARE = 0.005
"""Of the charged time, below which a part is not named."""


def nice_number(value: float) -> str:
    """Three significant digits, thousands separated, no exponent; whole from 100 on."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = min(9, max(0, 2 - math.floor(math.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def number(value: float | None, none: str = "-") -> str:
    """``nice_number``, or ``none`` where there is no value."""
    return none if value is None else nice_number(value)


def percent(value: float | None, none: str = "-") -> str:
    """A share as a percentage, one decimal below 10 %."""
    if value is None:
        return none
    return f"{value * 100:.{0 if value >= 0.1 or value == 0 else 1}f}%"


def plain(text: str) -> str:
    """User text fit for a terminal: control characters, escape sequences among them, become ``?``."""
    return "".join(each if each.isprintable() else "?" for each in text)


def source_of(latency: dict[str, Any]) -> str:
    """Where step times come from, and what was changed or disturbs them."""
    scale, noise = float(latency.get("time_scale", 1.0)), latency.get("noise") or {}
    found = _origin(latency)
    if "fit" in latency:
        file = latency["fit"]["file"] or "given as an object"
        found += f"; fitted to runs of this deployment ({file}, which has its error)"
    if scale != 1.0:
        found += f"; all times x {scale:g}"
    if step := noise.get("step"):
        found += f"; in spells x {step['factor']:g}"
    return found


def _origin(latency: dict[str, Any]) -> str:
    kind = str(latency.get("kind", "unknown"))
    if kind == "roofline":
        gpu = latency.get("gpu")
        return "ESTIMATE, not measured: a roofline of datasheet figures" + (f" of {gpu}" if gpu else "")
    if kind == "constant":
        return "constant step time, an assumption, not measured"
    name = latency.get("name") or latency.get("profile")
    if not name:
        return f"{kind} latency model"
    scaled = latency.get("scaled_from")
    return f"measured, profile {name}" if scaled is None else f"measured on {scaled}, scaled to this GPU's memory"


def error_words(error: dict[str, Any], latency: dict[str, Any]) -> list[tuple[str, str]]:
    """How wrong the step times are, as titles and sentences: of what this run charged, which of it was not measured,
    and whole runs. Nothing for constant step times, which are an assumption."""
    if latency.get("kind") == "constant":
        return []
    lines = [("error", f"about {percent(error['value'])} of the time that this run charged: {_by_kind(error)}")]
    parts = [
        f"{name.replace('_', ' ')} {percent(share)} ({KIND_WORDS[kind]}, off by {percent(off)})"
        for name, kind, share, off in unmeasured_parts(error)
        if share >= LEAST_SHARE and name != "accelerator"
    ]
    if parts:
        lines.append(("not measured", ", ".join(parts)))
    if error["whole_runs"]:
        lines.append(("whole runs", error["whole_runs"]["text"]))
    return lines


def _by_kind(error: dict[str, Any]) -> str:
    shares = [(kind, share) for kind, share in error["shares"].items() if share >= LEAST_SHARE]
    if len(shares) == 1:
        return f"all of it {KIND_WORDS[shares[0][0]]}"
    return ", ".join(f"{percent(share)} {KIND_WORDS[kind]}" for kind, share in shares)


def tables_of_groups(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What figures are shown by, with a word for it: tenants and classes, where there are several of them. Where both
    have the same names they are one table."""
    tables = [("tenant", summary["tenants"]), ("class", summary["classes"])]
    shown = [(word, groups) for word, groups in tables if len(groups) > 1]
    return shown[:1] if len(shown) == 2 and list(shown[0][1]) == list(shown[1][1]) else shown


def endings(counts: dict[str, int]) -> str:
    """The requests that did not complete, by how they ended: ``3 rejected, 1 timed out``."""
    kinds = [each.name.lower() for each in Status if each is not Status.COMPLETED]
    others = [(kind, n) for kind in kinds if (n := counts.get(kind))]
    return ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in others)


def mark(load: dict[str, Any]) -> str:
    """What stands behind a figure that goes by step times: a word where most of them are an estimate."""
    return " (estimate)" if load.get("step_times") == "estimated" else ""


def overload_sentence(load: dict[str, Any]) -> str | None:
    """What a saturated run says of itself; None for the others."""
    if not load["saturated"]:
        return None
    served = f"{number(load['offered_rate'])} requests/s offered, {number(load['served_rate'])} served meanwhile"
    if load["headroom"] is None:
        return served
    if load["headroom"] < 1 and load["served_rate"] is not None and load["served_rate"] > load["capacity"]:
        # Equal requests that wait together start together, and are served faster than in another order.
        return f"{served} (headroom {load['headroom']:.2f}{mark(load)})"
    if load["headroom"] < 1:
        return f"{served} (about {number(load['capacity'])} could be: headroom {load['headroom']:.2f}{mark(load)})"
    return f"{served}, and requests pile up, though {number(load['capacity'])} could be on average{mark(load)}"


def load_words(load: dict[str, Any]) -> str | None:
    """Offered rate and headroom; None where requests have no rate of their own."""
    if load["offered_rate"] is None:
        return None
    offered = f"{number(load['offered_rate'])} requests/s offered"
    if load["headroom"] is None:
        return offered
    return f"{offered}, about {number(load['capacity'])} could be served: headroom {load['headroom']:.2f}{mark(load)}"


def setup_words(setup: dict[str, Any], load: dict[str, Any]) -> str:
    """What ran, in one line: model, types, GPU, parallelism, replicas, router, policy, rate."""
    if not setup:
        return ""
    kinds = (("tensor", "TP"), ("pipeline", "PP"), ("data", "DP"))
    sizes = [f"{short}{setup[f'{name}_parallel_size']}" for name, short in kinds]
    parallel = " ".join([sizes[0], *(each for each in sizes[1:] if not each.endswith("P1"))])
    kv = "" if setup["kv_cache_dtype"] == "auto" else f" (KV {setup['kv_cache_dtype']})"
    replicas = f"{setup['replicas']:,} replica" + ("" if setup["replicas"] == 1 else f"s by {setup['router']}")
    rate = "" if load["offered_rate"] is None else f", {number(load['offered_rate'])} req/s"
    model = f"{setup['model']} {setup['dtype']}{kv}"
    return f"{model} on {setup['gpu']} {parallel}, {replicas}, policy {setup['policy']}{rate}"
