"""The requests of one engine, kept so that a step in which all decode costs the same for 2 requests and for 200.

A *member* is a running request that gets one token in every batch from the one after it joined. Batches are numbered,
so its computed tokens, its blocks and the batch of its last token follow from the batch at which it joined. Kept up to
date are sums over the members: how many they are, their context, and how many need a block for each batch. A member
that joins at batch 7 with 100 computed tokens attends to 101 tokens in batch 8 and to 105 in batch 12.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from policies.base import EngineLimits, Feedback, Policy, RankChanges, declared
from sim.engine.fast.segments import SegmentKVCache
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.reference.recompute import note_stopped
from sim.engine.reference.waiting import FcfsQueue, RankedQueue
from sim.engine.request import NEVER, Content, Request, State
from sim.results.record import Recorder, Status

NOT_A_MEMBER = -1


class Member(Request):
    """A request of a fast engine. Its own counters are behind while it is a member: ``Cohort.write`` brings them up."""

    __slots__ = (
        "base_computed",
        "base_output",
        "ends_at",
        "fed_until",
        "holding",
        "is_counted",
        "joined_at",
        "last_batch",
        "unit",
    )

    base_computed: int
    """Tokens that it had computed with the batch at which it joined, ..."""
    base_output: int
    """... and its output tokens before that batch's."""
    ends_at: int
    """The batch of its last token."""
    last_batch: int
    """The last batch that computes it: one more where the end is not known beforehand."""
    fed_until: int
    """The last batch whose tokens its policy was told of."""
    content: Content
    unit: int
    """What it counts as among gaps between tokens (``sim.results.gaps``): set when it arrives."""

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
        order: int | str,
        priority: int,
        content: Content,
        tenant: str,
        tier: str,
        class_name: str,
        class_index: int,
        deadline_ns: int | None,
        cancel_ns: int,
        expected_output_tokens: int | None,
        session: str | None,
        prefix_key: str | None,
    ) -> None:
        # As ``Request`` has it, without what only the reference's scheduler and cache keep in a request.
        self.row, self.request_id, self.order = row, request_id, order
        self.arrival_ns, self.arrival_time = arrival_ns, arrival_ns / 1e9
        self.priority, self.tenant, self.tier = priority, tenant, tier
        self.class_name, self.class_index = class_name, class_index
        self.deadline_ns, self.cancel_ns = deadline_ns, cancel_ns
        self.replica = NEVER
        self.expected_output_tokens = expected_output_tokens
        self.session, self.prefix_key, self.content = session, prefix_key, content
        self.num_prompt_tokens = self.num_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        room = max_model_len - num_prompt_tokens
        stop = output_tokens if output_tokens < max_tokens else max_tokens
        self._stop_at_output_tokens = stop if stop < room else room
        self.num_computed_tokens = self.num_output_tokens = self.num_output_placeholders = 0
        self.num_stale_batches = self.num_cached_blocks = 0
        self.state = State.WAITING
        self.scheduled_ns = self.first_token_ns = self.last_token_ns = NEVER
        self.num_preemptions = self.num_cached_tokens = self.num_recomputed_tokens = 0
        self.computed_spans = ()
        self.joined_at = NOT_A_MEMBER
        self.is_counted = False
        """It is in the sums: the next batch computes a token of it."""
        self.holding: Any = None


class Cohort:
    """Waiting and running requests, the KV cache, and the batches in flight."""

    def __init__(self, settings: SchedulerSettings, policy: Policy, recorder: Recorder, index: int) -> None:
        self.index = index
        self.settings = settings
        self.recorder = recorder
        self.add_gap = recorder.gaps.add
        self._units = recorder.gaps.units
        self.block_size = settings.block_size
        self.period = settings.block_size
        """Batches after which a member needs blocks as it did before."""
        self.is_async = settings.async_scheduling
        self.watermark_blocks = int(settings.watermark * settings.num_gpu_blocks)
        self._bind(policy)

    def _bind(self, policy: Policy) -> None:
        """Start empty, with a policy that has seen nothing."""
        settings = self.settings
        self.policy = policy
        self.ranked = policy.stock_mode != "fcfs"
        self._preempts = policy.preempts
        self._shows = RankChanges.OTHERS in declared(policy, "rank_changes", RankChanges.ALWAYS)
        """Ranks may move with what running requests have done."""
        self._wants_scheduled = type(policy).on_scheduled is not Policy.on_scheduled
        self._feeds_members = (
            self._wants_scheduled and declared(policy, "feedback", Feedback.EACH) is not Feedback.FIRST
        )
        self.kv = SegmentKVCache(settings.num_gpu_blocks, settings.block_size, caches=settings.enable_prefix_caching)
        self.waiting: FcfsQueue | RankedQueue = RankedQueue(policy) if self.ranked else FcfsQueue()
        self.running: list[Any] = []
        """In the order of admission."""
        self.part: Member | None = None
        """The request whose prompt is done in part: one at most, the last of ``running``, since it used up the budget
        of its step and no request is admitted before it is done."""
        self.part_batch = 0
        """The batch of its last chunk."""
        self.skipped: list[Member] = []
        """Decodes that lost a step because a request before them gave up its own blocks."""
        self.is_stuck = False
        """The head of the queue has no seat or no blocks, until a request ends, arrives or is preempted."""
        self.num_admissions = 0
        self.outstanding = 0
        self.latest = 0
        """The last batch formed."""
        self.completed = 0
        """The last batch whose tokens are known, ..."""
        self.known_ns = NEVER
        """... since this instant."""
        self.size = 0
        """Members that the next batch computes."""
        self.units = 0
        """The same as a sum of units (``sim.results.gaps``)."""
        self.context = 0
        """Sum of the context that they attend to in the next batch."""
        self.growth = [0] * self.period
        """``growth[j % period]``: blocks that they need for batch j."""
        self._leaves: list[tuple[int, int, Member]] = []
        """Heap of (first batch without it, admission, member)."""
        self.leaving: list[Member] = []
        """Members whose last token is in flight: no batch computes them, but they have seats and blocks."""
        self.talkers: dict[int, list[Member]] = {}
        """Running requests by conversation: their content is found by other turns."""
        self.stale: list[Member] = []
        """Preempted while a batch that computes them is in flight: they wait for its end before they are admitted."""
        self.freed: list[Member] = []
        """Ended since the last step, for its line of decisions."""
        self.has_newer = False
        """Whether the batch ``latest`` is in flight behind an older one, or alone under asynchronous scheduling."""
        # Of a batch in flight: the units of the members that it computes, and the requests looked at one by one when
        # it ends.
        self.older_units = 0
        self.older_ones: tuple[Member, ...] | list[Member] = ()
        self.newer_units = 0
        self.newer_ones: tuple[Member, ...] | list[Member] = ()
        policy.bind(
            EngineLimits(
                max_num_batched_tokens=settings.max_num_batched_tokens,
                max_num_seqs=settings.max_num_seqs,
                block_size=settings.block_size,
                num_gpu_blocks=self.kv.num_usable_blocks,
                enable_chunked_prefill=settings.enable_chunked_prefill,
                prompt_tokens_per_output_token=settings.prompt_tokens_per_output_token,
            )
        )

    # --- joining and leaving -----------------------------------------------------------------

    def join(self, request: Member, batch: int) -> None:
        """``batch`` gives ``request`` a token; from the next one on it decodes in step."""
        stop = request._stop_at_output_tokens
        output, computed = request.num_output_tokens, request.num_computed_tokens
        request.joined_at, request.base_computed, request.base_output = batch, computed, output
        request.ends_at = last = batch + stop - output - 1
        if self.is_async and stop != request.max_tokens:
            # A last token that is not known beforehand (EOS) is seen when one more step is in flight.
            last += request.num_prompt_tokens + stop < self.settings.max_model_len
        request.last_batch = last
        request.fed_until = batch
        if last == batch:
            request.is_counted = False
            self.leaving.append(request)
            return
        request.is_counted = True
        self.size += 1
        self.units += request.unit
        self.context += computed + 1
        self.count_growth(batch + 1 - computed, 1)
        heappush(self._leaves, (last + 1, request.admission, request))

    def _uncount(self, request: Member) -> None:
        request.is_counted = False
        self.size -= 1
        self.units -= request.unit
        self.context -= request.base_computed + self.latest - request.joined_at + 1
        self.count_growth(request.joined_at + 1 - request.base_computed, -1)

    def leave_out(self, batch: int) -> None:
        """Members that ``batch`` does not compute any more."""
        leaves = self._leaves
        while leaves and leaves[0][0] <= batch:
            left_at, admission, request = heappop(leaves)
            if request.is_counted and request.admission == admission and request.last_batch == left_at - 1:
                self._uncount(request)
                self.leaving.append(request)

    def first_leave(self) -> int:
        """The first batch that leaves a member out. There must be a member."""
        leaves = self._leaves
        while True:
            batch, admission, request = leaves[0]
            if request.is_counted and request.admission == admission and request.last_batch == batch - 1:
                return batch
            heappop(leaves)

    def write(self, request: Member) -> None:
        """What a member's counters are by now, into the request; it is no member any more."""
        if self._feeds_members:
            self.feed(request)
        joined, completed = request.joined_at, self.completed
        scheduled = min(self.latest, request.last_batch)
        request.num_computed_tokens = request.base_computed + scheduled - joined
        request.num_output_tokens = request.base_output
        if completed >= joined:
            request.num_output_tokens += min(completed, request.ends_at) - joined + 1
            request.last_token_ns = self.known_ns
        request.num_tokens = request.num_prompt_tokens + request.num_output_tokens
        # Full blocks are found by content once their tokens are known: under asynchronous scheduling the newest is not.
        request.num_output_placeholders = int(self.is_async and scheduled > completed)
        if request.is_counted:
            self._uncount(request)
        elif request in self.leaving:
            self.leaving.remove(request)
        request.joined_at = NOT_A_MEMBER

    def show(self, request: Member) -> None:
        """What a policy can see of a running request."""
        joined = request.joined_at
        if joined != NOT_A_MEMBER:
            completed = self.completed
            request.num_computed_tokens = request.base_computed + min(self.latest, request.last_batch) - joined
            if completed >= joined:
                request.num_output_tokens = request.base_output + min(completed, request.ends_at) - joined + 1

    def show_all(self) -> None:
        """The same for all of them."""
        for request in self.running:
            self.show(request)

    def feed(self, request: Member) -> None:
        """Tell the policy of the tokens of a member that it has not been told of."""
        until = min(self.latest, request.last_batch)
        if until > request.fed_until:
            self.policy.on_scheduled(request, until - request.fed_until)
            request.fed_until = until

    def tell_policy(self) -> None:
        """Before the policy is asked: what it wants to know of the running requests is as of now."""
        if self._feeds_members:
            self.feed_all()
        if self._shows and self.ranked:
            self.show_all()

    def feed_all(self) -> None:
        """The same for all of them, before the policy is asked anything."""
        for request in self.running:
            if request.joined_at != NOT_A_MEMBER:
                self.feed(request)

    # --- blocks --------------------------------------------------------------------------------

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` of one request take, those that it has given back included."""
        return -(-num_tokens // self.block_size)

    def blocks_for_one(self, computed: int) -> int:
        """Blocks that a request takes for one more token than ``computed``."""
        return 0 if computed % self.block_size else 1

    def count_growth(self, batch: int, num_members: int) -> None:
        """So many members more begin a block in ``batch``, and once in every ``block_size`` batches."""
        self.growth[batch % self.block_size] += num_members

    def give_back(self, request: Member, num_blocks: int, *, ended: bool) -> None:
        """All blocks of a request whose counters count."""
        sure = request.num_computed_tokens - request.num_output_placeholders
        num_cached = max(sure // self.block_size, request.num_cached_blocks)
        self.kv.free(request, num_blocks, num_cached, ended=ended)
        request.num_cached_blocks = 0
        if self.talkers and (turns := self.talkers.get(request.content.own_id)) and request in turns:
            turns.remove(request)
            if not turns:
                del self.talkers[request.content.own_id]

    # --- batches that end ------------------------------------------------------------------------

    def complete(self, batch: int, now_ns: int) -> list[Member]:
        """``batch``, the older one in flight, has ended. Returns the requests that ended with it, in order."""
        if self.older_units:
            self.add_gap((now_ns - self.known_ns, self.older_units))
        ended = self._complete_ones(now_ns) if self.older_ones else []
        self.completed, self.known_ns = batch, now_ns
        if self.stale:
            for request in self.stale:
                request.num_stale_batches = 0
            if isinstance(self.waiting, RankedQueue):
                self.waiting.mark_stale(frozenset(self.stale))
            self.stale = []
        if self._leaves and self._leaves[0][0] <= self.latest + 1:
            self.leave_out(self.latest + 1)
        if self.leaving:
            ended += [request for request in self.leaving if request.ends_at <= batch]
            if len(ended) > 1:
                ended.sort(key=admission_of)
        return ended

    def _complete_ones(self, now_ns: int) -> list[Member]:
        """The tokens of requests that are not members in the batch that ended. Returns those that ended although they
        wait again."""
        ended: list[Member] = []
        for request in self.older_ones:
            if request.state is State.FINISHED:
                continue
            if request.first_token_ns == NEVER:
                request.first_token_ns = now_ns
            else:
                self.add_gap((now_ns - request.last_token_ns, request.unit))
            request.last_token_ns = now_ns
            if request.num_preemptions and request.is_catching_up:
                self.recorder.caught_up(request, now_ns)
            if request.joined_at == NOT_A_MEMBER:
                request.num_output_tokens += 1
                request.num_tokens += 1
                request.num_output_placeholders = 0
                if request.num_output_tokens >= request._stop_at_output_tokens:
                    ended.append(request)
        return ended

    def end_all(self, ended: list[Member], now_ns: int) -> None:
        """These requests have all their tokens: their seats and blocks are free."""
        for request in ended:
            if request.state is State.PREEMPTED:
                self.waiting.remove(request)
            elif request.joined_at == NOT_A_MEMBER:
                self.skipped.remove(request)  # it lost a step that was for nothing
            else:
                if request.last_batch > request.ends_at and self.latest > request.ends_at:
                    self.newer_units -= request.unit  # the step formed before the end was seen computes nothing of use
                self.write(request)
                request.num_output_tokens = request._stop_at_output_tokens
            request.state = State.FINISHED
            self.policy.on_finished(request)
            self.outstanding -= request.num_prompt_tokens + request.max_tokens - request.num_computed_tokens
        for request in ended:
            computed = request.num_computed_tokens
            if computed:
                self.running.remove(request)
            self.give_back(request, self.blocks_for(computed), ended=True)
            self.freed.append(request)
        for request in ended:
            self.record_end(request, Status.COMPLETED, now_ns)

    def record_end(self, request: Member, status: Status, now_ns: int) -> None:
        """Write the row of a request that ended."""
        raise NotImplementedError

    # --- preemption ------------------------------------------------------------------------------

    def preempt(self, victim: Member, now_ns: int, num_new_blocks: int = 0, num_new_tokens: int = 0) -> None:
        """Take the blocks of a running request. ``num_new_blocks``, ``num_new_tokens``: what it was given in the step
        being formed, which it loses."""
        self.running.remove(victim)
        is_in_flight = self.withdraw(victim)
        if is_in_flight:
            victim.num_stale_batches = 1
            self.stale.append(victim)
        computed = victim.num_computed_tokens
        note_stopped(victim, computed)
        self.outstanding += computed
        num_blocks = self.blocks_for(computed) + num_new_blocks
        if num_new_tokens:
            # The keys that it made in this step stay.
            cacheable = min(computed + num_new_tokens, victim.num_tokens)
            victim.num_cached_blocks = max(victim.num_cached_blocks, cacheable // self.block_size)
        self.give_back(victim, num_blocks, ended=False)
        victim.state = State.PREEMPTED
        victim.num_computed_tokens = 0
        victim.num_output_placeholders = 0
        victim.num_preemptions += 1
        self.recorder.preempted(victim, now_ns)
        self.waiting.put_back(victim, now_ns)

    def abort(self, request: Member) -> None:
        """A request leaves before its end: its seat and its blocks are free, its tokens in flight are lost."""
        if request.state is State.RUNNING:
            if request.joined_at != NOT_A_MEMBER:
                if self.has_newer and request.joined_at < self.latest <= request.last_batch:
                    self.newer_units -= request.unit
                older = self.latest - self.has_newer
                if self.completed < older and request.joined_at < older <= request.last_batch:
                    self.older_units -= request.unit
                self.write(request)
            elif request is self.part:
                self.part = None
            else:
                self.skipped.remove(request)
            note_stopped(request, request.num_computed_tokens)
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        request.state = State.FINISHED
        self.policy.on_finished(request)
        computed = request.num_computed_tokens
        self.outstanding -= request.num_prompt_tokens + request.max_tokens - computed
        self.give_back(request, self.blocks_for(computed), ended=True)
        self.freed.append(request)
        self.is_stuck = False

    def withdraw(self, request: Member) -> bool:
        """A running request is computed no more, and its counters count. Returns whether the batch in flight computes
        it."""
        is_in_flight = self.completed < self.latest
        if request.joined_at != NOT_A_MEMBER:
            is_in_flight = is_in_flight and self.latest <= request.last_batch
            if is_in_flight and request.joined_at < self.latest:
                self.newer_units -= request.unit
                self.newer_ones = [*self.newer_ones, request]
            self.write(request)
        elif request is self.part:
            is_in_flight = is_in_flight and self.part_batch == self.latest
            self.part = None
        else:
            is_in_flight = request in self.newer_ones
            self.skipped.remove(request)
        return is_in_flight


def admission_of(request: Member) -> int:
    """Position in the order of admission."""
    return request.admission
