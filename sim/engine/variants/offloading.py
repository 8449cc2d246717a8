"""Offloading of KV to host memory: which blocks are stored and loaded when, and which transfers a step waits for.

Follows ``OffloadingConnectorScheduler`` of ``vllm/distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py``
(vLLM 0.32.0) for one group of full attention and chunks of one block. It decides and has no clock: the caller says
when a transfer is done (``complete``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from sim.engine.reference.batch import Batch
from sim.engine.request import Request, State
from sim.engine.variants.host_tier import HostTier


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """Blocks of one request on their way between GPU and host memory."""

    number: int
    request: Request
    is_load: bool
    keys: tuple[int, ...]
    blocks: tuple[int, ...]
    """GPU blocks that a store reads; none of a load."""


@dataclass(slots=True)
class StepTransfers:
    """What a step adds to the transfers, and what it waits for."""

    loads: list[Transfer]
    """They start when the step has been computed."""
    stores: list[Transfer]
    """They start when the next step has been computed."""
    flushed: list[Transfer]
    """The step is computed when these are done: its blocks are theirs, or those of requests that it preempts."""


@dataclass(slots=True)
class _Tracked:
    """One request, as far as its blocks are stored."""

    blocks: list[int] = field(default_factory=list)
    """Its GPU blocks as of the last step that had it."""
    next_block: int = 0
    """The first block that has not been offered for storing."""
    transfers: dict[int, Transfer] = field(default_factory=dict)
    """Under way: one load, or any number of stores."""
    asked_for: dict[int, int] = field(default_factory=dict)
    """Key -> place in the request of the blocks that it loaded or offered."""
    was_aborted: bool = False
    has_ended: bool = False


class Offloading:
    """The transfers of one engine, and its blocks in host memory."""

    def __init__(self, num_host_blocks: int, block_size: int) -> None:
        self.tier = HostTier(num_host_blocks)
        self.block_size = block_size
        self._tracked: dict[Request, _Tracked] = {}
        self._being_loaded: set[int] = set()
        self._num_transfers = 0
        self._num_under_way = 0
        self._loads: list[Transfer] = []
        """Of the step being formed."""
        self._taken: set[int] = set()
        """GPU blocks given out in the step being formed, or found again in the prefix cache."""
        self._readers_of: dict[int, dict[int, Transfer]] = {}
        """GPU block -> stores that read it although its request has ended."""

    @property
    def is_busy(self) -> bool:
        """Whether a transfer is under way."""
        return self._num_under_way > 0

    def add(self, request: Request) -> None:
        """A request arrives."""
        self._tracked[request] = _Tracked()

    # --- loading -------------------------------------------------------------------------------

    def num_loadable(self, request: Request, num_cached_blocks: int) -> int | None:
        """Blocks in host memory behind the ``num_cached_blocks`` that the GPU has. None = not known yet: some are
        being written or loaded, or the request's own are being stored."""
        tracked = self._tracked[request]
        tracked.blocks.clear()
        if tracked.transfers:
            return None
        keys = self._keys(request, num_cached_blocks, request.num_tokens // self.block_size)
        count, all_readable = 0, True
        for key in keys:
            is_readable = self.tier.is_readable(key)
            if is_readable is None:
                break
            count += 1
            all_readable = all_readable and is_readable
        if not all_readable or not self._being_loaded.isdisjoint(keys[:count]):
            return None
        return count

    def load(self, request: Request, first: int, end: int) -> None:
        """Load blocks ``[first, end)`` of a request, which holds GPU blocks for all of them."""
        tracked = self._tracked[request]
        keys = self._keys(request, first, end)
        tracked.next_block = end
        self._taken.update(request.blocks)
        self.tier.pin(keys)
        self._ask_for(tracked, keys, first)
        self._being_loaded.update(keys)
        self._loads.append(self._start(tracked, request, keys, (), is_load=True))

    # --- a step --------------------------------------------------------------------------------

    def plan(self, batch: Batch) -> StepTransfers:
        """The requests of a step are chosen, and not counted as computed yet: what it transfers."""
        for request in batch.scheduled:
            blocks = self._tracked[request].blocks
            new = request.blocks[len(blocks) :]
            blocks += new
            self._taken.update(new)
        flushed: dict[int, Transfer] = {}
        for request in batch.preempted:
            flushed.update(self._tracked[request].transfers)
        for block in self._readers_of.keys() & self._taken:
            flushed.update(self._readers_of[block])
        stores = self._stores(batch, flushed)
        plan = StepTransfers(self._loads, stores, list(flushed.values()))
        for request in batch.finished:
            tracked = self._tracked[request]
            tracked.has_ended = True
            self.tier.use(sorted(tracked.asked_for, key=tracked.asked_for.__getitem__))
            if not tracked.transfers:
                del self._tracked[request]
        self._loads = []
        self._taken = set()
        return plan

    def _stores(self, batch: Batch, flushed: dict[int, Transfer]) -> list[Transfer]:
        stores = []
        for request in chain(batch.scheduled, batch.finished):
            tracked = self._tracked[request]
            first, end = tracked.next_block, self._num_full(request, tracked, batch)
            if end <= first:
                continue
            keys = self._keys(request, first, end)
            self._ask_for(tracked, keys, first)
            missing = self.tier.reserve(keys)
            if missing is None:
                continue  # They are offered again.
            tracked.next_block = end
            if not missing:
                continue
            place_of = {key: place for place, key in enumerate(keys, first)}
            blocks = tuple(tracked.blocks[place_of[key]] for key in missing)
            store = self._start(tracked, request, missing, blocks, is_load=False)
            stores.append(store)
            if request.state is State.FINISHED:
                self._watch(store)
                if not self._taken.isdisjoint(blocks):
                    flushed[store.number] = store
        return stores

    def _num_full(self, request: Request, tracked: _Tracked, batch: Batch) -> int:
        """Leading blocks of a prompt that are computed when ``batch`` is: what is generated is not stored
        (``offload_prompt_only``, on by default)."""
        computed = request.num_prompt_tokens
        if request.state is not State.FINISHED:
            computed = request.num_computed_tokens + batch.scheduled[request]
        elif tracked.was_aborted:
            computed = request.num_computed_tokens
        return min(min(computed, request.num_prompt_tokens) // self.block_size, len(tracked.blocks))

    def ended(self, request: Request, *, was_aborted: bool) -> None:
        """A request has ended, and its blocks go to others: what still reads them is watched."""
        tracked = self._tracked[request]
        tracked.was_aborted = was_aborted
        for transfer in tracked.transfers.values():
            self._watch(transfer)

    def complete(self, transfers: Iterable[Transfer]) -> None:
        """Transfers are done: what was written can be read, and what was read can go."""
        for transfer in transfers:
            tracked = self._tracked[transfer.request]
            if transfer.is_load:
                self.tier.unpin(transfer.keys)
                self._being_loaded.difference_update(transfer.keys)
            else:
                self.tier.written(transfer.keys)
            for block in transfer.blocks:
                readers = self._readers_of.get(block, {})
                readers.pop(transfer.number, None)
                if not readers:
                    self._readers_of.pop(block, None)
            del tracked.transfers[transfer.number]
            self._num_under_way -= 1
            if tracked.has_ended and not tracked.transfers:
                del self._tracked[transfer.request]

    # --- of one request ------------------------------------------------------------------------

    def _keys(self, request: Request, first: int, end: int) -> list[int]:
        content = request.content
        return [] if content is None or end <= first else content.block_keys(first, end, self.block_size)

    def _ask_for(self, tracked: _Tracked, keys: Iterable[int], first: int) -> None:
        """Note which blocks in host memory a request uses, for when it has ended."""
        for place, key in enumerate(keys, first):
            if self.tier.is_readable(key) is not False:
                tracked.asked_for.setdefault(key, place)

    def _start(
        self, tracked: _Tracked, request: Request, keys: Iterable[int], blocks: tuple[int, ...], *, is_load: bool
    ) -> Transfer:
        transfer = Transfer(self._num_transfers, request, is_load, tuple(keys), blocks)
        self._num_transfers += 1
        self._num_under_way += 1
        tracked.transfers[transfer.number] = transfer
        return transfer

    def _watch(self, transfer: Transfer) -> None:
        for block in transfer.blocks:
            self._readers_of.setdefault(block, {})[transfer.number] = transfer
