"""Service-level verdicts, and the summary by tenant and by replica."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results.limits import latency_limits
from sim.results.metrics import (
    NS_PER_MS,
    NS_PER_S,
    Mask,
    RequestTimes,
    RowsByReplica,
    Samples,
    busy_window,
    exact_dot,
    exact_sum,
    step_segments,
)
from sim.results.record import RunRecord, Status
from sim.results.wording import overload_sentence

Limits = Mapping[str, float]
SHARES = {
    "max_rejected": (Status.REJECTED,),
    "max_failed": (Status.FAILED, Status.TIMED_OUT, Status.CANCELLED),
}
"""Limits on the shares of submitted requests that end in one of these ways; 0 where an SLO does not say."""
TENANT_STATISTICS = ("mean", "p50", "p95", "p99")
GROUP_METRICS = ("ttft", "tpot", "itl", "e2el")


def statistic(samples: Samples, name: str) -> float | None:
    """``mean``, ``p50`` ... of ``samples``, in milliseconds."""
    value = samples.mean() if name == "mean" else samples.percentile(float(name[1:]))
    return None if value is None else value / NS_PER_MS


def judge(limits: Limits, samples: Mapping[str, Samples], completed: int) -> dict[str, Any]:
    """The verdict on ``limits``: each one's value, limit and ``met``, and ``met`` for all.

    A limit without samples is met if requests completed (one-token requests have no TPOT to miss), missed if none
    did.
    """
    found: dict[str, Any] = {}
    for name, limit in latency_limits(limits).items():
        metric, which, _ = name.split("_")
        value = statistic(samples[metric], which)
        met = completed > 0 and (value is None or value <= limit)
        found[name] = {"value": value, "limit": limit, "met": met}
    return {"met": all(entry["met"] for entry in found.values()), "limits": found}


def judge_shares(limits: Limits, counts: Mapping[str, int]) -> dict[str, Any]:
    """The verdict on each of ``SHARES``, by its name. 3 rejected of 100 are 0.03."""
    found: dict[str, Any] = {}
    for name, kinds in SHARES.items():
        limit = limits.get(name, 0.0)
        value = sum(counts[kind.name.lower()] for kind in kinds) / max(counts["submitted"], 1)
        found[name] = {"value": value, "limit": limit, "met": value <= limit}
    return found


def _with_shares(verdict: dict[str, Any], limits: Limits, counts: Mapping[str, int]) -> dict[str, Any]:
    """``verdict`` with ``shares``, which count in its ``met``."""
    verdict["shares"] = judge_shares(limits, counts)
    verdict["met"] = verdict["met"] and all(entry["met"] for entry in verdict["shares"].values())
    return verdict


def class_gaps(record: RunRecord, classes: Sequence[int]) -> Samples:
    """Gaps between the tokens of these classes' requests, those that did not complete included."""
    parts = [record.itl_of_classes[index] for index in classes]
    values, weights = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Samples(values, weights)


def class_verdicts(record: RunRecord, times: RequestTimes) -> dict[str, Any]:
    """Verdict of every class that has an SLO of its own, by class name."""
    verdicts: dict[str, Any] = {}
    class_of = record.requests["class_index"][times.row]
    for index, info in enumerate(record.workload.classes):
        if not info.slo:
            continue
        mine: Mask = class_of == index
        samples = {**times.samples(mine), "itl": class_gaps(record, [index])}
        verdict = judge(info.slo, samples, int(mine.sum()))
        _with_shares(verdict, info.slo, request_counts(record, record.requests["class_index"] == index))
        verdicts[info.name] = verdict
    return verdicts


def slo_section(
    record: RunRecord,
    limits: Limits | None,
    samples: Mapping[str, Samples],
    classes: Mapping[str, Any],
    good: Mask | None,
) -> dict[str, Any] | None:
    """The run's verdict: the scenario's limits on the whole run and, by class, the classes' own. None without any.

    ``attainment`` is the share of the submitted requests that meet their SLO (``good``): one that did not complete
    misses it.
    """
    if not limits and not classes:
        return None
    completed = int((record.requests["status"] == Status.COMPLETED).sum())
    verdict = judge(limits or {}, samples, completed)
    # Without limits for the whole run, the requests that no class of its own judges.
    own = [index for index, info in enumerate(record.workload.classes) if info.slo and not limits]
    counts = request_counts(record, ~np.isin(record.requests["class_index"], own))
    _with_shares(verdict, limits or {}, counts)
    verdict["attainment"] = None if good is None else _ratio(int(good.sum()), len(record.requests["row"]))
    verdict["classes"] = dict(classes)
    verdict["met"] = verdict["met"] and all(own["met"] for own in classes.values())
    return verdict


def request_counts(record: RunRecord, mine: Mask | slice = slice(None)) -> dict[str, int]:
    """``submitted`` and how those requests ended, by status in lower case; and how many ``attempts`` they took."""
    status = record.requests["status"][mine]
    counts = {"submitted": len(status)}
    counts.update({each.name.lower(): int((status == each).sum()) for each in Status})
    counts["attempts"] = exact_sum(record.requests["attempts"][mine])
    return counts


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that figures are given for: those of some of the workload's classes."""

    name: str
    classes: tuple[int, ...]
    """Their positions."""


def groups_of(record: RunRecord, *, by_tenant: bool) -> list[Group]:
    """All tenants, or all classes, in the order of the workload's classes."""
    classes = record.workload.classes
    if not by_tenant:
        return [Group(info.name, (index,)) for index, info in enumerate(classes)]
    names = dict.fromkeys(info.tenant for info in classes)
    return [Group(name, tuple(i for i, info in enumerate(classes) if info.tenant == name)) for name in names]


def groups_section(
    record: RunRecord,
    times: RequestTimes,
    samples: Mapping[str, Samples],
    good: Mask | None,
    duration_s: float,
    verdicts: Mapping[str, Any],
    groups: Sequence[Group],
) -> dict[str, Any]:
    """Counts, tokens, latency, goodput and SLO verdicts by group. ``samples`` are those of all requests together."""
    columns, infos = record.requests, record.workload.classes
    result: dict[str, Any] = {}
    for group in groups:
        mine = np.isin(columns["class_index"], group.classes)
        done = mine[times.row]
        counts = request_counts(record, mine)
        good_count = None if good is None else int(good[done].sum())
        entry: dict[str, Any] = {
            "counts": counts,
            "total_input_tokens": exact_sum(columns["input_tokens"][times.row[done]]),
            "total_output_tokens": exact_sum(columns["output_tokens"][times.row[done]]),
            "request_throughput": counts["completed"] / duration_s if duration_s else None,
            "request_goodput": None if good_count is None or not duration_s else good_count / duration_s,
            "goodput_share": None if good_count is None else _ratio(good_count, counts["submitted"]),
        }
        is_all = len(group.classes) == len(infos)
        own_samples = samples if is_all else {**times.samples(done), "itl": class_gaps(record, group.classes)}
        for metric in GROUP_METRICS:
            for name in TENANT_STATISTICS:
                entry[f"{name}_{metric}_ms"] = statistic(own_samples[metric], name)
        names = [infos[index].name for index in group.classes]
        entry["slo"] = {name: verdicts[name] for name in names if name in verdicts} or None
        result[group.name] = entry
    return result


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def kv_use(
    record: RunRecord, blocks: int, rows: npt.NDArray[np.intp], window: tuple[int, int]
) -> tuple[float | None, int]:
    """Time-averaged and largest number of KV blocks in use on the replica that has ``blocks`` and whose steps are
    ``rows``; standing idle counts as none in use."""
    steps, (start, end) = record.steps, step_segments(record, rows)
    used, last = blocks - steps["free_blocks"][rows], steps["last_scheduled_ns"][rows]
    # A row of several steps carries its own integral up to its last step; blocks only grow within it.
    earlier = blocks * exact_sum(last - start) - exact_sum(steps["free_block_ns"][rows])
    tail = exact_dot(used, np.clip(end, *window) - np.clip(last, *window))
    length = window[1] - window[0]
    return ((earlier + tail) / length if length else None), int(used.max(initial=0))


KvUse = list[tuple[float | None, int]]
"""``kv_use`` of every replica."""


def replicas_section(record: RunRecord, step_rows: RowsByReplica, use: KvUse) -> list[dict[str, Any]]:
    """What each replica did, by index."""
    steps, requests = record.steps, record.requests
    request_rows = RowsByReplica(requests, len(record.replica_models))
    first, last = busy_window(record)
    length = last - first
    result = []
    for index, model in enumerate(record.replica_models):
        rows, served = step_rows[index], request_rows[index]
        done = served[requests["status"][served] == Status.COMPLETED]
        gpu_ns = exact_sum(steps["gpu_ns"][rows])
        mean_blocks, max_blocks = use[index]
        blocks = record.num_gpu_blocks[index]
        result.append(
            {
                "replica": index,
                "model": model,
                **_place_in_deployment(record, index),
                "gpus": record.gpus_per_replica[index],
                "requests": len(served),
                "completed": len(done),
                "total_input_tokens": exact_sum(requests["input_tokens"][done]),
                "total_output_tokens": exact_sum(requests["output_tokens"][done]),
                "steps": exact_sum(steps["num_steps"][rows]),
                "busy_s": gpu_ns / NS_PER_S,
                "busy_fraction": gpu_ns / length if length else None,
                "num_gpu_blocks": blocks,
                "mean_kv_usage": None if mean_blocks is None or not blocks else mean_blocks / blocks,
                "max_kv_usage": max_blocks / blocks if blocks else None,
                "preemptions": exact_sum(steps["num_preempted"][rows]),
            }
        )
    return result


def _place_in_deployment(record: RunRecord, index: int) -> dict[str, int]:
    """Under data parallelism, whose rank a replica is."""
    size = record.data_parallel_size
    return {"deployment": index // size, "data_parallel_rank": index % size} if size > 1 else {}


def what_is_missed(summary: Mapping[str, Any]) -> list[str]:
    """Every missed limit of a summary in words, and overload, which no latency of a finite run can be trusted under."""
    slo = summary["slo"] or {"limits": {}, "shares": judge_shares({}, summary["counts"]), "classes": {}}
    lines = []
    for where, verdict in [("", slo), *((f" of class {name}", each) for name, each in slo["classes"].items())]:
        for name, entry in verdict["limits"].items():
            if entry["met"] is False:
                value = "no samples" if entry["value"] is None else f"{entry['value']:.6g} ms"
                lines.append(f"{name}{where}: {value}, limit {entry['limit']:g} ms")
        for name, entry in verdict["shares"].items():
            if not entry["met"]:
                lines.append(f"{name}{where}: {entry['value']:.3g} of the submitted, limit {entry['limit']:g}")
    overload = overload_sentence(summary["load"])
    return lines if overload is None else [*lines, f"overload: {overload}"]
