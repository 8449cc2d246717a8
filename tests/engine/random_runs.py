"""Random scenarios of several families, and acts on them, for "the fast engine equals the reference to the last digit".

Each family is near the edges of something: a scenario that is drawn from everything at once hardly ever gets there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from engine_profiled import PROFILED, profile_latency
from engines import any_block, whole_prompts
from windowed_model import windowed_model

from policies.registry import POLICIES, PREDICTORS, ROUTERS
from sim.cluster.acts import Act, What

Document = dict[str, Any]

TIMED: list[Any] = [
    {"name": "deadline", "ttft_slo_ms": 100.0, "e2el_slo_ms": 400.0, "give_up_after_ms": 150.0},
    {"name": "tiered", "age_promote_s": 0.2, "ttft_slo_ms": {}},
]
"""Policies whose ranks move with the clock, and that evict no running request for a waiting one."""
RANKED: list[Any] = ["priority", "sjf", "srtf", "throughput", "hybrid", "tiered", "fair", "deadline", *TIMED]
"""Policies whose steps the fast engine takes, ``fcfs`` aside."""
TAKEN = [*["fcfs"] * 5, *RANKED]
SHARING: list[Document] = [
    {"name": "fair", "shares": True},
    {"name": "tiered", "shares": {"premium": 0.5, "standard": 0.8, "budget": 1.0}},
]
"""Policies that share out a step's tokens."""
LIVE_ROUTERS = sorted(set(ROUTERS) - {"round_robin"})
HOST_MS = [0.0, 8.82, 9.0, 40.0]
"""None, what the accelerator takes for one request or for two, and far more."""


def values(numbers: Iterable[int]) -> Document:
    """Lengths in turn."""
    return {"dist": "values", "values": list(numbers)}


def lengths(rng: Random, most: int) -> Document:
    """Lengths of requests: up to ``most`` tokens or so."""
    return rng.choice(
        [
            values(rng.randint(1, most) for _ in range(rng.randint(1, 8))),
            values(rng.choice([1, 2, 15, 16, 17, most]) for _ in range(rng.randint(1, 8))),
            {"dist": "lognormal", "mean": max(most // 4, 2), "cv": 1.0, "max": most},
            {"dist": "fixed", "value": rng.randint(1, most)},
        ]
    )


def arrivals(rng: Random, rates: Sequence[float], *, is_closed: bool = False) -> Document:
    """Arrivals by chance, all at once, or at instants that steps have too."""
    kinds: list[Document] = [
        {"process": "poisson", "rate": rng.choice(rates)},
        {"process": "poisson", "rate": rng.choice(rates)},
        {"process": "gamma", "rate": rng.choice(rates), "cv": 4.0},
        {"process": "constant", "rate": rng.choice([1.0, 20.0, 50.0, 1e9])},
        {"process": "burst"},
    ]
    if is_closed:
        return {
            "process": "closed_loop",
            "concurrency": rng.randint(1, 12),
            "think_time_s": rng.choice([0.0, 0.02, 0.03]),
        }
    return rng.choice(kinds)


def constant(rng: Random) -> Document:
    """Every step takes as long as any other: many things happen at one instant."""
    return {"kind": "constant", "step_s": rng.choice([0.01, 0.02])}


def latencies(rng: Random) -> Document:
    """Costs of steps without a profile."""
    return rng.choice(
        [
            constant(rng),
            {"kind": "roofline"},
            {"kind": "roofline"},
            {"kind": "roofline", "host_overhead_ms": rng.choice(HOST_MS)},
        ]
    )


def chance(rng: Random, probability: float) -> bool:
    """Whether it happens."""
    return rng.random() < probability


# --- parts of a scenario -------------------------------------------------------------------------


def traffic(rng: Random, most_in: int, most_out: int, rates: Sequence[float]) -> Document:
    """A workload of one class."""
    is_closed = chance(rng, 0.15)
    workload: Document = {
        "requests": rng.randint(2, 50),
        "arrival": arrivals(rng, rates, is_closed=is_closed),
        "input_tokens": lengths(rng, most_in),
        "output_tokens": lengths(rng, most_out),
    }
    if chance(rng, 0.25):  # ends that are not known beforehand
        workload["max_tokens"] = {"dist": "fixed", "value": rng.choice([30, 500])}
    if chance(rng, 0.2):
        workload["patience_s"] = rng.choice([0.2, 0.31, 2.0])
    return workload


def classes(rng: Random, workload: Document) -> Document:
    """At times the same as several classes, with tenants, tiers, priorities and deadlines."""
    if workload["arrival"]["process"] == "closed_loop" or chance(rng, 0.6):
        return workload
    found = []
    for index, tier in enumerate(["premium", "standard", "budget"]):
        deadline = rng.choice([None, 0.5])
        each = {**workload, "requests": max(workload["requests"] // 2, 1), "output_tokens": lengths(rng, 60)}
        found.append({**each, "name": tier, "tenant": tier, "priority": index, "deadline_s": deadline})
    return {"classes": found}


def engines(rng: Random, blocks: Sequence[int], policies: Sequence[Any]) -> Document:
    """An engine of Llama-2-7B on an A100."""
    seats = rng.choice([2, 8, 12, 63])
    engine: Document = {
        "model": "llama-2-7b",
        "gpu": "a100-80gb-sxm",
        "max_model_len": 1024,
        "num_gpu_blocks_override": rng.choice(blocks),
        "max_num_seqs": seats,
        "max_num_batched_tokens": max(seats + 1, rng.choice([64, 256, 2048])),
        "block_size": rng.choice([8, 16, 16, 32]),
        "enable_prefix_caching": chance(rng, 0.7),
        "async_scheduling": chance(rng, 0.7),
        "policy": rng.choice(policies),
        "predictor": rng.choice(sorted(PREDICTORS)),
    }
    return engine


def scenario(rng: Random, workload: Document, engine: Document, latency: Document, routers: Sequence[str]) -> Document:
    """All of it."""
    cluster = {"replicas": rng.randint(1, 3), "router": rng.choice(routers)}
    return {
        "name": "random",
        "seed": rng.randint(0, 5),
        "workload": workload,
        "cluster": cluster,
        "engine": whole_prompts(any_block(engine)),
        "latency": latency,
        "slo": {"ttft_p95_ms": 500, "itl_p99_ms": 100},
    }


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="traces_"))


def conversations(rng: Random, name: str) -> Document:
    """A trace of a few conversations whose turns overlap: a turn comes before the one before it has ended."""
    turns = []
    for session in range(rng.randint(1, 4)):
        at_ms, tokens = rng.randint(0, 500), rng.randint(1, 60)
        for _ in range(rng.randint(2, 8)):
            output = rng.choice([1, 5, 16, 40, 90])
            turns.append((at_ms, tokens, output, f"s{session}", rng.choice(["a", "b"]), rng.randint(0, 2)))
            at_ms += rng.choice([0, 10, 50, 400])
            tokens = min(tokens + rng.randint(0, 60), 700)
    turns += [(rng.randint(0, 800), rng.randint(1, 90), rng.randint(1, 60), "", "a", 0) for _ in range(6)]
    header = "arrival_s,input_tokens,output_tokens,session,tenant,priority"
    lines = [",".join(map(str, (ms / 1000, *rest))) for ms, *rest in sorted(turns)]
    path = _folder() / f"{name}.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return {"trace": {"path": str(path), "format": "generic"}}


def segments(rng: Random, name: str) -> Document:
    """A trace whose prompts share beginnings of one segment of 512 tokens or of several."""
    lines = []
    for _ in range(rng.randint(4, 25)):
        stem = rng.choice([[0], [0, 1], [0, 1], [0, 2], [3]])
        own = [rng.randint(100, 999) for _ in range(rng.randint(0, 1))]
        ids = stem + own
        tokens = 512 * (len(ids) - 1) + rng.choice([512, 512, rng.randint(1, 512)])
        at_ms = rng.randint(0, 2000)
        lines.append({"timestamp": at_ms, "input_length": tokens, "output_length": rng.randint(1, 90), "hash_ids": ids})
    path = _folder() / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in sorted(lines, key=lambda line: line["timestamp"])))
    return {"trace": {"path": str(path), "format": "mooncake"}}


def agents(rng: Random, name: str) -> Document:
    """Turns that follow the end of the one before or of a request that they name, tools between them."""
    lines: list[Document] = []
    for agent in range(rng.randint(1, 5)):
        at_ms, blocks = rng.choice([0, 0, rng.randint(0, 900)]), rng.randint(1, 4)
        for turn in range(rng.randint(1, 6)):
            line: Document = {"request_id": f"{agent}/{turn}", "session_id": f"s{agent}"}
            line |= {"output_length": rng.choice([1, 2, 17, 60]), "input_length": 16 * blocks - rng.randint(0, 15)}
            line["hash_ids"] = [agent % 2 * 100 + block for block in range(blocks)]
            if turn == 0:
                line["timestamp"] = at_ms
            else:
                line |= rng.choice([{"delay": rng.choice([0, 1, 30])}, {"tool_wait_ms": rng.choice([0, 10, 200])}])
                if chance(rng, 0.3):  # several requests wait for one
                    line["wait_for"] = [f"{agent}/{rng.randrange(turn)}"]
            lines.append(line)
            blocks += rng.randint(0, 3)
    if chance(rng, 0.3):
        lines = [{key: value for key, value in line.items() if key != "hash_ids"} for line in lines]
    path = _folder() / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"trace": {"path": str(path), "format": "mooncake", "block_size": 16}}


def noises(rng: Random) -> Document:
    """Late clients, spells of slow steps that are shorter or longer than steps, or both."""
    client = {"share": rng.choice([0.1, 1.0]), "mean_ms": rng.choice([0.001, 10.0, 300.0])}
    step = {
        "every_s": rng.choice([0.02, 0.3, 2.0]),
        "for_s": rng.choice([0.001, 0.03, 0.5]),
        "factor": rng.choice([1.0, 1.3, 4.0]),
    }
    return rng.choice([{"client": client}, {"step": step}, {"step": step}, {"client": client, "step": step}])


# --- families ------------------------------------------------------------------------------------


def usual(rng: Random, name: str) -> Document:
    """Room for all: mostly one plan after the other."""
    policies = ["fcfs", "fcfs", "srtf", "hybrid", "sjf", "throughput"]
    engine = engines(rng, [4000], policies) | {"async_scheduling": chance(rng, 0.85)}
    if chance(rng, 0.7):
        engine["max_num_seqs"], engine["max_num_batched_tokens"] = 256, 2048
    latency = latencies(rng)
    if chance(rng, 0.4):
        change, host_ms = rng.choice(PROFILED)
        engine, latency = {**engine, **change}, profile_latency(rng.choice(host_ms))
        engine["block_size"] = max(16, engine["block_size"])  # those of the GPU that the profile is of
    workload = traffic(rng, 300, 150, [0.3, 3.0, 12.0])
    return scenario(rng, workload, engine, latency, ["round_robin", "round_robin", *LIVE_ROUTERS])


def bounds(rng: Random, name: str) -> Document:
    """Each just where a budget, the seats, the watermark or whole prompts get in the way."""
    engine = engines(rng, [66, 140, 4000], TAKEN)
    seats = engine["max_num_seqs"]
    engine |= {
        "max_num_batched_tokens": max(seats + 1, rng.choice([20, 64, 200])),
        "scheduler_reserve_full_isl": chance(rng, 0.5),
        "watermark": rng.choice([0.0, 0.05, 0.3]),
        "enable_chunked_prefill": chance(rng, 0.7),
    }
    if engine["enable_chunked_prefill"] and chance(rng, 0.4):
        engine["max_prefill_tokens_per_step"] = rng.choice([19, 50, 199])
    workload = traffic(rng, 400, 60, [3.0, 20.0, 100.0])
    return scenario(rng, classes(rng, workload), engine, latencies(rng), sorted(ROUTERS))


def tight(rng: Random, name: str) -> Document:
    """Too few blocks: requests are preempted, by order and by rank."""
    engine = engines(rng, [34, 50, 70], ["fcfs", "fcfs", *RANKED])
    engine |= {
        "max_model_len": 480,
        "block_size": 16,
        "max_num_seqs": rng.choice([8, 31, 63]),
        "scheduler_reserve_full_isl": chance(rng, 0.4),
        "watermark": rng.choice([0.0, 0.0, 0.1]),
        "max_num_batched_tokens": rng.choice([64, 128, 2048]),
    }
    workload = traffic(rng, 100, 120, [20.0, 60.0])
    if chance(rng, 0.3):  # whole prompts that must fit: heads that wait for blocks while ranks move
        engine |= {"policy": rng.choice(TIMED), "scheduler_reserve_full_isl": True, "max_num_seqs": 8}
    if chance(rng, 0.3):
        workload["prefix"] = {"groups": 2, "tokens": rng.choice([16, 40, 64])}
    return scenario(rng, classes(rng, workload), engine, latencies(rng), ["round_robin", "least_kv"])


def shared(rng: Random, name: str) -> Document:
    """Content that requests share: prefixes, conversations, traces with both, several outputs of one prompt."""
    engine = engines(rng, [70, 130, 400, 4000], TAKEN)
    engine |= {"enable_prefix_caching": chance(rng, 0.9), "cache_isolation": rng.choice(["none", "tenant"])}
    workload = traffic(rng, 150, 80, [5.0, 20.0])
    kind = rng.choice(["prefix", "sessions", "trace", "trace", "segments", "n"])
    if kind in ("sessions", "n") and workload["arrival"]["process"] == "closed_loop":
        kind = "prefix"
    if kind == "prefix":
        workload["prefix"] = {"groups": rng.randint(1, 3), "tokens": rng.randint(1, 120)}
    elif kind == "sessions":
        workload["sessions"] = {"turns": rng.randint(2, 4), "think_time_s": rng.choice([0.0, 0.2])}
    elif kind == "n":
        workload |= {"n": rng.randint(2, 4), "requests": rng.randint(2, 16)}
    elif kind == "trace":
        workload = conversations(rng, name)
    else:
        workload, engine["max_model_len"] = segments(rng, name), 2048
    if "trace" not in workload:
        workload = classes(rng, workload)
    return scenario(rng, workload, engine, latencies(rng), [*LIVE_ROUTERS, "round_robin", "prefix_affinity"])


def evicting(rng: Random, name: str) -> Document:
    """Requests that evict running ones for themselves, few seats, short ones behind long ones."""
    policies = [{"name": "srtf", "output_weight": 1}, {"name": "tiered", "ttft_slo_ms": {"premium": 40, "budget": 90}}]
    engine = engines(rng, [50, 120, 4000], policies)
    engine |= {"max_num_seqs": rng.choice([2, 3, 6]), "predictor": rng.choice(["exact", "noisy"])}
    outputs = values(rng.choice([1, 3, 20, 150, 250]) for _ in range(7))
    workload = traffic(rng, 100, 60, [10.0, 30.0]) | {"output_tokens": outputs}
    if chance(rng, 0.4):
        workload["prefix"] = {"groups": 2, "tokens": 48}
    if workload["arrival"]["process"] != "closed_loop":
        tiers = ["premium", "standard", "budget"]
        each = {**workload, "requests": max(workload["requests"] // 2, 1)}
        workload = {"classes": [{**each, "name": tier, "tenant": tier} for tier in tiers]}
    return scenario(rng, workload, engine, latencies(rng), ["round_robin", "least_outstanding"])


def windows(rng: Random, name: str) -> Document:
    """Windows and prompts around multiples of a block."""
    block_size = rng.choice([4, 8, 16])
    window = rng.choice([1, 2, 7, block_size, block_size + 1, 2 * block_size - 1, 40, 64, 130, 500])
    engine = engines(rng, [3000, 3000, 300, 120, 80], ["fcfs", "fcfs", *sorted(POLICIES)])
    engine |= {
        "model": windowed_model(window),
        "block_size": block_size,
        "max_num_batched_tokens": max(engine["max_num_seqs"] + 1, rng.choice([65, 100, 512])),
        "scheduler_reserve_full_isl": chance(rng, 0.5),
        "enable_prefix_caching": chance(rng, 0.4),
        "watermark": rng.choice([0.0, 0.1]),
    }
    workload = traffic(rng, 350, 150, [20.0, 200.0])
    if chance(rng, 0.3):  # few blocks
        engine |= {"num_gpu_blocks_override": rng.choice([40, 60]), "max_model_len": 300, "max_num_seqs": 31}
        engine |= {"max_num_batched_tokens": 65, "scheduler_reserve_full_isl": False, "watermark": 0.0}
        workload["input_tokens"] = lengths(rng, 40)
    if chance(rng, 0.4):
        near = [window, window + 1, window + block_size - 1, window + block_size, 3 * window + 2]
        workload["input_tokens"] = values(rng.choice(near) for _ in range(3))
    if chance(rng, 0.15):
        workload["prefix"] = {"groups": 2, "tokens": 40}
    return scenario(rng, workload, engine, latencies(rng), ["round_robin", "least_kv"])


def ranks(rng: Random, name: str) -> Document:
    """Ranks of a model with experts that step together."""
    engine = engines(rng, [66, 130, 3000], TAKEN)
    size = rng.choice([2, 2, 4])
    engine |= {"model": "qwen3-30b-a3b", "gpu": "h100-sxm", "data_parallel_size": size, "enable_expert_parallel": True}
    if engine["block_size"] == 8:  # as many tokens in blocks that the GPU of the profile takes
        engine |= {"block_size": 16, "num_gpu_blocks_override": engine["num_gpu_blocks_override"] // 2 + 1}
    workload = traffic(rng, 150, 80, [5.0, 20.0])
    if chance(rng, 0.4):  # few blocks, and a crowd
        engine |= {"num_gpu_blocks_override": 34, "block_size": 16, "max_model_len": 480, "max_num_seqs": 31}
        engine |= {"max_num_batched_tokens": rng.choice([64, 2048]), "scheduler_reserve_full_isl": False}
        workload |= {"input_tokens": lengths(rng, 60), "output_tokens": lengths(rng, 120)}
        workload["arrival"] = arrivals(rng, [100.0, 300.0])
    if chance(rng, 0.3):
        workload["prefix"] = {"groups": 2, "tokens": 40}
    elif workload["arrival"]["process"] != "closed_loop" and chance(rng, 0.3):
        workload["sessions"] = {"turns": 2, "think_time_s": 0.1}
    latency = rng.choice([latencies(rng), {"kind": "profile"}])
    found = scenario(rng, classes(rng, workload), engine, latency, sorted(ROUTERS))
    found["cluster"]["replicas"] = rng.randint(1, 2)
    return found


def drafts(rng: Random, name: str) -> Document:
    """Speculative decoding: few drafts and many; never, at times and always right."""
    engine = engines(rng, [130, 300, 3000], ["fcfs", "fcfs", "priority", "sjf", "hybrid"])
    method: Document = {"method": "ngram"}
    if chance(rng, 0.5):
        method = {"method": "draft_model", "draft_model": "llama-3.2-1b"}
    else:
        engine["async_scheduling"] = False
    method |= {"num_speculative_tokens": rng.randint(1, 5), "acceptance": rng.choice([0.0, 0.3, 0.8, 1.0])}
    engine |= {"model": "llama-3.1-70b", "gpu": "h100-sxm", "tensor_parallel_size": 4, "speculative": method}
    engine |= {
        "max_model_len": rng.choice([100, 450, 1024]),
        "max_num_batched_tokens": rng.choice([128, 512, 2048]),
        "block_size": 16,
        "max_num_seqs": rng.choice([4, 12, 31]),
    }
    workload = traffic(rng, rng.choice([90, 300]), 80, [5.0, 20.0])
    if chance(rng, 0.2):
        workload["prefix"] = {"groups": 2, "tokens": 40}
    return scenario(rng, classes(rng, workload), engine, latencies(rng), sorted(ROUTERS))


VARIANTS: list[Document] = [
    {"batching": "static"},
    {"batching": "static", "static_batch_wait_s": 0.3},
    {"preemption": "swap", "swap_space_gib": 1.0},
    {"kv": "contiguous"},
    {"pipeline_parallel_size": 2},
    {"pipeline_parallel_size": 3},
    {"long_prefill_token_threshold": 40},
    {"speculative": {"method": "ngram"}, "policy": "fcfs"},
    {"policy": "adaptive"},
    {"policy": "packed"},
    {"policy": SHARING[0]},
    {"policy": SHARING[1]},
]
"""Engines that are the reference's, whatever the stepping, or have a fast engine of their own."""


def variants(rng: Random, name: str) -> Document:
    """Baselines and variants."""
    engine = engines(rng, [70, 120, 3000], ["fcfs", *RANKED]) | rng.choice(VARIANTS)
    workload = traffic(rng, 150, 60, [5.0, 50.0])
    return scenario(rng, classes(rng, workload), engine, latencies(rng), sorted(ROUTERS))


def capped(rng: Random, name: str) -> Document:
    """Any other one whose clients have a few requests under way at most, and hear of ends a little late or at once."""
    make = rng.choice([usual, usual, bounds, tight, evicting, shared, windows, ranks, drafts, variants])
    found = make(rng, name)
    for each in (found["workload"], *found["workload"].get("classes", ())):
        if "arrival" in each and each["arrival"]["process"] != "closed_loop" and each.get("n", 1) == 1:
            each["arrival"] = {**each["arrival"], "max_concurrency": rng.choice([1, 2, 3, 5, 8, 13])}
    if chance(rng, 0.5):
        found["latency"] = {**found["latency"], "client_overhead_ms": rng.choice([1.0, 10.0, 20.0])}
    return found


def following(rng: Random, name: str) -> Document:
    """Requests that follow others, with room and without, whole or in chunks."""
    engine = engines(rng, [70, 200, 4000], TAKEN) | {"enable_prefix_caching": chance(rng, 0.8), "block_size": 16}
    found = scenario(rng, agents(rng, name), engine, latencies(rng), [*LIVE_ROUTERS, "round_robin"])
    if chance(rng, 0.3):
        found["workload"]["patience_s"] = rng.choice([0.05, 0.2])
    return found


Family = Callable[[Random, str], Document]
FAMILIES: dict[str, Family] = {
    each.__name__: each
    for each in (usual, bounds, tight, evicting, shared, windows, ranks, drafts, variants, capped, following)
}


# --- acts ----------------------------------------------------------------------------------------

KINDS = [What.CANCEL, What.CANCEL, What.CANCEL, What.CRASH, What.DRAIN, What.UNDRAIN, What.SLOW]


def some_acts(rng: Random, instants: Sequence[int], columns: dict[str, list[int]], num_replicas: int) -> list[Act]:
    """A few acts, most of them at or next to ``instants``; ``columns`` says which requests are there then."""
    acts = []
    last_ns = max(instants, default=1)
    for _ in range(rng.randint(1, 6)):
        at_ns = rng.randint(0, last_ns)
        if chance(rng, 0.7) and instants:
            at_ns = max(rng.choice(instants) + rng.choice([0, 0, -1, 1]), 0)
        what = rng.choice(KINDS)
        if what is What.CANCEL:
            spans = zip(columns["row"], columns["arrival_ns"], columns["end_ns"], strict=True)
            here = [row for row, start_ns, end_ns in spans if start_ns <= at_ns <= end_ns] or columns["row"]
            acts += [Act(at_ns, what, rng.choice(here)) for _ in range(rng.randint(1, 4))]
        else:
            acts.append(Act(at_ns, what, rng.randrange(num_replicas), rng.choice([0.5, 1.0, 1.7])))
    return acts
