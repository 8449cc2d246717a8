"""A live vLLM engine on CPU, driven step by step in this process; for ``benchmarks.live_policies`` and ``tests/live``.

The model is the tiny Llama of ``tests/live/tiny_llama.py`` with made-up weights: what it says means nothing, but it
says the same for the same prompt, whatever runs beside it.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.base import Policy

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = "policies.vllm_plugin.PolicyScheduler"
NS_PER_STEP = 1_000_000_000
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
"""Set before vllm is imported. One process, to reach the scheduler; one thread, or CPU steps take long."""


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """One request, by the step at which it arrives."""

    request_id: str
    arrival_step: int
    prompt: tuple[int, ...]
    output_tokens: int
    priority: int = 0
    hints: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class LiveRun:
    """What became of the requests of one run, by request id."""

    e2e_steps: dict[str, int] = field(default_factory=dict)
    """Steps from arrival to the last token, both counted."""
    first_token_step: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    admitted: list[str] = field(default_factory=list)
    """In the order of being scheduled for the first time."""
    preempted: list[str] = field(default_factory=list)
    """In the order of preemption."""
    num_steps: int = 0


class StepClock:
    """The plugin's clock, by steps of a second."""

    def __init__(self) -> None:
        self.instant_ns = 0

    def now_ns(self) -> int:
        """The present step's instant."""
        return self.instant_ns

    def arrival_ns(self, arrival_time: float) -> int:
        """The instant of an arrival (s)."""
        return round(arrival_time * 1e9)


class LiveEngine:
    """vLLM's engine, with its own scheduler or with the plugin."""

    def __init__(self, *, scheduler_cls: str | None = None, **engine: Any) -> None:
        """``engine``: more arguments of ``vllm.LLM``. With the plugin, ``SIMRUN_POLICY`` is read as in a server."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

        if scheduler_cls is not None:
            engine = {"scheduling_policy": "priority", "scheduler_cls": scheduler_cls, **engine}
        self._folder = tempfile.TemporaryDirectory(prefix="tiny_llama_")
        _write_model(Path(self._folder.name))
        llm = LLM(
            model=self._folder.name,
            skip_tokenizer_init=True,
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            seed=0,
            **engine,
        )
        self.llm = llm
        self.engine = llm.llm_engine
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.clock = StepClock()
        if scheduler_cls is not None:
            self.scheduler.clock = self.clock

    def use_policy(self, policy: Policy) -> None:
        """Run by ``policy`` from here on; the engine must be idle."""
        self.scheduler.use_policy(policy)

    def run(self, requests: Sequence[LiveRequest]) -> LiveRun:
        """Run ``requests`` to their ends; where nothing is left to do, time jumps to the next arrival."""
        from vllm import SamplingParams

        run = LiveRun()
        self.scheduler.reset_prefix_cache()
        original = self.scheduler._preempt_request
        originally = self.scheduler.schedule
        own_id: dict[str, str] = {}

        def preempt(request: Any, *args: Any, **kwargs: Any) -> None:
            run.preempted.append(own_id[request.request_id])
            original(request, *args, **kwargs)

        def schedule(*args: Any, **kwargs: Any) -> Any:
            output = originally(*args, **kwargs)
            run.admitted += [own_id[data.req_id] for data in output.scheduled_new_reqs]
            return output

        self.scheduler._preempt_request, self.scheduler.schedule = preempt, schedule
        try:
            pending = sorted(requests, key=lambda request: request.arrival_step)
            arrived: dict[str, int] = {}
            step = next_request = 0
            while next_request < len(pending) or self.engine.has_unfinished_requests():
                if not self.engine.has_unfinished_requests():
                    step = max(step, pending[next_request].arrival_step)
                while next_request < len(pending) and pending[next_request].arrival_step <= step:
                    request = pending[next_request]
                    self.clock.instant_ns = step * NS_PER_STEP
                    inner_id = self.engine.add_request(
                        request.request_id,
                        {"prompt_token_ids": list(request.prompt)},
                        SamplingParams(
                            temperature=0.0,
                            max_tokens=request.output_tokens,
                            ignore_eos=True,
                            detokenize=False,
                            extra_args=dict(request.hints),
                        ),
                        arrival_time=float(step),
                        priority=request.priority,
                    )
                    own_id[inner_id] = request.request_id
                    arrived[request.request_id] = step
                    next_request += 1
                self.clock.instant_ns = step * NS_PER_STEP
                for output in self.engine.step():
                    run.first_token_step.setdefault(output.request_id, step)
                    if output.finished:
                        run.e2e_steps[output.request_id] = step - arrived[output.request_id] + 1
                        run.tokens[output.request_id] = tuple(output.outputs[0].token_ids)
                step += 1
                run.num_steps += 1
        finally:
            self.scheduler._preempt_request, self.scheduler.schedule = original, originally
        return run


def _write_model(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("tiny_llama", ROOT / "tests" / "live" / "tiny_llama.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("tests/live/tiny_llama.py: the benchmark needs the repository it belongs to")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_tiny_llama(folder)
