"""One bursty workload on a live vLLM engine (CPU): its own scheduler against each policy, beside the simulator's word.

    python -m benchmarks.live_policies [--seed N] [--only srtf,tiered]

in an environment with vLLM (``make live-venv``). Time is counted in engine steps, so the figures depend on decisions
alone and are the same on every machine. Prints a Markdown table; exit code 1 if a policy changed a request's tokens.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.live_engine import PLUGIN, LiveEngine, LiveRequest, LiveRun

ENGINE: dict[str, Any] = {
    "block_size": 32,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 33,
}
"""Few seats, small steps, and too few KV blocks for eight long requests."""

POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {},
    "sjf": {},
    "srtf": {},
    "throughput": {},
    "hybrid": {"latency_weight": 0.5},
    "priority": {},
    "tiered": {"ttft_slo_ms": {"premium": 20_000.0, "standard": 80_000.0}, "age_promote_s": 120.0},
    "fair": {"weights": {"premium": 4.0, "standard": 2.0}},
    "deadline": {"ttft_slo_ms": 30_000.0, "e2el_slo_ms": 120_000.0},
    "adaptive": {"low_tokens": 32, "mid_tokens": 64, "high_tokens": 128},
}
"""Limits in ms of a simulated time in which a step takes a second."""

TIERS = ("premium", "standard", "budget")
BURSTS, REQUESTS_PER_BURST, STEPS_BETWEEN = 4, 16, 60


def draw_requests(seed: int) -> list[LiveRequest]:
    """Bursts of short and long requests of three tenants; a quarter of them make most of the work."""
    rng = random.Random(f"live_policies/{seed}")
    requests = []
    for position in range(BURSTS * REQUESTS_PER_BURST):
        is_long = rng.random() < 0.25
        prompt = rng.randint(120, 240) if is_long else rng.randint(8, 48)
        output = rng.randint(60, 140) if is_long else rng.randint(4, 20)
        tier = rng.choice(TIERS)
        requests.append(
            LiveRequest(
                request_id=f"r{position:03d}",
                arrival_step=1 + STEPS_BETWEEN * (position // REQUESTS_PER_BURST),
                prompt=tuple(rng.randrange(3, 512) for _ in range(prompt)),
                output_tokens=output,
                priority=TIERS.index(tier),
                hints={"tenant": tier, "expected_output_tokens": output},
            )
        )
    return requests


def simulated(
    requests: Sequence[LiveRequest], policy: str, params: dict[str, Any], engine: dict[str, Any] | None = None
) -> tuple[dict[str, float], int]:
    """What the simulator says of the same requests: E2E in steps by request id, and preemptions."""
    from sim import simulate

    rows = ["arrival_s,input_tokens,output_tokens,request_id,priority,tenant,expected_output_tokens"]
    rows += [
        f"{request.arrival_step},{len(request.prompt)},{request.output_tokens},"
        f"{request.request_id},{request.priority},{request.hints['tenant']},{request.output_tokens}"
        for request in requests
    ]
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "requests.csv"
        trace.write_text("\n".join(rows) + "\n")
        results = simulate(
            {
                "name": "live-policies",
                "workload": {"trace": {"path": str(trace), "format": "generic"}},
                "engine": {
                    **(ENGINE if engine is None else engine),
                    "model": "llama-2-7b",
                    "gpu": "a100-80gb-sxm",
                    "async_scheduling": False,  # vLLM's CPU engine never is
                    "policy": {"name": policy, **params},
                    "predictor": "exact",
                },
                "latency": {"kind": "constant", "step_s": 1.0},
            }
        )
    arrivals = {request.request_id: request.arrival_step for request in requests}
    ends = dict(zip(results.requests["request_id"], results.requests["finish_s"], strict=True))
    # A step that begins at instant n ends at n + 1.
    e2e = {request_id: ends[request_id] - arrival for request_id, arrival in arrivals.items()}
    return e2e, int(results.requests["num_preemptions"].sum())


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def p95(values: Sequence[float]) -> float:
    """95th percentile, linear between the two nearest values."""
    ordered = sorted(values)
    place = 0.95 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def table(rows: list[tuple[str, LiveRun, dict[str, float], int]], stock: LiveRun) -> str:
    """Markdown: a line per policy and metric."""
    lines = [
        "| policy | metric | stock vLLM (fcfs) | plugin | simulated | preemptions, plugin / simulated"
        " | requests that end at another step than simulated |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, live, predicted, preemptions in rows:
        differ = sum(live.e2e_steps[request_id] != predicted[request_id] for request_id in predicted)
        for metric, figure in (("mean E2E", mean), ("p95 E2E", p95)):
            figures = [figure(list(run.values())) for run in (stock.e2e_steps, live.e2e_steps, predicted)]
            cells = " | ".join(f"{value:.1f}" for value in figures)
            tail = f"{len(live.preempted)} / {preemptions} | {differ}" if figure is mean else "|"
            lines.append(f"| {f'`{name}`' if figure is mean else ''} | {metric} | {cells} | {tail} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 if any request's tokens differ from stock's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(POLICIES), help="policies, comma-separated")
    options = parser.parse_args(arguments)
    from policies.vllm_settings import Settings, build

    requests = draw_requests(options.seed)
    stock = LiveEngine(**ENGINE).run(requests)
    os.environ.setdefault("SIMRUN_POLICY", "fcfs")
    engine = LiveEngine(scheduler_cls=PLUGIN, **ENGINE)
    rows, changed = [], []
    for name in options.only.split(","):
        engine.use_policy(build(Settings(name, POLICIES[name], "exact", {})))
        live = engine.run(requests)
        rows.append((name, live, *simulated(requests, name, POLICIES[name])))
        changed += [f"{name}: {each}" for each in stock.tokens if live.tokens[each] != stock.tokens[each]]
    tokens = sum(len(each) for each in stock.tokens.values())
    print(
        f"{len(requests)} requests in {BURSTS} bursts, {tokens:,} output tokens, {stock.num_steps} steps under stock;"
        f" E2E in engine steps\n\n{table(rows, stock)}\n\n"
        f"Output tokens that differ from stock's: {len(changed)} requests."
    )
    for each in changed:
        print(each, file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
