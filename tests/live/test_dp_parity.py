"""Ranks in lockstep decide as vLLM's own busy loops do: which request is in which step of the group."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
from dp_world import STEP_NS, Arriving, run_ranks
from traces import CaseRequest, CaseSettings

from sim.run import load, run

SEEDS = range(60)


@pytest.fixture(autouse=True)
def all_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks in one process ask each other through their world."""
    from vllm.config import ParallelConfig

    def sync(group: Any, has_unfinished: bool, pending_pause: bool) -> tuple[bool, bool]:
        world, rank = group
        return world.any_unfinished(rank, has_unfinished), False

    monkeypatch.setattr(ParallelConfig, "sync_dp_state", staticmethod(sync))
    monkeypatch.setattr("vllm.v1.engine.core.time.sleep", lambda seconds: None)


def draw(seed: int, size: int, settings: CaseSettings) -> list[Arriving]:
    """Bursts and single requests, with pauses in which ranks go on with dummies or fall asleep."""
    rng = random.Random(seed)
    at_ns, found = 0, []
    for index in range(rng.randint(2, 14)):
        at_ns += rng.choice([0, 0, 1, 2, 3, 5, 9, 30, 70, 90]) * STEP_NS // 4
        output = rng.randint(1, 12)
        request = CaseRequest(
            request_id=str(index),
            arrival_step=at_ns // STEP_NS,
            prompt_tokens=rng.randint(1, 2 * settings.max_num_batched_tokens),
            output_tokens=output,
            max_tokens=output + rng.choice([0, 0, 3]),
        )
        found.append(Arriving(at_ns, index % size, request))
    return found


def simulated(size: int, settings: CaseSettings, arrivals: list[Arriving]) -> list[dict[str, Any]]:
    """The decisions of the simulator's ranks."""
    classes = [
        {
            "name": f"c{each.request.request_id}",
            "requests": 1,
            "arrival": {"process": "burst", "at_s": each.at_ns / STEP_NS},
            "input_tokens": {"dist": "fixed", "value": each.request.prompt_tokens},
            "output_tokens": {"dist": "fixed", "value": each.request.output_tokens},
            "max_tokens": {"dist": "fixed", "value": each.request.max_tokens},
        }
        for each in arrivals
    ]
    scenario = {
        "name": "dp-parity",
        "workload": {"classes": classes},
        "latency": {"kind": "constant", "step_s": 1.0},
        "engine": {
            "model": "qwen3-30b-a3b",
            "gpu": "h100-sxm",
            "data_parallel_size": size,
            "enable_expert_parallel": True,
            "async_scheduling": settings.async_scheduling,
            "num_gpu_blocks_override": settings.num_gpu_blocks,
            "block_size": settings.block_size,
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "max_model_len": settings.max_model_len,
            "enable_prefix_caching": settings.enable_prefix_caching,
        },
    }
    stream = io.StringIO()
    run(load(scenario), decisions=stream)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
def test_ranks_step_as_vllms_busy_loops_do(size: int, async_scheduling: bool) -> None:
    """Instants of forming batches and what is in each, over random arrivals: idle ranks, waves, preemptions."""
    settings = CaseSettings(async_scheduling=async_scheduling, num_gpu_blocks=24, max_num_seqs=4, max_model_len=256)
    differences = []
    num_batches = 0
    for seed in SEEDS:
        arrivals = draw(seed, size, settings)
        real = run_ranks(size, settings, arrivals)
        lines = simulated(size, settings, arrivals)
        for rank in range(size):
            theirs = [(at / STEP_NS, plan) for at, who, plan in real if who == rank]
            ours = [(line["time_s"], line["scheduled"]) for line in lines if line["replica"] == rank]
            ours = [each for each in ours if each[1]]
            num_batches += len(theirs)
            if theirs != ours:
                place = next(i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1])
                differences.append(f"seed {seed}, rank {rank}, batch {place}: {theirs[place:][:2]} {ours[place:][:2]}")
    assert not differences, "\n".join(differences)
    assert num_batches > 500
