"""The section ``intervals`` of a summary (several seeds) on a terminal: ``value [low, high]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.results.wording import nice_number, percent

if TYPE_CHECKING:
    from rich.table import Table

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
LATENCIES = ((("TTFT", "ttft"), ("TPOT", "tpot")), (("ITL", "itl"), ("E2E", "e2el")))
"""Two to a table, so that all fit 80 columns."""
TOTALS = (
    ("request_throughput", "requests/s"),
    ("request_goodput", "requests/s within their SLO"),
    ("output_throughput", "output tokens/s"),
    ("total_token_throughput", "tokens/s"),
    ("duration", "s from first arrival to last token"),
    ("cost.usd_per_million_tokens", "$ per million tokens"),
)


def heading(section: dict[str, Any]) -> str:
    """What the figures below it are."""
    seeds, error = section["seeds"], section["profile_error"]
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"
    parts = ["the spread over seeds"] if len(seeds) > 1 else []
    parts += [f"step times off by {percent(error)}"] if error else []
    return f"Mean of {which} [low, high]: {' and '.join(parts) or 'nothing is uncertain'}"


def notes(section: dict[str, Any]) -> list[str]:
    """What the intervals are of, and what makes them worth less."""
    first = ["intervals are of the mean over runs of this length, not of one run or of an endless one"]
    return [*(first if len(section["seeds"]) > 1 else []), *section.get("notes", [])]


def verdict(section: dict[str, Any]) -> str | None:
    """In how many seeds the SLO held, and whose table comes below."""
    met, seeds = section["slo_met_by_seed"], section["seeds"]
    return None if met is None else f"SLO met in {sum(met)} of {len(met)} seeds; in seed {seeds[0]}:"


def totals(section: dict[str, Any]) -> Table:
    """Throughputs, duration and cost, as far as there are any."""
    table = _table({"justify": "right"}, {})
    table.show_header = False
    for name, unit in TOTALS:
        if name in section["metrics"]:
            table.add_row(_text(section, name), unit)
    return table


def latencies(section: dict[str, Any]) -> list[Table]:
    """Two metrics to a table, a statistic to a row."""
    tables = []
    for pair in LATENCIES:
        columns = ({"header": title, "justify": "right", "min_width": 24} for title, _ in pair)
        table = _table({"header": "ms", "style": "bold"}, *columns)
        for statistic in STATISTICS:
            table.add_row(statistic, *(_text(section, f"{statistic}_{metric}_ms") for _, metric in pair))
        tables.append(table)
    return tables


def _text(section: dict[str, Any], name: str) -> str:
    found = section["metrics"].get(name)
    if found is None:
        return "-"
    return f"{nice_number(found['mean'])} [{nice_number(found['low'])}, {nice_number(found['high'])}]"


def _table(*columns: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(**column)
    return table
