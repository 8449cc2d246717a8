"""A run as the columns users see: seconds, milliseconds and names. The data frames and the parquet files share them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results.metrics import NS_PER_MS, NS_PER_S, FloatColumn, IntColumn
from sim.results.record import RunRecord, Status

AnyColumn = npt.NDArray[Any]


class Named:
    """A column of few distinct strings: ``names[codes]``, code -1 for none."""

    def __init__(self, codes: IntColumn, names: list[str]) -> None:
        self.codes = codes
        self.names = names

    def objects(self) -> AnyColumn:
        """The strings, None where there is none."""
        return np.array([*self.names, None], dtype=object)[self.codes]


def _scaled(ns: IntColumn, valid: npt.NDArray[np.bool_], scale: float) -> FloatColumn:
    return np.where(valid, ns / scale, np.nan)


def request_ids(record: RunRecord) -> AnyColumn | list[str]:
    """Ids by row; integers where the workload has none of its own (they are written as decimal strings)."""
    ids = record.workload.request_ids
    row = record.requests["row"]
    return row if ids is None else [ids[i] for i in row.tolist()]


def request_columns(record: RunRecord) -> dict[str, AnyColumn | Named | list[str]]:
    """One row per request, in workload order; NaN where an instant never came."""
    from_record = record.requests
    arrival, scheduled = from_record["arrival_ns"], from_record["scheduled_ns"]
    first, finish = from_record["first_token_ns"], from_record["finish_ns"]
    output = from_record["output_tokens"]
    arrived, done = arrival >= 0, from_record["status"] == Status.COMPLETED
    several = done & (output > 1)
    gap_ms = np.full(len(output), np.nan)
    np.divide((finish - first) / NS_PER_MS, output - 1, out=gap_ms, where=several)
    classes = record.workload.classes
    tenants = list(dict.fromkeys(info.tenant for info in classes))
    tenant_of = np.array([tenants.index(info.tenant) for info in classes], dtype=np.int64)
    class_index = from_record["class_index"]
    replica = from_record["replica"]
    return {
        "request_id": request_ids(record),
        "parent": record.workload.prompt_numbers()[from_record["row"]],
        "class": Named(class_index, [info.name for info in classes]),
        "tenant": Named(tenant_of[class_index], tenants),
        "status": Named(from_record["status"], [each.name.lower() for each in Status]),
        "reason": _reasons(record),
        "replica": np.where(replica >= 0, replica, -1),
        "arrival_s": _scaled(arrival, arrived, NS_PER_S),
        "scheduled_s": _scaled(scheduled, scheduled >= 0, NS_PER_S),
        "first_token_s": _scaled(first, first >= 0, NS_PER_S),
        "finish_s": _scaled(finish, finish >= 0, NS_PER_S),
        "ttft_ms": _scaled(first - arrival, arrived & (first >= 0), NS_PER_MS),
        "tpot_ms": gap_ms,
        "itl_mean_ms": gap_ms,
        "e2el_ms": _scaled(finish - arrival, done, NS_PER_MS),
        "queue_ms": _scaled(scheduled - arrival + from_record["requeued_ns"], arrived & (scheduled >= 0), NS_PER_MS),
        "requeued_ms": from_record["requeued_ns"] / NS_PER_MS,
        "input_tokens": from_record["input_tokens"],
        "output_tokens": output,
        "num_cached_tokens": from_record["num_cached_tokens"],
        "num_preemptions": from_record["num_preemptions"],
        "num_recomputed_tokens": from_record["num_recomputed_tokens"],
        "priority": from_record["priority"],
        **_adapters(record),
        **_tiers(record),
    }


def _adapters(record: RunRecord) -> dict[str, Named]:
    """The LoRA adapter of each request, where some have one."""
    workload = record.workload
    if workload.lora is None:
        return {}
    return {"lora": Named(workload.lora[record.requests["row"]] - 1, list(workload.loras))}


def _tiers(record: RunRecord) -> dict[str, AnyColumn]:
    """Of the cached tokens of each request those that came from host memory, where KV is offloaded."""
    return {} if record.offloading is None else {"num_host_cached_tokens": host_cached_tokens(record)}


def host_cached_tokens(record: RunRecord) -> IntColumn:
    """Prompt tokens of each request that were loaded from host memory before it was first scheduled."""
    found = {} if record.offloading is None else record.offloading.loaded_tokens
    tokens = np.array([found.get(row, 0) for row in record.requests["row"].tolist()], dtype=np.int64)
    return np.minimum(tokens, np.maximum(record.requests["num_cached_tokens"], 0))


def _reasons(record: RunRecord) -> Named:
    names = list(dict.fromkeys(record.reasons.values()))
    place = {name: index for index, name in enumerate(names)}
    codes = np.full(len(record.requests["row"]), -1)
    if names:
        rows = np.fromiter(record.reasons, dtype=np.int64)
        found = np.searchsorted(record.requests["row"], rows)
        codes[found] = [place[reason] for reason in record.reasons.values()]
    return Named(codes, names)


def step_columns(record: RunRecord, rows: slice = slice(None)) -> dict[str, AnyColumn]:
    """One row per run of identical steps, those of a replica in order, instants in seconds and times in ms."""
    steps = {name: column[rows] for name, column in record.steps.items()}
    result: dict[str, AnyColumn] = {}
    for name in steps:
        if name in ("gpu_ns", "host_ns", "own_ns"):
            result[name.replace("_ns", "_ms")] = steps[name] / NS_PER_MS
        elif name.endswith("_ns"):
            result[name.replace("_ns", "_s")] = steps[name] / NS_PER_S
        else:
            result[name] = steps[name]
    if record.terms is not None:
        result.update({f"{name}_ms": times / NS_PER_MS for name, times in record.terms(steps).items()})
    pool = np.array(record.num_gpu_blocks, dtype=np.int64)[steps["replica"]]
    result["kv_usage"] = (pool - steps["free_blocks"]) / np.maximum(pool, 1)
    return result
