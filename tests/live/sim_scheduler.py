"""The simulator's scheduler behind the same face as ``RealScheduler``, so that one driver runs both."""

from __future__ import annotations

from collections import Counter, deque

from real_scheduler import NS_PER_STEP, drive
from traces import Case, CaseImage, CaseRequest, CaseSettings, Replay

from policies.base import Policy
from policies.fcfs import Fcfs
from policies.priority import Priority
from sim.engine.reference.batch import Batch, SchedulerSettings
from sim.engine.reference.scheduler import Scheduler
from sim.engine.request import Content, Image, Request, State
from sim.latency.kv_layout import KvGroup

LONGER_THAN_ALL = 1 << 40
"""End of a request's own content."""


def scheduler_settings(settings: CaseSettings) -> SchedulerSettings:
    """A case's settings in the simulator's own type."""
    return SchedulerSettings(
        num_gpu_blocks=settings.num_gpu_blocks,
        block_size=settings.block_size,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        enable_chunked_prefill=settings.enable_chunked_prefill,
        long_prefill_token_threshold=settings.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=settings.long_prefill_token_threshold_adaptive,
        scheduler_reserve_full_isl=settings.scheduler_reserve_full_isl,
        watermark=settings.watermark,
        enable_prefix_caching=settings.enable_prefix_caching,
        async_scheduling=settings.async_scheduling,
        sliding_window=settings.sliding_window,
        max_loras=settings.max_loras,
        encoder_budget_embeds=settings.encoder_budget,
        encoder_cache_embeds=settings.encoder_cache,
        disable_chunked_mm_input=settings.disable_chunked_mm_input,
        kv_groups=tuple(
            KvGroup(each.kind, each.block_size, each.window, checkpoint_alignment=each.checkpoint_alignment)
            for each in settings.kv_groups
        ),
        prefix_cache_retention_interval=settings.prefix_cache_retention_interval,
    )


class SimScheduler:
    """One case on the simulator's scheduler, a step at a time."""

    def __init__(self, case: Case, policy: Policy | None = None) -> None:
        """``policy``: None = the stock one that the case's settings name."""
        self.settings = case.settings
        if policy is None:
            policy = Fcfs() if case.settings.policy == "fcfs" else Priority()
        self.scheduler = Scheduler(scheduler_settings(case.settings), policy)
        self._in_flight: deque[Batch] = deque()
        self.aborted_in: Counter[str] = Counter()
        """How many requests were aborted in which state."""
        self._content_ids: dict[object, int] = {}
        self._requests: dict[str, Request] = {}
        self._step = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is waiting, running or in flight."""
        return not self._in_flight and not self.scheduler.has_requests()

    @property
    def free_blocks(self) -> int:
        """Blocks on the free list."""
        return self.scheduler.kv.num_free_blocks

    def add_request(self, request: CaseRequest) -> None:
        """A request joins the waiting queue."""
        row = len(self._requests)
        arrival_ns = request.arrival_step * NS_PER_STEP
        mine = Request(
            row=row,
            request_id=request.request_id,
            order=request.request_id,
            arrival_ns=arrival_ns,
            num_prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            max_tokens=request.max_tokens,
            max_model_len=self.settings.max_model_len,
            priority=request.priority,
            tenant=request.tenant,
            tier=request.tier,
            class_name=request.class_name,
            expected_output_tokens=request.expected_output_tokens,
            deadline_ns=None if request.deadline_steps is None else arrival_ns + request.deadline_steps * NS_PER_STEP,
            content=self._content(request, row),
            lora=request.lora,
            images=tuple(
                Image(each.start, each.num_tokens, each.num_embeds, each.content, each.num_before)
                for each in request.images
            ),
        )
        refusal = self.scheduler.why_never(mine)
        if refusal is not None:
            raise ValueError(f"{request}: the simulator refuses what vLLM runs: {refusal}")
        self._requests[request.request_id] = mine
        self.scheduler.add_request(mine, arrival_ns)

    def abort(self, request_id: str) -> tuple[str, ...]:
        """A client leaves; its request's id, unless the request has ended already."""
        request = self._requests[request_id]
        if request.state is State.FINISHED:
            return ()
        self.aborted_in[self._state_of(request)] += 1
        self.scheduler.abort(request, self._step * NS_PER_STEP)
        return (request_id,)

    def _state_of(self, request: Request) -> str:
        if request.num_stale_batches:
            return "preempted, with output in flight"
        is_in_flight = any(request in batch.scheduled for batch in self._in_flight)
        return request.state.name.lower() + (", in flight" if is_in_flight else "")

    def schedule(self, step: int) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        """One ``schedule()``: what it scheduled and what it preempted; the batch is then in flight."""
        batch = self.scheduler.schedule(step * NS_PER_STEP)
        self._step = step + 1
        self._in_flight.append(batch)
        scheduled = tuple((request.request_id, num_tokens) for request, num_tokens in batch.scheduled.items())
        return scheduled, tuple(request.request_id for request in batch.preempted)

    def settle(self, was_empty: bool) -> tuple[str, ...]:
        """Complete the oldest batch when the pipeline is full; every batch after a step that scheduled nothing."""
        finished: list[str] = []
        while self._in_flight and (was_empty or len(self._in_flight) >= self.settings.depth):
            batch = self._in_flight.popleft()
            finished += [request.request_id for request in self.scheduler.update(batch, self._step * NS_PER_STEP)]
        return tuple(finished)

    def _content(self, request: CaseRequest, row: int) -> Content:
        """A segment's id stands for it and all before it, as the simulator wants them."""
        salt = (request.tenant if self.settings.has_salts else "", request.lora)
        own = ("own", row) if request.session is None else ("session", request.session)
        runs = _with_images([*request.segments, (own, LONGER_THAN_ALL)], request.images)
        ids = [self._content_id((salt, *runs[:place], content)) for place, (content, _) in enumerate(runs)]
        ends = [end for _, end in runs]
        return Content(ids[-1], tuple(zip(ids[:-1], ends[:-1], strict=True)))

    def _content_id(self, content: object) -> int:
        return self._content_ids.setdefault(content, len(self._content_ids))


def _with_images(runs: list[tuple[object, int]], images: tuple[CaseImage, ...]) -> list[tuple[object, int]]:
    """Runs of content, as (content, end), with the places of ``images`` as runs of their own."""
    found: list[tuple[object, int]] = []
    start, left = 0, list(images)
    for content, end in runs:
        while left and left[0].start < end:
            image = left.pop(0)
            if image.start > start:
                found.append((content, image.start))
            start = image.start + image.num_tokens
            found.append((("image", image.content), start))
        if start < end:
            found.append((content, end))
            start = end
    return found


def replay_sim(case: Case) -> Replay:
    """Replay a case on the simulator's scheduler."""
    return drive(case, SimScheduler(case))
