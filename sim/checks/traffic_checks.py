"""Settings without effect that only show beside the requests themselves.

The tenants of a trace, for one, are known once it has been read; hence after the other checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from policies.deadline import Deadline
from policies.fair import Fair
from policies.predictors import MaxTokens
from policies.registry import build_policy
from policies.tiered import Tiered
from sim.scenario.schema import EngineConfig
from sim.workload.table import NO_DEADLINE, NO_GROUP

if TYPE_CHECKING:
    from policies.base import Policy
    from sim.workload.table import RequestTable


def traffic_notes(engine: EngineConfig, table: RequestTable) -> list[str]:
    """One note for each setting of ``engine`` or of the arrivals that these requests leave without effect.

    ``engine.policy`` must be one that can be built. Policies of one's own are not judged.
    """
    return [
        *_policy_notes(engine, table),
        *_sharing_notes(engine, table),
        *_isolation_notes(engine, table),
        *_closed_loop_notes(table),
        *_cap_notes(table),
    ]


def _policy_notes(engine: EngineConfig, table: RequestTable) -> list[str]:
    spec = engine.policy
    name, params = (spec, {}) if isinstance(spec, str) else (spec.name, spec.params)
    policy: Policy = build_policy(name, params, MaxTokens())
    if isinstance(policy, Fair):
        return _fair_notes(policy, table)
    if isinstance(policy, Tiered):
        return _tier_notes(policy, table)
    return _deadline_notes(policy, table) if isinstance(policy, Deadline) else []


def _deadline_notes(policy: Deadline, table: RequestTable) -> list[str]:
    has_own = policy.ttft_slo_ms is not None or policy.e2el_slo_ms is not None
    if has_own or np.any(table.deadline_ns != NO_DEADLINE):
        return []
    return [
        "policy deadline orders by arrival alone: no class has a `deadline_s`, and the policy neither "
        "`ttft_slo_ms` nor `e2el_slo_ms` (an `slo` is not a deadline)"
    ]


def _fair_notes(policy: Fair, table: RequestTable) -> list[str]:
    tenants = sorted({info.tenant for info in table.classes})
    notes = []
    for key in ("weights", "rate_tokens_per_s", "burst_tokens"):
        given = getattr(policy, key)
        unknown = [tenant for tenant in given if tenant not in tenants] if isinstance(given, dict) else []
        if unknown:
            notes.append(
                f"`engine.policy.{key}` names {_listed(unknown)}, which no request has as its tenant "
                f"(tenants: {_listed(tenants)})"
            )
    return notes


def _tier_notes(policy: Tiered, table: RequestTable) -> list[str]:
    tiers = sorted({info.tier for info in table.classes})
    unknown = [tier for tier in tiers if tier not in policy.tiers]
    if not unknown:
        return []
    if len(unknown) == len(tiers):
        return [
            f"policy tiered tells none apart: no request is of one of its tiers ({_listed(policy.tiers)}), so all "
            f"count as of the last (a class's tier is its `tier`, else its tenant: {_listed(tiers)})"
        ]
    return [f"policy tiered: requests of {_listed(unknown)} count as of its last tier, {policy.tiers[-1]!r}"]


def _isolation_notes(engine: EngineConfig, table: RequestTable) -> list[str]:
    if engine.cache_isolation == "none" or len({info.tenant for info in table.classes}) > 1:
        return []
    return ["cache_isolation: tenant changes nothing: all requests are of one tenant"]


def _sharing_notes(engine: EngineConfig, table: RequestTable) -> list[str]:
    given = [] if engine.enable_prefix_caching else ["enable_prefix_caching: false"]
    if engine.kv == "contiguous":
        given.append("kv: contiguous")
    if not given or not _shares_content(table):
        return []
    return [
        f"requests share prompt beginnings (a `prefix`, `sessions`, or a trace's), but with {' and '.join(given)} "
        "each computes its own"
    ]


def _shares_content(table: RequestTable) -> bool:
    """Whether two requests have a piece of content in common."""
    in_session = table.session[table.session != NO_GROUP]
    return any(len(np.unique(ids)) < len(ids) for ids in (table.segment_content_id, in_session))


def _closed_loop_notes(table: RequestTable) -> list[str]:
    clients = table.closed_loop_concurrency
    if clients is None or clients < len(table):
        return []
    return [
        f"closed loop: with {clients:,} clients for {len(table):,} requests no client sends a second one; "
        "this is a burst (raise `requests` or lower `concurrency`)"
    ]


def _cap_notes(table: RequestTable) -> list[str]:
    if table.sender is None:
        return []
    sent = [int((table.sender == place).sum()) for place in range(len(table.sender_caps))]
    return [
        f"max_concurrency: {cap:,} bounds nothing: its sender has {count:,} requests in all"
        for cap, count in zip(table.sender_caps, sent, strict=True)
        if count <= cap
    ]


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
