"""A fit as text of at most 80 columns."""

from __future__ import annotations

import textwrap

from sim.explore.fit_result import TOLD, Fit, mean_errors
from sim.results.wording import plain

WIDTH = 80


def fit_text(fit: Fit, written: str | None) -> str:
    """What the command prints."""
    runs = f"{len(fit.cases)} run{'s' if len(fit.cases) > 1 else ''}"
    lines = [f"{runs} on {fit.fitted.gpu}, step times: {fit.fitted.kind}", ""]
    lines += ["".ljust(20) + "".join(head.rjust(11) for head in ("default", "fitted", "from", "to"))]
    for each in fit.parameters:
        if each.name in fit.values:
            told = (each.default, fit.values[each.name], *fit.interval(each))
            lines.append(each.name.ljust(20) + "".join(f"{value:.4g}".rjust(11) for value in told))
        else:
            lines.append(each.name.ljust(20) + f"{each.default:.4g}".rjust(11) + "kept".rjust(11))
    lines += [*_together_lines(fit), "", *_error_lines(fit)]
    for note in fit.notes:
        lines += _wrapped("note  ", plain(note))
    if written is not None:
        lines += ["", f"Written to {written}; use it by latency: {{fit: {written}}}"]
    return "\n".join([*lines, ""])


def _together_lines(fit: Fit) -> list[str]:
    lines = ["", *_wrapped("", fit.spells)]
    if fit.silent:
        lines += _wrapped("", f"The figures say nothing of {', '.join(fit.silent)}: default kept.")
    for group in fit.together:
        lines += _wrapped(
            "",
            f"The figures cannot tell apart {', '.join(group)}: together they are right for runs like these, each "
            "alone is not known. Runs at another rate, batch or prompt length can part them.",
        )
    return lines


def _error_lines(fit: Fit) -> list[str]:
    columns = [mean_errors(fit.before), mean_errors(fit.after)]
    heads = ["without", "with fit"]
    if fit.left_out is not None:
        columns.append(mean_errors(fit.left_out))
        heads.append("left out")
    lines = ["mean error, %".ljust(20) + "".join(head.rjust(11) for head in heads)]
    for key in [*(key for key in TOLD if key in columns[0]), *(key for key in columns[0] if key not in TOLD)]:
        if key in TOLD or not any(each in columns[0] for each in TOLD):
            told = [f"{column[key]:.1f}" if key in column else "-" for column in columns]
            lines.append(key.ljust(20) + "".join(each.rjust(11) for each in told))
    if fit.left_out is None:
        lines += _wrapped("", "One run: the error elsewhere is not known; give a second run for it.")
    else:
        lines += _wrapped("", "left out: each run predicted from a fit to the others.")
    return lines


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
