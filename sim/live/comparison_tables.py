"""What ``observe`` and ``validate`` print: at most 80 columns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sim.live.validate import Validation
from sim.results.wording import number, plain

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E"}
WIDTH = 80
MAX_REASONS = 8
MAX_NOTES = 12


def observed_text(figures: dict[str, Any], late: dict[str, Any], planned: int, out: str) -> str:
    """The result of ``observe``."""
    done = f"{figures['completed']:,} of {planned:,} requests completed"
    if not figures["completed"]:
        return f"{done}\nrecord: {out}\n"
    lines = [
        f"{done} in {number(figures['duration'])} s",
        f"{number(figures['request_throughput'])} requests/s, {number(figures['output_throughput'])} output tokens/s, "
        f"{number(figures['total_token_throughput'])} tokens/s",
        "",
        "ms".ljust(8) + "".join(name.rjust(10) for name in STATISTICS),
    ]
    for metric, title in TITLES.items():
        lines.append(title.ljust(8) + "".join(number(figures[f"{name}_{metric}_ms"]).rjust(10) for name in STATISTICS))
    sending = late["sending"]
    lines += [
        "",
        f"client: sent {number(sending['p50_ms'])} ms late in the median, {number(sending['p99_ms'])} ms at the "
        f"p99, {number(sending['max_ms'])} ms at most",
    ]
    return "\n".join([*lines, f"record: {out}", ""])


def reason_lines(reasons: Counter[str]) -> list[str]:
    """Why requests did not complete, the most frequent first."""
    listed = [f"{count:,} x {plain(reason)}" for reason, count in reasons.most_common(MAX_REASONS)]
    left = len(reasons) - MAX_REASONS
    return [*listed, f"and {left:,} other reasons"] if left > 0 else listed


def validation_text(validation: Validation, written: list[Path]) -> str:
    """The result of ``validate``."""
    import textwrap

    seen, told = validation.measured_figures, validation.results.summary
    lines = [
        f"{plain(validation.scenario)}, simulated, against {plain(validation.file)} ({validation.measured.source})",
        f"completed: {seen['completed']:,} measured, {told['completed']:,} predicted",
        "",
        "".ljust(24) + "".join(head.rjust(13) for head in ("measured", "predicted", "error")),
    ]
    last_metric = ""
    for key, measured, predicted, error in validation.rows:
        title, metric = _title(key)
        if metric != last_metric:
            lines.append("")
            last_metric = metric
        percent = "-" if error is None else f"{error:+.1f} %"
        lines.append(title.ljust(24) + number(measured).rjust(13) + number(predicted).rjust(13) + percent.rjust(13))
    notes = validation.notes
    if notes:
        lines.append("")
    for note in notes[:MAX_NOTES]:
        lines += textwrap.wrap(plain(note), WIDTH, initial_indent="note  ", subsequent_indent="      ")
    if len(notes) > MAX_NOTES:
        lines.append(f"      and {len(notes) - MAX_NOTES} more, in the JSON under notes")
    if written:
        lines += ["", f"Written to {written[0].parent}/: " + ", ".join(path.name for path in written)]
    return "\n".join([*lines, ""])


def _title(key: str) -> tuple[str, str]:
    """What a figure is called, and which block of the table it belongs to."""
    plain_titles = {
        "duration": "duration, s",
        "request_throughput": "requests/s",
        "output_throughput": "output tokens/s",
        "total_token_throughput": "tokens/s",
    }
    if key in plain_titles:
        return plain_titles[key], "throughput"
    statistic, metric, _ = key.split("_")
    return f"{TITLES[metric]} {statistic}, ms", metric
