"""vLLM's own data-parallel busy loops, several ranks in one process and in simulated time.

What runs is ``DPEngineCoreProc.run_busy_loop`` with vLLM's scheduler, one thread for each rank and one of them at a
time. Played here are the accelerators (a step of the group takes a second and begins once every rank has launched its
part), the all-reduce between ranks, and the way in: requests, and the message that wakes the other ranks, take no time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from real_scheduler import RealScheduler
from traces import Case, CaseRequest, CaseSettings

STEP_NS = 1_000_000_000
END_OF_WORLD_S = 10_000


@dataclass(frozen=True, slots=True)
class Arriving:
    """A request, when and where it arrives."""

    at_ns: int
    rank: int
    request: CaseRequest


@dataclass(slots=True)
class World:
    """Simulated time, and whose turn it is."""

    size: int
    depth: int
    arrivals: Sequence[Arriving]
    now_ns: int = 0
    launched: list[int] = field(default_factory=list)
    """Steps that each rank has launched."""
    ends_ns: list[int] = field(default_factory=list)
    """Ends of the group's steps."""
    votes: dict[tuple[int, int], int] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    scheduled: list[tuple[int, int, dict[str, int]]] = field(default_factory=list)
    """(instant, rank, tokens) of every batch that is not empty."""
    engines: list[Any] = field(default_factory=list)
    _ready: dict[int, Callable[[], bool]] = field(default_factory=dict)
    _turns: list[threading.Semaphore] = field(default_factory=list)
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _is_over: bool = False
    failures: list[BaseException] = field(default_factory=list)

    def wait(self, rank: int, ready: Callable[[], bool]) -> None:
        """The thread of ``rank`` stops here until ``ready``, and it is its turn."""
        self._ready[rank] = ready
        self._back.release()
        self._turns[rank].acquire()
        if self._is_over:
            raise SystemExit

    def run(self) -> None:
        """All ranks, until nothing happens any more."""
        self.launched, self.asked = [0] * self.size, [0] * self.size
        self._turns = [threading.Semaphore(0) for _ in range(self.size)]
        threads = [threading.Thread(target=self._live, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
            self._back.acquire()
        while not self.failures:
            rank = next((rank for rank in range(self.size) if rank in self._ready and self._ready[rank]()), None)
            if rank is None:
                later = [at for at in (*self.ends_ns, *(each.at_ns for each in self.arrivals)) if at > self.now_ns]
                if not later or self.now_ns > END_OF_WORLD_S * STEP_NS:
                    break
                self.now_ns = min(later)
                continue
            self._turns[rank].release()
            self._back.acquire()
        self._is_over = True
        for rank, thread in enumerate(threads):
            self._turns[rank].release()
            thread.join(timeout=10)
        if self.failures:
            raise self.failures[0]

    def _live(self, rank: int) -> None:
        try:
            self.wait(rank, lambda: True)
            self.engines[rank].run_busy_loop()
        except SystemExit:
            pass
        except BaseException as error:
            self.failures.append(error)
        self._ready.pop(rank, None)
        self._back.release()

    def launch(self, rank: int) -> int:
        """A rank's part of a step goes to its accelerator; the end of the step. Workers agree on padding first, so that
        none launches alone, and prepare a step once the one ``depth`` before it has ended."""
        number = self.launched[rank]
        if number >= self.depth:
            self.wait(rank, lambda: self.now_ns >= self.ends_ns[number - self.depth])
        self.launched[rank] += 1
        self.wait(rank, lambda: min(self.launched) > number)
        if len(self.ends_ns) == number:
            self.ends_ns.append(max(self.now_ns, self.ends_ns[-1] if self.ends_ns else 0) + STEP_NS)
        return self.ends_ns[number]

    def any_unfinished(self, rank: int, has_unfinished: bool) -> bool:
        """The all-reduce between ranks."""
        number = self.asked[rank]
        self.votes[number, rank] = int(has_unfinished)
        self.asked[rank] += 1
        self.wait(rank, lambda: min(self.asked) > number)
        return any(self.votes[number, each] for each in range(self.size))


class Executor:
    """The worker of one rank."""

    is_sleeping = False

    def __init__(self, world: World, rank: int, real: RealScheduler) -> None:
        self.world = world
        self.rank = rank
        self.real = real
        self._last: Any = None

    def execute_model(self, output: Any, non_block: bool = False) -> Any:
        """Launch a batch; its result is there when the step has ended."""
        from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

        if not output.total_num_scheduled_tokens:
            self._last = SimpleNamespace(result=lambda: EMPTY_MODEL_RUNNER_OUTPUT)
            return self._last
        samples = frozenset(
            name for name in output.num_scheduled_tokens if not self.real.scheduler.requests[name].is_prefill_chunk
        )
        self.world.scheduled.append((self.world.now_ns, self.rank, dict(output.num_scheduled_tokens)))
        end_ns = self.world.launch(self.rank)
        self._last = SimpleNamespace(result=lambda: self._result(output, samples, end_ns))
        return self._last

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> Any:
        """The same result."""
        return self._last

    def execute_dummy_batch(self) -> None:
        """Launch a dummy batch."""
        self.world.launch(self.rank)

    def _result(self, output: Any, samples: frozenset[str], end_ns: int) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        self.world.wait(self.rank, lambda: self.world.now_ns >= end_ns)
        ids = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: row for row, name in enumerate(ids)},
            sampled_token_ids=[[self.real._next_token(name)] if name in samples else [] for name in ids],
        )


def _engine_class() -> type[Any]:
    from vllm.v1.engine.core import DPEngineCoreProc

    class Engine(DPEngineCoreProc):  # type: ignore[misc]
        """A rank of a ``World``."""

        def __init__(self, world: World, rank: int, settings: CaseSettings) -> None:
            from vllm.v1.engine import core

            self.world, self.dp_rank, self.engine_index = world, rank, rank
            self.real = RealScheduler(Case("dp", 0, settings, ()))
            self.scheduler = self.real.scheduler
            self.model_executor = Executor(world, rank, self.real)
            self.batch_queue_size = settings.depth
            self.batch_queue = core.deque(maxlen=settings.depth) if settings.depth > 1 else None
            self.step_fn = self.step if self.batch_queue is None else self.step_with_batch_queue
            self.vllm_config = self.scheduler.vllm_config
            self.dp_group = (world, rank)
            self.dp_sync_interval = self.vllm_config.parallel_config.dp_sync_interval
            self.shutdown_state = core.EngineShutdownState.RUNNING
            self.step_counter = self.current_wave = self.prefill_schedule_interval = 0
            self.engines_running = self.pending_pause = self.ignore_start_dp_wave = self.has_coordinator = False
            self.publish_dp_lb_stats = self.log_stats = self.check_for_draft_tokens = self.enable_fault_tolerance = (
                False
            )
            self.is_mm_encoder_only = self.is_pooling_model = False
            self.async_scheduling = settings.async_scheduling
            self.eep_scaling_state = self._weight_version = None
            self.aborts_queue: Any = queue.Queue()
            self.output_queue: Any = queue.Queue()
            self.is_woken = False
            self._next = 0
            self._mine = [each for each in world.arrivals if each.rank == rank]

        def _process_input_queue(self) -> None:
            self.world.wait(self.dp_rank, lambda: self.has_work() or self.is_woken or self._has_arrivals())
            self.engines_running |= self.is_woken
            self.is_woken = False
            while self._has_arrivals():
                arriving = self._mine[self._next]
                self._next += 1
                self.real.add_request(arriving.request)
                if not self.engines_running:  # a new wave
                    self.engines_running = True
                    for engine in self.world.engines:
                        engine.is_woken = engine is not self

        def _has_arrivals(self) -> bool:
            return self._next < len(self._mine) and self._mine[self._next].at_ns <= self.world.now_ns

    return Engine


def run_ranks(size: int, settings: CaseSettings, arrivals: Sequence[Arriving]) -> list[tuple[int, int, dict[str, int]]]:
    """(instant of launching, rank, tokens by request) of every batch, by step of each rank."""
    world = World(size, settings.depth, arrivals)
    engine_class = _engine_class()
    world.engines = [engine_class(world, rank, settings) for rank in range(size)]
    world.run()
    return world.scheduled
