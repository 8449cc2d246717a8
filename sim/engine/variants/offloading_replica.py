"""An engine that offloads KV to host memory: when transfers begin and end, and when the scheduler hears of it.

Follows the order of ``OffloadingConnectorWorker`` and of ``gpu_worker.py`` in ``vllm/v1/kv_offload/cpu`` (vLLM
0.32.0): a step's stores are submitted when the next one is launched, and wait for what has been launched before; its
loads wait for the step itself; transfers of one direction follow each other; what has ended is asked for after each
launch, and the scheduler hears of it with that step's tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

from simpy import Event

from sim.engine.clock import Clock
from sim.engine.decisions import DecisionLog
from sim.engine.reference.batch import Batch
from sim.engine.reference.replica import Replica
from sim.engine.request import Request
from sim.engine.variants.offloading import Transfer
from sim.engine.variants.offloading_scheduler import OffloadingScheduler
from sim.errors import SimulationError
from sim.latency.base import StepCost
from sim.latency.host_link import HostLink
from sim.results.record import Recorder

POLL_NS = 1_000_000
"""An engine with work and nothing to compute looks again after this long (``EngineCoreProc``, 1 ms)."""


class OffloadingReplica(Replica):
    """See the module. ``new_scheduler`` makes an ``OffloadingScheduler``."""

    def __init__(
        self,
        env: Clock,
        index: int,
        model: str,
        new_scheduler: Callable[[], OffloadingScheduler],
        cost: StepCost,
        depth: int,
        recorder: Recorder,
        link: HostLink,
        decisions: DecisionLog | None = None,
    ) -> None:
        self._link = link
        self._clear()
        super().__init__(env, index, model, new_scheduler, cost, depth, recorder, 0, decisions)

    def _clear(self) -> None:
        self._unsubmitted: list[Transfer] = []
        """Stores of the step launched last."""
        self._free_ns = {True: 0, False: 0}
        """When the link is free, to the GPU (loads) and to the host."""
        self._under_way: dict[Transfer, int] = {}
        """Submitted transfers -> when they end."""
        self._heard: deque[list[Transfer]] = deque()
        """For each batch in flight the transfers that the scheduler hears of with it."""
        self._heard_while_empty: list[Transfer] = []

    @property
    def _offloading(self) -> OffloadingScheduler:
        if not isinstance(self.scheduler, OffloadingScheduler):
            raise SimulationError(f"replica {self.index} offloads KV, and its scheduler does not")
        return self.scheduler

    def _lose_all(self) -> list[Request]:
        self._clear()
        return super()._lose_all()

    # --- transfers -----------------------------------------------------------------------------

    def _submit(self, transfers: Iterable[Transfer], ready_ns: int) -> None:
        """Transfers follow those of their direction, from ``ready_ns`` on."""
        counts = self.recorder.offloading
        for transfer in transfers:
            is_load, num_blocks = transfer.is_load, len(transfer.keys)
            start_ns = max(self._free_ns[is_load], ready_ns)
            end_ns = start_ns + self._link.ns(num_blocks, is_load=is_load)
            self._free_ns[is_load] = self._under_way[transfer] = end_ns
            if counts is not None:
                way = counts.loads if is_load else counts.stores
                way.add(self._link.bytes_of(num_blocks), end_ns - start_ns, start_ns - ready_ns)

    def _launch(self, now_ns: int) -> int:
        """Submit what the step before left, and wait for what the new one needs; returns until when."""
        self._submit(self._unsubmitted, max(now_ns, self._stage_free_ns[-1]))
        self._unsubmitted = []
        flushed = self._offloading.transfers.flushed
        # A flushed store of this very step is submitted at once, too.
        own = [each for each in self._offloading.transfers.stores if each in flushed]
        self._submit(own, max(now_ns, self._stage_free_ns[-1]))
        return max([now_ns, *(self._under_way[each] for each in flushed if each in self._under_way)])

    def _launched(self, now_ns: int, polled_ns: int) -> list[Transfer]:
        """The step has been launched: its loads follow it, its stores wait for the next. Returns what has ended when
        that is asked for, at ``polled_ns``."""
        plan = self._offloading.transfers
        self._submit(plan.loads, max(now_ns, self._stage_free_ns[-1]))
        self._unsubmitted = [each for each in plan.stores if each not in self._under_way]
        return self._ended(polled_ns)

    def _ended(self, now_ns: int) -> list[Transfer]:
        ended = [transfer for transfer, end_ns in self._under_way.items() if end_ns <= now_ns]
        for transfer in ended:
            del self._under_way[transfer]
        return ended

    # --- the process ---------------------------------------------------------------------------

    def _dispatch(self, batch: Batch, now_ns: int, blocked_ns: int = 0) -> int:
        blocked_ns += self._launch(now_ns) - now_ns
        if self.recorder.offloading is not None:
            self.recorder.offloading.blocked_ns += blocked_ns
        host_ns = super()._dispatch(batch, now_ns, blocked_ns)
        self._heard.append(self._launched(self._host_free_ns, self._host_free_ns))
        return host_ns

    def _complete_oldest(self, now_ns: int) -> None:
        super()._complete_oldest(now_ns)
        self._offloading.complete(self._heard.popleft())

    def _pass(self, batch: Batch, now_ns: int) -> int:
        ready_ns = self._launch(now_ns)
        empty_ns = super()._pass(batch, now_ns)
        if empty_ns:
            empty_ns = max(empty_ns, POLL_NS, ready_ns - now_ns)
        self._heard_while_empty = self._launched(ready_ns, max(ready_ns, now_ns + empty_ns))
        return empty_ns

    def _step(self, batch: Batch) -> Generator[Event, Any, None]:
        yield from super()._step(batch)
        if batch.is_empty:
            self._offloading.complete(self._heard_while_empty)
            self._heard_while_empty = []

    def _sleep(self, longest_ns: int | None) -> Generator[Event, Any, None]:
        """Nothing is left to compute: stores go on, and the scheduler has heard of them when something comes."""
        self._submit(self._unsubmitted, max(self.env.now, self._stage_free_ns[-1]))
        self._unsubmitted = []
        yield from super()._sleep(longest_ns)
        self._offloading.complete(self._ended(self.env.now))
