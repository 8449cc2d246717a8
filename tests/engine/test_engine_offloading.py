"""KV offloading: what host memory keeps, when transfers begin and end, and what a request gains by them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from engine_runs import Run, simulate

import sim
from sim.cluster.acts import Act, What
from sim.cluster.simulate import simulate_cluster
from sim.engine.variants.host_tier import HostTier
from sim.latency.host_link import HostLink, default_bytes_per_s
from sim.run import load

BLOCK_BYTES = 16 * 2 * 32 * 32 * 128 * 2
"""Of llama-2-7b: 16 tokens, keys and values, 32 layers, 32 heads of 128, 2 bytes."""


def test_blocks_used_longest_ago_make_room_and_ends_of_prompts_first() -> None:
    tier = HostTier(4)
    assert tier.reserve([1, 2, 3]) == [1, 2, 3]
    assert [tier.is_readable(key) for key in (1, 4)] == [False, None]
    tier.written([1, 2, 3])
    tier.use([1, 2, 3])
    assert tier.reserve([4, 5]) == [4, 5], "3 is the end of a prompt, and went first"
    assert [tier.is_readable(key) for key in (1, 2, 3, 4)] == [True, True, None, False]


def test_what_is_read_or_written_or_asked_for_stays() -> None:
    tier = HostTier(3)
    tier.reserve([1, 2, 3])
    assert tier.reserve([4]) is None, "all are being written"
    tier.written([1, 2, 3])
    tier.pin([1])
    assert tier.reserve([2, 4]) == [4]
    assert [tier.is_readable(key) for key in (1, 2, 3, 4)] == [True, True, None, False]
    tier.written([4])
    assert tier.reserve([2, 4, 5]) is None, "1 is being read, and 2 and 4 are asked for"
    tier.unpin([1])
    assert tier.reserve([2, 4, 5]) == [5]
    assert tier.is_readable(1) is None
    assert len(tier) == 3


def test_a_link_moves_the_blocks_of_each_gpu_at_its_own_rate() -> None:
    link = HostLink(10, 1_000, 4, load_bytes_per_s=2e6, store_bytes_per_s=1e6)
    assert (link.ns(3, is_load=True), link.ns(3, is_load=False)) == (1_500_000, 3_000_000)
    assert link.bytes_of(3) == 12_000
    assert (default_bytes_per_s(64e9), default_bytes_per_s(32e9)) == (32e9, 0.7 * 32e9)


def one_comes_back(load_s: float, **engine: Any) -> Run:
    """A prompt of 160 shared tokens and 10 of its own is evicted by one of 200, and asked again at 20 s. Its ten blocks
    are loaded in ``load_s``."""
    shared = {"groups": 1, "tokens": 160}

    def arrives(at_s: float, tokens: int, prefix: dict[str, int] | None = None) -> dict[str, Any]:
        lengths = {"input_tokens": {"dist": "fixed", "value": tokens}, "output_tokens": {"dist": "fixed", "value": 1}}
        more = {} if prefix is None else {"prefix": prefix}
        return {"name": f"at{at_s:g}", "requests": 1, "arrival": {"process": "burst", "at_s": at_s}, **lengths, **more}

    settings = {
        "num_gpu_blocks_override": 14,
        "max_model_len": 205,
        "async_scheduling": False,
        "enable_prefix_caching": True,
        "kv_offloading_size": 1.0,
        **engine,
    }
    return simulate(
        {
            "prefix": shared,
            "classes": [arrives(0, 170), arrives(10, 200, {"groups": 1, "tokens": 1}), arrives(20, 170)],
        },
        latency={"kind": "constant", "step_s": 1.0, "kv_load_gb_s": 10 * BLOCK_BYTES / load_s / 1e9},
        **settings,
    )


def test_an_evicted_prompt_is_loaded_and_waits_for_that() -> None:
    run = one_comes_back(2.5)
    late = [(at, step) for at, step in run.plan if at >= 20]
    # The load begins at 20 s and ends at 22.5; the engine looks again every step, and learns of it at 23 s.
    assert [at for at, step in late if not step][:3] == [20.0, 21.0, 22.0]
    assert [(at, list(step.values())) for at, step in late if step] == [(23.0, [10])]
    assert run.seconds("first_token_ns")[-1] == 24.0
    section = run.results.summary["kv"]["offloading"]
    assert (section["gpu_hits"], section["host_hits"]) == (0, 160)
    assert section["loads"]["bytes"] == 10 * BLOCK_BYTES
    assert section["loads"]["mean_transfer_ms"] == pytest.approx(2500)
    assert section["stores"]["bytes"] == (10 + 12) * BLOCK_BYTES, "whole blocks of 170 and 200 tokens, once each"
    assert run.results.requests["num_host_cached_tokens"].tolist() == [0, 0, 160]


def test_without_offloading_it_is_computed_again() -> None:
    run = one_comes_back(2.5, kv_offloading_size=None)
    assert [(at, list(step.values())) for at, step in run.plan if at >= 20] == [(20.0, [170])]
    assert "offloading" not in run.results.summary["kv"]
    assert "num_host_cached_tokens" not in run.results.requests


def test_a_tier_of_five_blocks_keeps_no_whole_prompt() -> None:
    run = one_comes_back(2.5, kv_offloading_size=5 * BLOCK_BYTES / 2**30)
    assert run.results.summary["kv"]["offloading"]["host_hits"] == 0
    assert run.results.summary["kv"]["offloading"]["stores"]["bytes"] == 0, "ten blocks at once do not fit"


def document(seed: int, **engine: Any) -> dict[str, Any]:
    """Many requests on a small GPU that share prompts, over a slow link; some of their clients leave."""
    rng = random.Random(seed)
    return {
        "name": "offloading",
        "seed": seed,
        "workload": {
            "requests": 80,
            "arrival": {"process": "poisson", "rate": rng.choice([2, 8, 30])},
            "prefix": {"groups": 6, "tokens": rng.choice([150, 400])},
            "input_tokens": {"dist": "uniform", "low": 100, "high": 700},
            "output_tokens": {"dist": "uniform", "low": 1, "high": 60},
            "patience_s": rng.choice([2, 10]),
        },
        "engine": {
            "model": "llama-2-7b",
            "gpu": "a100-80gb-sxm",
            "num_gpu_blocks_override": rng.choice([60, 120]),
            "max_model_len": 800,
            "async_scheduling": rng.random() < 0.5,
            "policy": rng.choice(["fcfs", "priority"]),
            "kv_offloading_size": rng.choice([0.5, 4]),
            **engine,
        },
        "cluster": {"replicas": 2},
        "latency": {"kind": "roofline", "kv_load_gb_s": rng.choice([0.5, 5]), "kv_store_gb_s": rng.choice([0.5, 5])},
    }


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_when_clients_leave_and_replicas_crash(seed: int) -> None:
    rng = random.Random(seed)
    acts = [Act(round(rng.uniform(0, 10) * 1e9), What.CRASH, rng.randrange(2)) for _ in range(seed % 3)]
    record = simulate_cluster(load(document(seed)), acts=sorted(acts, key=lambda each: each.at_ns))
    assert len(record.requests["row"]) == 80
    counts = record.offloading
    assert counts is not None
    assert counts.stores.num_bytes % BLOCK_BYTES == counts.loads.num_bytes % BLOCK_BYTES == 0
    assert counts.stores.num_bytes > 0


def test_hits_in_host_memory_happen_and_stepping_makes_no_difference() -> None:
    fast, reference = (sim.simulate(document(7, stepping=stepping)) for stepping in ("fast", "reference"))
    assert fast.summary["kv"]["offloading"]["host_hits"] > 0
    assert fast.summary["kv"] == reference.summary["kv"]
    assert fast.summary["mean_e2el_ms"] == reference.summary["mean_e2el_ms"]
    assert [note for note in fast.summary["run"]["notes"] if "one by one" in note] == []


def test_a_faster_link_gives_first_tokens_sooner() -> None:
    slow, quick = (one_comes_back(load_s).seconds("first_token_ns")[-1] for load_s in (7.2, 0.4))
    assert (slow, quick) == (29.0, 22.0)
