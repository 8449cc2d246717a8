"""The prefix cache with content that nobody shares kept as runs of blocks instead of block by block.

Same decisions as ``PrefixKVCache`` (a property test holds the two together), at a cost per request
instead of per block. What makes it possible: only blocks with a key can ever be found again, so
blocks without one are just a number; and a private key (content of one request alone) can only be
found by that request itself, coming back after a preemption.

vLLM's free list, head first, is then: a number of blank blocks (freed without a key, or never used),
and behind them, in the order of freeing, shared blocks one by one and runs of private blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from sim.engine.reference.kv_cache import KVCache
from sim.engine.request import Request, State
from sim.errors import SimulationError

Piece = tuple[int, int, int]
"""First index, end index, epoch of insertion (the number of preemptions of the request by then)."""


class SharedBlock:
    """A full block whose content other requests can have too."""

    __slots__ = ("key", "references")

    def __init__(self, key: int) -> None:
        self.key = key
        self.references = 1


class PrivateRun:
    """Free blocks of one request's own content; evicted from the highest index down.

    ``pieces`` are ascending half-open index ranges with the epoch in which their keys were
    inserted: several, where some blocks were found again and kept their older keys.
    """

    __slots__ = ("pieces",)

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces

    def take_last(self, count: int) -> int:
        """Evict up to ``count`` blocks, highest index first; returns how many there were."""
        taken = 0
        while self.pieces and taken < count:
            first, end, epoch = self.pieces[-1]
            n = min(count - taken, end - first)
            taken += n
            if n == end - first:
                self.pieces.pop()
            else:
                self.pieces[-1] = (first, end - n, epoch)
        return taken

    def take(self, index: int) -> None:
        """Take block ``index`` out."""
        for place, (first, end, epoch) in enumerate(self.pieces):
            if first <= index < end:
                rest = [(first, index, epoch), (index + 1, end, epoch)]
                self.pieces[place : place + 1] = [piece for piece in rest if piece[0] < piece[1]]
                return

    def epoch_of(self, index: int) -> int | None:
        """When the key of block ``index`` was inserted, or None where the block is not here."""
        for first, end, epoch in self.pieces:
            if first <= index < end:
                return epoch
        return None


Hit = SharedBlock | int
"""A found block: a shared one, or the index of a private one."""


class RunKVCache(KVCache):
    """See the module. ``request.blocks`` is not used: a block has no name here."""

    def __init__(self, num_gpu_blocks: int, block_size: int) -> None:
        super().__init__(num_gpu_blocks, block_size)
        self._num_blank = self.num_usable_blocks
        self._evictable: OrderedDict[SharedBlock | PrivateRun, None] = OrderedDict()
        self._shared_by_key: dict[int, list[SharedBlock]] = {}
        """In order of insertion: a lookup gives the first."""
        self._runs_of: dict[Request, list[PrivateRun]] = {}

    def lookup(self, request: Request) -> list[Hit]:
        content = request.content
        if content is None:
            return []
        max_blocks = (request.num_tokens - 1) // self.block_size
        num_shared = min(content.num_shared_blocks(self.block_size), max_blocks)
        hits: list[Hit] = []
        if num_shared:
            for key in content.block_keys(0, num_shared, self.block_size):
                found = self._shared_by_key.get(key)
                if found is None:
                    return hits
                hits.append(found[0])
        runs = self._runs_of.get(request)
        if runs and len(runs) == 1:
            index = num_shared
            for first, end, _ in runs[0].pieces:
                if first <= index < end:
                    index = end
            hits.extend(range(num_shared, min(index, max_blocks)))
        elif runs:
            for index in range(num_shared, max_blocks):
                if self._oldest_run(runs, index) is None:
                    break
                hits.append(index)
        return hits

    @staticmethod
    def _oldest_run(runs: list[PrivateRun], index: int) -> PrivateRun | None:
        """The run whose block ``index`` has the oldest key."""
        candidates = [(epoch, place) for place, run in enumerate(runs) if (epoch := run.epoch_of(index)) is not None]
        return runs[min(candidates)[1]] if candidates else None

    def num_evictable(self, hits: Sequence[Hit]) -> int:
        return sum(1 for hit in hits if isinstance(hit, int) or not hit.references)

    def admit(self, request: Request, hits: Sequence[Hit], num_tokens: int) -> None:
        runs = self._runs_of.get(request)
        is_one_run = runs is not None and len(runs) == 1
        if is_one_run and hits and isinstance(hits[-1], int):
            self._take_from_one(request, next(hit for hit in hits if isinstance(hit, int)), hits[-1] + 1)
        for hit in hits:
            if isinstance(hit, int):
                if not is_one_run:
                    self._take_private(request, hit)
            else:
                if not hit.references:
                    del self._evictable[hit]
                    self.num_free_blocks -= 1
                hit.references += 1
                request.shared_blocks.append(hit)
        super().admit(request, (), num_tokens - len(hits) * self.block_size)
        request.num_blocks += len(hits)
        request.num_slots = request.num_blocks * self.block_size
        request.num_cached_blocks = len(hits)
        request.next_cacheable_tokens = (len(hits) + 1) * self.block_size

    def _take_from_one(self, request: Request, first: int, end: int) -> None:
        """Blocks ``first`` to ``end``, all of which the only run of ``request`` has."""
        runs = self._runs_of[request]
        run, rest = runs[0], []
        for piece_first, piece_end, epoch in run.pieces:
            start, stop = max(first, piece_first), min(end, piece_end)
            if start >= stop:
                rest.append((piece_first, piece_end, epoch))
                continue
            if piece_first < start:
                rest.append((piece_first, start, epoch))
            if stop < piece_end:
                rest.append((stop, piece_end, epoch))
            self._note_hits(request, start, stop, epoch)
        run.pieces = rest
        if not rest:
            runs.remove(run)
            del self._evictable[run]
        self.num_free_blocks -= end - first

    @staticmethod
    def _note_hits(request: Request, first: int, end: int, epoch: int) -> None:
        pieces = request.private_hits
        if pieces and pieces[-1][1] == first and pieces[-1][2] == epoch:
            pieces[-1] = (pieces[-1][0], end, epoch)
        else:
            pieces.append((first, end, epoch))

    def _take_private(self, request: Request, index: int) -> None:
        runs = self._runs_of[request]
        run = self._oldest_run(runs, index)
        epoch = None if run is None else run.epoch_of(index)
        if run is None or epoch is None:
            raise SimulationError(f"request {request.request_id} lost the cached block {index} it was promised")
        run.take(index)
        if not run.pieces:
            runs.remove(run)
            del self._evictable[run]
        self.num_free_blocks -= 1
        self._note_hits(request, index, index + 1, epoch)

    def _take(self, request: Request, num_blocks: int) -> None:
        self.take_unnamed(num_blocks)
        request.num_blocks += num_blocks
        request.num_slots = request.num_blocks * self.block_size

    def take_unnamed(self, num_blocks: int) -> None:
        """``num_blocks`` off the head of the free list; who gets them is not asked."""
        self.num_free_blocks -= num_blocks
        blank = min(num_blocks, self._num_blank)
        self._num_blank -= blank
        num_blocks -= blank
        while num_blocks:
            head = next(iter(self._evictable))
            if isinstance(head, SharedBlock):
                num_blocks -= 1
                del self._evictable[head]
                self._drop_key(head)
                continue
            num_blocks -= head.take_last(num_blocks)
            if not head.pieces:
                del self._evictable[head]

    def _drop_key(self, block: SharedBlock) -> None:
        found = self._shared_by_key[block.key]
        found.remove(block)
        if not found:
            del self._shared_by_key[block.key]

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        num_full = num_tokens // self.block_size
        first = request.num_cached_blocks
        content = request.content
        if num_full <= first or content is None:
            return
        num_shared = min(content.num_shared_blocks(self.block_size), num_full)
        if first < num_shared:
            for key in content.block_keys(first, num_shared, self.block_size):
                block = SharedBlock(key)
                self._shared_by_key.setdefault(key, []).append(block)
                request.shared_blocks.append(block)
        request.num_cached_blocks = num_full
        request.next_cacheable_tokens = (num_full + 1) * self.block_size

    def forget_order(self) -> bool:
        if self._runs_of or self._shared_by_key:
            return False
        self._evictable.clear()
        self._num_blank = self.num_free_blocks
        return True

    def set_free(self, num_blocks: int) -> None:
        self.num_free_blocks = self._num_blank = num_blocks

    def restore(self, request: Request, num_tokens: int) -> None:
        super().restore(request, num_tokens)
        request.next_cacheable_tokens = self.block_size
        self.cache_blocks(request, num_tokens)

    def free(self, request: Request) -> None:
        ended = request.state is State.FINISHED
        if ended:
            self._runs_of.pop(request, None)
            if not self._runs_of and not self._shared_by_key:
                # Nothing that is free can be found again (``forget_order``).
                self._evictable.clear()
                self.num_free_blocks += request.num_blocks
                self._num_blank = self.num_free_blocks
                request.private_hits = []
                self._forget(request)
                return
        num_shared, num_cached = len(request.shared_blocks), request.num_cached_blocks
        self._num_blank += request.num_blocks - num_cached
        self.num_free_blocks += request.num_blocks - num_shared
        if num_cached > num_shared:
            pieces = request.private_hits
            first = pieces[-1][1] if pieces else num_shared
            if first < num_cached:
                pieces.append((first, num_cached, request.num_preemptions))
            run = PrivateRun(pieces)
            self._evictable[run] = None
            if not ended:
                self._runs_of.setdefault(request, []).append(run)
        for block in reversed(request.shared_blocks):
            block.references -= 1
            if not block.references:
                self._evictable[block] = None
                self.num_free_blocks += 1
        request.shared_blocks = []
        request.private_hits = []
        self._forget(request)
