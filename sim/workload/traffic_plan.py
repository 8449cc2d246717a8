"""What a workload section asks for: defaults filled in, contradictions found, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from sim.errors import InputError, Problem
from sim.scenario.schema import (
    Arrival,
    ClassConfig,
    ClosedLoopArrival,
    ImagesConfig,
    Length,
    LoraConfig,
    PrefixConfig,
    SessionsConfig,
    StagesArrival,
    TraceConfig,
    TrafficFields,
    WorkloadConfig,
)
from sim.workload.lengths import length_problems
from sim.workload.presets import NOTES, preset_arrival, preset_prefix, preset_problems, preset_table
from sim.workload.table import ClassInfo

NS_PER_S = 1_000_000_000
DEFAULT_CLASS = "default"
"""Name of the one class of a workload without ``classes``, and of the stream of the workload's own arrivals."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """One class with every default filled in."""

    name: str
    where: str
    """Where in the scenario it stands, for messages."""
    info: ClassInfo
    tier: str | None
    priority: int
    deadline_s: float | None
    share: float
    trace: TraceConfig | None
    preset: str | None
    input_tokens: Length | None
    """None = from the preset."""
    output_tokens: Length | None
    """None = from the preset."""
    max_tokens: Length | None
    prefix: PrefixConfig | None
    prefix_owner: str
    """Classes with the same owner share the same prompts."""
    sessions: SessionsConfig | None
    lora: str | LoraConfig | None
    images: ImagesConfig | None
    requests: int | None
    duration_s: float | None


@dataclass(frozen=True, slots=True)
class ArrivalPlan:
    """One arrival process and the classes that its arrivals are divided among."""

    arrival: Arrival
    stream: str
    where: str
    requests: int | None
    duration_s: float | None
    members: list[ClassPlan]

    @property
    def max_concurrency(self) -> int | None:
        """Requests that its sender may have under way; None = no bound, or a closed loop's own."""
        return None if isinstance(self.arrival, ClosedLoopArrival) else self.arrival.max_concurrency


@dataclass(slots=True)
class Plan:
    """The whole workload."""

    arrivals: list[ArrivalPlan] = field(default_factory=list)
    traces: list[ClassPlan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def closed_loop(self) -> ClosedLoopArrival | None:
        """The closed loop, which is then the only arrival process."""
        arrival = self.arrivals[0].arrival if self.arrivals else None
        return arrival if isinstance(arrival, ClosedLoopArrival) else None


def plan_workload(config: WorkloadConfig) -> Plan:
    """Resolve a workload section. Raises InputError with everything that is missing or contradictory."""
    problems: list[Problem] = []
    plan = Plan()
    if config.classes is None:
        _plan_one(config, plan, problems)
    else:
        _plan_classes(config, config.classes, plan, problems)
    _check_closed_loop(plan, problems)
    _check_outputs(plan, problems)
    if problems:
        raise InputError(problems)
    presets = [m.preset for a in plan.arrivals for m in a.members if m.preset]
    plan.notes.extend(NOTES[name] for name in dict.fromkeys(presets) if name in NOTES)
    return plan


def _plan_one(config: WorkloadConfig, plan: Plan, problems: list[Problem]) -> None:
    member = _class_plan(config, None, DEFAULT_CLASS, "workload", problems)
    if config.trace is not None:
        plan.traces.append(member)
        return
    arrival = _arrival(config, "workload", problems)
    if arrival is not None:
        plan.arrivals.append(_arrival_plan(arrival, DEFAULT_CLASS, "workload", [member]))


def _plan_classes(config: WorkloadConfig, classes: list[ClassConfig], plan: Plan, problems: list[Problem]) -> None:
    names = [entry.name for entry in classes]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.append(Problem(f"workload.classes: two classes are named {name!r}; names must differ"))
    if config.trace is not None:
        problems.append(Problem("workload.trace: give the trace to one of the `classes`, or drop `classes`"))
    sharing: list[ClassPlan] = []
    own: list[ArrivalPlan] = []
    for index, entry in enumerate(classes):
        where = f"workload.classes[{index}] ({entry.name})"
        member = _class_plan(entry, config, entry.name, where, problems)
        if entry.share is not None:
            for key in ("arrival", "trace", "requests", "duration_s"):
                if getattr(entry, key) is not None:
                    problems.append(Problem(f"{where}: `share` and `{key}` exclude each other; drop one of them"))
            sharing.append(member)
        elif entry.trace is not None:
            plan.traces.append(member)
        elif entry.arrival is None and entry.preset is None:
            problems.append(Problem(f"{where}: give `share` (of workload.arrival), an own `arrival`, or a `trace`"))
        elif (arrival := _arrival(entry, where, problems)) is not None:
            own.append(_arrival_plan(arrival, entry.name, where, [member]))
    if sharing and (arrival := _arrival(config, "workload", problems)) is not None:
        plan.arrivals.append(_arrival_plan(arrival, DEFAULT_CLASS, "workload", sharing))
    elif config.arrival is not None and not sharing:
        plan.notes.append("workload.arrival is not used: no class has a `share` of it")
    plan.arrivals.extend(own)


def _arrival_plan(arrival: Arrival, stream: str, where: str, members: list[ClassPlan]) -> ArrivalPlan:
    """The limits are those of the members, which all have the same."""
    requests, duration_s = members[0].requests, members[0].duration_s
    if requests is None and duration_s is None and not isinstance(arrival, StagesArrival):
        presets = [preset_table(m.preset).requests for m in members if m.preset and not preset_problems(m.preset, "")]
        requests = max(presets, default=None)
    return ArrivalPlan(arrival, stream, where, requests, duration_s, members)


def _arrival(fields: TrafficFields, where: str, problems: list[Problem]) -> Arrival | None:
    """A section's arrival process: its own, else its preset's."""
    if fields.arrival is not None:
        return fields.arrival
    if fields.preset is None:
        problems.append(
            Problem(f"{where}: no `arrival` (and no `trace` or `preset`), so nothing says when requests come")
        )
    elif not preset_problems(fields.preset, where):
        arrival = preset_arrival(fields.preset)
        if arrival is None:
            hint = "give an `arrival`, e.g. {process: poisson, rate: 4}"
            problems.append(Problem(f"{where}: preset {fields.preset} has lengths only; {hint}"))
        return arrival
    return None


def _first(*values: T | None) -> T | None:
    """The first that is given."""
    return next((value for value in values if value is not None), None)


def _class_plan(
    fields: TrafficFields, base: WorkloadConfig | None, name: str, where: str, problems: list[Problem]
) -> ClassPlan:
    """A class's own values, else the workload's (``base``; None for the workload itself)."""
    outer = base if base is not None else fields
    preset = _first(fields.preset, outer.preset) if fields.trace is None else None
    if preset is not None:
        problems.extend(p for p in preset_problems(preset, where) if p not in problems)
    from_preset = fields.preset is not None
    tenant = fields.tenant if "tenant" in fields.model_fields_set else outer.tenant
    tier = _first(fields.tier, outer.tier)
    slo = _first(fields.slo, outer.slo)
    limits: dict[str, float] | None = None if slo is None else slo.model_dump(exclude_none=True)
    num_outputs = fields.n if "n" in fields.model_fields_set else outer.n
    patience_s = _first(fields.patience_s, outer.patience_s)
    patience_ns = None if patience_s is None else max(round(patience_s * NS_PER_S), 1)
    max_tokens: Length | None = fields.max_tokens or outer.max_tokens
    durations = [d for d in (fields.duration_s, outer.duration_s) if d is not None]
    prefix = _first(fields.prefix, outer.prefix)
    owner = "workload" if fields.prefix is None else f"class {name}"
    input_tokens: Length | None = fields.input_tokens if from_preset else fields.input_tokens or outer.input_tokens
    output_tokens: Length | None = fields.output_tokens if from_preset else fields.output_tokens or outer.output_tokens
    if prefix is None and preset is not None and input_tokens is None and not preset_problems(preset, where):
        prefix, owner = preset_prefix(preset), f"preset {preset}"
    plan = ClassPlan(
        name=name,
        where=where,
        info=ClassInfo(name, tenant, tier or tenant, limits, patience_ns=patience_ns, num_outputs=num_outputs),
        tier=tier,
        priority=fields.priority if "priority" in fields.model_fields_set else outer.priority,
        deadline_s=_first(fields.deadline_s, outer.deadline_s),
        share=getattr(fields, "share", None) or 1.0,
        trace=fields.trace,
        preset=preset,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        max_tokens=max_tokens,
        prefix=prefix,
        prefix_owner=owner,
        sessions=_first(fields.sessions, outer.sessions),
        lora=fields.lora if fields.lora is not None else outer.lora,
        images=_first(fields.images, outer.images),
        requests=_first(fields.requests, outer.requests),
        duration_s=min(durations, default=None),
    )
    if fields.trace is not None:
        _check_trace(fields, plan, problems)
    else:
        _check_lengths(plan, problems)
    return plan


def _check_trace(fields: TrafficFields, plan: ClassPlan, problems: list[Problem]) -> None:
    for key in ("arrival", "input_tokens", "output_tokens", "preset", "sessions"):
        if getattr(fields, key) is not None:
            problems.append(Problem(f"{plan.where}: `trace` and `{key}` exclude each other; drop one of them"))
    if plan.max_tokens is not None:
        problems.extend(length_problems(plan.max_tokens, f"{plan.where}.max_tokens"))


def _check_lengths(plan: ClassPlan, problems: list[Problem]) -> None:
    turns = plan.sessions.turns if plan.sessions is not None else None
    named: dict[str, Length | None] = {
        "input_tokens": plan.input_tokens,
        "output_tokens": plan.output_tokens,
        "max_tokens": plan.max_tokens,
        "sessions.turns": None if isinstance(turns, int) else turns,
    }
    for key, length in named.items():
        if length is not None:
            problems.extend(p for p in length_problems(length, f"{plan.where}.{key}") if p not in problems)
        elif key in ("input_tokens", "output_tokens") and plan.preset is None:
            problems.append(
                Problem(f"{plan.where}: no `{key}` (and no `trace` or `preset`), so nothing says how long requests are")
            )


def _check_closed_loop(plan: Plan, problems: list[Problem]) -> None:
    for arrivals in plan.arrivals:
        if not isinstance(arrivals.arrival, ClosedLoopArrival):
            continue
        if len(plan.arrivals) + len(plan.traces) > 1:
            message = "a closed loop cannot be mixed with other arrivals or traces; give its classes a `share` of it"
            problems.append(Problem(f"{arrivals.where}.arrival: {message}"))
        if any(member.sessions is not None for member in arrivals.members):
            message = "`sessions` cannot be combined with a closed loop; use an open arrival process such as poisson"
            problems.append(Problem(f"{arrivals.where}.arrival: {message}"))


def _check_outputs(plan: Plan, problems: list[Problem]) -> None:
    """Several outputs of a prompt end at different instants: nothing says which of them a next request follows."""
    for arrivals in plan.arrivals:
        for member in arrivals.members:
            if member.info.num_outputs == 1:
                continue
            if member.sessions is not None:
                message = "several outputs of a turn say not which of them goes on; drop `n` or `sessions`"
                problems.append(Problem(f"{member.where}.n: {message}"))
            if isinstance(arrivals.arrival, ClosedLoopArrival):
                message = "a closed loop sends one request after one end; use an open arrival process such as poisson"
                problems.append(Problem(f"{member.where}.n: {message}"))
            if arrivals.max_concurrency is not None:
                message = "outputs of a prompt are sent as one request and end one by one; drop `n` or max_concurrency"
                problems.append(Problem(f"{member.where}.n: {message}"))
