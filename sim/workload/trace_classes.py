"""The classes of a trace: one for each class, tenant and tier that its rows name together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.workload.table import ClassInfo, IntColumn
from sim.workload.trace_fields import NOT_GIVEN
from sim.workload.trace_table import Trace
from sim.workload.traffic_plan import ClassPlan


def trace_classes(plan: ClassPlan, trace: Trace, only_class: bool) -> tuple[list[ClassInfo], IntColumn]:
    """The classes, and the place of each row's; what a row does not give is the plan's own.

    A class is called what its rows call it, else by its tenant. ``only_class``: the workload has no other class, so
    that names need not say which one the trace is of.
    """
    n = len(trace.arrival_ns)
    given = ((trace.class_, trace.class_names), (trace.tenant, trace.tenant_names), (trace.tier, trace.tier_names))
    if all(column is None for column, _ in given):
        return [plan.info], np.zeros(n, dtype=np.int64)
    nothing = np.full(n, NOT_GIVEN, dtype=np.int64)
    keys = np.stack([nothing if column is None else column for column, _ in given], axis=1)
    unique, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    found: dict[tuple[str, str, str], int] = {}
    place = np.empty(len(unique), dtype=np.int64)
    for number in np.argsort(first, kind="stable").tolist():
        values = zip(unique[number].tolist(), given, strict=True)
        named = [None if value == NOT_GIVEN else names[value] for value, (_, names) in values]
        place[number] = found.setdefault(_own(plan, *named), len(found))
    return _infos(plan, list(found), only_class), place[inverse.reshape(-1)]


def _own(plan: ClassPlan, name: str | None, tenant: str | None, tier: str | None) -> tuple[str, str, str]:
    """Name, tenant and tier of a row that gives these."""
    its_tenant = tenant or plan.info.tenant
    return name or its_tenant, its_tenant, tier or plan.tier or its_tenant


def _infos(plan: ClassPlan, found: list[tuple[str, str, str]], only_class: bool) -> list[ClassInfo]:
    """A class for each; where several have one name, tenant and tier are put behind it."""
    names = [name for name, _, _ in found]
    infos = []
    for name, tenant, tier in found:
        called = name if names.count(name) == 1 else "/".join(dict.fromkeys((name, tenant, tier)))
        called = called if only_class else f"{plan.name}/{called}"
        infos.append(replace(plan.info, name=called, tenant=tenant, tier=tier))
    return infos
