"""The workloads of ``benchmarks.speed`` and what each has to reach."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The standard library only, see ``speed``.

AZURE = "AzureLLMInferenceTrace_conv.csv.gz"
MOONCAKE = "mooncake_fast25_conversation_trace.jsonl.gz"
TRACE_LENGTHS = {AZURE: 19_366, MOONCAKE: 12_031}
"""Requests in each trace, by file name."""
GROWTH_RATE_PER_REPLICA = 12.5
"""Requests per second and replica of the rows that ``--growth`` repeats with more requests and more replicas."""

Scenario = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A scenario and what it has to reach."""

    name: str
    what: str
    scenario: Scenario
    least_rate: float
    """Requests per CPU-second on the reference machine."""
    most_bytes: float | None = None
    """Peak resident memory."""
    trace: str | None = None
    """File name of the trace that the scenario replays."""
    is_fixed_size: bool = False
    """Whether ``--scale`` leaves its number of requests as it is."""

    @property
    def family(self) -> str:
        """What ``--only`` calls it: the first word of its name."""
        return self.name.split()[0]


def _fixed(tokens: int) -> Scenario:
    return {"dist": "fixed", "value": tokens}


def _lognormal(mean: int, cv: float = 1.0, **more: Any) -> Scenario:
    return {"dist": "lognormal", "mean": mean, "cv": cv, **more}


SIZES: Scenario = {"gpu_memory_utilization": 0.9, "max_num_seqs": 256, "max_num_batched_tokens": 2048}
"""The same on every GPU and for every version of vLLM, so that rates stay comparable."""


def _scenario(requests: int, rate: float, lengths: tuple[Scenario, Scenario], replicas: int, **engine: Any) -> Scenario:
    return {
        "workload": {
            "requests": requests,
            "arrival": {"process": "poisson", "rate": rate},
            "input_tokens": lengths[0],
            "output_tokens": lengths[1],
        },
        "cluster": {"replicas": replicas, "router": "round_robin"},
        "engine": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", **SIZES, "max_model_len": 4096, **engine},
    }


def _on_h100(
    requests: int, rate: float, lengths: tuple[Scenario, Scenario], replicas: int, router: str, **engine: Any
) -> Scenario:
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm", **SIZES, "max_model_len": 16_384, **engine}
    scenario = _scenario(requests, rate, lengths, replicas, **engine)
    scenario["cluster"]["router"] = router
    return scenario


def _replay(path_format: str, replicas: int, router: str, engine: Scenario, rate_scale: float = 1.0) -> Scenario:
    trace = {"path": None, "format": path_format, "rate_scale": rate_scale}
    return {
        "workload": {"trace": trace},
        "cluster": {"replicas": replicas, "router": router},
        "engine": engine,
    }


def workloads() -> list[Workload]:
    """All of them, in order. The path of a trace is left open."""
    return [*_one_model_known_beforehand(), *_routed(), *_replays(), *_variants(), _short_run()]


def _one_model_known_beforehand() -> list[Workload]:
    """A to F: arrivals dealt out before the run, or policies under pressure."""
    short = _fixed(200), _fixed(150)
    azure = {
        **{"model": "llama-3.1-8b", "gpu": "a100-80gb-sxm", **SIZES, "max_model_len": 16_384},
        **{"num_gpu_blocks_override": 6_000, "policy": "srtf"},
    }
    # 100,000 requests within ten seconds: batches full, hundreds waiting, preemption.
    full = {
        policy: _scenario(100_000, 10_000.0, short, 100, num_gpu_blocks_override=2_000, policy=policy)
        for policy in ("fcfs", "hybrid")
    }
    light = _scenario(100_000, 4.0, (_fixed(512), _fixed(128)), 1)
    spread = _scenario(100_000, 3_000.0, (_lognormal(200), _lognormal(150)), 100)
    conversations = _replay("azure", 4, "round_robin", azure, rate_scale=4.0)
    return [
        Workload("A", "1 replica, 512 in / 128 out, 4/s", light, 20_000),
        Workload("B", "100 replicas, 200/150, 167/s", _scenario(100_000, 167.0, short, 100), 20_000),
        Workload("C", "as B, lognormal lengths, 3,000/s", spread, 12_000),
        Workload("D", "100 replicas, 200/150, 1,000/s", _scenario(1_000_000, 1_000.0, short, 100), 20_000, 2e9),
        Workload("E", "Azure conversations at 4x, 4 replicas, srtf", conversations, 8_000, trace=AZURE),
        Workload("F fcfs", "B within 10 s, 2,000 KV blocks", full["fcfs"], 8_000),
        Workload("F hybrid", "B within 10 s, 2,000 KV blocks", full["hybrid"], 8_000),
    ]


def least_outstanding(requests: int, replicas: int) -> Scenario:
    """Chats of 800 in and 200 out, each sent to the replica with the fewest requests."""
    lengths = _lognormal(800), _lognormal(200)
    return _on_h100(requests, GROWTH_RATE_PER_REPLICA * replicas, lengths, replicas, "least_outstanding")


def prefix_affinity(requests: int, replicas: int) -> Scenario:
    """Prompts of 1,500 tokens that open with one of 200 texts of 1,000 tokens, sent where that text is."""
    lengths = _lognormal(1_500, 0.5), _lognormal(200)
    scenario = _on_h100(requests, GROWTH_RATE_PER_REPLICA * replicas, lengths, replicas, "prefix_affinity")
    scenario["workload"]["prefix"] = {"groups": 200, "tokens": 1_000}
    return scenario


def _routed() -> list[Workload]:
    """A router that reads load, shared content, conversations, tenants."""
    chat = _lognormal(800), _lognormal(200)
    talk = _on_h100(100_000, 33.0, (_lognormal(300), _lognormal(150)), 16, "sticky_session")
    talk["workload"]["sessions"] = {"turns": 6, "think_time_s": 5}
    tenants = {}
    for policy in ("fair", "tiered"):
        tenants[policy] = _on_h100(50_000, 60.0, chat, 4, "least_outstanding", policy=policy)
        tenants[policy]["workload"]["classes"] = [
            {"name": name, "tenant": name, "share": share}
            for name, share in (("premium", 1), ("standard", 2), ("budget", 1))
        ]
    three = "4 replicas, 60/s, 800/200, 3 tenants"
    return [
        Workload("least_outstanding", "16 replicas, 200/s, 800/200", least_outstanding(100_000, 16), 12_000),
        Workload("prefix_affinity", "the same, 1,500/200, 200 prefixes of 1,000", prefix_affinity(100_000, 16), 10_000),
        Workload("conversations", "16 replicas, 6 turns, 300/150, sticky_session", talk, 8_000),
        Workload("fair", three, tenants["fair"], 8_000),
        Workload("tiered", three, tenants["tiered"], 8_000),
    ]


def _replays() -> list[Workload]:
    """Mooncake's hour: long prompts whose content comes in segments of 512 tokens."""
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm", **SIZES, "max_model_len": 131_072}
    return [
        Workload(
            f"mooncake {router}",
            "its conversation trace, 8 replicas",
            _replay("mooncake", 8, router, engine),
            4_000,
            trace=MOONCAKE,
        )
        for router in ("prefix_affinity", "round_robin")
    ]


def _variants() -> list[Workload]:
    """Engines that are not the plain one: layers of several kinds, a sliding window, ranks in lockstep, drafts."""
    chat = _lognormal(800), _lognormal(200)
    window = _on_h100(
        *(8_000, 3.0, (_lognormal(6_000, max=16_000), _lognormal(200)), 1, "round_robin"),
        **{"model": "mistral-7b", "max_model_len": 32_768},
    )
    lockstep = _on_h100(
        *(15_000, 30.0, chat, 1, "vllm_dp"),
        **{"model": "qwen3-30b-a3b", "data_parallel_size": 4, "enable_expert_parallel": True},
    )
    drafts = _on_h100(15_000, 10.0, chat, 1, "round_robin", model="llama-3.1-70b", tensor_parallel_size=4)
    drafts["engine"]["speculative"] = {
        **{"method": "draft_model", "draft_model": "llama-3.2-1b"},
        **{"num_speculative_tokens": 4, "acceptance": 0.8},
    }
    groups = _on_h100(15_000, 30.0, chat, 4, "round_robin", model="gpt-oss-120b")
    return [
        Workload("groups", "gpt-oss-120b, 4 replicas, 30/s, 800/200", groups, 2_000),
        Workload("window", "mistral-7b, window of 4,096, 6,000/200, 3/s", window, 2_000),
        Workload("lockstep", "qwen3-30b-a3b, 4 ranks, 30/s, 800/200", lockstep, 3_000),
        Workload("drafts", "llama-3.1-70b TP4 with a 1B's drafts, 10/s, 800/200", drafts, 3_000),
    ]


def _short_run() -> Workload:
    scenario = _on_h100(300, 5.0, (_lognormal(800), _lognormal(200)), 1, "round_robin")
    return Workload("short", "300 requests within 0.45 CPU-s", scenario, 300 / 0.45, is_fixed_size=True)


def scenario_of(workload: Workload, scale: float, trace: str | None, *, all_outputs: bool = False) -> Scenario:
    """The scenario to run: ``scale`` times the requests at the same rate; ``trace`` is the path of its trace."""
    scenario = deepcopy(workload.scenario)
    scenario["name"] = workload.name
    scenario["outputs"] = {"report": all_outputs, "trace": all_outputs}
    traffic = scenario["workload"]
    if workload.trace is not None:
        traffic["trace"]["path"] = None if trace is None else str(Path(trace).resolve())
        if scale != 1:
            traffic["trace"]["limit"] = max(1, round(scale * TRACE_LENGTHS[workload.trace]))
    elif not workload.is_fixed_size:
        traffic["requests"] = max(1, round(scale * traffic["requests"]))
    return scenario


def one_request(scenario: Scenario) -> Scenario:
    """``scenario`` with a single request: what starting it costs."""
    found = deepcopy(scenario)
    traffic = found["workload"]
    if "trace" in traffic:
        traffic["trace"]["limit"] = 1
    else:
        traffic["requests"] = 1
    return found
