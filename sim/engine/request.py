"""A request inside an engine: vLLM's own counters, its KV blocks, and when things happened to it."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

NEVER = -1
"""An instant that has not come yet."""
BASE_MODEL = 0
"""The adapter of a request without one."""


class State(IntEnum):
    """Where a request is (``RequestStatus`` of ``vllm/v1/request.py``)."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    FINISHED = 3


class Image(NamedTuple):
    """An image in a prompt: the places it takes there, and what the vision encoder makes of it."""

    start: int
    """Position of its first place."""
    num_tokens: int
    num_embeds: int
    """Places that hold embeddings; the rest are tokens that frame them."""
    content: int
    """Equal number = equal image, of equal size."""
    num_before: int = 0
    """Tokens of the frame before the first embedding."""

    @property
    def end(self) -> int:
        """Position after its last place."""
        return self.start + self.num_tokens

    def has_embeds_in(self, start: int, end: int) -> bool:
        """Whether any of positions ``[start, end)`` holds an embedding of it."""
        first = self.start + self.num_before
        return max(start, first) < min(end, first + self.num_embeds)


class Request:
    """One request of one replica. Satisfies ``policies.base.RequestView``.

    ``num_tokens`` is prompt plus generated tokens whose values are known. In asynchronous mode a
    scheduled token counts in ``num_output_placeholders`` until its step ends. The true output
    length is private: the engine stops by it, policies never see it.
    """

    __slots__ = (
        "_stop_at_output_tokens",
        "admission",
        "arrival_ns",
        "arrival_time",
        "blocks",
        "cancel_ns",
        "class_index",
        "class_name",
        "computed_spans",
        "content",
        "deadline_ns",
        "expected_output_tokens",
        "first_token_ns",
        "images",
        "images_end",
        "is_catching_up",
        "last_token_ns",
        "lora",
        "max_tokens",
        "next_cacheable_tokens",
        "num_blocks",
        "num_cached_blocks",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_draft_tokens",
        "num_dropped_blocks",
        "num_known_tokens",
        "num_output_placeholders",
        "num_output_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_recomputed_tokens",
        "num_slots",
        "num_stale_batches",
        "num_swapped_tokens",
        "num_tokens",
        "order",
        "prefix_key",
        "priority",
        "rank",
        "replica",
        "request_id",
        "resumed_at",
        "row",
        "scheduled_ns",
        "session",
        "state",
        "tenant",
        "tier",
    )

    def __init__(
        self,
        *,
        row: int,
        request_id: str,
        arrival_ns: int,
        num_prompt_tokens: int,
        output_tokens: int,
        max_tokens: int,
        max_model_len: int,
        order: int | str | None = None,
        priority: int = 0,
        content: Content | None = None,
        tenant: str = "default",
        tier: str = "default",
        class_name: str = "default",
        class_index: int = 0,
        deadline_ns: int | None = None,
        cancel_ns: int = NEVER,
        expected_output_tokens: int | None = None,
        session: str | None = None,
        prefix_key: str | None = None,
        lora: int = BASE_MODEL,
        images: tuple[Image, ...] = (),
    ) -> None:
        self.row = row
        self.request_id = request_id
        self.order = row if order is None else order
        self.arrival_ns = arrival_ns
        self.arrival_time = arrival_ns / 1e9
        self.priority = priority
        self.tenant = tenant
        self.tier = tier
        self.class_name = class_name
        self.class_index = class_index
        self.deadline_ns = deadline_ns
        self.cancel_ns = cancel_ns
        """When its client leaves unless it has its last token by then (after ``arrival_ns``), or NEVER."""
        self.replica = NEVER
        """Index of the replica that it was sent to."""
        self.expected_output_tokens = expected_output_tokens
        self.session = session
        self.prefix_key = prefix_key
        self.lora = lora
        """Number of its LoRA adapter, or BASE_MODEL."""
        self.images = images
        """Images of its prompt, in order; no two share a place."""
        self.images_end = images[-1].end if images else 0

        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self._stop_at_output_tokens = min(output_tokens, max_tokens, max_model_len - num_prompt_tokens)
        self.num_tokens = num_prompt_tokens
        self.num_known_tokens = num_prompt_tokens
        """``num_tokens + num_output_placeholders``: what ``num_computed_tokens`` catches up with."""
        self.num_computed_tokens = 0
        self.num_output_tokens = 0
        self.num_output_placeholders = 0
        self.num_stale_batches = 0
        """Batches in flight whose output for this request predates its preemption."""
        self.num_swapped_tokens = 0
        self.num_draft_tokens = 0
        """Speculative decoding: draft tokens that wait to be verified (vLLM's ``spec_token_ids``)."""
        self.state = State.WAITING
        self.admission = 0
        """Position in the order of admission: the order of ``running``."""
        self.rank: float = 0

        self.content = content
        self.blocks: list[int] = []
        self.num_blocks = 0
        self.num_dropped_blocks = 0
        """Leading ones of ``num_blocks`` that were given back: they are behind a sliding window."""
        self.num_slots = 0
        """Tokens that the allocated blocks can hold."""
        self.num_cached_blocks = 0
        self.next_cacheable_tokens = 0

        self.scheduled_ns = NEVER
        self.first_token_ns = NEVER
        self.last_token_ns = NEVER
        self.num_preemptions = 0
        self.is_catching_up = False
        """It has been admitted again after a preemption, and has no token since."""
        self.num_cached_tokens = 0
        self.num_recomputed_tokens = 0
        self.computed_spans: tuple[tuple[int, int], ...] = ()
        """Tokens computed before the last preemption: ranges [first, end), disjoint and in order."""
        self.resumed_at = 0
        """Tokens that the last admission after a preemption found in the cache."""

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.state.name}, computed={self.num_computed_tokens}, "
            f"prompt={self.num_prompt_tokens}, output={self.num_output_tokens})"
        )


class Content:
    """What a request's tokens are, as far as other requests can share them.

    ``segments`` are (content_id, end_token) pairs from token 0; tokens after the last one have
    the content ``own_id``. Ids are distinct small integers; equal id at equal position = equal tokens.
    """

    __slots__ = ("own_id", "own_is_shared", "segments")

    BLOCK_BITS = 24
    """A key is ``content_id << BLOCK_BITS | block index``: 16 M blocks per request at most."""

    def __init__(self, own_id: int, segments: tuple[tuple[int, int], ...] = (), *, own_is_shared: bool = False) -> None:
        """``own_is_shared``: other requests have ``own_id`` too (the turns of one conversation)."""
        self.own_id = own_id
        self.segments = segments
        self.own_is_shared = own_is_shared

    def block_keys(self, first_block: int, end_block: int, block_size: int) -> list[int]:
        """Keys of full blocks ``[first_block, end_block)``; equal keys mean equal tokens from token 0 on.

        A block belongs to the segment that holds its last token; because segments are chained
        (a segment is only ever shared together with everything before it), that identifies the
        whole prefix.
        """
        keys: list[int] = []
        block = first_block
        for content_id, end_token in self.segments:
            stop = min(end_token // block_size, end_block)
            if block < stop:
                base = content_id << self.BLOCK_BITS
                keys.extend(range(base + block, base + stop))
                block = stop
        if block < end_block:
            base = self.own_id << self.BLOCK_BITS
            keys.extend(range(base + block, base + end_block))
        return keys
