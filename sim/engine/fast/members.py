"""Running requests that decode in step, kept as a cohort instead of one by one.

How a request joins the cohort and leaves it, and what is written into it then: its counters, its keys in the prefix
cache, what its policy is told. ``FastScheduler`` forms steps of it; ``docs/fast-forward.md`` explains why that is
exact.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import Any

from policies.base import DecodeRanks, Policy, declared
from sim.engine.fast.cohort import NOT_A_MEMBER, Cohort
from sim.engine.fast.run_kv_cache import RunKVCache
from sim.engine.fast.victims import VictimOrder
from sim.engine.reference.batch import Batch, SchedulerSettings
from sim.engine.reference.kv_cache import NO_CACHING, KVCache
from sim.engine.reference.scheduler import Scheduler
from sim.engine.reference.waiting import OnDemand
from sim.engine.request import Request
from sim.results.record import Recorder


class MemberScheduler(Scheduler):
    """A scheduler some of whose running requests may be members of a cohort."""

    def __init__(self, settings: SchedulerSettings, policy: Policy, recorder: Recorder | None = None) -> None:
        super().__init__(settings, policy, recorder)
        if settings.enable_prefix_caching and not settings.contiguous_kv:
            self.kv: KVCache = RunKVCache(settings.num_gpu_blocks, settings.block_size)
        self.cohort = Cohort(settings.block_size)
        self.is_fast = False
        """Whether running requests may be members of the cohort now."""
        self.num_updated = 0
        """The last batch whose tokens are known."""
        self.grows = not settings.contiguous_kv
        self._block_size = settings.block_size
        self._is_async = settings.async_scheduling
        self._prefilling: list[Request] = []
        """Running, in order, and scheduled one by one."""
        self._talkers: dict[int, Request] = {}
        """Members whose own content others can have too, by content id: their keys are made on demand."""
        self._victims: VictimOrder | None = None
        """Members in the order of eviction, where ranks decide and their order is known to last."""
        if (
            self.ranked
            and not self._has_own_victims
            and declared(policy, "decode_ranks", DecodeRanks.MOVE) is not DecodeRanks.MOVE
        ):
            self._victims = VictimOrder(policy, self._write_view)

    # --- joining and leaving ---------------------------------------------------------------

    def _join(self, request: Request) -> None:
        is_async = self._is_async
        ends = request._stop_at_output_tokens
        base_output = request.num_output_tokens
        is_known = True
        if is_async:
            base_output += request.num_output_placeholders - 1
            at_model_len = request.num_prompt_tokens + ends >= self.settings.max_model_len
            is_known = ends == request.max_tokens or at_model_len
        if base_output + 1 >= ends and is_known:
            if self._victims is not None:
                self._victims.add(request)
            return  # its last token is in flight: nothing more to schedule
        if self._is_talking(request):
            if any(r is not request and conversation_of(r) == conversation_of(request) for r in self.running):
                # Two at once in one conversation: their keys must be made in order, so both are listed.
                insort(self._prefilling, request, key=admission_of)
                return
            self._talkers[conversation_of(request)] = request
        self.cohort.add(request, base_output=base_output, is_known_to_end=is_known)
        if self._victims is not None:
            self._victims.add(request)
        request.fed_until = self.cohort.latest

    def _leave(self, request: Request) -> None:
        """A member ends or is preempted: its counters count again."""
        if self._wants_scheduled:
            self._feed(request)
        self._write_counters(request)
        self.cohort.remove(request)
        if self._talkers and self._is_talking(request):
            self._talkers.pop(conversation_of(request), None)

    def _preempt(self, victim: Request, now_ns: int) -> None:
        if victim.joined_at != NOT_A_MEMBER:
            self._list_in_flight(victim)
            self._leave(victim)
        elif victim in self._prefilling:
            self._prefilling.remove(victim)
        super()._preempt(victim, now_ns)

    def _collect_ended(self, batch: Batch, finished: list[Request], now_ns: int) -> list[Request]:
        if finished and self._prefilling:
            self._prefilling = [request for request in self._prefilling if request not in finished]
        ended = self.cohort.ending_at(batch.index)
        if not ended:
            return finished
        for request in ended:
            self._drop_from_flight(request)
            self._leave(request)
            request.last_token_ns = now_ns
        if finished:
            ended = [request for request in finished if request not in ended] + ended
        if len(ended) > 1:
            ended.sort(key=admission_of)
        return ended

    def _list_in_flight(self, request: Request) -> None:
        """List a member in the batches in flight that compute it, as the reference would have."""
        for batch in self.in_flight:
            if request.joined_at < batch.index <= request.last_batch:
                batch.scheduled[request] = 1
                insort(batch.sampled, request, key=admission_of)
                batch.num_in_step -= 1

    def _drop_from_flight(self, request: Request) -> None:
        """A step that was scheduled before the end was seen computes nothing of use."""
        for batch in self.in_flight:
            if request.joined_at < batch.index <= request.last_batch:
                batch.num_in_step -= 1

    def _write_back(self) -> None:
        """Back to requests one by one: the next step is the reference's."""
        for request in self.running:
            if request.joined_at != NOT_A_MEMBER:
                self._list_in_flight(request)
                self._leave(request)
        self._prefilling = []
        self.is_fast = False

    # --- what is written into a member -----------------------------------------------------

    def _write_counters(self, request: Request) -> None:
        """What a member's counters are by now, into the request."""
        joined, updated, is_async = request.joined_at, self.num_updated, self._is_async
        scheduled = self.cohort.latest
        if scheduled > request.last_batch:
            scheduled = request.last_batch
        request.num_computed_tokens = computed = request.base_computed + scheduled - joined
        pending = 0
        if updated >= joined:
            known = updated if updated < request.ends_at else request.ends_at
            request.num_output_tokens = request.base_output + known - joined + 1
            request.last_token_ns = self.last_update_ns
            if is_async and scheduled > updated:
                pending = scheduled - updated
        elif is_async:
            # Its first batch as a member is in flight: ``update`` still counts the batches up to that one.
            pending = request.num_output_placeholders + scheduled - joined
        request.num_tokens = request.num_prompt_tokens + request.num_output_tokens
        request.num_output_placeholders = pending
        request.num_known_tokens = request.num_tokens + pending
        if self.grows:
            request.num_blocks = -(-computed // self._block_size)
            request.num_slots = request.num_blocks * self._block_size
        if computed - pending >= request.next_cacheable_tokens:
            self.kv.cache_blocks(request, computed - pending)

    def _write_view(self, request: Request) -> None:
        """What a policy can see of a member, as ``_write_counters`` has it."""
        joined, updated = request.joined_at, self.num_updated
        request.num_computed_tokens = request.base_computed + min(self.cohort.latest, request.last_batch) - joined
        if updated >= joined:
            request.num_output_tokens = request.base_output + min(updated, request.ends_at) - joined + 1

    def _write_views(self) -> None:
        """What a policy can see of the members, as ``_write_counters`` has it."""
        latest, updated = self.cohort.latest, self.num_updated
        for request in self.running:
            joined = request.joined_at
            if joined != NOT_A_MEMBER:
                request.num_computed_tokens = request.base_computed + min(latest, request.last_batch) - joined
                if updated >= joined:
                    request.num_output_tokens = request.base_output + min(updated, request.ends_at) - joined + 1

    def _running_as_of_now(self) -> Sequence[Request]:
        return OnDemand(self.running, self._write_views)

    def scheduled_tokens(self, batch: Batch) -> dict[str, int]:
        tokens = {}
        for request in self.running:
            if request in batch.scheduled:
                tokens[request.request_id] = batch.scheduled[request]
            elif 0 <= request.joined_at < batch.index <= request.last_batch:
                tokens[request.request_id] = 1
        return tokens

    # --- conversations: content that others can find ---------------------------------------

    def _is_talking(self, request: Request) -> bool:
        """Whether the tokens it generates can be found by others (the next turns of its conversation)."""
        content = request.content
        return content is not None and content.own_is_shared and request.next_cacheable_tokens != NO_CACHING

    def _lookup(self, request: Request) -> list[Any]:
        if self._talkers and (talker := self._talkers.get(conversation_of(request))):
            self._make_keys(talker)
        return super()._lookup(request)

    def _make_keys(self, talker: Request) -> None:
        """The keys that the reference has made by now for a member, this step's included."""
        if not talker.is_counted:
            # Its last token is in flight: this step gives it nothing, so makes it no key.
            self._write_counters(talker)
            return
        computed = talker.base_computed + self.cohort.latest + 1 - talker.joined_at
        known = talker.num_prompt_tokens + talker.base_output + max(0, self.num_updated - talker.joined_at + 1)
        if talker.next_cacheable_tokens != NO_CACHING:
            self.kv.cache_blocks(talker, min(computed, known))

    # --- feedback to the policy ------------------------------------------------------------

    def _feed_policy(self) -> None:
        """Tell the policy of the members' tokens since it was last told."""
        if self._wants_scheduled and self.is_fast:
            for request in self.running:
                if request.joined_at != NOT_A_MEMBER:
                    self._feed(request)

    def _feed(self, request: Request) -> None:
        until = min(self.cohort.latest, request.last_batch)
        if self._wants_scheduled and until > request.fed_until:
            self.policy.on_scheduled(request, until - request.fed_until)
            request.fed_until = until


def admission_of(request: Request) -> int:
    """The order of ``running``."""
    return request.admission


def conversation_of(request: Request) -> int:
    """What requests of one conversation have in common."""
    return request.content.own_id if request.content is not None else -1
