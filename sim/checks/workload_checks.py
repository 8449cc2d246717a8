"""Checks of the workload: those of ``sim.workload`` with places, and its lengths against the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path as FilePath

from sim.checks.findings import Findings, collect
from sim.errors import InputError
from sim.scenario.document import Path, located
from sim.scenario.messages import dotted
from sim.scenario.schema import (
    Arrival,
    EngineSection,
    FixedLength,
    Length,
    QuantilesLength,
    StagesArrival,
    TrafficFields,
    UniformLength,
    ValuesLength,
    WorkloadConfig,
    ZipfLength,
)

_WORKLOAD: Path = ("workload",)
_SHORTEST = {FixedLength: "value", UniformLength: "low", ZipfLength: "low", ValuesLength: "values"}
_LENGTH_KEYS = ("input_tokens", "output_tokens", "max_tokens")
TELLING_SHIFT = 0.05
"""A mean that cutting moves by more than this share is noted."""


def check_lengths(workload: WorkloadConfig, engine: EngineSection | None, findings: Findings) -> None:
    """Lengths that no request can have."""
    for path, traffic in _traffics(workload):
        for key in _LENGTH_KEYS:
            length = getattr(traffic, key)
            if isinstance(length, QuantilesLength) and round(length.points[0][1]) < 1:
                findings.problem(
                    (*path, key, "points", 0),
                    f"`{dotted((*path, key))}` begins at {length.points[0][1]:g} tokens; a request has at least 1",
                )
        if engine is None or traffic.input_tokens is None or traffic.trace is not None:
            continue
        shortest, limit = shortest_tokens(traffic.input_tokens), engine.max_model_len
        if limit is not None and shortest >= limit:
            findings.problem(
                (*path, "input_tokens", _SHORTEST.get(type(traffic.input_tokens), "dist")),
                f"`{dotted(path)}.input_tokens` is at least {shortest}, but `engine.max_model_len`, for prompt "
                f"and output, is {limit}: every request would be rejected; raise max_model_len or shorten the input",
            )


def check_workload(workload: WorkloadConfig, base_dir: FilePath, findings: Findings) -> None:
    """Whether the workload says where requests come from and when it ends, and its traces exist."""
    from sim.workload.arrivals import check_bounded
    from sim.workload.trace_files import resolve
    from sim.workload.traffic_plan import plan_workload

    arrivals: list[tuple[Arrival, int | None, float | None, str]] = []
    try:
        plan = plan_workload(workload)
        arrivals = [(entry.arrival, entry.requests, entry.duration_s, entry.where) for entry in plan.arrivals]
    except InputError as error:
        findings.problems += [located(problem, findings.document, _WORKLOAD) for problem in error.problems]
        if workload.classes is None and workload.arrival is not None and workload.trace is None:
            arrivals = [(workload.arrival, workload.requests, workload.duration_s, "workload")]
    for arguments in arrivals:
        collect(findings, partial(check_bounded, *arguments), _WORKLOAD)
    for path, traffic in _traffics(workload):
        if isinstance(traffic.arrival, StagesArrival) and not any(stage.rate for stage in traffic.arrival.stages):
            findings.problem(
                (*path, "arrival"), f"every stage of `{dotted(path)}.arrival` has rate 0: no request would ever arrive"
            )
        _note_means(path, traffic, findings)
        if traffic.trace is not None:
            collect(findings, partial(resolve, traffic.trace.path, base_dir), (*path, "trace", "path"))


def _note_means(path: Path, traffic: TrafficFields, findings: Findings) -> None:
    """Say where the lengths that are drawn have another mean than their distribution is given."""
    from sim.workload.lengths import mean_of_draws

    lengths = {(*path, key): getattr(traffic, key) for key in _LENGTH_KEYS}
    if traffic.sessions is not None and not isinstance(traffic.sessions.turns, int):
        lengths[*path, "sessions", "turns"] = traffic.sessions.turns
    for place, length in lengths.items():
        drawn = None if length is None else mean_of_draws(length)
        if drawn is None or abs(drawn / length.mean - 1) <= TELLING_SHIFT:
            continue
        bounds = "at least 1" if drawn > length.mean else f"at most {length.max:,}"
        remedy = "choose a smaller `cv`, or lognormal" if length.dist == "normal" else "raise `max`, or lower `mean`"
        findings.note(
            f"`{dotted(place)}`: {length.dist} lengths of mean {length.mean:g} that are {bounds} are {drawn:.0f} in "
            f"the mean; to draw what is written, {remedy}"
        )


def _traffics(workload: WorkloadConfig) -> Iterator[tuple[Path, TrafficFields]]:
    """The workload and its classes with their paths."""
    yield _WORKLOAD, workload
    for index, entry in enumerate(workload.classes or ()):
        yield (*_WORKLOAD, "classes", index), entry


def shortest_tokens(length: Length) -> int:
    """The fewest tokens that this distribution can give."""
    if isinstance(length, FixedLength):
        return length.value
    if isinstance(length, UniformLength | ZipfLength):
        return length.low
    if isinstance(length, ValuesLength):
        return min(length.values)
    return max(1, round(length.points[0][1])) if isinstance(length, QuantilesLength) else 1
