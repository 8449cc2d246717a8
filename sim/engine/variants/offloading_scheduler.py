"""The scheduler with KV offloading: waiting requests whose KV is in host memory have it loaded, and wait for that.

Follows the paths of a KV connector in ``vllm/v1/core/sched/scheduler.py`` (vLLM 0.32.0): a request that loads holds
its blocks in a queue of its own (``kv_holding_waiting``), which is served before the others; a load is begun where it
leaves the blocks that prefills still need; and blocks that a step in flight may write are free when it has run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from itertools import chain

from policies.base import Policy
from sim.engine.reference.batch import Batch, SchedulerSettings, Step
from sim.engine.reference.kv_cache import Hit
from sim.engine.reference.scheduler import Scheduler
from sim.engine.reference.waiting import FcfsQueue, RankedQueue, WaitingQueue
from sim.engine.request import NEVER, Request, State
from sim.engine.variants.loading_cache import LoadingKVCache
from sim.engine.variants.offloading import Offloading, StepTransfers, Transfer
from sim.errors import SimulationError
from sim.results.record import Recorder


class HoldingFirst:
    """A waiting queue behind that of the requests that hold blocks for their KV."""

    def __init__(self, holding: WaitingQueue, others: WaitingQueue, kv: LoadingKVCache) -> None:
        self._holding = holding
        self._others = others
        self._kv = kv

    def __len__(self) -> int:
        return len(self._holding) + len(self._others)

    def __iter__(self) -> Iterator[Request]:
        return chain(self._holding, self._others)

    @property
    def entries(self) -> Sequence[object]:
        """What waits, if only to see whether anything does."""
        return self._head.entries

    @property
    def _head(self) -> WaitingQueue:
        return self._holding if self._holding.entries else self._others

    def _of(self, request: Request) -> WaitingQueue:
        holds = request in self._kv.loading or request in self._kv.loaded
        return self._holding if holds else self._others

    def refresh(self, now_ns: int) -> None:
        """Rank everything anew if any rank can have moved since the last time."""
        self._holding.refresh(now_ns)
        self._others.refresh(now_ns)

    def mark_stale(self, requests: Set[Request]) -> None:
        """Waiting requests that made progress."""
        self._others.mark_stale(requests)

    def add(self, request: Request, now_ns: int) -> None:
        """A request arrives."""
        self._others.add(request, now_ns)

    def put_back(self, request: Request, now_ns: int) -> None:
        """Put a request in front that was preempted or passed over, among those that hold blocks or the others."""
        self._of(request).put_back(request, now_ns)

    def peek(self) -> Request:
        """Return the next request to be admitted."""
        return self._head.peek()

    def pop(self) -> Request:
        """Take out the next request to be admitted."""
        return self._head.pop()

    def remove(self, request: Request) -> None:
        """Take out a request that ends while it waits."""
        self._of(request).remove(request)


class OffloadingScheduler(Scheduler):
    """A scheduler whose requests find KV in host memory too. ``settings.num_host_blocks`` must be given.

    After ``schedule``, ``transfers`` says what the step stores and loads; the caller carries that out, and says
    ``complete`` of what is known to be done, after ``update``.
    """

    kv: LoadingKVCache

    def __init__(self, settings: SchedulerSettings, policy: Policy, recorder: Recorder | None = None) -> None:
        super().__init__(settings, policy, recorder)
        if not isinstance(self.kv, LoadingKVCache):
            raise SimulationError("KV offloading needs a prefix cache, with one kind of layers")
        is_ranked = self.steering.is_ranked
        self.waiting = HoldingFirst(RankedQueue(policy) if is_ranked else FcfsQueue(), self.waiting, self.kv)
        self.offloading = Offloading(settings.num_host_blocks, settings.block_size)
        self.transfers = StepTransfers([], [], [])
        """Of the step that was formed last."""
        self._prefilling: dict[Request, None] = {}
        """Requests whose prefill, or load, has begun and whose prefill has not been scheduled to its end."""
        self._put_off: Request | None = None
        """The waiting request that others may pass, since its KV is on its way."""

    def add_request(self, request: Request, now_ns: int) -> None:
        super().add_request(request, now_ns)
        self.offloading.add(request)

    def has_work(self) -> bool:
        """Whether there are requests, or a transfer is under way."""
        return self.has_requests() or self.offloading.is_busy

    def has_requests(self) -> bool:
        """Whether anything waits or runs, an end has not been noted in a step yet, or blocks wait for their load."""
        return super().has_requests() or bool(self._freed or self.kv.loading)

    # --- forming a step --------------------------------------------------------------------

    def _try_admit(self, request: Request, step: Step) -> int:
        kv = self.kv
        self._put_off = None
        if request in kv.loading:
            self._put_off = request
            return 0
        if request in kv.loaded:
            self._take_over(request)
        else:
            hit = kv.lookup(request)
            num_loadable = self.offloading.num_loadable(request, len(hit.blocks))
            if num_loadable != 0:
                if num_loadable is None or self._begin_load(request, hit, num_loadable):
                    self._put_off = request
                return 0
        num_new = super()._try_admit(request, step)
        if num_new and request.num_computed_tokens + num_new < request.num_tokens:
            self._prefilling[request] = None
        return num_new

    def _may_be_passed(self, request: Request, step: Step) -> bool:
        return request is self._put_off or super()._may_be_passed(request, step)

    def _begin_load(self, request: Request, hit: Hit, num_blocks: int) -> bool:
        """Load ``num_blocks`` behind ``hit`` if that leaves the blocks that prefills still need; the request holds its
        blocks from now on."""
        kv = self.kv
        first, end = len(hit.blocks), len(hit.blocks) + num_blocks
        num_tokens = end * kv.block_size
        reserved = sum(max(0, kv.blocks_for(each.num_tokens) - each.num_blocks) for each in self._prefilling)
        free_blocks = kv.num_free_blocks - (self.watermark_blocks if self.running else 0)
        if not self._fits(request, hit, num_tokens) or (
            kv.blocks_to_admit(request, hit, num_tokens) > free_blocks - reserved
        ):
            return False
        kv.begin_load(request, hit, num_tokens)
        self.offloading.load(request, first, end)
        self._prefilling[request] = None
        if request.scheduled_ns == NEVER and self.recorder.offloading is not None:
            loaded = min(num_tokens, request.num_tokens - 1) - hit.num_tokens
            self.recorder.offloading.loaded_tokens[request.row] = loaded
        return True

    def _take_over(self, request: Request) -> None:
        """What a request has loaded can be found on the GPU too; its last token is computed in any case."""
        num_tokens = self.kv.loaded[request]
        self.kv.cache_blocks(request, num_tokens)
        self.kv.loaded[request] = min(num_tokens, request.num_tokens - 1)

    def _can_preempt(self, victim: Request) -> bool:
        return not self._is_in_flight(victim)

    def _is_in_flight(self, request: Request) -> bool:
        """Whether a batch in flight may write blocks of ``request``, where another one can be formed meanwhile."""
        return self.settings.async_scheduling and any(request in batch.scheduled for batch in self.in_flight)

    def _preempt(self, victim: Request, now_ns: int) -> None:
        super()._preempt(victim, now_ns)
        self._prefilling.pop(victim, None)

    def _advance(self, batch: Batch) -> None:
        self.transfers = self.offloading.plan(batch)
        super()._advance(batch)
        for request in batch.sampled:
            self._prefilling.pop(request, None)

    # --- ending ----------------------------------------------------------------------------

    def update(self, batch: Batch, now_ns: int) -> list[Request]:
        self.kv.has_run(batch)
        return super().update(batch, now_ns)

    def complete(self, transfers: Sequence[Transfer]) -> None:
        """Transfers are known to be done."""
        self.offloading.complete(transfers)
        for transfer in transfers:
            if transfer.is_load:
                self.kv.end_load(transfer.request)

    def _end_update(self, batch: Batch, finished: list[Request], now_ns: int) -> list[Request]:
        ended = super()._end_update(batch, finished, now_ns)
        for request in ended:
            self.offloading.ended(request, was_aborted=False)
        return ended

    def abort(self, request: Request, now_ns: int) -> None:
        if request.state is not State.FINISHED:
            super().abort(request, now_ns)
            self.offloading.ended(request, was_aborted=True)

    def lose_all(self) -> list[Request]:
        self.kv.lose_loads()
        return super().lose_all()

    def _finish(self, request: Request) -> None:
        super()._finish(request)
        self._prefilling.pop(request, None)

    def _free(self, ended: Sequence[Request]) -> None:
        for request in self.seats.free(ended, len(self.running)):
            if self._is_in_flight(request):
                self.kv.free_after(self.in_flight[-1], request)
            else:
                self.kv.free(request)
            self._freed.append(request)
