"""A run over time, in bins: what the report's charts and the trace's counters draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.results.metrics import NS_PER_S, FloatColumn, IntColumn, RowsByReplica, run_window, step_segments
from sim.results.record import RunRecord


@dataclass(slots=True)
class Series:
    """Time averages in bins of equal length; all arrays have one element per bin but ``edges_s``."""

    edges_s: FloatColumn
    """Bin edges in seconds, one more than bins."""
    running: FloatColumn
    """Requests running, all replicas together."""
    waiting: FloatColumn
    """Requests waiting at the replicas, all together."""
    prefill_tokens: FloatColumn
    """Prefill tokens in the step at work, averaged over the time in which a replica has one; 0 when all are idle."""
    decode_tokens: FloatColumn
    kv_usage: FloatColumn
    """Share of all KV blocks in use, time-averaged."""
    kv_usage_max: FloatColumn
    """The largest share in use on any replica after any step scheduled in the bin; at least ``kv_usage``."""
    output_tokens_per_s: FloatColumn
    num_rows: int
    """Rows of steps behind the series."""

    @property
    def bin_s(self) -> float:
        """Length of a bin in seconds."""
        return float(self.edges_s[1] - self.edges_s[0])


def _integral(start: IntColumn, end: IntColumn, value: FloatColumn, edges: FloatColumn) -> FloatColumn:
    """Integral, per bin, of the function that is ``value[i]`` on ``[start[i], end[i])`` and 0 elsewhere."""
    if not len(start):
        return np.zeros(len(edges) - 1)
    knots = np.empty(2 * len(start))
    knots[0::2], knots[1::2] = start, end
    areas = np.empty(2 * len(start))
    done = np.cumsum(value * (end - start))
    areas[0::2], areas[1::2] = np.append(0.0, done[:-1]), done
    return np.diff(np.interp(edges, knots, areas))


def binned(record: RunRecord, bins: int = 240) -> Series:
    """``record`` over time, from its first arrival to its last end, in ``bins`` bins."""
    first, last = run_window(record)
    last = max(last, first + bins)
    edges = np.linspace(first, last, bins + 1)
    width = (last - first) / bins
    steps = record.steps
    names = ("num_running", "num_waiting", "num_prefill_tokens", "num_decodes")
    totals = {name: np.zeros(bins) for name in names}
    busy, used, produced, peak = np.zeros(bins), np.zeros(bins), np.zeros(bins), np.zeros(bins)
    step_rows = RowsByReplica(steps, len(record.num_gpu_blocks))
    for replica, blocks in enumerate(record.num_gpu_blocks):
        rows = step_rows[replica]
        start, end = step_segments(record, rows)
        for name in names:
            totals[name] += _integral(start, end, steps[name][rows].astype(float), edges)
        in_use = (blocks - steps["free_blocks"][rows]).astype(float)
        used += _integral(start, end, in_use, edges)
        active = (steps["num_prefills"][rows] + steps["num_decodes"][rows] > 0).astype(float)
        busy += _integral(start, end, active, edges)
        tokens = steps["num_sampled"][rows] * steps["num_steps"][rows]
        produced += _integral(start, end, tokens / np.maximum(end - start, 1), edges)
        place = np.clip(((start - first) / width).astype(int), 0, bins - 1)
        np.maximum.at(peak, place, in_use / max(blocks, 1))
    kv = used / width / max(sum(record.num_gpu_blocks), 1)
    at_work = np.maximum(busy, 1e-9)
    return Series(
        edges_s=edges / NS_PER_S,
        running=totals["num_running"] / width,
        waiting=totals["num_waiting"] / width,
        prefill_tokens=totals["num_prefill_tokens"] / at_work,
        decode_tokens=totals["num_decodes"] / at_work,
        kv_usage=kv,
        kv_usage_max=np.maximum(peak, kv),
        output_tokens_per_s=produced / width * NS_PER_S,
        num_rows=len(steps["replica"]),
    )
