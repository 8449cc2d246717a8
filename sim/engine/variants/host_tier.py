"""Blocks of KV in host memory, found by content: the CPU tier of vLLM's native offloading.

Follows ``CPUOffloadingManager`` and ``LRUCachePolicy`` of ``vllm/v1/kv_offload/cpu`` (vLLM 0.32.0) as
``kv_offloading_size`` sets them up: chunks of one GPU block, least recently used first, every block offered is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

BEING_WRITTEN = -1


class HostTier:
    """``num_blocks`` blocks, each free, being written, or readable; those that a transfer reads stay.

    A block is used when it is put in, and when a request that asked for it has ended: ``use`` then makes the first
    block of that request the most recent, so that ends of prompts go before their beginnings.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._readers: OrderedDict[int, int] = OrderedDict()
        """Key -> transfers that read the block, or BEING_WRITTEN; the least recently used first."""
        self._num_evictable = 0

    def __len__(self) -> int:
        return len(self._readers)

    def is_readable(self, key: int) -> bool | None:
        """Whether the block of ``key`` can be read now; None = there is none."""
        readers = self._readers.get(key)
        return None if readers is None else readers != BEING_WRITTEN

    def pin(self, keys: Iterable[int]) -> None:
        """A transfer reads readable blocks from now on."""
        for key in keys:
            if not self._readers[key]:
                self._num_evictable -= 1
            self._readers[key] += 1

    def unpin(self, keys: Iterable[int]) -> None:
        """A transfer has read its blocks."""
        for key in keys:
            self._readers[key] -= 1
            if not self._readers[key]:
                self._num_evictable += 1

    def reserve(self, keys: Collection[int]) -> list[int] | None:
        """Make room for those of ``keys`` that are not here, which are then being written. None = there is no room,
        and nothing has changed; blocks of ``keys`` make no room for each other."""
        missing = [key for key in keys if key not in self._readers]
        excess = len(self._readers) + len(missing) - self.num_blocks
        if missing and excess > 0:
            victims = self._oldest(excess, set(keys))
            if victims is None:
                return None
            for key in victims:
                del self._readers[key]
            self._num_evictable -= excess
        for key in missing:
            self._readers[key] = BEING_WRITTEN
        return missing

    def _oldest(self, count: int, kept: set[int]) -> Sequence[int] | None:
        """The ``count`` blocks used longest ago that nothing reads or writes, none of ``kept``; None = fewer are."""
        if count > self._num_evictable:
            return None
        victims: list[int] = []
        for key, readers in self._readers.items():
            if not readers and key not in kept:
                victims.append(key)
                if len(victims) == count:
                    return victims
        return None

    def written(self, keys: Iterable[int]) -> None:
        """Blocks have been written, and are readable."""
        for key in keys:
            self._readers[key] = 0
            self._num_evictable += 1

    def use(self, keys: Sequence[int]) -> None:
        """A request has ended whose blocks, in order, had the content of ``keys``."""
        for key in reversed(keys):
            if key in self._readers:
                self._readers.move_to_end(key)
