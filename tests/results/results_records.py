"""Run records made by hand or by chance, for the tests of ``sim.results``."""

from __future__ import annotations

import numpy as np

from sim.results.record import NOT_YET, REQUEST_COLUMNS, STEP_COLUMNS, RunRecord, Status
from sim.workload.table import NO_DEADLINE, NO_GROUP, NO_HINT, NO_PARENT, ClassInfo, RequestTable

MS = 1_000_000


def _column(values: object) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def make_table(requests: dict[str, np.ndarray], classes: list[ClassInfo], ids: list[str] | None = None) -> RequestTable:
    n = len(requests["row"])
    return RequestTable(
        arrival_ns=requests["arrival_ns"],
        input_tokens=requests["input_tokens"],
        output_tokens=requests["output_tokens"],
        max_tokens=requests["output_tokens"],
        priority=requests["priority"],
        class_index=requests["class_index"],
        parent=np.full(n, NO_PARENT),
        deadline_ns=np.full(n, NO_DEADLINE),
        expected_output_tokens=np.full(n, NO_HINT),
        session=np.full(n, NO_GROUP),
        segment_offsets=np.zeros(n + 1, dtype=np.int64),
        segment_content_id=_column([]),
        segment_end_tokens=_column([]),
        classes=classes,
        request_ids=ids,
    )


def _record(
    requests: dict[str, np.ndarray],
    steps: dict[str, np.ndarray],
    itl: tuple[object, object, object],
    classes: list[ClassInfo],
    replicas: int,
    ids: list[str] | None = None,
) -> RunRecord:
    rejected = requests["row"][requests["status"] != Status.COMPLETED]
    return RunRecord(
        workload=make_table(requests, classes, ids),
        requests=requests,
        steps=steps,
        itl_ns=_column(itl[0]),
        itl_weight=_column(itl[1]),
        itl_of_classes=[
            (_column(itl[0])[mine], _column(itl[1])[mine])
            for mine in (_column(itl[2]) == i for i in range(len(classes)))
        ],
        reasons={int(row): "prompt of 9000 tokens exceeds max_model_len 4096" for row in rejected},
        num_gpu_blocks=[100] * replicas,
        tokens_per_block=16.0,
        group_block_sizes=(16,),
        block_size=16,
        replica_models=["llama-2-7b"] * replicas,
        gpus_per_replica=[2] * replicas,
        latency={"kind": "constant", "estimate": True, "step_s": 0.02},
        notes=["a note of the engine"],
        cpu_s=0.125,
    )


def make_record(class_slos: list[dict[str, float] | None] | None = None) -> RunRecord:
    """Four requests, one of them rejected, on two replicas; small enough to check by hand.

    ====  =======  =========  ===========  ======  ======  =====
    row   arrival  scheduled  first token  finish  output  class
    ====  =======  =========  ===========  ======  ======  =====
    0     0        0          20           60      5       chat
    1     10       20         45           45      1       batch
    2     30       rejected                30      0       chat
    3     100      100        120          140     3       chat
    ====  =======  =========  ===========  ======  ======  =====
    """
    slos = class_slos or [None, None]
    rows = [
        (0, 0, 0, 0, 0, 20, 60, 5, 0, 0, 0, 0, 0, 100),
        (1, 0, 0, 10, 20, 45, 45, 1, 1, 16, 7, 5, 1, 50),
        (2, 1, NOT_YET, 30, NOT_YET, NOT_YET, 30, 0, 0, 0, 0, 0, 0, 9000),
        (3, 0, 0, 100, 100, 120, 140, 3, 0, 32, 0, 0, 0, 64),
    ]
    requests = {name: _column([row[i] for row in rows]) for i, name in enumerate(REQUEST_COLUMNS[:14])}
    for name in ("arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns"):
        requests[name] = np.where(requests[name] >= 0, requests[name] * MS, NOT_YET)
    requests |= {"end_ns": requests["finish_ns"], "attempts": np.ones(len(rows), dtype=np.int64)}
    requests["requeued_ns"] = np.zeros(len(rows), dtype=np.int64)
    # replica, scheduled, start, end, steps, running, waiting, prefills, prefill tokens, decodes, decode context,
    # prefill context, pairs, sampled, gpu, host, free, preempted, seats, last scheduled, free blocks x time up to it
    step_rows = [
        (0, 0, 0, 20, 1, 1, 0, 1, 100, 0, 0, 100, 10000, 1, 20, 1, 93, 0, 1, 0, 0),
        (0, 20, 20, 45, 1, 2, 1, 1, 34, 1, 101, 50, 2500, 2, 25, 1, 90, 1, 2, 20, 0),
        (0, 45, 45, 60, 3, 1, 0, 0, 0, 1, 102, 0, 0, 1, 15, 1, 92, 0, 1, 45, 0),
        (1, 46, 46, 47, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 100, 0, 0, 46, 0),
        (0, 100, 100, 140, 3, 1, 0, 1, 32, 0, 0, 64, 4096, 1, 40, 1, 95, 0, 1, 100, 0),
    ]
    steps = {name: _column([row[i] for row in step_rows]) for i, name in enumerate(STEP_COLUMNS)}
    for name in ("scheduled_ns", "start_ns", "end_ns", "gpu_ns", "host_ns", "last_scheduled_ns"):
        steps[name] = steps[name] * MS
    classes = [ClassInfo("chat", "acme", "acme", slos[0]), ClassInfo("batch", "<b>globex & co</b>", "budget", slos[1])]
    itl = ([10 * MS, 10 * MS], [4, 2], [0, 0])
    return _record(requests, steps, itl, classes, 2, ids=["a", "b<script>", "c", "d"])


def random_record(seed: int, num_requests: int = 40, replicas: int = 2) -> RunRecord:
    """A record with consistent request times and plausible steps; ``seed`` decides everything."""
    rng = np.random.default_rng(seed)
    n = num_requests
    arrival = np.sort(rng.integers(0, 50 * n * MS, n))
    scheduled = arrival + rng.integers(0, 500 * MS, n)
    first = scheduled + rng.integers(1, 200 * MS, n)
    output = rng.integers(1, 60, n)
    gap = rng.integers(5 * MS, 30 * MS, n)
    requests = {
        "row": np.arange(n),
        "status": np.zeros(n, dtype=np.int64),
        "replica": rng.integers(0, replicas, n),
        "arrival_ns": arrival,
        "scheduled_ns": scheduled,
        "first_token_ns": first,
        "finish_ns": first + (output - 1) * gap,
        "output_tokens": output,
        "num_preemptions": rng.integers(0, 2, n),
        "num_cached_tokens": rng.integers(0, 10, n),
        "num_recomputed_tokens": rng.integers(0, 10, n),
        "priority": np.zeros(n, dtype=np.int64),
        "class_index": rng.integers(0, 2, n),
        "input_tokens": rng.integers(10, 2000, n),
        "attempts": np.ones(n, dtype=np.int64),
        "requeued_ns": np.zeros(n, dtype=np.int64),
    }
    requests["end_ns"] = requests["finish_ns"]
    per_replica = n * 5
    columns = []
    for replica in range(replicas):
        gpu = rng.integers(5 * MS, 40 * MS, per_replica)
        start = np.cumsum(gpu + rng.integers(0, 2, per_replica) * 10 * MS)
        prefills, decodes = rng.integers(0, 3, per_replica), rng.integers(0, 40, per_replica)
        waiting = rng.integers(0, 20, per_replica)
        free = np.clip(100 - decodes * 2 - prefills, 0, 100)
        zeros = np.zeros(per_replica, dtype=np.int64)
        columns.append(
            {
                "replica": zeros + replica,
                "scheduled_ns": start,
                "start_ns": start,
                "end_ns": start + gpu,
                "num_steps": zeros + 1,
                "num_running": prefills + decodes,
                "num_waiting": waiting,
                "num_prefills": prefills,
                "num_prefill_tokens": prefills * 256,
                "num_decodes": decodes,
                "decode_context_tokens": decodes * 300,
                "prefill_context_tokens": prefills * 300,
                "prefill_attention_pairs": prefills * 300 * 256,
                "num_sampled": prefills + decodes,
                "gpu_ns": gpu,
                "host_ns": zeros + MS,
                "free_blocks": free,
                "num_preempted": zeros,
                "num_seats": prefills + decodes,
                "last_scheduled_ns": start,
                "free_block_ns": zeros,
            }
        )
    steps = {name: np.concatenate([c[name] for c in columns]) for name in STEP_COLUMNS}
    order = np.argsort(steps["scheduled_ns"], kind="stable")
    steps = {name: values[order] for name, values in steps.items()}
    classes = [ClassInfo("chat", "acme", "premium"), ClassInfo("batch", "globex", "budget")]
    return _record(requests, steps, (gap, np.maximum(output - 1, 0), requests["class_index"]), classes, replicas)
