"""``report.html``: one self-contained page, no script and no network, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from sim.results import wording
from sim.results.bottleneck import bottleneck, bottleneck_words
from sim.results.context import RunContext
from sim.results.figures import SECONDS_FROM_MS, distribution_chart, time_charts
from sim.results.metrics import METRICS, RequestTimes, Samples
from sim.results.record import RunRecord
from sim.results.series import binned
from sim.results.wording import endings, nice_number, overload_sentence, setup_words, source_of

METRIC_NAMES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}
NONE = "\N{EN DASH}"
GROUP_COLUMNS = {"ttft": ("p50", "p95", "p99"), "tpot": ("p95",), "itl": ("p50", "p95", "p99"), "e2el": ("p50", "p95")}
"""Statistics in the tables of tenants and classes: as many as fit the page's width. summary.json has them all."""
ALL_OF_IT = 0.9995
"""A share that is told as the whole."""
TABLE_STATISTICS = ("mean", "std", "p50", "p90", "p95", "p99")

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2430;--soft:#5c6777;--rule:#dfe3e9;--c1:#2563eb;
--c2:#e07b00;--c3:#0d9488;--good:#15803d;--bad:#c62828;--fill:.18}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e6eaf0;--soft:#9aa6b6;--rule:#303947;
--c1:#6ea0ff;--c2:#f5a344;--c3:#3cc4b4;--good:#4cc46f;--bad:#ff7b72;--fill:.28}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}main{max-width:1180px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:26px;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}h2{font-size:17px;margin:30px 0 10px}
h3{font-size:14px;margin:0 0 6px;font-weight:600}p{margin:6px 0}.sub,.note{color:var(--soft)}.note{font-size:13px}
.grid{display:grid;gap:12px}.tiles{grid-template-columns:repeat(auto-fit,minmax(175px,1fr));margin-top:20px}
.three{grid-template-columns:repeat(auto-fit,minmax(320px,1fr))}.two{grid-template-columns:repeat(auto-fit,minmax(440px,1fr))}
@media (max-width:520px){.three,.two{grid-template-columns:1fr}}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;min-width:0}
.tile b{display:block;font-size:22px;letter-spacing:-.01em;white-space:nowrap;
line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}.tile i{font-style:normal;font-size:14px;font-weight:400;color:var(--soft)}
.badge{display:inline-block;border-radius:999px;padding:1px 9px;font-size:12.5px;font-weight:600;
border:1px solid currentColor}
.good{color:var(--good)}.bad{color:var(--bad)}.limit{border-left:4px solid var(--c1);margin-top:12px}
.over{border-left-color:var(--bad)}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
th,td{padding:6px 7px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:500;font-size:13px}th:first-child,td:first-child{text-align:left}
tr:last-child td{border-bottom:0}td.name{max-width:320px;overflow:hidden;text-overflow:ellipsis}
svg{width:100%;height:auto;display:block;font-size:11.5px}
svg .rule{stroke:var(--rule);stroke-width:1}svg .axis{stroke:var(--soft);stroke-width:1}svg .tick{fill:var(--soft)}
svg .label{fill:var(--ink)}svg .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
svg .line{fill:none;stroke-width:1.8;stroke-linejoin:round}svg .area{opacity:var(--fill)}
.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}.area.c1{fill:var(--c1)}.area.c2{fill:var(--c2)}
.area.c3{fill:var(--c3)}.area.solid{opacity:.75}.legend{color:var(--soft);font-size:13px}
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 5px 0 0}.key.c1{background:var(--c1)}
.key.c2{background:var(--c2)}.key.c3{background:var(--c3)}.legend span{margin-right:14px}
details{margin-top:12px}summary{cursor:pointer;font-weight:600}pre{overflow:auto;font-size:12.5px;
line-height:1.45;margin:10px 0 0;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
ul{margin:6px 0;padding-left:20px}
"""


def number(value: float | None, unit: str = "") -> str:
    """A value for the page; a dash where there is none."""
    return NONE if value is None else f"{nice_number(value)}{unit}"


def percent(value: float | None) -> str:
    """A share for the page; a dash where there is none."""
    return wording.percent(value, NONE)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already."""
    cells = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="card wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def badge(met: bool) -> str:
    """A verdict as a word in colour."""
    return '<span class="badge good">met</span>' if met else '<span class="badge bad">missed</span>'


def _tiles(summary: dict[str, Any]) -> str:
    counts, kv, headroom = summary["counts"], summary["kv"], summary["load"]["headroom"]
    tiles = [
        (f"Completed of {counts['submitted']:,}", f"{counts['completed']:,}"),
        ("Request throughput", number(summary["request_throughput"], " <i>req/s</i>")),
        ("Output throughput", number(summary["output_throughput"], " <i>tok/s</i>")),
        _two("TTFT p50 / p95", summary["p50_ttft_ms"], summary["p95_ttft_ms"]),
        _two("ITL p50 / p99", summary["p50_itl_ms"], summary["p99_itl_ms"]),
        ("E2E p95", number(_per(summary["p95_e2el_ms"], 1000), " <i>s</i>")),
        ("Headroom (could be served / offered)", number(headroom)),
        (f"Accelerators busy, at headroom {number(headroom)}", percent(summary["utilization"]["busy_fraction"])),
        ("KV use mean / peak", f"{percent(kv['mean_usage'])} / {percent(kv['max_usage'])}"),
        ("Preemptions", f"{summary['preemptions']['total']:,}"),
    ]
    if summary["utilization"]["mfu"] is not None:
        tiles.append(("MFU", percent(summary["utilization"]["mfu"])))
    if summary["request_goodput"] is not None:
        tiles.append(("Goodput", number(summary["request_goodput"], " <i>req/s</i>")))
    cost = summary["cost"] or {}
    if cost.get("usd_per_million_tokens") is not None:
        tiles.append(("Cost per M tokens", f"${cost['usd_per_million_tokens']:.3g}"))
    cells = "".join(f'<div class="card tile"><b>{value}</b><span>{name}</span></div>' for name, value in tiles)
    return f'<div class="grid tiles">{cells}</div>'


def _per(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _two(name: str, low: float | None, high: float | None) -> tuple[str, str]:
    scale, unit = (1000.0, "s") if (high or 0.0) >= SECONDS_FROM_MS else (1.0, "ms")
    return f"{name}, {unit}", f"{number(_per(low, scale))} / {number(_per(high, scale))}"


def _latency_table(summary: dict[str, Any]) -> str:
    rows = [
        [f"{METRIC_NAMES[metric]} (ms)", *(number(summary[f"{name}_{metric}_ms"]) for name in TABLE_STATISTICS)]
        for metric in METRICS
    ]
    queue = summary["queue"]
    rows.append(["Queue time (ms)", *(number(queue[f"{name}_queue_ms"]) for name in TABLE_STATISTICS)])
    return table(["", *TABLE_STATISTICS], rows)


def _slo_table(summary: dict[str, Any]) -> str:
    slo = summary["slo"]
    if slo is None:
        return ""
    sources = [("whole run", slo), *((f"class {name}", each) for name, each in slo["classes"].items())]
    rows = [
        [escape(where), escape(name), number(entry["value"]), number(entry["limit"]), badge(entry["met"])]
        for where, verdict in sources
        for name, entry in verdict["limits"].items()
    ]
    rows += [
        [escape(where), escape(name), percent(entry["value"]), percent(entry["limit"]), badge(entry["met"])]
        for where, verdict in sources
        for name, entry in verdict["shares"].items()
    ]
    head = ["requests", "limit on", "value (ms or share)", "limit", "verdict"]
    return f"<h2>Service-level objectives{wording.mark(summary['load'])} {badge(slo['met'])}</h2>{table(head, rows)}"


def _group_tables(summary: dict[str, Any]) -> str:
    return "".join(_group_table(head, groups) for head, groups in wording.tables_of_groups(summary))


def _group_table(name: str, groups: dict[str, Any]) -> str:
    shown = [(metric, q) for metric, statistics in GROUP_COLUMNS.items() for q in statistics]
    rows = []
    for group, entry in groups.items():
        verdicts = entry["slo"]
        rows.append(
            [
                escape(group),
                f"{entry['counts']['completed']:,} / {entry['counts']['submitted']:,}",
                f"{entry['total_output_tokens']:,}",
                *(number(entry[f"{q}_{metric}_ms"]) for metric, q in shown),
                percent(entry["goodput_share"]),
                NONE if not verdicts else badge(all(each["met"] for each in verdicts.values())),
            ]
        )
    columns = [f"{'E2E' if metric == 'e2el' else metric.upper()} {q}" for metric, q in shown]
    head = [name, "completed", "output tokens", *columns, "good", "SLO"]
    title = {"class": "Classes", "tenant": "Tenants"}[name]
    return f"<h2>{title}</h2>{table(head, rows)}<p class='note'>Latencies in milliseconds.</p>"


def _replica_table(summary: dict[str, Any]) -> str:
    head = [
        "replica",
        "model",
        "GPUs",
        "requests",
        "output tokens",
        "steps",
        "time in steps",
        "KV mean",
        "KV peak",
        "preemptions",
    ]
    rows = [
        [
            str(each["replica"]),
            escape(each["model"]),
            str(each["gpus"]),
            *(f"{each[name]:,}" for name in ("requests", "total_output_tokens", "steps")),
            *(percent(each[name]) for name in ("busy_fraction", "mean_kv_usage", "max_kv_usage")),
            f"{each['preemptions']:,}",
        ]
        for each in summary["replicas"]
    ]
    return f"<h2>Replicas</h2>{table(head, rows)}"


def _charts(record: RunRecord) -> str:
    samples = {**RequestTimes.of(record).samples(), "itl": Samples(record.itl_ns, record.itl_weight)}
    cards = "".join(distribution_chart(METRIC_NAMES[name], samples[name]) for name in ("ttft", "itl", "e2el"))
    series = binned(record)
    note = (
        f"Averages over {len(series.running)} bins of {nice_number(series.bin_s)} s from {series.num_rows:,} recorded "
        "steps or runs of equal steps; every single one is in steps.parquet."
    )
    return (
        f'<h2>Distributions</h2><div class="grid three">{cards}</div>'
        f'<h2>Over time</h2><div class="grid two">{time_charts(series)}</div><p class="note">{note}</p>'
    )


def _overload(sentence: str) -> str:
    return (
        f'<b class="bad">Overload: {escape(sentence)}.</b> Latencies grow with the length of the run; they are not the '
        "system's."
    )


def _about_errors(summary: dict[str, Any]) -> str:
    """How wrong the step times are, one line each."""
    lines = wording.error_words(summary["error"], summary["run"]["latency"])
    return "".join(
        f'<p class="note"><b>{escape(title.capitalize())}:</b> {escape(words)}</p>' for title, words in lines
    )


def _error_table(summary: dict[str, Any]) -> str:
    """Every term of the step cost, what it stands on, and its error."""
    terms = sorted(summary["error"]["terms"].items(), key=lambda item: -item[1]["seconds"])
    rows = [
        [
            escape(name.replace("_", " ")),
            number(term["seconds"]),
            percent(term["share"]),
            percent(term["error"]),
            escape("; ".join(_part_words(part) for part in term["parts"])) or NONE,
        ]
        for name, term in terms
        if term["seconds"] > 0
    ]
    head = ["term of the step", "seconds, all accelerators", "of the charged time", "off by", "stands on"]
    return f"<h2>Errors of step times</h2>{table(head, rows)}" if rows else ""


def _part_words(part: dict[str, Any]) -> str:
    share = "" if part["share"] > ALL_OF_IT else f"{percent(part['share'])} "
    return f"{share}{wording.KIND_WORDS[part['kind']]}: {part['what']}"


def render_report(record: RunRecord, summary: dict[str, Any], context: RunContext) -> str:
    """The page. Every name that comes from the user is escaped."""
    run = summary["run"]
    name, sentence = bottleneck_words(summary), bottleneck(summary)[1]
    overload = overload_sentence(summary["load"])
    setup = setup_words(run["setup"], summary["load"])
    notes = "".join(f"<li>{escape(note)}</li>" for note in run["notes"])
    ended = endings(summary["counts"])
    sub = (
        f"{nice_number(summary['duration'])} s simulated · {run['steps']:,} steps · seed {run['seed']} · "
        f"step times: {escape(source_of(run['latency']))}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(context.name)} {NONE} simrun</title>'
        f"<style>{STYLE}</style></head><body><main><h1>{escape(context.name)}</h1>"
        + (f"<p>{escape(setup)}</p>" if setup else "")
        + f'<p class="sub">{sub}</p>'
        + _about_errors(summary)
        + (f'<div class="card limit over">{_overload(overload)}</div>' if overload else "")
        + _tiles(summary)
        + f'<div class="card limit"><b>Bottleneck: {escape(name)}.</b> {escape(sentence)}</div>'
        + (f'<p class="bad">Not completed: {escape(ended)}.</p>' if ended else "")
        + _slo_table(summary)
        + f"<h2>Latency</h2>{_latency_table(summary)}"
        + _charts(record)
        + _group_tables(summary)
        + _replica_table(summary)
        + _error_table(summary)
        + (f"<h2>Notes</h2><div class='card'><ul>{notes}</ul></div>" if notes else "")
        + f"<details class='card'><summary>Scenario, every default written out</summary>"
        f"<pre>{escape(context.scenario_yaml or 'not known')}</pre></details>"
        f'<p class="note">simrun {escape(run["version"])}</p></main></body></html>\n'
    )
