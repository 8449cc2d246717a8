"""Random workloads, by scheduler step, that both schedulers replay. Imports neither vLLM nor the simulator."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Literal

Policy = Literal["fcfs", "priority"]


@dataclass(frozen=True, slots=True)
class CaseGroup:
    """Layers with a block table of their own."""

    kind: Literal["full", "latent", "window", "chunk", "state"]
    block_size: int
    window: int | None = None
    """Tokens of a window or of a chunk."""
    checkpoint_alignment: int | None = None


@dataclass(frozen=True, slots=True)
class CaseImage:
    """An image in a prompt."""

    start: int
    num_tokens: int
    num_embeds: int
    content: int
    """Equal number = equal image."""
    num_before: int = 0
    """Tokens before the first embedding."""


@dataclass(frozen=True, slots=True)
class CaseSettings:
    """What a scheduler is built from. Names are vLLM's."""

    policy: Policy = "fcfs"
    async_scheduling: bool = False
    block_size: int = 16
    num_gpu_blocks: int = 64
    """Includes the null block, as vLLM counts."""
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 64
    max_model_len: int = 1024
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    enable_prefix_caching: bool = False
    num_speculative_tokens: int = 0
    """Drafts of a decode; 0 = no speculative decoding."""
    has_draft_model: bool = False
    """Drafts come from a draft model, else from n-grams."""
    draft_head: str = ""
    """They come from a head on the model's hidden states: ``eagle``, ``eagle3`` or ``mtp``."""
    sliding_window: int | None = None
    """Tokens that all layers look back on; None = full attention."""
    max_loras: int = 0
    """LoRA adapters that a step may hold; 0 = none are served."""
    encoder_budget: int = 0
    """Embeddings of images that a step may make; 0 = prompts are text."""
    encoder_cache: int = 0
    """Embeddings that are kept."""
    disable_chunked_mm_input: bool = False
    num_host_blocks: int = 0
    """Blocks of host memory that KV is offloaded to; 0 = none is."""
    slowest_transfer_steps: int = 1
    """Steps that a transfer takes at most."""
    kv_groups: tuple[CaseGroup, ...] = ()
    """Layers of several kinds; empty = one group, as ``sliding_window`` says."""
    prefix_cache_retention_interval: int | None = 0
    has_salts: bool = False
    """Each tenant's requests have a cache salt of their own."""

    @property
    def depth(self) -> int:
        """Batches in flight at most."""
        return 2 if self.async_scheduling else 1

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.num_gpu_blocks - 1


@dataclass(frozen=True, slots=True)
class CaseRequest:
    """One request. It ends by a stop token when ``output_tokens < max_tokens``, else by length."""

    request_id: str
    arrival_step: int
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    priority: int = 0
    segments: tuple[tuple[int, int], ...] = ()
    """Shared content: (content id, end token) pairs; what follows is the request's own."""
    session: int | None = None
    """Requests of one session have the same content position by position, prompt and output; excludes segments."""
    lora: int = 0
    """Number of its LoRA adapter; 0 = the base model."""
    images: tuple[CaseImage, ...] = ()
    """In order, no two at one place."""
    tenant: str = "default"
    tier: str = "default"
    class_name: str = "default"
    expected_output_tokens: int | None = None
    deadline_steps: int | None = None
    """Steps after arrival by which it should have ended."""
    abort_step: int | None = None
    """The step in which its client leaves, once it has arrived; None = it stays."""
    aborts_in_flight: bool = False
    """It leaves while the batch of that step is in flight, else just before the batch is formed."""


@dataclass(frozen=True, slots=True)
class Case:
    """One workload under one setting."""

    group: str
    seed: int
    settings: CaseSettings
    requests: tuple[CaseRequest, ...]
    """In order of arrival: those of one step are added in this order."""

    @property
    def name(self) -> str:
        """The parameters of ``draw_case``, for messages."""
        depth = "async" if self.settings.async_scheduling else "sync"
        return f"{self.group}-{self.settings.policy}-{depth}-{self.seed}"


MAX_RECORDS = 3000
"""A replay is cut here. Where all tie, vLLM's priority mode can preempt in a circle for ever."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one ``schedule()`` decided, and what had been freed since the one before."""

    step: int
    scheduled: tuple[tuple[str, int], ...]
    """(request id, tokens) in the order of scheduling."""
    preempted: tuple[str, ...]
    finished: tuple[str, ...]
    """Freed since the record before, in order."""
    free_blocks: int
    """Right after scheduling; unreferenced cached blocks are free."""


@dataclass(slots=True)
class Replay:
    """A whole run of one case."""

    records: list[StepRecord] = field(default_factory=list)
    last_finished: tuple[str, ...] = ()
    """Freed after the last ``schedule()``."""
    final_free_blocks: int = -1
    has_ended: bool = False

    @property
    def preemptions(self) -> int:
        """Preemptions over all steps."""
        return sum(len(record.preempted) for record in self.records)


GROUPS: tuple[str, ...] = (
    "plain",
    "pressure",
    "prefix",
    "prefix_pressure",
    "identical_prompts",
    "sessions",
    "long_prefill",
    "unchunked",
    "watermark",
    "overcommit",
    "model_len",
    "stop_token",
    "everything",
)
"""Kinds of case; each is drawn for both policies and both depths."""

TIGHT_GROUPS = frozenset({"pressure", "prefix_pressure", "overcommit", "watermark", "stop_token", "everything"})
"""Kinds with long outputs in a pool hardly larger than one request needs."""


def blocks_of(tokens: int, block_size: int) -> int:
    """Blocks that so many tokens take."""
    return -(-tokens // block_size)


def _draw_settings(rng: random.Random, group: str, policy: Policy, async_scheduling: bool) -> CaseSettings:
    """Settings of a kind: what it is about drawn wide, the rest plain."""
    everything = group == "everything"
    block_size = rng.choice([1, 4, 16, 16, 32])
    settings = CaseSettings(
        policy=policy,
        async_scheduling=async_scheduling,
        block_size=block_size,
        max_num_seqs=rng.choice([1, 2, 3, 4, 8, 16]),
        max_num_batched_tokens=rng.choice([16, 17, 32, 48, 64, 100, 128]),
        max_model_len=rng.choice([256, 512, 1000]),
        enable_prefix_caching=group in {"prefix", "prefix_pressure", "identical_prompts", "sessions"}
        or rng.random() < 0.3,
    )
    if group == "long_prefill" or (everything and rng.random() < 0.5):
        settings = replace(
            settings,
            long_prefill_token_threshold=rng.choice([1, 5, 8, 16, 30, 60]),
            long_prefill_token_threshold_adaptive=rng.random() < 0.4,
        )
    if group == "watermark" or (everything and rng.random() < 0.4):
        settings = replace(settings, watermark=rng.choice([0.01, 0.05, 0.1, 0.2, 0.35, 0.5]))
    if group == "overcommit" or (everything and rng.random() < 0.5):
        settings = replace(settings, scheduler_reserve_full_isl=False)
    if group == "model_len" or (everything and rng.random() < 0.3):
        settings = replace(settings, max_model_len=rng.choice([24, 33, 48, 64, 65]))
    if group == "unchunked" or (everything and rng.random() < 0.3):
        # vLLM refuses a token budget under max_model_len when chunking is off.
        length = min(settings.max_model_len, rng.choice([64, 96, 150]))
        budget = length + rng.choice([0, 0, 1, 20, 100])
        settings = replace(settings, enable_chunked_prefill=False, max_model_len=length, max_num_batched_tokens=budget)
    # vLLM refuses these beyond the limits.
    return replace(
        settings,
        max_num_seqs=min(settings.max_num_seqs, settings.max_num_batched_tokens),
        long_prefill_token_threshold=min(settings.long_prefill_token_threshold, settings.max_model_len),
    )


def _draw_arrivals(rng: random.Random, count: int) -> list[int]:
    """Steps of arrival, ascending: one burst, a few bursts, or spread out (with idle gaps)."""
    shape = rng.choice(["burst", "bursts", "spread", "spread"])
    if shape == "burst":
        return [rng.choice([0, 3])] * count
    if shape == "bursts":
        instants = [rng.randrange(60) for _ in range(rng.randint(2, 4))]
        return sorted(rng.choice(instants) for _ in range(count))
    span = rng.choice([count, 3 * count, 12 * count])
    return sorted(rng.randrange(span) for _ in range(count))


def _draw_prompt(rng: random.Random, group: str, settings: CaseSettings) -> int:
    longest = settings.max_model_len - 1
    if group == "model_len" and rng.random() < 0.5:
        return rng.randint(max(1, longest - 6), longest)
    if group in TIGHT_GROUPS and rng.random() < 0.6:
        return min(rng.randint(1, 30), longest)
    if rng.random() < 0.25:
        whole = settings.block_size * rng.randint(1, max(1, 96 // settings.block_size))
        return min(whole, longest)
    return min(rng.choice([rng.randint(1, 12), rng.randint(1, 60), rng.randint(40, 160)]), longest)


def _draw_lengths(rng: random.Random, group: str, settings: CaseSettings) -> tuple[int, int, int]:
    """(prompt, true output, max_tokens)."""
    prompt = _draw_prompt(rng, group, settings)
    room = settings.max_model_len - prompt
    if group in TIGHT_GROUPS:
        max_tokens = rng.choice([rng.randint(1, 12), rng.randint(20, 60), rng.randint(40, 120)])
    else:
        max_tokens = rng.choice([1, 2, rng.randint(1, 12), rng.randint(5, 45)])
    if group == "model_len" and rng.random() < 0.6:
        max_tokens = max(1, room + rng.choice([-1, 0, 1, 10]))
    return prompt, _draw_output(rng, group, min(max_tokens, room)), max_tokens


def _draw_output(rng: random.Random, group: str, most: int) -> int:
    """True output: all that is allowed, or a stop token before that."""
    stops = rng.random() < (0.7 if group in {"stop_token", "everything"} else 0.1)
    return rng.randint(1, most) if stops else most


def _share_content(rng: random.Random, group: str, settings: CaseSettings, request: CaseRequest) -> CaseRequest:
    """Give a request shared content: none, a group's prefix, a prefix of two segments, or its whole prompt."""
    if not settings.enable_prefix_caching:
        return request
    if group == "sessions":
        return replace(request, session=rng.randrange(3))
    if group not in {"prefix", "prefix_pressure", "identical_prompts", "everything"} or rng.random() < 0.15:
        return request
    content = rng.randrange(3)
    prompt = request.prompt_tokens
    if group == "identical_prompts" or rng.random() < 0.2:
        return replace(request, segments=((content, prompt),))
    head = min(prompt, rng.choice([1, settings.block_size, 2 * settings.block_size, rng.randint(1, 90), 100]))
    if rng.random() < 0.3 and head < prompt:
        # Two levels: a prompt shared by all, then one shared by fewer.
        return replace(request, segments=((content, head), (10 + rng.randrange(2), rng.randint(head + 1, prompt))))
    return replace(request, segments=((content, head),))


def _draw_pool(rng: random.Random, group: str, settings: CaseSettings, requests: list[CaseRequest]) -> int:
    """Blocks of the pool: at least what the largest request can ever need, at most far more than all need."""

    def most_tokens(request: CaseRequest) -> int:
        return min(request.prompt_tokens + request.max_tokens, settings.max_model_len)

    needs = [blocks_of(most_tokens(request), settings.block_size) for request in requests]
    largest, together = max(needs), sum(needs)
    if group in TIGHT_GROUPS:
        blocks = largest + rng.choice([0, 0, 1, 2, largest // 4, largest // 2, largest])
    elif rng.random() < 0.4:
        blocks = largest + rng.randint(0, largest)
    else:
        blocks = together + 8
    return blocks + 1


def _draw_requests(rng: random.Random, group: str, settings: CaseSettings, count: int) -> list[CaseRequest]:
    levels = rng.choice([1, 2, 4])
    common_prompt = _draw_prompt(rng, group, settings)
    requests = []
    for index, arrival_step in enumerate(_draw_arrivals(rng, count)):
        prompt, output, max_tokens = _draw_lengths(rng, group, settings)
        if group == "identical_prompts":
            prompt, output = common_prompt, min(output, settings.max_model_len - common_prompt)
        request = CaseRequest(
            # Ids do not sort as they arrive: ties of priority and arrival go by the id as a string.
            request_id=f"r{(index * 7) % 1000}",
            arrival_step=arrival_step,
            prompt_tokens=prompt,
            output_tokens=output,
            max_tokens=max_tokens,
            priority=rng.randrange(levels),
        )
        requests.append(_share_content(rng, group, settings, request))
    return requests


def draw_case(group: str, policy: Policy, async_scheduling: bool, seed: int) -> Case:
    """The case of these parameters, always the same."""
    rng = random.Random(f"{group}/{policy}/{async_scheduling}/{seed}")
    settings = _draw_settings(rng, group, policy, async_scheduling)
    count = rng.choice([1, 2, 5, 12, 20, 30])
    if group in TIGHT_GROUPS:
        count = rng.choice([5, 12, 20, 30])
        settings = replace(settings, max_num_seqs=min(rng.choice([4, 8, 16, 32]), settings.max_num_batched_tokens))
    requests = _draw_requests(rng, group, settings, count)
    settings = replace(settings, num_gpu_blocks=_draw_pool(rng, group, settings, requests))
    return Case(group=group, seed=seed, settings=settings, requests=tuple(requests))


def with_aborts(case: Case) -> Case:
    """The case with clients that leave: some or most, soon or late, before a step is formed or while it runs."""
    rng = random.Random(f"aborts/{case.name}")
    share = rng.choice([0.2, 0.5, 0.9])
    patience = rng.choice([3, 12, 40])

    def perhaps(request: CaseRequest) -> CaseRequest:
        if rng.random() >= share:
            return request
        step = request.arrival_step + rng.randrange(patience)
        return replace(request, abort_step=step, aborts_in_flight=rng.random() < 0.5)

    return replace(case, requests=tuple(perhaps(request) for request in case.requests))


def with_children(case: Case) -> Case:
    """The case with several outputs of some prompts: one request each, arriving together (vLLM's child requests)."""
    rng = random.Random(f"children/{case.name}")
    usable = case.settings.usable_blocks * case.settings.block_size
    requests: list[CaseRequest] = []
    for number, request in enumerate(case.requests):
        segments = request.segments
        if not segments or segments[-1][1] < request.prompt_tokens:
            segments = (*segments, (1000 + number, request.prompt_tokens))
        for child in range(rng.choice([1, 2, 4, 7])):
            longest = min(case.settings.max_model_len, usable) - request.prompt_tokens
            output = rng.randint(1, max(1, min(request.max_tokens, longest)))
            requests.append(
                replace(
                    request,
                    request_id=f"{child}_{request.request_id}",
                    output_tokens=output,
                    segments=segments,
                    session=None,
                )
            )
    return replace(case, requests=tuple(requests))


def with_salts(case: Case) -> Case:
    """The case with tenants that do not find each other's blocks."""
    rng = random.Random(f"salts/{case.name}")
    tenants = ("acme", "globex", "initech")[: rng.choice([1, 2, 3])]
    return replace(
        case,
        settings=replace(case.settings, has_salts=True),
        requests=tuple(replace(request, tenant=rng.choice(tenants)) for request in case.requests),
    )
