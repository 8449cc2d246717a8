"""Errors row by row, for the terminal: what to look at while looking for a cause."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy_runs import Outcome
from benchmarks.accuracy_scores import SATURATED, Score

SHORT = {
    "mean_ttft_ms": "TTFT",
    "p99_ttft_ms": "TTFT p99",
    "mean_tpot_ms": "TPOT",
    "mean_itl_ms": "ITL",
    "mean_e2el_ms": "E2E",
}


def row_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for each experiment, under the name of its set."""
    lines, group = [], ""
    for each in outcomes:
        if each.experiment.group != group:
            group = each.experiment.group
            lines.append(f"\n{group}")
        half = "T" if each.experiment.is_training else "V"
        if each.failure:
            lines.append(f"  {half} {each.experiment.name}: {each.failure}")
            continue
        cells = [
            f"{label} {each.predicted[key]:9.2f} for {each.experiment.measured[key]:9.2f} {100 * error:+6.1f} %"
            for key, label in SHORT.items()
            if (error := each.error(key)) is not None
        ]
        saturated = "  saturated" if each.is_saturated else ""
        lines.append(f"  {half} {each.experiment.name:<52} " + "   ".join(cells) + saturated)
    return lines


def score_lines(found: Sequence[Score], half: str) -> list[str]:
    """One line for each set and metric: what it must reach, aims at, reached."""
    lines = []
    for each in found:
        bar = each.bar
        aim = "" if bar.aim is None else f" (aim {100 * bar.aim:.0f})"
        told = "share" if bar.statistic == SATURATED else bar.statistic
        lines.append(
            f"{bar.group:<58} {half:<10} n={each.num_experiments:<3} {bar.label:<22}"
            f" {told} {100 * each.scored:5.1f} %  bias {100 * each.bias:+6.1f} %"
            f"  bar {100 * bar.limit:.0f}{aim} %  {'met' if each.met else 'MISSED'}"
        )
    return lines
