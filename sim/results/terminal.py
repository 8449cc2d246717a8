"""The summary on a terminal: at most 80 columns, colour only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sim.results import interval_tables
from sim.results.bottleneck import bottleneck_words, busy_words
from sim.results.tier_hits import offloading_words
from sim.results.wording import (
    endings,
    error_words,
    load_words,
    mark,
    nice_number,
    number,
    overload_sentence,
    percent,
    plain,
    setup_words,
    source_of,
    tables_of_groups,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

WIDTH = 80
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
MAX_TENANTS = 12
MAX_NOTES = 12
ROWS = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2el"))


def print_summary(summary: dict[str, Any], written: Sequence[Path] = (), file: TextIO | None = None) -> None:
    """Print ``summary`` and where ``written`` files are to ``file`` (standard output)."""
    from rich.console import Console

    out = file or sys.stdout
    console = Console(file=out, highlight=False, markup=False, emoji=False)
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    with console.capture() as capture:
        _heading(console, summary)
        console.print(_facts(summary))
        console.print()
        if "intervals" in summary:
            _intervals(console, summary["intervals"])
        else:
            console.print(_latencies(summary))
        for head, groups in tables_of_groups(summary):
            console.print()
            console.print(_groups(head, groups))
        if summary["slo"] is not None:
            console.print()
            console.print(_slo(summary["slo"], f"SLO{mark(summary['load'])}"))
        _notes(console, summary["run"]["notes"])
        if written:
            console.print()
            console.print(_written(written))
    out.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def _heading(console: Console, summary: dict[str, Any]) -> None:
    from rich.text import Text

    run = summary["run"]
    console.print(Text(plain(run["scenario"]), style="bold"))
    if setup := setup_words(run["setup"], summary["load"]):
        console.print(plain(setup))
    spent = f"in {nice_number(run['cpu_s'])} s of CPU" if run["cpu_s"] >= 0.005 else "at once"
    console.print(f"{nice_number(summary['duration'])} s simulated {spent}, {run['steps']:,} steps, seed {run['seed']}")
    overload = overload_sentence(summary["load"])
    if overload is not None:
        console.print(Text(f"OVERLOAD: {overload}.", style="bold red"))
        console.print("Latencies below grow with the run's length; they are not the system's.")
    about = _grid({"style": "yellow", "no_wrap": True}, {"style": "yellow", "overflow": "fold"})
    about.show_header = False
    for title, words in [("step times", source_of(run["latency"])), *error_words(summary["error"], run["latency"])]:
        about.add_row(title, plain(words))
    console.print(about)
    console.print()


def _intervals(console: Console, section: dict[str, Any]) -> None:
    from rich.text import Text

    console.print(Text(interval_tables.heading(section), style="bold"))
    for table in (interval_tables.totals(section), *interval_tables.latencies(section)):
        console.print()
        console.print(table)
    console.print()
    for note in interval_tables.notes(section):
        console.print(f"note: {note}")
    verdict = interval_tables.verdict(section)
    if verdict is not None:
        console.print()
        console.print(verdict)


def _grid(*columns: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(**column)
    return table


def _facts(summary: dict[str, Any]) -> RenderableType:
    counts, kv, use = summary["counts"], summary["kv"], summary["utilization"]
    table = _grid({"style": "bold", "no_wrap": True}, {"overflow": "fold"})
    table.show_header = False
    ended = endings(counts)
    rows = [
        ("Requests", f"{counts['completed']:,} of {counts['submitted']:,} completed" + (f"; {ended}" if ended else "")),
        (
            "Throughput",
            f"{number(summary['request_throughput'])} requests/s, {number(summary['output_throughput'])} output "
            f"tokens/s, {number(summary['total_token_throughput'])} tokens/s",
        ),
    ]
    in_intervals = "intervals" in summary
    if in_intervals:
        rows.pop()
    elif summary["request_goodput"] is not None:
        share = percent(summary["slo"]["attainment"])
        words = f"{number(summary['request_goodput'])} requests/s within their SLO, {share} of the submitted"
        rows.append(("Goodput", words))
    if (load := load_words(summary["load"])) is not None:
        rows.append(("Load", load))
    accelerator = f"{busy_words(summary)}, mean batch {number(use['mean_batch_size'])}"
    if use["mfu"] is not None:
        accelerator += f", MFU {percent(use['mfu'])}, bandwidth {percent(use['memory_bandwidth'])}"
    hits = kv["prefix_cache_hit_rate"]
    preemptions = summary["preemptions"]
    evicted = f"{preemptions['total']:,}"
    if preemptions["total"]:
        evicted += (
            f" of {preemptions['requests']:,} requests, {percent(preemptions['recompute_tax'])} of work recomputed"
        )
    rows += [
        ("Accelerators", accelerator),
        (
            "KV cache",
            f"{percent(kv['mean_usage'])} mean, {percent(kv['max_usage'])} peak of {kv['num_gpu_blocks']:,} blocks of "
            f"{kv['block_size']}" + (f"; prefix hits {percent(hits)}" if hits else ""),
        ),
        *([("KV offloading", moved)] if (moved := offloading_words(kv)) is not None else []),
        ("Preemptions", evicted),
        ("Bottleneck", bottleneck_words(summary)),
    ]
    cost = summary["cost"] or {}
    if cost.get("usd_per_million_tokens") is not None and not in_intervals:
        each = f"${cost['usd_per_million_tokens']:.3g} per million tokens"
        rows.append(("Cost", f"{each}, at ${cost['usd_per_gpu_hour']:g} per GPU hour ({plain(cost['price_source'])})"))
    for row in rows:
        table.add_row(*row)
    return table


def _latencies(summary: dict[str, Any]) -> RenderableType:
    table = _grid(
        {"header": "ms", "style": "bold"},
        *({"header": name, "justify": "right", "min_width": 8} for name in STATISTICS),
    )
    for title, metric in ROWS:
        table.add_row(title, *(number(summary[f"{name}_{metric}_ms"]) for name in STATISTICS))
    table.add_row("Queue", *(number(summary["queue"][f"{name}_queue_ms"]) for name in STATISTICS))
    return table


def _groups(head: str, groups: dict[str, Any]) -> RenderableType:
    right = {"justify": "right"}
    heads = ("done", "of", "TTFT p95", "TPOT p95", "ITL p99", "E2E p95", "good")
    table = _grid(
        {"header": head, "max_width": 16, "no_wrap": True, "overflow": "ellipsis"},
        *({"header": each, **right} for each in heads),
    )
    for name, entry in list(groups.items())[:MAX_TENANTS]:
        counts = entry["counts"]
        keys = ("p95_ttft_ms", "p95_tpot_ms", "p99_itl_ms", "p95_e2el_ms")
        done, of = f"{counts['completed']:,}", f"{counts['submitted']:,}"
        table.add_row(plain(name), done, of, *(number(entry[key]) for key in keys), percent(entry["goodput_share"]))
    if len(groups) > MAX_TENANTS:
        table.add_row(f"and {len(groups) - MAX_TENANTS} more")
    return table


def _slo(slo: dict[str, Any], head: str) -> RenderableType:
    from rich.text import Text

    words = {True: ("met", "green"), False: ("MISSED", "bold red")}
    table = _grid(
        {"header": head, "style": "bold"},
        {"header": "of", "max_width": 24, "no_wrap": True, "overflow": "ellipsis"},
        {"header": "value", "justify": "right"},
        {"header": "limit", "justify": "right"},
        {"header": ""},
    )
    for where, verdict in [("the run", slo), *slo["classes"].items()]:
        for name, entry in verdict["limits"].items():
            word, style = words[entry["met"]]
            value, limit = number(entry["value"]), number(entry["limit"])
            table.add_row(name, plain(where), value, limit, Text(word, style=style))
        for name, entry in verdict["shares"].items():
            word, style = words[entry["met"]]
            if entry["value"] or entry["limit"]:
                limit = percent(entry["limit"])
                table.add_row(name, plain(where), percent(entry["value"]), limit, Text(word, style=style))
    return table


def _notes(console: Console, notes: Sequence[str]) -> None:
    if not notes:
        return
    console.print()
    table = _grid({"style": "yellow", "no_wrap": True}, {"overflow": "fold"})
    table.show_header = False
    for note in notes[:MAX_NOTES]:
        table.add_row("note", plain(note))
    if len(notes) > MAX_NOTES:
        table.add_row("", f"and {len(notes) - MAX_NOTES} more, in summary.json under run.notes")
    console.print(table)


def _written(written: Sequence[Path]) -> RenderableType:
    table = _grid({"style": "bold", "no_wrap": True}, {"overflow": "fold"})
    table.show_header = False
    folder = plain(str(written[0].parent))
    table.add_row("Written to", f"{folder}/: " + ", ".join(path.name for path in written))
    return table
