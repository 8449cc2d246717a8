"""What the plugin adds to vLLM's ``schedule()``: each live policy against stock, at 16, 256 and 1,024 requests.

    python -m benchmarks.plugin_overhead [--sizes 16,256] [--only srtf,fair] [--check]

in an environment with vLLM (``make live-venv``). Two engines take the same steps: vLLM's stock scheduler in priority
mode, given the ranks beforehand and off the clock, and the plugin. So both do the same work (checked at each step), and
the difference is what ranks, queue and feedback cost. No model runs: the worker's side is played, as in ``tests/live``.

N requests run and N wait, with seats for N: every step is about N decodes and a queue that finds no seat; now and then
one ends and the next is admitted. The rows "blocks short" have too few KV blocks as well, so that many steps evict.
Times are of the thread's CPU, so that others on the machine disturb little.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.base import Policy, StepLimits

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = "policies.vllm_plugin.PolicyScheduler"
BLOCK_SIZE, PROMPT_TOKENS, MEAN_OUTPUT = 16, 64, 128
WARM_UP, STEPS = 20, 200
LIMIT_SHARE, LIMIT_US = 0.10, 50.0
TIERS = ("premium", "standard", "budget")

POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {},
    "sjf": {},
    "srtf": {},
    "throughput": {},
    "hybrid": {},
    "priority": {},
    "tiered": {},
    "fair": {},
    "deadline": {"ttft_slo_ms": 500.0, "e2el_slo_ms": 20_000.0, "give_up_after_ms": 5_000.0},
    "adaptive": {},
}


@dataclass(frozen=True, slots=True)
class Case:
    """A load."""

    num_requests: int
    is_short_of_blocks: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.num_requests:,}{', blocks short' if self.is_short_of_blocks else ''}"


class FixedClock:
    """The same instant for both engines of a step."""

    def __init__(self) -> None:
        self.instant_ns = time.monotonic_ns()

    def now_ns(self) -> int:
        """The instant of the step."""
        return self.instant_ns

    def arrival_ns(self, arrival_time: float) -> int:
        """The instant of an arrival (s)."""
        return round(arrival_time * 1e9)


class Pair:
    """The plugin, and vLLM's own scheduler that is handed the same ranks; one worker for both."""

    def __init__(self, case: Case, policy: Policy) -> None:
        sys.path.insert(0, str(ROOT / "tests" / "live"))
        import real_scheduler  # type: ignore[import-not-found,unused-ignore]
        from traces import CaseSettings  # type: ignore[import-not-found,unused-ignore]

        self.num = case.num_requests
        blocks = self.num * (PROMPT_TOKENS + 2 * MEAN_OUTPUT) // BLOCK_SIZE + 2
        if case.is_short_of_blocks:
            blocks = self.num * (PROMPT_TOKENS + MEAN_OUTPUT // 4) // BLOCK_SIZE + 2
        settings = CaseSettings(
            policy="priority",
            block_size=BLOCK_SIZE,
            num_gpu_blocks=blocks,
            max_num_seqs=self.num,
            max_num_batched_tokens=max(2048, 4 * self.num),
            max_model_len=1024,
        )
        self.stock = real_scheduler.build_scheduler(settings)
        self.plugin = real_scheduler.build_scheduler(settings, PLUGIN)
        self.plugin.use_policy(policy)
        self.clock = self.plugin.clock = FixedClock()
        self.num_added = 0
        self.num_evicted = 0
        self.evicted: list[tuple[str, float]] = []
        """By the policy itself in this step: request and its rank then."""
        self.limits: StepLimits | None = None
        self.token_budget = settings.max_num_batched_tokens
        self._watch(policy)

    def step(self) -> tuple[int, int]:
        """One step with the queue filled up; ns that ``schedule()`` took in stock and in the plugin."""
        while len(self.plugin.requests) < 2 * self.num:
            self._add()
        self.clock.instant_ns = time.monotonic_ns()
        self._hand_over_ranks()
        begin = time.thread_time_ns()
        by_plugin = self.plugin.schedule()
        plugin_ns = time.thread_time_ns() - begin
        self._prepare_stock()
        begin = time.thread_time_ns()
        by_stock = self.stock.schedule()
        stock_ns = time.thread_time_ns() - begin
        if list(by_stock.num_scheduled_tokens.items()) != list(by_plugin.num_scheduled_tokens.items()):
            raise RuntimeError("the plugin and stock vLLM with the same ranks decide differently")
        for scheduler, output in ((self.plugin, by_plugin), (self.stock, by_stock)):
            _complete(scheduler, output)
        return stock_ns, plugin_ns

    def _add(self) -> None:
        from vllm.sampling_params import SamplingParams  # type: ignore[import-not-found,unused-ignore]
        from vllm.v1.request import Request  # type: ignore[import-not-found,unused-ignore]

        index = self.num_added
        self.num_added += 1
        output = MEAN_OUTPUT // 2 + (index * 37) % MEAN_OUTPUT
        tier = TIERS[index % 3]
        for scheduler in (self.plugin, self.stock):
            params = SamplingParams(
                max_tokens=output,
                ignore_eos=True,
                detokenize=False,
                extra_args={"tenant": tier, "expected_output_tokens": output},
            )
            scheduler.add_request(
                Request(
                    request_id=f"r{index}",
                    prompt_token_ids=[index % 50 + 10] * PROMPT_TOKENS,
                    sampling_params=params,
                    pooling_params=None,
                    arrival_time=self.clock.instant_ns / 1e9 + index * 1e-6,
                    priority=index % 3,
                )
            )

    def _hand_over_ranks(self) -> None:
        """Every request of stock gets its rank of now as its priority."""
        rank, theirs, now_ns = self.plugin.waiting.rank, self.plugin.requests, self.clock.instant_ns
        for request_id, request in self.stock.requests.items():
            request.priority = rank(theirs[request_id].view, now_ns)
        heapq.heapify(self.stock.waiting._heap)

    def _watch(self, policy: Policy) -> None:
        """Note what the policy does besides ranking: what it evicts (and their ranks then), and its caps."""
        plugin = self.plugin
        proactively, preempt, limits = plugin._preempt_proactively, plugin._preempt_request, policy.step_limits

        def preempt_and_note(request: Any, *args: Any, **kwargs: Any) -> None:
            preempt(request, *args, **kwargs)
            self.evicted.append((request.request_id, plugin.waiting.ask(request.view)))

        def evict(now_ns: int) -> None:
            plugin._preempt_request = preempt_and_note
            proactively(now_ns)
            plugin._preempt_request = preempt

        def limit(now_ns: int) -> StepLimits | None:
            self.limits = limits(now_ns)
            return self.limits

        if policy.preempts:
            plugin._preempt_proactively = evict
        if plugin._has_step_limits:
            policy.step_limits = limit  # type: ignore[method-assign]

    def _prepare_stock(self) -> None:
        """The policy's own evictions and its cap, which stock vLLM knows nothing of."""
        for request_id, rank in self.evicted:
            victim = self.stock.requests[request_id]
            victim.priority = rank
            self.stock.running.remove(victim)
            self.stock._preempt_request(victim, time.monotonic())
            self.stock.prev_step_scheduled_req_ids.discard(request_id)
        self.num_evicted += len(self.evicted)
        self.evicted.clear()
        if self.limits is not None:
            self.stock.max_num_scheduled_tokens = min(self.token_budget, self.limits.max_num_batched_tokens)
            self.stock.scheduler_config.enable_chunked_prefill = self.limits.enable_chunked_prefill


def _complete(scheduler: Any, output: Any) -> None:
    """The worker's side: a token for every request whose known tokens are all computed."""
    from vllm.v1.outputs import ModelRunnerOutput  # type: ignore[import-not-found,unused-ignore]

    ids, requests = list(output.num_scheduled_tokens), scheduler.requests
    scheduler.update_from_output(
        output,
        ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: row for row, request_id in enumerate(ids)},
            sampled_token_ids=[[] if requests[request_id].is_prefill_chunk else [7] for request_id in ids],
        ),
    )


def policy_of(name: str) -> Policy:
    """A policy as the plugin builds it."""
    from policies.vllm_settings import Settings, build

    return build(Settings(name, POLICIES[name], "exact", {}))


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one policy under one load."""

    stock_us: float
    plugin_us: float
    num_evicted: int
    """By the policy itself, over the measured steps."""

    @property
    def added_us(self) -> float:
        """What the plugin adds to a step."""
        return self.plugin_us - self.stock_us

    @property
    def limit_us(self) -> float:
        """What it may add."""
        return max(LIMIT_US, LIMIT_SHARE * self.stock_us)


def measure(case: Case, name: str, num_steps: int) -> Figures:
    """Mean CPU time of ``schedule()`` over ``num_steps`` steps."""
    pair = Pair(case, policy_of(name))
    for _ in range(WARM_UP):
        pair.step()
    pair.num_evicted = 0
    gc.collect()
    gc.disable()  # a collection would hit the one that is on
    try:
        times = [pair.step() for _ in range(num_steps)]
    finally:
        gc.enable()
    stock_us, plugin_us = (statistics.fmean(column) / 1000 for column in zip(*times, strict=True))
    return Figures(stock_us, plugin_us, pair.num_evicted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a Markdown table; with ``--check`` 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sizes", default="16,256,1024")
    parser.add_argument("--only", default=",".join(POLICIES))
    parser.add_argument("--steps", type=int, default=STEPS, help="measured steps of each")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a policy adds more than it may")
    options = parser.parse_args(arguments)
    for name, value in {"VLLM_LOGGING_LEVEL": "CRITICAL", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("SIMRUN_POLICY", "fcfs")
    names = options.only.split(",")
    sizes = [int(size) for size in options.sizes.split(",")]
    print(
        "| policy | requests | stock, us | with the plugin, us | added, us | may add, us |\n|---|---|---|---|---|---|"
    )
    missed = 0
    for case in [Case(size, short) for short in (False, True) for size in sizes]:
        for name in names:
            figures = measure(case, name, options.steps)
            is_missed = figures.added_us > figures.limit_us
            missed += is_missed
            cells = f"{figures.stock_us:,.0f} | {figures.plugin_us:,.0f} | {figures.added_us:+,.0f}"
            print(f"| `{name}` | {case.name} | {cells}{' (missed)' if is_missed else ''} | {figures.limit_us:,.0f} |")
            sys.stdout.flush()
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
