"""Recorded workloads: a trace file of any format to the columns of its requests.

Files are read as a stream into one flat array per column: what is held is the table itself (plus request ids where the
trace names them), never the text of the file. A ``vllm bench serve`` result is one JSON object and the exception: its
text is held, its values one key at a time. What is read of which format, and where each is described:
``docs/traces.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from sim.errors import InputError
from sim.scenario.schema import TraceConfig
from sim.workload.table import NO_PARENT, IntColumn
from sim.workload.trace_bench import read_vllm_bench
from sim.workload.trace_files import TraceProblems, resolve, unread_note
from sim.workload.trace_formats import read_azure, read_burstgpt, read_generic, read_servegen
from sim.workload.trace_mooncake import read_mooncake
from sim.workload.trace_table import Source, Trace

READERS: dict[str, Callable[[Source], Trace]] = {
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "mooncake": read_mooncake,
    "servegen": read_servegen,
    "generic": read_generic,
    "vllm_bench": read_vllm_bench,
}


def read_trace(config: TraceConfig, base_dir: Path) -> Trace:
    """The trace named by a scenario, its times divided by ``rate_scale``.

    Azure's and vLLM's arrivals count from the earliest of the file, those of the other formats are taken as written.
    Requests of zero tokens, which failed when they were recorded, are counted and left out. Raises InputError naming
    file and line of everything that is wrong.
    """
    path = resolve(config.path, base_dir)
    source = Source(path, config, TraceProblems(path, config.format))
    for key in ("block_size", "turns"):
        if getattr(config, key) is not None and config.format != "mooncake":
            source.problems.add(f"workload.trace.{key} is of format mooncake; leave it out for {config.format}")
    source.problems.raise_if_any()
    trace = READERS[config.format](source)
    source.problems.raise_if_any()
    trace.notes = [*source.notes, *unread_note(source.problems, path.name)]
    _leave_out_failed(trace, source)
    if not len(trace.arrival_ns):
        source.problems.add("the trace holds no requests")
    source.problems.raise_if_any()
    root_ns = trace.root_ns()
    if np.any(np.diff(root_ns) < 0):
        trace.notes.append(f"{path.name}: arrivals were out of order and have been sorted")
        trace.take(np.argsort(root_ns, kind="stable"))
    trace.arrival_ns = scale_times(trace.arrival_ns, config.rate_scale)
    _check_ids(trace, source.problems)
    return trace


def _leave_out_failed(trace: Trace, source: Source) -> None:
    """Drop requests of zero tokens. One that waited for such a request waits for what that one waited for, or comes
    when it was sent."""
    failed = (trace.input_tokens == 0) | (trace.output_tokens == 0)
    count = int(np.count_nonzero(failed))
    if not count:
        return
    if count == len(failed):
        source.problems.add(f"all {count:,} requests have zero tokens: they failed when they were recorded")
        return
    trace.notes.append(
        f"{source.name}: {count:,} of {len(failed):,} requests have zero tokens (they failed when they were recorded) "
        "and are left out"
    )
    if trace.parent is not None:
        for row in np.flatnonzero(trace.parent != NO_PARENT).tolist():
            before = int(trace.parent[row])
            if failed[before]:  # of which it is known already what it waits for
                trace.arrival_ns[row] += trace.arrival_ns[before]
                trace.parent[row] = trace.parent[before]
    trace.take(np.flatnonzero(~failed))


def scale_times(times: IntColumn, rate_scale: float) -> IntColumn:
    """``times / rate_scale`` in whole ns: the exact quotient by the decimal as written, halves rounded up."""
    if rate_scale == 1:
        return times
    ratio = Fraction(repr(rate_scale))
    p, q = ratio.numerator, ratio.denominator
    latest = int(times.max(initial=0))
    if (2 * latest * q + p) // (2 * p) >= 1 << 62:
        raise InputError(f"workload.trace.rate_scale: {rate_scale:g} stretches the trace beyond 64-bit nanoseconds")
    if 2 * latest * q + p < 1 << 62 and 2 * p < 1 << 62:
        return (2 * q * times + p) // (2 * p)
    return np.array([(2 * t * q + p) // (2 * p) for t in times.tolist()], dtype=np.int64)


def _check_ids(trace: Trace, problems: TraceProblems) -> None:
    """Request ids are unique; a row without one gets its position."""
    ids = trace.request_ids
    if ids is None:
        return
    if not all(ids):
        ids = trace.request_ids = [given or str(row) for row, given in enumerate(ids)]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        for given in ids:
            if given in seen:
                problems.add(f"request_id {given!r} is given twice; ids must be unique")
            seen.add(given)
    problems.raise_if_any()
