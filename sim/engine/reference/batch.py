"""What a scheduler works with: its settings, the step it is forming, and the batch that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from policies.base import PROMPT_TOKENS_PER_OUTPUT_TOKEN
from sim.engine.reference.shares import StepShares
from sim.engine.request import Request
from sim.latency.base import StepShape
from sim.latency.kv_layout import KvGroup


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """The engine settings that decide what runs. vLLM's names and defaults."""

    num_gpu_blocks: int
    block_size: int = 16
    max_model_len: int = 4096
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_chunked_prefill: bool = True
    max_prefill_tokens_per_step: int | None = None
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    enable_prefix_caching: bool = True
    async_scheduling: bool = False
    contiguous_kv: bool = False
    static_batching: bool = False
    num_swap_blocks: int = 0
    """Host blocks for ``preemption: swap``; 0 = recompute."""
    num_host_blocks: int = 0
    """Blocks of host memory that KV is offloaded to (``kv_offloading_size``); 0 = none is."""
    num_speculative_tokens: int = 0
    """Draft tokens of a decode; 0 = none are made."""
    num_lookahead_tokens: int = 0
    """Slots that a draft model needs beyond the scheduled tokens (``VllmConfig.num_lookahead_tokens``)."""
    sliding_window: int | None = None
    """Tokens that every layer's attention looks back on, where KV is kept for no more; None = all is kept."""
    kv_groups: tuple[KvGroup, ...] = ()
    """Layers of several kinds, each with a block table of its own; empty = one kind, as ``sliding_window`` says."""
    prefix_cache_retention_interval: int | None = 0
    """Behind a window, and of states, blocks are put into the prefix cache at the end of a prompt and where a shared
    prefix ends; more than 0 = once in so many tokens too; None = wherever a prefix could end."""
    pipeline_parallel_size: int = 1
    draft_slots: int = 0
    """Tokens of the step's budget that a draft model needs for each request
    (``SpeculativeConfig.max_num_new_slots_for_drafting``)."""
    drops_last_block: bool = False
    """The last block of a prefix that is found is computed again: a draft head needs the hidden states of the tokens
    before those that it drafts (``SpeculativeConfig.use_eagle_block_drop``)."""
    block_bytes: int = 0
    """Bytes of one KV block over all GPUs of the replica, for the cost of swapping."""
    max_loras: int = 0
    """LoRA adapters that a step may hold, and slots for them on the GPU; 0 = no adapters."""
    max_cpu_loras: int = 0
    """LoRA adapters that host memory holds, at least ``max_loras``."""
    lora_bytes: int = 0
    """Bytes of one adapter over all GPUs of the replica, for the cost of moving it into a slot."""
    encoder_budget_embeds: int = 0
    """Embeddings of images that the vision encoder may make in a step; 0 = prompts are text."""
    encoder_cache_embeds: int = 0
    """Embeddings of images that are kept."""
    disable_chunked_mm_input: bool = False
    """A chunk that begins before an image ends before it too, or after it."""
    prompt_tokens_per_output_token: int = PROMPT_TOKENS_PER_OUTPUT_TOKEN
    """For policies that weigh the one against the other (``EngineLimits``)."""

    @property
    def max_in_flight_tokens(self) -> int:
        """Tokens that can be scheduled and not computed yet (``VllmConfig.max_in_flight_tokens``)."""
        return (2 if self.async_scheduling else self.pipeline_parallel_size) * self.max_num_batched_tokens


_NO_DRAFTS: Mapping[Request, int] = MappingProxyType({})
_NOBODY: frozenset[Request] = frozenset()


class Batch:
    """What one step computes. ``scheduled`` is in the order of scheduling."""

    __slots__ = (
        "drafts",
        "finished",
        "num_free_blocks",
        "preempted",
        "sampled",
        "scheduled",
        "shape",
        "stale",
        "token_budget",
    )

    def __init__(self, finished: list[Request] | None = None) -> None:
        self.scheduled: dict[Request, int] = {}
        self.sampled: list[Request] = []
        """Requests that are computed up to their last known token in this step: they get a new one when it ends."""
        self.preempted: list[Request] = []
        self.finished: list[Request] = finished or []
        """Freed since the step before."""
        self.stale: set[Request] | frozenset[Request] = _NOBODY
        """Preempted while this batch was in flight: its token for them still counts, nothing else does."""
        self.drafts: Mapping[Request, int] = _NO_DRAFTS
        """Speculative decoding: draft tokens verified in this step, by request."""
        self.shape = StepShape()
        self.num_free_blocks = 0
        self.token_budget = 0

    @property
    def tokens_by_id(self) -> dict[str, int]:
        """Scheduled tokens by request id, in the order of scheduling."""
        return {request.request_id: num_tokens for request, num_tokens in self.scheduled.items()}

    @property
    def is_empty(self) -> bool:
        """Whether the step schedules nothing."""
        return not self.scheduled

    def count_as_computed(self, *, is_async: bool) -> None:
        """Count the scheduled tokens in their requests, in the step's shape, and note which requests get a token.

        ``is_async``: a token that is sampled counts as known at once, with a placeholder until its step has ended.
        """
        shape = self.shape
        for request, num_new in self.scheduled.items():
            prior = request.num_computed_tokens
            computed = prior + num_new
            request.num_computed_tokens = computed
            known = request.num_known_tokens
            if num_new == 1 and computed == known and known > request.num_prompt_tokens:
                shape.num_decodes += 1
                shape.decode_context_tokens += computed
            else:
                shape.num_prefills += 1
                shape.num_prefill_tokens += num_new
                shape.prefill_context_tokens += computed
                shape.prefill_attention_pairs += num_new * (prior + computed)
            if computed == known:
                self.sampled.append(request)
                if is_async:
                    request.num_output_placeholders += 1
                    request.num_known_tokens += 1
        shape.num_sampled += len(self.sampled)


@dataclass(slots=True)
class Step:
    """What is left to give in the step being formed."""

    now_ns: int
    token_budget: int
    prefill_budget: int
    chunk_cap: int
    """``long_prefill_token_threshold`` as it applies to this step; 0 = off."""
    whole_prompts_only: bool
    largest_whole_prompt: int
    """Without chunked prefill: what a longer prompt may do is be chunked (only a policy's cap is that small)."""
    shares: StepShares | None
    draft_slots: int = 0
    """Tokens of the budget that a draft model takes for each request."""

    def give(self, request: Request, num_tokens: int, *, is_prefill: bool) -> None:
        """``num_tokens`` of ``request`` are scheduled."""
        self.token_budget -= num_tokens + self.draft_slots
        if is_prefill:
            self.prefill_budget -= num_tokens
        if self.shares is not None:
            self.shares.use(request, num_tokens)

    def take_back(self, request: Request, num_tokens: int, *, is_prefill: bool) -> None:
        """``num_tokens`` of ``request`` that were scheduled are not: it has been preempted."""
        self.token_budget += num_tokens + self.draft_slots
        if is_prefill:
            self.prefill_budget += num_tokens
        if self.shares is not None:
            self.shares.use(request, -num_tokens)
