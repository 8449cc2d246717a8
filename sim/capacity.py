"""How many requests per second an engine could serve of the requests that a run had.

A short run of its own finds it: requests like the run's wait at time 0, and what one replica makes of them while
others still wait is its capacity. Step costs, scheduler, policy and memory are the run's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sim.errors import SimrunError
from sim.latency.kv_layout import KvGroup
from sim.results.record import IntColumn, RunRecord, Status
from sim.seeds import rng
from sim.workload.table import NO_DEADLINE, NO_GROUP, NO_HINT, NO_PARENT, ImageColumns, RequestTable

if TYPE_CHECKING:
    from sim.cluster.deployment import Deployment
    from sim.engine.reference.batch import SchedulerSettings
    from sim.scenario.loader import LoadedScenario

NS_PER_S = 1e9
SEATFULS = 5
"""Requests that wait at time 0, in multiples of what runs at once."""
LEAST_REQUESTS = 400
"""Beside the first seatful, so that few seats have their mean too."""
LEAST_STARTED = 3
"""Requests that have to run for a rate."""
MOST_STEPS = 10_000
"""About as many steps may be spent on the estimate."""
MOST_TOKENS_STEPPED = 150_000
"""Output tokens of the estimate where every step of every request is taken (speculative decoding)."""
IN_ORDER = ("fcfs", "adaptive", "packed")
"""Policies that admit in order of arrival; ``fcfs`` stands in for others."""


@dataclass(frozen=True, slots=True)
class Mix:
    """The requests of a run that an engine has to serve, as columns."""

    input_tokens: IntColumn
    output_tokens: IntColumn
    cached_tokens: IntColumn
    """Prompt tokens that were found in the prefix cache."""
    priority: IntColumn
    class_index: IntColumn
    lora: IntColumn | None
    images: ImageColumns | None

    @classmethod
    def of(cls, record: RunRecord) -> Mix:
        """Take what was submitted and not rejected; a request that was cut short counts with its whole output."""
        requests, workload = record.requests, record.workload
        kept = (requests["status"] != Status.REJECTED) & (requests["arrival_ns"] >= 0)
        row = requests["row"][kept]
        return cls(
            workload.input_tokens[row],
            np.maximum(np.minimum(workload.output_tokens, workload.max_tokens)[row], 1),
            np.maximum(requests["num_cached_tokens"][kept], 0),
            workload.priority[row],
            workload.class_index[row],
            None if workload.lora is None else workload.lora[row],
            None if workload.images is None else workload.images.take(row),
        )

    def sample(self, num_requests: int, seed: int) -> IntColumn:
        """Choose ``num_requests`` rows with the mix's own distribution of sizes, in an order by chance."""
        by_size = np.argsort(self.input_tokens + self.output_tokens, kind="stable")
        shares = (np.arange(num_requests) + 0.5) / num_requests
        chosen: IntColumn = by_size[(shares * len(by_size)).astype(np.int64)]
        return rng(seed, "capacity").permutation(chosen)

    def in_flight(self, num_requests: int, seed: int) -> IntColumn:
        """Choose rows as they are met in the midst of a long run: in proportion to their output, for about so long a
        request stays. Of outputs of 1 and 9 tokens nine in ten that run are the long ones."""
        by_size = np.argsort(self.input_tokens + self.output_tokens, kind="stable")
        shares = (np.arange(num_requests) + 0.5) / num_requests
        stays = np.cumsum(self.output_tokens[by_size])
        chosen: IntColumn = by_size[np.searchsorted(stays, shares * stays[-1])]
        return rng(seed, "capacity", "in flight").permutation(chosen)


def estimate_capacity(loaded: LoadedScenario, deployment: Deployment, record: RunRecord) -> float | None:
    """Return requests per second that all replicas together could serve of ``record``'s mix; None where no request
    could be, or where a replica never has all its seats' worth of work within ``MOST_STEPS``.

    Example: 16 seats, 100 output tokens each and steps of 15 ms give about 16 / (100 x 0.015) = 10.7 per second.
    """
    from sim.cluster.simulate import simulate_cluster, takes_every_step

    one = _one_replica(loaded)
    deployment = replace(deployment, engine=one.scenario.engine)
    mix = Mix.of(record)
    if not len(mix.input_tokens):
        return None
    at_once = _at_once(mix, deployment)
    num_requests = _num_requests(mix, deployment, at_once)
    is_stepped, _ = takes_every_step(deployment, record.workload, loaded.scenario.seed)
    if is_stepped:
        num_requests = min(num_requests, max(LEAST_STARTED, int(MOST_TOKENS_STEPPED / mix.output_tokens.mean())))
    if num_requests < 3 * at_once:
        at_once = max(1, num_requests // 3)
    workload = _backlog(mix, mix.sample(num_requests, loaded.scenario.seed), at_once, record.workload)
    try:
        found = simulate_cluster(one, workload=workload, deployment=deployment)
    except SimrunError:
        return None
    rate = _rate(found, mix, at_once)
    return None if rate is None else rate * loaded.scenario.cluster.replicas


def _at_once(mix: Mix, deployment: Deployment) -> int:
    """Requests that the replicas of one deployment run together: their seats, or as many as their KV cache holds."""
    settings = deployment.settings
    own_tokens = np.maximum(mix.input_tokens - mix.cached_tokens, 1) + mix.output_tokens / 2
    # A request is there for about as long as it has output, so long outputs weigh more.
    per_request = float(np.average(own_tokens, weights=mix.output_tokens))
    if settings.contiguous_kv:
        per_request = float(settings.max_model_len)
    fitting = int(settings.num_gpu_blocks / _blocks_of(per_request, settings))
    return max(1, min(settings.max_num_seqs, fitting)) * deployment.engine.data_parallel_size


def _blocks_of(num_tokens: float, settings: SchedulerSettings) -> float:
    """Blocks that a request of so many tokens holds, in all KV groups; one of those that keep a state."""
    groups = settings.kv_groups or (KvGroup("full", settings.block_size, settings.sliding_window),)
    held = 0.0
    for group in groups:
        if group.kind == "state":
            held += 1.0
        else:
            held += min(num_tokens, (group.sliding_window or num_tokens) + group.block_size) / group.block_size
    return held


def _num_requests(mix: Mix, deployment: Deployment, at_once: int) -> int:
    settings = deployment.settings
    prompt = float((mix.input_tokens - mix.cached_tokens).mean()) / settings.max_num_batched_tokens
    steps_each = prompt / deployment.engine.data_parallel_size + float(mix.output_tokens.mean()) / at_once
    wanted = max(SEATFULS * at_once, at_once + LEAST_REQUESTS)
    return max(8, min(wanted, int(MOST_STEPS / max(steps_each, 1e-9))))


def _backlog(mix: Mix, rows: IntColumn, at_once: int, of_run: RequestTable) -> RequestTable:
    """The chosen requests, all there at time 0. The first ``at_once`` are part done, evenly, as they would be in the
    midst of a long run: what they have generated is in their prompts. What was found in the cache is one common prefix
    here."""
    n = len(rows)
    first = min(at_once, n)
    rows = np.concatenate([mix.in_flight(first, 0), rows[first:]])
    inputs, outputs = mix.input_tokens[rows].copy(), mix.output_tokens[rows].copy()
    left = rng(0, "capacity", "part done").permutation((np.arange(first) + 0.5) / first)
    done = np.minimum((outputs[:first] * (1.0 - left)).astype(np.int64), outputs[:first] - 1)
    inputs[:first] += done
    outputs[:first] -= done
    cached = mix.cached_tokens[rows]
    has_prefix = cached > 0
    return RequestTable(
        arrival_ns=np.zeros(n, dtype=np.int64),
        input_tokens=inputs,
        output_tokens=outputs,
        max_tokens=outputs,
        priority=mix.priority[rows],
        class_index=mix.class_index[rows],
        lora=None if mix.lora is None else mix.lora[rows],
        loras=of_run.loras,
        images=None if mix.images is None else mix.images.take(rows),
        parent=np.full(n, NO_PARENT),
        deadline_ns=np.full(n, NO_DEADLINE),
        expected_output_tokens=np.full(n, NO_HINT),
        session=np.full(n, NO_GROUP),
        segment_offsets=np.append(0, np.cumsum(has_prefix)).astype(np.int64),
        segment_content_id=np.zeros(int(has_prefix.sum()), dtype=np.int64),
        segment_end_tokens=cached[has_prefix],
        classes=[replace(info, patience_ns=None, num_outputs=1) for info in of_run.classes],
    )


def _one_replica(loaded: LoadedScenario) -> LoadedScenario:
    """One replica, stepped fast, in order of arrival.

    A policy that prefers some requests would serve those alone while others wait (``sjf`` the short ones), but in the
    long run all that arrive are to be served. One of the user's own may not expect to be asked again.
    """
    scenario = loaded.scenario
    cluster = scenario.cluster.model_copy(update={"replicas": 1, "router": "round_robin"})
    engine = scenario.engine.model_copy(update={"stepping": "fast"})
    policy = engine.policy if isinstance(engine.policy, str) else engine.policy.name
    if policy not in IN_ORDER:
        engine = engine.model_copy(update={"policy": "fcfs"})
    return replace(loaded, scenario=scenario.model_copy(update={"cluster": cluster, "engine": engine}))


def _rate(record: RunRecord, mix: Mix, at_once: int) -> float | None:
    """Requests per second while others wait, from the instant at which the second seatful is in.

    What starts then and what is generated then are each told in requests of the mix; their mean is returned, because
    a window of some seatfuls has a little too much of one and too little of the other.
    """
    columns = record.requests
    done = columns["status"] == Status.COMPLETED
    scheduled, first, finish = (columns[name][done] for name in ("scheduled_ns", "first_token_ns", "finish_ns"))
    started = np.sort(scheduled)
    if len(started) < LEAST_STARTED:
        return None
    begin, end = int(started[min(2 * at_once, len(started) // 2)]), int(started[-1])
    if end <= begin:
        # All of them fit one batch: that batch is the unit.
        length_ns = int(finish.max())
        return len(started) / (length_ns / NS_PER_S) if length_ns else None
    length_s = (end - begin) / NS_PER_S
    if "num_draft_tokens" in record.steps:
        gaps = columns["output_tokens"][done] - 1
        share = np.clip((np.minimum(finish, end) - np.maximum(first, begin)) / np.maximum(finish - first, 1), 0.0, 1.0)
        tokens = float((gaps * share).sum()) + int(((first > begin) & (first <= end)).sum())
    else:
        tokens = _tokens_between(record.steps, begin, end)
    starts = int(((scheduled > begin) & (scheduled <= end)).sum())
    return (tokens / float(mix.output_tokens.mean()) + starts) / 2 / length_s


def _tokens_between(steps: dict[str, IntColumn], begin: int, end: int) -> float:
    """Tokens that were generated between two instants: steps get faster when no more prompts come, so that a request's
    own are not spread evenly over its time."""
    from_ns, to_ns = steps["start_ns"], steps["end_ns"]
    share = np.clip((np.minimum(to_ns, end) - np.maximum(from_ns, begin)) / np.maximum(to_ns - from_ns, 1), 0.0, 1.0)
    return float((steps["num_sampled"] * steps["num_steps"] * share).sum())
