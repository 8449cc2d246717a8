"""Who has arrived in the steady loop and is not in step with the others yet: ranked waiting, prompts in chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.engine.fast.feed import Feed
from sim.engine.reference.kv_cache import ceil_div

if TYPE_CHECKING:
    from sim.engine.fast.ahead import AheadScheduler

Key = tuple[float, int, int | str]
"""(rank, arrival, request id): the order of admission under a ranked policy."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a step computes of one prompt."""

    position: int
    """In the feed."""
    first: int
    """Tokens computed before."""
    end: int
    admission: int
    scheduled_ns: int
    """When the first chunk was scheduled."""


@dataclass(slots=True)
class Plan:
    """The prompts of one step."""

    chunks: list[Chunk]
    free: int
    """Blocks left after the step."""
    num_new: int = 0
    """Admitted in it."""
    tokens: int = 0
    context_tokens: int = 0
    pairs: int = 0

    def add(self, chunk: Chunk, block_size: int) -> int:
        """One more; returns the tokens it takes."""
        num_tokens = chunk.end - chunk.first
        self.chunks.append(chunk)
        self.free -= ceil_div(chunk.end, block_size) - ceil_div(chunk.first, block_size)
        self.tokens += num_tokens
        self.context_tokens += chunk.end
        self.pairs += num_tokens * (chunk.first + chunk.end)
        return num_tokens


class Intake:
    """Who waits, and the prompt that is computed in part: one at most, the last of those that run, because it has
    used up the budget of its step and nobody is admitted before it is done."""

    def __init__(self, scheduler: AheadScheduler, feed: Feed) -> None:
        settings = scheduler.settings
        self._feed = feed
        self._policy = scheduler.policy
        self._is_ranked = scheduler.ranked
        self._settings = settings
        self._watermark = scheduler.watermark_blocks
        self._prefill_budget = settings.max_prefill_tokens_per_step or settings.max_num_batched_tokens
        self.waiting: list[int] = []
        """Positions in the feed; in the order of admission after ``plan``."""
        self.part: Chunk | None = None
        """The last chunk of the prompt that is not done."""
        self._keys: dict[int, Key] = {}

    @property
    def is_empty(self) -> bool:
        """Whether everybody is in step."""
        return not self.waiting and self.part is None

    def clear(self) -> None:
        """Handed over."""
        self.waiting, self.part = [], None
        self._keys.clear()

    def plan(self, now_ns: int, free: int, growth: int, size: int, num_seats: int, admissions: int) -> Plan | None:
        """The prompts of a step with ``size`` decodes, which take ``growth`` of the ``free`` blocks; ``num_seats``
        are taken, ``admissions`` is the last number given. None, and nothing has changed, where somebody waits for
        seats or blocks, or is to be evicted."""
        feed, settings, waiting, part = self._feed, self._settings, self.waiting, self.part
        prompts, block_size = feed.prompt_tokens, settings.block_size
        if self._is_ranked and len(waiting) > 1:
            waiting.sort(key=self._key)
        running = num_seats + (part is not None)
        plan = Plan([], free - growth)
        left = min(self._prefill_budget, settings.max_num_batched_tokens - size)
        if left <= 0 or plan.free < 0:
            return None
        if waiting and (running >= settings.max_num_seqs or ceil_div(prompts[waiting[0]], block_size) > free):
            return None  # a policy may evict somebody for it
        if part is not None:
            end = min(prompts[part.position], part.end + left)
            left -= plan.add(Chunk(part.position, part.end, end, part.admission, part.scheduled_ns), block_size)
        for position in waiting:
            if not left:
                break
            tokens = prompts[position]
            if running >= settings.max_num_seqs or (tokens > left and not settings.enable_chunked_prefill):
                return None
            if ceil_div(tokens, block_size) > (plan.free - self._watermark if running else plan.free):
                return None
            running += 1
            plan.num_new += 1
            left -= plan.add(Chunk(position, 0, min(tokens, left), admissions + plan.num_new, now_ns), block_size)
        return plan if plan.free >= 0 else None

    def carry_out(self, plan: Plan) -> list[Chunk]:
        """The step is scheduled. Returns the last chunks of prompts: those requests decode from now on."""
        for position in self.waiting[: plan.num_new]:
            self._keys.pop(position, None)
        del self.waiting[: plan.num_new]
        if self.is_cut(plan):
            self.part = plan.chunks[-1]
            return plan.chunks[:-1]
        self.part = None
        return plan.chunks

    def is_cut(self, plan: Plan) -> bool:
        """Whether the last prompt of the step goes on in the next one."""
        last = plan.chunks[-1]
        return last.end < self._feed.prompt_tokens[last.position]

    def _key(self, position: int) -> Key:
        key = self._keys.get(position)
        if key is None:
            request = self._feed.make(position)
            rank = self._policy.rank(request, request.arrival_ns)
            key = self._keys[position] = (rank, request.arrival_ns, request.order)
        return key
