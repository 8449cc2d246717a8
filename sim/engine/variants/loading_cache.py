"""The prefix cache on the GPU where KV is loaded from host memory: blocks are held while their KV is on its way."""

from __future__ import annotations

from collections import deque

from sim.engine.reference.batch import Batch
from sim.engine.reference.kv_cache import Hit, PrefixKVCache
from sim.engine.request import Request, State


class LoadingKVCache(PrefixKVCache):
    """Blocks by name, some of them held by requests whose KV is on its way."""

    def __init__(self, num_gpu_blocks: int, block_size: int) -> None:
        super().__init__(num_gpu_blocks, block_size)
        self.loading: dict[Request, int] = {}
        """Requests that wait for a load -> tokens that they have when it is done."""
        self.loaded: dict[Request, int] = {}
        """Requests whose load is done, and that have not been admitted since -> their tokens."""
        self._put_off: deque[tuple[Batch, list[int]]] = deque()
        """Blocks that are free when a batch in flight has run."""

    def lookup(self, request: Request) -> Hit:
        num_tokens = self.loaded.get(request)
        return super().lookup(request) if num_tokens is None else Hit(num_tokens, tuple(request.blocks))

    def admit(self, request: Request, hit: Hit, num_tokens: int) -> None:
        if self.loaded.pop(request, None) is None:
            super().admit(request, hit, num_tokens)
        else:
            self._take(request, self.blocks_for(num_tokens) - request.num_blocks)

    def begin_load(self, request: Request, hit: Hit, num_tokens: int) -> None:
        """Give a request that holds nothing the blocks of its hit, and new ones for what is loaded."""
        self.admit(request, hit, num_tokens)
        self.loading[request] = num_tokens

    def end_load(self, request: Request) -> None:
        """The KV of a request has come; where it has ended meanwhile, its blocks are free now."""
        num_tokens = self.loading.pop(request)
        if request.state is State.FINISHED:
            self.free(request)
        else:
            self.loaded[request] = num_tokens

    def free(self, request: Request) -> None:
        if request not in self.loading:
            self.loaded.pop(request, None)
            super().free(request)

    def free_after(self, batch: Batch, request: Request) -> None:
        """Take all blocks of a request that has ended; they are free when ``batch`` has run."""
        self._put_off.append((batch, request.blocks))
        request.blocks = []
        self._forget(request)

    def has_run(self, batch: Batch | None) -> None:
        """Free what waited for ``batch``; None = for any."""
        while self._put_off and (batch is None or self._put_off[0][0] is batch):
            self._give_back(self._put_off.popleft()[1])

    def lose_loads(self) -> None:
        """The engine fails: loads never end, and no batch runs any more."""
        ended = [request for request in self.loading if request.state is State.FINISHED]
        self.loading.clear()
        for request in ended:
            self.free(request)
        self.has_run(None)
