"""Stand-ins for what policies see, and a one-page engine that obeys the policy contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from policies.base import EngineLimits, EngineState, Policy, Predictor
from policies.predictors import Exact

SECOND = 1_000_000_000


@dataclass(eq=False)
class View:
    """A request as policies see it. ``true_output`` is the tests' own."""

    request_id: str
    arrival_ns: int = 0
    priority: int = 0
    num_prompt_tokens: int = 1
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    max_tokens: int = 1000
    tenant: str = "default"
    tier: str = "default"
    class_name: str = "default"
    deadline_ns: int | None = None
    expected_output_tokens: int | None = None
    true_output: int = 1
    arrival_time: float = field(init=False)

    def __post_init__(self) -> None:
        self.arrival_time = self.arrival_ns / SECOND


def decoding(request_id: str, prompt: int, outputs: int, true_output: int, **others: object) -> View:
    """A request with its prompt and all outputs but the last computed."""
    view = View(request_id, num_prompt_tokens=prompt, true_output=true_output, **others)  # type: ignore[arg-type]
    view.num_output_tokens, view.num_computed_tokens = outputs, prompt + outputs - 1
    return view


def exact_for(*views: View) -> Predictor:
    """The exact predictor of these requests."""
    lengths = {view.request_id: view.true_output for view in views}
    return Exact(true_output_tokens=lengths.__getitem__)


def limits(
    *, seqs: int = 256, tokens: int = 2048, blocks: int = 1000, block_size: int = 16, chunked: bool = True
) -> EngineLimits:
    """Limits of an engine whose steps all take equally long."""
    return EngineLimits(tokens, seqs, block_size, blocks, chunked, max(1, tokens // seqs))


@dataclass
class TinyEngine:
    """Continuous batching with equal steps, chunked prefill, recompute preemption and KV blocks."""

    policy: Policy
    limits: EngineLimits
    step_ns: int = SECOND
    now_ns: int = 0
    running: list[View] = field(default_factory=list)
    waiting: list[View] = field(default_factory=list)
    ended_ns: dict[str, int] = field(default_factory=dict)
    evictions: list[str] = field(default_factory=list)
    kv_victims: list[str] = field(default_factory=list)
    watch: Callable[[TinyEngine], None] = lambda engine: None

    def __post_init__(self) -> None:
        self.policy.bind(self.limits)

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    @property
    def free_blocks(self) -> int:
        return self.limits.num_gpu_blocks - sum(self.blocks(view.num_computed_tokens) for view in self.running)

    def run(self, requests: list[View], max_steps: int = 10_000) -> int:
        """Run all requests to their end; the number of steps taken."""
        coming = sorted(requests, key=lambda view: view.arrival_ns)
        for step in range(max_steps):
            if not (coming or self.running or self.waiting):
                return step
            while coming and coming[0].arrival_ns <= self.now_ns:
                self.waiting.append(coming.pop(0))
                self.policy.on_arrival(self.waiting[-1], self.now_ns)
            self.step()
        raise TimeoutError(f"not done after {max_steps} steps")

    def step(self) -> None:
        rank = self.policy.rank
        self.waiting.sort(key=lambda view: (rank(view, self.now_ns), view.arrival_ns, view.request_id))
        if self.policy.preempts and self.running and self.waiting:
            state = EngineState(self.now_ns, self.free_blocks, len(self.running), len(self.waiting))
            for victim in self.policy.preempt(list(self.running), list(self.waiting), state):
                self.evict(next(view for view in self.running if view is victim))
                self.evictions.append(victim.request_id)
            self.waiting.sort(key=lambda view: (rank(view, self.now_ns), view.arrival_ns, view.request_id))
        budget, shortage = self.limits.max_num_batched_tokens, False
        scheduled: dict[View, int] = {}
        for view in list(self.running):
            if view not in self.running or budget == 0:
                continue
            tokens = min(budget, view.num_prompt_tokens + view.num_output_tokens - view.num_computed_tokens)
            while view in self.running and self.short_by(view, tokens) > self.free_blocks:
                victim = max(self.running, key=lambda other: (rank(other, self.now_ns), other.arrival_ns))
                budget += scheduled.pop(victim, 0)
                self.kv_victims.append(victim.request_id)
                self.evict(victim)
                shortage = True
            if view in self.running:
                scheduled[view] = tokens
                budget -= tokens
                view.num_computed_tokens += tokens
        while not shortage and budget > 0 and self.waiting and len(self.running) < self.limits.max_num_seqs:
            head = self.waiting[0]
            known = head.num_prompt_tokens + head.num_output_tokens
            if self.blocks(known) > self.free_blocks:
                break
            self.running.append(self.waiting.pop(0))
            scheduled[head] = head.num_computed_tokens = min(budget, known)
            budget -= scheduled[head]
        for view, tokens in scheduled.items():
            self.policy.on_scheduled(view, tokens)
        self.policy.on_step(sum(scheduled.values()), self.limits.max_num_batched_tokens, 1)
        self.watch(self)
        self.now_ns += self.step_ns
        for view in scheduled:
            if view.num_computed_tokens == view.num_prompt_tokens + view.num_output_tokens:
                view.num_output_tokens += 1
                if view.num_output_tokens == view.true_output:
                    self.running.remove(view)
                    self.ended_ns[view.request_id] = self.now_ns
                    self.policy.on_finished(view)

    def short_by(self, view: View, tokens: int) -> int:
        return self.blocks(view.num_computed_tokens + tokens) - self.blocks(view.num_computed_tokens)

    def evict(self, view: View) -> None:
        self.running.remove(view)
        view.num_computed_tokens = 0
        self.waiting.append(view)
