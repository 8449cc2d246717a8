"""``summary.json``: the keys of ``vllm bench serve`` at the top, everything else in sections.

The same scenario and seed give the same bytes, but for ``TIMING_KEYS`` of the section ``run``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from sim.results.charged_error import basis_of, error_section
from sim.results.context import RunContext
from sim.results.exposed import total_exposed_host_ns
from sim.results.fragmentation import mean_unused_slots
from sim.results.load import load_section
from sim.results.metrics import (
    METRICS,
    NS_PER_MS,
    NS_PER_S,
    STATISTICS,
    IntColumn,
    Presence,
    RequestTimes,
    RowsByReplica,
    Samples,
    arrival_rate,
    busy_window,
    exact_dot,
    exact_sum,
    good_requests,
    run_window,
)
from sim.results.record import ROWS_AT_ONCE, RunRecord, Status
from sim.results.speculative import speculative_section
from sim.results.tier_hits import offloading_section
from sim.results.verdicts import (
    KvUse,
    class_verdicts,
    groups_of,
    groups_section,
    kv_use,
    replicas_section,
    request_counts,
    slo_section,
)

BEYOND = 0.02
"""By how much a share of the datasheet's rate may exceed 1: bytes that stay in a cache are counted too."""
TIMING_KEYS = ("cpu_s", "wall_s")
"""Keys of ``run`` that differ from run to run."""


def build_summary(record: RunRecord, context: RunContext) -> dict[str, Any]:
    """The summary of a run: JSON types only, never NaN; a statistic without samples is None."""
    window = run_window(record)
    duration_s = (window[1] - window[0]) / NS_PER_S
    times = RequestTimes.of(record)
    samples = {**times.samples(), "itl": Samples(record.itl_ns, record.itl_weight)}
    good = good_requests(record, times, context.slo)
    classes = class_verdicts(record, times)
    notes = []
    slo = slo_section(record, context.slo, samples, classes, good)
    counts = request_counts(record)
    if slo is not None and counts["completed"] < counts["submitted"]:
        left = counts["submitted"] - counts["completed"]
        notes.append(f"SLO percentiles are over completed requests; {left} that did not complete are not in them")
    notes += _why_not_completed(record)
    load = load_section(record, times, context.capacity, context.measure)
    if counts["completed"] and not load["steady"]["requests"] and load["offered_rate"] is not None:
        notes.append("measure: no request that completed arrived after the warm-up, so there are no steady figures")
    step_rows = RowsByReplica(record.steps, len(record.num_gpu_blocks))
    use = [kv_use(record, blocks, step_rows[index], window) for index, blocks in enumerate(record.num_gpu_blocks)]
    summary = _headline(record, times, samples, duration_s, None if good is None else int(good.sum()))
    summary["counts"] = counts
    summary["load"] = load
    summary["queue"] = _queue(record, samples["queue"], window)
    summary["kv"] = _kv(record, use, window)
    summary["preemptions"] = _preemptions(record)
    summary["utilization"] = _utilization(record, context, busy_window(record))
    summary["error"] = _error(record, context, step_rows, summary["utilization"]["step_time_s"])
    load["step_times"] = basis_of(summary["error"], record.latency)
    notes += _beyond_datasheet(summary["utilization"])
    summary["cost"] = _cost(record, context, duration_s)
    summary["speculative"] = speculative_section(record)
    summary["slo"] = slo
    of_groups = partial(groups_section, record, times, samples, good, duration_s, classes)
    summary["tenants"] = of_groups(groups_of(record, by_tenant=True))
    summary["classes"] = of_groups(groups_of(record, by_tenant=False))
    summary["replicas"] = replicas_section(record, step_rows, use)
    summary["run"] = _run(record, context, notes)
    return summary


def _why_not_completed(record: RunRecord) -> list[str]:
    """One note with an example for each way in which requests ended otherwise than completed."""
    notes = []
    status, row = record.requests["status"], record.requests["row"]
    for each in Status:
        rows = row[status == each]
        if each is Status.COMPLETED or not len(rows):
            continue
        first = int(rows[0])
        reason = record.reasons.get(first, "no reason recorded")
        name = record.workload.request_id(first)
        notes.append(f"{len(rows):,} {each.name.lower().replace('_', ' ')}; the first, request {name}: {reason}")
    return notes


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _headline(
    record: RunRecord, times: RequestTimes, samples: Mapping[str, Samples], duration_s: float, good: int | None
) -> dict[str, Any]:
    columns = record.requests
    completed = len(times.row)
    tokens_in = exact_sum(columns["input_tokens"][times.row])
    tokens_out = exact_sum(columns["output_tokens"][times.row])
    headline: dict[str, Any] = {
        "duration": duration_s,
        "completed": completed,
        # As a client sees it: whatever did not complete. `counts` tells the kinds apart.
        "failed": len(columns["row"]) - completed,
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": _ratio(completed, duration_s),
        "request_goodput": None if good is None else _ratio(good, duration_s),
        "output_throughput": _ratio(tokens_out, duration_s),
        "total_token_throughput": _ratio(tokens_in + tokens_out, duration_s),
    }
    for metric in METRICS:
        found = samples[metric].statistics()
        headline.update({f"{name}_{metric}_ms": found[name] for name in STATISTICS})
    return headline


def _queue(record: RunRecord, queue: Samples, window: tuple[int, int]) -> dict[str, Any]:
    columns = record.requests
    arrival, scheduled, end = columns["arrival_ns"], columns["scheduled_ns"], columns["end_ns"]
    present = (arrival >= 0) & (end >= arrival)
    left_queue = np.where(scheduled >= 0, scheduled, end)
    again = record.interruptions
    comings = np.concatenate([arrival[present], again["preempted_ns"]])
    goings = np.concatenate([left_queue[present], again["left_ns"]])
    system = Presence.of(arrival[present], end[present], window)
    waiting = Presence.of(comings, goings, window, num_requests=int(present.sum()))
    section: dict[str, Any] = {f"{name}_queue_ms": value for name, value in queue.statistics().items()}
    section["mean_requeued_ms"] = _mean_ms(columns["requeued_ns"][columns["status"] == Status.COMPLETED])
    section["max_queue_ms"] = int(queue.values[-1]) / NS_PER_MS if queue.count else None
    section.update(
        {
            "mean_waiting": waiting.mean,
            "max_waiting": waiting.maximum,
            "mean_in_system": system.mean,
            "max_in_system": system.maximum,
            "arrival_rate": arrival_rate(arrival[present]),
            "mean_time_in_system_s": system.mean_stay_s,
            "mean_time_waiting_s": waiting.mean_stay_s,
            "lambda_w_in_system": _product(system.rate_per_s, system.mean_stay_s),
            "lambda_w_waiting": _product(waiting.rate_per_s, waiting.mean_stay_s),
        }
    )
    return section


def _mean_ms(column: IntColumn) -> float | None:
    return exact_sum(column) / len(column) / NS_PER_MS if len(column) else None


def _product(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def _kv(record: RunRecord, use: KvUse, window: tuple[int, int]) -> dict[str, Any]:
    blocks = sum(record.num_gpu_blocks)
    means = [mean for mean, _ in use if mean is not None]
    shares = [_ratio(largest, record.num_gpu_blocks[index]) or 0.0 for index, (_, largest) in enumerate(use)]
    scheduled = record.requests["scheduled_ns"] >= 0
    asked = exact_sum(record.requests["input_tokens"][scheduled])
    hits = exact_sum(record.requests["num_cached_tokens"][scheduled])
    unused_slots = mean_unused_slots(record, window)
    places_per_block = sum(record.group_block_sizes) / len(record.group_block_sizes)
    return {
        "block_size": record.block_size,
        "num_gpu_blocks": blocks,
        "capacity_tokens": int(blocks * record.tokens_per_block),
        "mean_usage": _ratio(sum(means), blocks) if means else None,
        "max_usage": max(shares, default=None),
        "mean_unused_slots": unused_slots,
        "fragmentation": None if unused_slots is None else _ratio(unused_slots, sum(means) * places_per_block),
        "prefix_cache_queries": asked,
        "prefix_cache_hits": hits,
        "prefix_cache_hit_rate": _ratio(hits, asked),
        **offloading_section(record, hits, window),
    }


def _preemptions(record: RunRecord) -> dict[str, Any]:
    columns, steps = record.requests, record.steps
    recomputed = exact_sum(columns["num_recomputed_tokens"])
    tokens = sum(steps[name] for name in ("num_prefill_tokens", "num_decodes", "num_draft_tokens") if name in steps)
    computed = exact_dot(np.asarray(tokens), steps["num_steps"])
    return {
        "total": exact_sum(columns["num_preemptions"]),
        "requests": int((columns["num_preemptions"] > 0).sum()),
        "recomputed_tokens": recomputed,
        "computed_tokens": computed,
        "recompute_tax": _ratio(recomputed, computed),
    }


def _utilization(record: RunRecord, context: RunContext, window: tuple[int, int]) -> dict[str, Any]:
    steps, replicas = record.steps, len(record.replica_models)
    num_steps = steps["num_steps"]
    length_ns = (window[1] - window[0]) * replicas
    gpu_ns, host_ns = exact_sum(steps["gpu_ns"]), exact_sum(steps["host_ns"])
    batch = steps["num_prefills"] + steps["num_decodes"]
    filled = batch > 0
    count = exact_sum(num_steps[filled])

    def per_step(column: IntColumn) -> float | None:
        return _ratio(exact_dot(column[filled], num_steps[filled]), count)

    section: dict[str, Any] = {
        "busy_fraction": _ratio(gpu_ns, length_ns),
        "host_fraction": _ratio(host_ns, length_ns),
        **_work(steps, context, gpu_ns, length_ns),
        "steps": count,
        "empty_steps": exact_sum(num_steps[~filled]),
        "mean_batch_size": per_step(batch),
        "mean_num_prefills": per_step(steps["num_prefills"]),
        "mean_num_decodes": per_step(steps["num_decodes"]),
        "mean_prefill_tokens": per_step(steps["num_prefill_tokens"]),
        "mean_decode_tokens": per_step(steps["num_decodes"]),
        "mean_num_running": per_step(steps["num_running"]),
        "mean_step_ms": _ratio(gpu_ns / NS_PER_MS, exact_sum(num_steps)),
        "seat_efficiency": _ratio(exact_dot(batch, num_steps), exact_dot(steps["num_seats"], num_steps)),
        "seat_usage": _seat_usage(steps, context.max_num_seqs, gpu_ns),
        **_adapters(steps, context.max_loras, gpu_ns),
        "step_time_s": _terms(record),
    }
    return section


def _adapters(steps: Mapping[str, IntColumn], max_loras: int | None, gpu_ns: int) -> dict[str, Any]:
    """How full the steps are with LoRA adapters, and how often one was copied into a slot and read from its file."""
    if not max_loras or "num_loras" not in steps:
        return {}
    return {
        "adapter_usage": _ratio(exact_dot(steps["num_loras"], steps["gpu_ns"]), max_loras * gpu_ns),
        "adapter_loads": exact_sum(steps["num_lora_loads"]),
        "adapter_reads": exact_sum(steps["num_lora_reads"]),
    }


def _seat_usage(steps: Mapping[str, IntColumn], max_num_seqs: int | None, gpu_ns: int) -> float | None:
    """Share of the seats that are taken, on average over the accelerators' time; None where their number is unknown."""
    return _ratio(exact_dot(steps["num_seats"], steps["gpu_ns"]), max_num_seqs * gpu_ns) if max_num_seqs else None


def _terms(record: RunRecord) -> dict[str, float] | None:
    """Seconds of all accelerators by term of the step cost, in chunks that keep a long run small."""
    if record.terms is None:
        return None
    total: dict[str, int] = {}
    for start in range(0, len(record.steps["gpu_ns"]), ROWS_AT_ONCE):
        rows = {name: column[start : start + ROWS_AT_ONCE] for name, column in record.steps.items()}
        for name, times in record.terms(rows).items():
            total[name] = total.get(name, 0) + exact_sum(times)
    return {name: times / NS_PER_S for name, times in total.items()}


def _error(
    record: RunRecord, context: RunContext, step_rows: RowsByReplica, terms: Mapping[str, float] | None
) -> dict[str, Any]:
    """How wrong the step times are: of what this run charged, and of whole runs as far as some were measured."""
    gpu_s = exact_sum(record.steps["gpu_ns"]) / NS_PER_S
    host_ns = sum(total_exposed_host_ns(record, step_rows[index]) for index in range(len(record.replica_models)))
    return error_section(record.latency, terms or {"accelerator": gpu_s}, host_ns / NS_PER_S, context.whole_runs)


def _work(steps: Mapping[str, IntColumn], context: RunContext, gpu_ns: int, length_ns: int) -> dict[str, Any]:
    """MFU and memory-bandwidth use: over the whole run, and over the time the accelerators were busy."""
    names = ("mfu", "mfu_when_busy", "memory_bandwidth", "memory_bandwidth_when_busy", "compute_bound_fraction")
    if context.work is None or not length_ns:
        return dict.fromkeys(names)
    work = context.work
    compute = work.total_flops(steps) / work.peak_flops
    memory = work.total_bytes(steps) / work.peak_bandwidth
    busy_s, length_s = gpu_ns / NS_PER_S, length_ns / NS_PER_S
    bound_ns = exact_sum(steps["gpu_ns"][work.is_compute_bound(steps)])
    values = (compute / length_s, _ratio(compute, busy_s), memory / length_s, _ratio(memory, busy_s))
    return dict(zip(names, (*values, _ratio(bound_ns, gpu_ns)), strict=True))


def _beyond_datasheet(use: Mapping[str, Any]) -> list[str]:
    """Say where steps are shorter than their bytes or FLOPs take at the datasheet's rates: no such GPU exists."""
    told = [
        f"{name} {use[key]:.0%}"
        for key, name in (("memory_bandwidth_when_busy", "bandwidth"), ("mfu_when_busy", "MFU"))
        if use[key] is not None and use[key] > 1.0 + BEYOND
    ]
    if not told:
        return []
    return [
        f"{' and '.join(told)} of the datasheet's rate while busy: steps are shorter than this GPU can take; look at "
        "latency.time_scale and latency.fit"
    ]


def _cost(record: RunRecord, context: RunContext, duration_s: float) -> dict[str, Any] | None:
    gpu_hours = sum(record.gpus_per_replica) * duration_s / 3600
    if not gpu_hours:
        return None
    section: dict[str, Any] = {"gpus": sum(record.gpus_per_replica), "gpu_hours": gpu_hours}
    if context.price is not None:
        times = RequestTimes.of(record)
        tokens_out = exact_sum(record.requests["output_tokens"][times.row])
        tokens = tokens_out + exact_sum(record.requests["input_tokens"][times.row])
        total = gpu_hours * context.price.usd_per_gpu_hour
        section.update(
            {
                "usd_per_gpu_hour": context.price.usd_per_gpu_hour,
                "price_source": context.price.source,
                "usd": total,
                "usd_per_million_tokens": _ratio(total * 1e6, tokens),
                "usd_per_million_output_tokens": _ratio(total * 1e6, tokens_out),
            }
        )
    return section


def _run(record: RunRecord, context: RunContext, notes: list[str]) -> dict[str, Any]:
    from sim.version import __version__

    steps = record.steps
    last_ns = busy_window(record)[1]
    return {
        "scenario": context.name,
        "setup": dict(context.setup),
        "seed": context.seed,
        "version": __version__,
        "profile_hash": record.latency.get("profile_hash"),
        "steps": exact_sum(steps["num_steps"]),
        "simulated_s": last_ns / NS_PER_S,
        "cpu_s": record.cpu_s,
        "wall_s": context.wall_s,
        "notes": list(dict.fromkeys([*record.notes, *notes])),
        "latency": {name: told for name, told in record.latency.items() if name != "evidence"},
    }
