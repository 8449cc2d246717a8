"""What KV groups take and give back of a request whose blocks are only counted: ``group_kinds.py`` as sums."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sim.engine.reference.batch import SchedulerSettings
from sim.latency.sliding_window import max_blocks_per_request


@dataclass(frozen=True, slots=True)
class Keeps:
    """Groups that keep the same."""

    num_groups: int
    block_size: int
    window: int = 0
    """Tokens of a window or of a chunk; 0 = all KV is kept."""
    is_chunk: bool = False
    is_state: bool = False
    """A request has one block, as long as any request."""
    most: int = 0
    """Blocks that a request holds in one of them at most; 0 = as many as it has tokens for."""

    def taken(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` of one request take, those that it has given back included."""
        return self.num_groups * -(-num_tokens // self.block_size)

    def reserved(self, num_tokens: int) -> int:
        """Blocks that admission asks for."""
        each = -(-num_tokens // self.block_size)
        return self.num_groups * (min(each, self.most) if self.most else each)

    def behind(self, num_seen: int) -> int:
        """Blocks that no token after the first ``num_seen`` looks at."""
        if self.is_chunk:
            return self.num_groups * (num_seen // self.window * self.window // self.block_size)
        return self.num_groups * (max(num_seen - self.window + 1, 0) // self.block_size)

    @property
    def first_seen(self) -> int:
        """The fewest tokens of which a block is behind."""
        return self.window if self.is_chunk else self.window - 1 + self.block_size


def kept_by(settings: SchedulerSettings) -> list[Keeps]:
    """What an engine's groups keep, those that keep the same together."""
    if not settings.kv_groups:
        window = settings.sliding_window or 0
        return [Keeps(1, settings.block_size, window, most=_most(settings, "window", window, settings.block_size))]
    kept = Counter((group.kind, group.sliding_window or 0, group.block_size) for group in settings.kv_groups)
    return [
        Keeps(
            num_groups=count,
            block_size=settings.max_model_len if kind == "state" else size,
            window=window,
            is_chunk=kind == "chunk",
            is_state=kind == "state",
            most=_most(settings, kind, window, size),
        )
        for (kind, window, size), count in kept.items()
    ]


def _most(settings: SchedulerSettings, kind: str, window: int, block_size: int) -> int:
    in_flight, longest = settings.max_in_flight_tokens, settings.max_model_len
    if not window:
        return 0
    if kind == "chunk":
        return -(-min(window + in_flight, longest) // block_size)
    return max_blocks_per_request(window, in_flight, longest, block_size)
