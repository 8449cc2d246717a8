"""How wrong a run's step times are: the error of what this run charged, term by term, put together to one number.

Each term of the step cost has the seconds that it took in this run, and each second the error of what it stands on
(``sim.latency.parts`` has the kinds). The number is the mean of the errors weighted by seconds, as if all were off to
the same side: 70 % of the time off by 3 % and 30 % by 25 % are 9.6 %. ``docs/uncertainty.md`` has the rule for users.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = {"share": 1.0, "kind": "estimate", "error": 0.25, "what": "nothing is known of it"}
"""A term that a step cost says nothing about."""
LARGEST_ERROR = 0.9
"""Step times cannot get shorter by more than all of themselves."""
HOST = "host"
OTHERS_WAIT = "waiting"
"""The term of ranks that wait for the slowest: as wrong as what they wait for."""
MEASURED_KINDS = ("measured", "interpolated")
MOST = 0.5
"""Share of the charged time that what is said of all of it goes by."""
KINDS = (*MEASURED_KINDS, "extrapolated", "other_format", "other_gpu", "stand_in", "estimate", "assumption")

Part = Mapping[str, Any]


def error_section(
    latency: Mapping[str, Any], seconds: Mapping[str, float], host_s: float, whole_runs: Mapping[str, Any]
) -> dict[str, Any]:
    """``error`` of the summary.

    ``seconds``: of all accelerators by term; ``host_s``: for which they stood still for the host. ``whole_runs``: what
    is known of measured runs of this kind.
    """
    evidence = dict(latency.get("evidence", {}))
    if "draft" in latency:
        of_draft = latency["draft"].get("evidence", {})
        evidence["draft"] = of_draft.get("matrices", of_draft.get("all", []))
    terms = {name: _term(seconds[name], evidence.get(name) or evidence.get("all", ())) for name in seconds}
    if OTHERS_WAIT in terms and len(terms) > 1:
        rest = {name: each for name, each in terms.items() if name != OTHERS_WAIT}
        terms[OTHERS_WAIT].update(error=_mean(rest.values()), parts=[])
    accelerator = _mean(terms.values())
    if host_s > 0:
        terms[HOST] = _term(host_s, evidence.get(HOST, ()))
    total_s = math.fsum(each["seconds"] for each in terms.values())
    for each in terms.values():
        each["share"] = each["seconds"] / total_s if total_s else 0.0
    value = _mean(terms.values())
    return {
        "value": min(value, LARGEST_ERROR),
        "accelerator": min(accelerator, LARGEST_ERROR),
        "shares": _shares(terms.values()),
        "terms": terms,
        "whole_runs": dict(whole_runs),
    }


def _term(seconds: float, parts: Sequence[Part]) -> dict[str, Any]:
    known = list(parts) or [UNKNOWN]
    error = math.fsum(part["share"] * part["error"] for part in known)
    return {"seconds": seconds, "share": 0.0, "error": error, "parts": [dict(part) for part in known]}


def _mean(terms: Any) -> float:
    """The terms' error, weighted by their seconds; without any time, the plain mean."""
    known = list(terms)
    total_s = math.fsum(each["seconds"] for each in known)
    if not total_s:
        return math.fsum(each["error"] for each in known) / max(len(known), 1)
    return math.fsum(each["seconds"] * each["error"] for each in known) / total_s


def _shares(terms: Any) -> dict[str, float]:
    """Share of the charged time by kind, in the order of ``KINDS``; kinds without any are left out."""
    found = dict.fromkeys(KINDS, 0.0)
    told = 0.0
    for each in terms:
        for part in each["parts"]:
            share = each["share"] * part["share"]
            found[part["kind"]] = found.get(part["kind"], 0.0) + share
            told += share
    return {kind: share / told for kind, share in found.items() if share} if told else {}


def basis_of(error: Mapping[str, Any], latency: Mapping[str, Any]) -> str:
    """What a run's step times stand on, by most of the charged time: ``measured``, ``fitted`` to runs of the
    deployment, ``assumed`` (a constant), else ``estimated``."""
    if "fit" in latency:
        return "fitted"
    shares = error["shares"]
    if shares.get("assumption", 0.0) >= MOST:
        return "assumed"
    return "measured" if math.fsum(shares.get(kind, 0.0) for kind in MEASURED_KINDS) >= MOST else "estimated"


def unmeasured_parts(error: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    """Terms that no measurement of their own stands behind: (term, kind, share of the charged time, error), the largest
    contribution first."""
    found: dict[tuple[str, str], list[float]] = {}
    for name, term in error["terms"].items():
        for part in term["parts"]:
            if part["kind"] not in (*MEASURED_KINDS, "assumption"):
                sums = found.setdefault((name, part["kind"]), [0.0, 0.0])
                sums[0] += term["share"] * part["share"]
                sums[1] += term["share"] * part["share"] * part["error"]
    rows = [(name, kind, share, off / share) for (name, kind), (share, off) in found.items() if share]
    return sorted(rows, key=lambda row: (-row[2] * row[3], row[0]))
