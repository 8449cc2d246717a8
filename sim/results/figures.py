"""The report's charts: distributions with their percentiles, and the run over time."""

from __future__ import annotations

import numpy as np

from sim.results.metrics import NS_PER_MS, NS_PER_S, FloatColumn, Samples
from sim.results.series import Series
from sim.results.svg import Chart
from sim.results.wording import nice_number

SHARES = np.concatenate([np.linspace(0, 0.98, 120), np.linspace(0.98, 1, 81)[1:]])
"""Where a distribution is read: densest in the tail, which is what people look at."""
SECONDS_FROM_MS = 10_000.0
"""Latencies from here on are drawn in seconds."""
LOG_ABOVE_RATIO = 20.0
"""A distribution whose p99 is this many times its p50 is drawn on a logarithmic axis."""


def _card(title: str, body: str, legend: str = "") -> str:
    return f'<div class="card"><h3>{title}</h3>{legend}{body}</div>'


def _legend(*entries: tuple[str, str]) -> str:
    keys = "".join(f'<span><i class="key {css}"></i>{name}</span>' for css, name in entries)
    return f'<div class="legend">{keys}</div>'


def distribution_chart(name: str, samples: Samples) -> str:
    """The cumulative distribution with p50, p95 and p99 marked."""
    if not samples.count:
        return _card(name, '<p class="note">No samples.</p>')
    long = (samples.percentile(99) or 0.0) >= SECONDS_FROM_MS * NS_PER_MS
    scale, unit = (NS_PER_S, "s") if long else (NS_PER_MS, "ms")
    shares = SHARES.tolist()
    values = [(samples.percentile(100 * share) or 0.0) / scale for share in shares]
    marks = {q: (samples.percentile(q) or 0.0) / scale for q in (50, 95, 99)}
    largest = values[-1]
    log = marks[50] > 0 and values[0] > 0 and marks[99] > LOG_ABOVE_RATIO * marks[50]
    high = largest if log else min(largest, max(marks[99] * 1.25, marks[50] * 2))
    low = values[0] if log else 0.0
    if high <= low:
        high = low + (low or 1.0) * 0.1
    chart = Chart(380, 230, (low, high), (0, 1), f"Cumulative distribution of {name}", unit, log_x=log, y_percent=True)
    shown = [(value, share) for value, share in zip(values, shares, strict=True) if value <= high]
    xs = [low, *(value for value, _ in shown), high]
    ys = [0.0, *(share for _, share in shown), float(np.interp(high, values, shares))]
    chart.area(xs, [0.0] * len(xs), ys, "c1")
    chart.line(xs, ys, "c1")
    for row, (q, value) in enumerate(marks.items()):
        label = f"p{q} {nice_number(value)}"
        chart.marker(value, label, 8 + row, f"{q} % of samples are at or below {nice_number(value)} {unit}")
    axis = "logarithmic axis; " if log else ""
    note = f"{samples.count:,} samples; {axis}largest {nice_number(largest)} {unit}"
    return _card(name, chart.render() + f'<p class="note">{note}</p>')


def _steps(series: Series, values: FloatColumn) -> tuple[list[float], list[float]]:
    """The bins as a line through their middles, from edge to edge."""
    edges = series.edges_s
    middles = (edges[:-1] + edges[1:]) / 2
    return middles.tolist(), values.tolist()


def _chart(series: Series, title: str, high: float, percent: bool = False) -> Chart:
    first, last = float(series.edges_s[0]), float(series.edges_s[-1])
    span = (0.0 if first < 0.05 * last else first, last)
    return Chart(560, 240, span, (0.0, high or 1.0), title, "time (s)", y_percent=percent)


def _top(*columns: FloatColumn) -> float:
    return max(float(column.max(initial=0.0)) for column in columns) * 1.05


def time_charts(series: Series) -> str:
    """Batch composition, queue, KV use and output rate over time."""
    stacked = series.decode_tokens + series.prefill_tokens
    composition = _chart(series, "Batch composition over time", _top(stacked))
    xs, decode = _steps(series, series.decode_tokens)
    zero = [0.0] * len(xs)
    composition.area(xs, zero, decode, "c1 solid")
    composition.area(xs, decode, stacked.tolist(), "c2 solid")

    queue = _chart(series, "Requests waiting and running over time", _top(series.waiting, series.running))
    queue.area(xs, zero, series.waiting.tolist(), "c2")
    queue.line(xs, series.waiting.tolist(), "c2")
    queue.line(xs, series.running.tolist(), "c1")

    kv = _chart(series, "KV cache use over time", min(1.0, _top(series.kv_usage_max)), percent=True)
    kv.area(xs, series.kv_usage.tolist(), series.kv_usage_max.tolist(), "c3")
    kv.line(xs, series.kv_usage.tolist(), "c3")

    rate = _chart(series, "Output tokens per second over time", _top(series.output_tokens_per_s))
    rate.area(xs, zero, series.output_tokens_per_s.tolist(), "c1")
    rate.line(xs, series.output_tokens_per_s.tolist(), "c1")
    return (
        _card("Batch composition (tokens per step)", composition.render(), _legend(("c1", "decode"), ("c2", "prefill")))
        + _card("Queue depth (requests)", queue.render(), _legend(("c2", "waiting"), ("c1", "running")))
        + _card("KV cache use", kv.render(), _legend(("c3", "mean of all replicas, band up to the fullest")))
        + _card("Output tokens per second", rate.render(), _legend(("c1", "all replicas")))
    )
