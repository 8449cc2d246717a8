"""Speculative decoding at the cost of what changes: the same decisions as ``drafts.py``.

Which drafts are accepted is drawn by request and output position. So when the prompt of a request is done its whole
future is known: tokens, drafts and blocks of each of its steps, and the step of its last token. All futures are kept
as one sum for each step to come, so that a step costs the same for 2 requests and for 200.

Steps are numbered by *attempt*, those that schedule nothing included. Attempt n is formed when all before n - 1 have
ended and n - 1 has not (asynchronous scheduling), or when all before it have. A future knows nothing of requests
beside it: where one would lose blocks to another, ``NotFollowed`` is raised, and the run starts anew, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.base import Feedback, Policy, declared
from policies.checks import label
from sim.engine.fast.allowed import NotFollowed, why_not
from sim.engine.fast.cohort import NOT_A_MEMBER, Member, admission_of
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.reference.batch import SchedulerSettings
from sim.engine.request import State
from sim.results.record import DraftCounts, Status
from sim.seeds import rng

IntColumn = npt.NDArray[np.int64]

NUM_FORMED = 5
"""Sums that are read when a step is formed: requests, their tokens, context, query-key pairs, new blocks."""
NUM_ENDED = NUM_FORMED + 1
"""And when it ends: rejected drafts; then for each class of requests its gaps since the step before, and its gaps of
nothing (accepted drafts)."""


def why_not_drafts(settings: SchedulerSettings, policy: Policy) -> str | None:
    """Why the reference takes each step of an engine with drafts, or None."""
    slots = settings.draft_slots
    most_tokens = settings.max_num_seqs * (1 + settings.num_speculative_tokens + slots)
    if most_tokens > settings.max_num_batched_tokens - slots:
        return "a step may not hold the drafts of every running request"
    hears_of_all = declared(policy, "feedback", Feedback.EACH) is not Feedback.FIRST
    if policy.preempts or (hears_of_all and type(policy).on_scheduled is not Policy.on_scheduled):
        return f"policy {label(policy)} looks at running requests"
    if settings.sliding_window is not None:
        return "drafts may reach beyond the window"
    return why_not(replace(settings, num_speculative_tokens=0, num_lookahead_tokens=0, draft_slots=0), policy)


class Future:
    """What becomes of a request from the attempt that does the last of its prompt, which is at position 0 here."""

    __slots__ = ("blocks", "computed", "contexts", "formed", "gained", "rejected", "sums")

    def __init__(self, computed: int) -> None:
        self.computed = computed
        """Tokens computed with position 0, drafts included."""
        self.formed = [0]
        """Tokens that are scheduled, after position 0; 0 = it loses the step."""
        self.contexts = [computed]
        self.gained: list[int] = []
        """Tokens that come out at the end."""
        self.rejected: list[int] = []
        self.blocks: list[int] = []
        """Held once it is formed."""
        self.sums: IntColumn = np.empty((0, 0), dtype=np.int64)


class DraftMember(Member):
    """A request of ``FastDrafts``."""

    __slots__ = ("future", "held")

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.future: Future = Future(0)
        self.held = 0
        """Blocks, before its future begins."""


class FastDrafts(FastReplica):
    """One model copy with drafts. Satisfies ``sim.engine.door.Door``."""

    def __init__(self, rates: Sequence[float], seed: int, *fields: Any) -> None:
        """``rates``: of acceptance, by position of the draft; ``fields``: as ``FastReplica`` has them."""
        self._rates, self._seed = rates, seed
        super().__init__(*fields)
        if self.recorder.drafts is None:
            self.recorder.drafts = DraftCounts(self.settings.num_speculative_tokens)
        self._drafts = self.recorder.drafts

    def _bind(self, policy: Policy) -> None:
        super()._bind(policy)
        self._may_cruise = False
        settings = self.settings
        self._longest_future = 2 * settings.max_model_len + 16
        """In attempts: each gives a token, but for those that wait for what is rejected."""
        self._num_sums = NUM_ENDED + 2 * len(self._units)
        self._futures = np.zeros((2 * self._longest_future, self._num_sums), dtype=np.int64)
        self._first = 0
        """The attempt of the first row."""
        self.attempt = 0
        """The last one formed. A batch in flight is known by its attempt: ``older_units`` and ``newer_units`` here."""
        self._ended_attempt = 0
        """The last one that has ended, ..."""
        self._ended_ns = [0] * 4
        """... and when: by attempt, modulo 4."""
        self._last_tokens: dict[int, list[DraftMember]] = {}
        """By attempt."""
        self._late_tokens: dict[int, list[DraftMember]] = {}
        """By attempt: requests that lost the attempt before."""

    def why_never(self, request: Member) -> str | None:
        """Why ``request`` can never run to its end here, or None."""
        settings = self.settings
        most = request.num_prompt_tokens + request._stop_at_output_tokens - 1
        most = min(most + settings.num_speculative_tokens + settings.num_lookahead_tokens, settings.max_model_len)
        need = -(-most // self.block_size)
        why = super().why_never(request)
        if need > self.num_gpu_blocks and (why is None or why.startswith("needs")):
            return f"needs {need} KV blocks at its longest, the pool has {self.num_gpu_blocks}"
        return why

    # --- futures -----------------------------------------------------------------------------------

    def _accepted(self, request: Member) -> list[int]:
        """How many drafts are accepted, by the number of output tokens before them."""
        stop, rates = request._stop_at_output_tokens, self._rates
        draws = rng(self._seed, "speculative", str(request.row)).random(stop + len(rates))
        are_accepted = draws[:stop] < rates[0]
        counts = are_accepted.astype(np.int64)
        for position, rate in enumerate(rates[1:], 1):
            are_accepted &= draws[position : stop + position] < rate
            counts += are_accepted
        result: list[int] = counts.tolist()
        return result

    def _look_ahead(self, request: DraftMember) -> Future:
        """The future of a request, as ``drafts.py`` and ``Scheduler`` have it step by step."""
        most_new, longest = 1 + self.settings.num_speculative_tokens, self.settings.max_model_len - 1
        stop, most = request._stop_at_output_tokens, request.num_prompt_tokens + request.max_tokens - 2
        accepted, is_async = self._accepted(request), self.is_async
        computed = request.num_computed_tokens
        future = request.future = Future(computed)
        formed, contexts, gained, rejected = future.formed, future.contexts, future.gained, future.rejected
        in_flight = 1 + computed - request.num_tokens  # padded to the length of decodes, with drafts that none accepts
        output = num_accepted = new = 0
        while True:
            if is_async:
                # Formed before the end of what is in flight; not at all if that is sure to give the last token.
                new = longest - computed
                if new > most_new:
                    new = most_new
                if new < 0 or (in_flight and computed - in_flight >= most):
                    new = 0
                computed += new
                context = computed
            if in_flight:
                if output:
                    num_accepted = accepted[output]
                    if num_accepted >= in_flight:
                        num_accepted = in_flight - 1
                num_gained = 1 + num_accepted
                if num_gained > stop - output:
                    num_gained = stop - output
                output += num_gained
                num_rejected = in_flight - 1 - num_accepted
                computed -= num_rejected
                gained.append(num_gained)
                rejected.append(num_rejected)
            else:
                gained.append(0)
                rejected.append(0)
            if not is_async:
                new = min(most_new, longest - computed) if output < stop else 0
                computed += new
                context = computed
            formed.append(new)
            contexts.append(context)
            if output >= stop:
                return future
            in_flight = new

    def join(self, request: DraftMember, batch: int) -> None:  # type: ignore[override]
        """Attempt ``batch`` does the last of a prompt: the request decodes from the next one on."""
        future = self._look_ahead(request)
        request.joined_at = batch
        length = len(future.formed)
        formed, contexts = np.array(future.formed), np.array(future.contexts)
        gained, rejected = np.zeros((2, length), dtype=np.int64)
        gained[:-1], rejected[:-1] = future.gained, future.rejected
        slots = np.minimum(contexts + self.settings.num_lookahead_tokens, self.settings.max_model_len)
        blocks = np.maximum.accumulate(-(-slots // self.block_size))
        future.blocks = blocks.tolist()
        sums = future.sums = np.zeros((length, self._num_sums), dtype=np.int64)
        runs = formed > 0
        sums[:, 0], sums[:, 1], sums[:, 2] = runs, formed, contexts * runs
        sums[:, 3] = formed * contexts
        sums[1:, 4] = blocks[1:] - blocks[:-1]
        is_late = np.zeros(length, dtype=np.bool_)
        is_late[2:] = ~runs[1:-1] & (gained[2:] > 0)
        sums[:, NUM_FORMED] = rejected
        own = NUM_ENDED + 2 * request.class_index
        sums[1:, own] = (gained[1:] > 0) & ~is_late[1:]
        sums[:, own + 1] = np.maximum(gained - 1, 0)
        row = batch - self._first
        self._futures[row : row + length] += sums
        self._last_tokens.setdefault(batch + len(future.gained) - 1, []).append(request)
        if is_late.any():
            for position in np.flatnonzero(is_late).tolist():
                self._late_tokens.setdefault(batch + position, []).append(request)

    def write(self, request: DraftMember) -> None:  # type: ignore[override]
        """What a member's counters are by now, into the request; it is no member any more."""
        future, joined, prompt = request.future, request.joined_at, request.num_prompt_tokens
        last = min(self.attempt - joined, len(future.formed) - 1)
        ended = max(min(self._ended_attempt - joined + 1, len(future.gained)), 0)
        output = sum(future.gained[:ended])
        formed, rejected = future.formed, future.rejected
        request.num_computed_tokens = future.computed + sum(formed[: last + 1]) - sum(rejected[:ended])
        request.num_output_tokens, request.num_tokens = output, prompt + output
        request.held = future.blocks[last]
        if ended:
            request.last_token_ns = self.known_ns
        # Keys are made of the tokens known when a step is formed, and when one ends under asynchronous scheduling.
        while last and not formed[last]:
            last -= 1
        known = prompt + sum(future.gained[: max(last - self.is_async, 0)])
        if self.is_async and ended:
            known = max(known, prompt + output - 1)
        request.num_cached_blocks = max(request.num_cached_blocks, known // self.block_size)
        request.joined_at = NOT_A_MEMBER
        self._count_drafts(future, ended)

    def _count_drafts(self, future: Future, ended: int) -> None:
        """What became of the drafts of a request, of which ``ended`` positions have ended."""
        counts = self._drafts
        positions = (future.formed[1:ended], future.gained[1:ended], future.rejected[1:ended])
        formed, gained, rejected = np.array(positions, dtype=np.int64)
        verified = formed > 1
        drafts = formed[verified] - 1
        accepted = drafts - rejected[verified]
        counts.num_verifications += len(drafts)
        counts.num_draft_tokens += int(drafts.sum())
        counts.num_accepted_tokens += int(accepted.sum())
        counts.num_output_tokens += int(gained[verified].sum())
        by_count = np.bincount(accepted, minlength=len(self._rates) + 1).tolist()
        num_more = len(drafts)
        for position in range(len(self._rates)):
            num_more -= by_count[position]
            counts.num_accepted_at[position] += num_more

    # --- a step is formed ---------------------------------------------------------------------------

    def form(self, now_ns: int) -> int:
        """Form the next batch and add up ``shape``; returns its number, or 0 where it computes nothing."""
        self.attempt = attempt = self.attempt + 1
        row, settings, shape, slots = attempt - self._first, self.settings, self.shape, self.settings.draft_slots
        if row > self._longest_future:
            row = self._forget(row)
        self.preempted, self.scheduled = [], []
        ones: list[Any] = []
        shape.clear()
        if self.waiting.entries:
            self.waiting.refresh(now_ns)
        num, tokens, context, pairs, need = self._futures[row, :NUM_FORMED].tolist()
        self._take(need)
        most = settings.max_num_batched_tokens - slots
        budget = most - tokens - slots * num
        prefill_budget = settings.max_prefill_tokens_per_step or most
        part: Any = self.part
        if part is not None and budget > 0:
            new = min(part.num_tokens - part.num_computed_tokens, prefill_budget, budget)
            computed = part.num_computed_tokens + new
            num_blocks = self._blocks_for(computed)
            self._take(num_blocks - part.held)
            part.held = num_blocks
            self.kv.cache(part, computed // self.block_size)
            self._compute(part, new, attempt, ones)
            budget, prefill_budget = budget - new - slots, prefill_budget - new
        if self.part is None and self.waiting.entries:
            self._admit_some(attempt, now_ns, budget, prefill_budget, ones, num > 0, part is None)
        shape.num_decodes += num
        shape.decode_context_tokens += context
        shape.num_draft_tokens += tokens - num
        shape.verify_attention_pairs += pairs
        shape.num_sampled = num + len(ones) + shape.num_draft_tokens
        num_tokens = shape.num_tokens
        if not num_tokens:
            return 0
        self.outstanding -= num_tokens
        self.latest += 1
        self.older_units, self.older_ones = self.newer_units, self.newer_ones
        self.newer_units, self.newer_ones = attempt, ones
        for request in ones:
            self.join(request, attempt)
        return self.latest

    def _forget(self, row: int) -> int:
        """Drop the sums of attempts before those in flight."""
        past = row - 3
        self._futures[:-past] = self._futures[past:]
        self._futures[-past:] = 0
        self._first += past
        return 3

    def _blocks_for(self, computed: int) -> int:
        slots = computed + self.settings.num_lookahead_tokens
        return -(-min(slots, self.settings.max_model_len) // self.block_size)

    def _take(self, num_blocks: int) -> None:
        if num_blocks > self.kv.num_free_blocks:
            raise NotFollowed("a request is preempted")
        if num_blocks:
            self.kv.take(num_blocks)

    def _admit_some(
        self,
        attempt: int,
        now_ns: int,
        budget: int,
        prefill_budget: int,
        ones: list[Any],
        are_decodes: bool,
        pads: bool,
    ) -> None:
        """Admit from the head of the queue; the first that does not fit ends it. ``pads``: one that needs one token is
        made as long as a decode, if it was found in part or there ``are_decodes``."""
        waiting, settings, kv, block_size = self.waiting, self.settings, self.kv, self.block_size
        padded = 1 + settings.num_speculative_tokens
        while budget > 0 and prefill_budget > 0 and waiting.entries and len(self.running) < settings.max_num_seqs:
            request: Any = waiting.peek()
            own_id, is_shared = request.content.own_id, request.content.own_is_shared
            if is_shared and own_id in self.talkers:
                raise NotFollowed("two turns of one conversation at once")
            hits = kv.lookup(request, request.num_tokens)
            computed = hits.num_blocks * block_size
            new = request.num_tokens - computed
            if new == 1 and pads and (computed or are_decodes) and computed + padded < settings.max_model_len:
                if padded > budget:
                    break
                new = padded
            if new > budget and not settings.enable_chunked_prefill:
                break
            new = min(new, budget, prefill_budget)
            free = kv.num_free_blocks - hits.num_evictable + hits.num_blocks
            if self.running:
                free -= self.watermark_blocks
            num_blocks = self._blocks_for(computed + new)
            if settings.scheduler_reserve_full_isl and -(-request.num_tokens // block_size) > free:
                break
            if num_blocks > free:
                break
            waiting.pop()
            kv.admit(request, hits, num_blocks)
            kv.cache(request, min(computed + new, request.num_tokens) // block_size)
            request.held = num_blocks
            self.running.append(request)
            self.num_admissions += 1
            request.admission = self.num_admissions
            request.state = State.RUNNING
            request.scheduled_ns = now_ns
            request.num_cached_tokens = request.num_computed_tokens = computed
            self.outstanding -= computed
            if is_shared:
                self.talkers[own_id] = [request]
            if computed + new > request.num_tokens:
                self._compute_padded(request, new, ones)
            else:
                self._compute(request, new, attempt, ones)
            budget, prefill_budget = budget - new - settings.draft_slots, prefill_budget - new

    def _compute_padded(self, request: DraftMember, new: int, ones: list[Any]) -> None:
        """The step computes the last token of a prompt, and drafts behind it that none accepts."""
        shape = self.shape
        computed = request.num_computed_tokens = request.num_computed_tokens + new
        shape.num_decodes += 1
        shape.decode_context_tokens += computed
        shape.num_draft_tokens += new - 1
        shape.verify_attention_pairs += new * computed
        self.scheduled.append((request, new))
        ones.append(request)
        if self._wants_scheduled:
            self.policy.on_scheduled(request, new)

    def _log(self, now_ns: int, free: int) -> None:
        tokens = dict(self.scheduled)
        for request in self.running:
            position, formed = self.attempt - request.joined_at, request.future.formed
            if request.joined_at != NOT_A_MEMBER and 0 < position < len(formed) and formed[position]:
                tokens[request] = formed[position]
        scheduled = {request.request_id: tokens[request] for request in sorted(tokens, key=admission_of)}
        self._write_line(now_ns, scheduled, free, self.num_steps)

    def _make_plan(self, now_ns: int) -> bool:
        """Steps are formed one by one: each has other sums."""
        return False

    # --- a step has ended ---------------------------------------------------------------------------

    def complete(self, batch: int, now_ns: int) -> list[Member]:
        """``batch``, the older one in flight, has ended. Returns the requests that ended with it, in order."""
        attempt = self.older_units
        rejected, *counts = self._futures[attempt - self._first, NUM_FORMED:].tolist()
        for unit, gaps, zeros in zip(self._units, counts[::2], counts[1::2], strict=True):
            if gaps:
                self.add_gap((now_ns - self.known_ns, gaps * unit))
            if zeros:
                self.add_gap((0, zeros * unit))
        self.outstanding += rejected
        if self._late_tokens:
            for request in self._late_tokens.pop(attempt, ()):
                if request.state is not State.FINISHED:
                    self.add_gap((now_ns - self._ended_ns[(attempt - 2) % 4], request.unit))
        for one in self.older_ones:
            if one.state is not State.FINISHED:
                one.first_token_ns = now_ns
        self.completed, self.known_ns = batch, now_ns
        self._ended_attempt, self._ended_ns[attempt % 4] = attempt, now_ns
        ended = [each for each in self._last_tokens.pop(attempt, ()) if each.state is not State.FINISHED]
        return sorted(ended, key=admission_of)

    def end_all(self, ended: list[Any], now_ns: int) -> None:
        """These requests have all their tokens: their seats and blocks are free."""
        for request in ended:
            self.write(request)
            self._close(request)
        for request in ended:
            self._free(request)
        for request in ended:
            self.record_end(request, Status.COMPLETED, now_ns)

    def _close(self, request: DraftMember) -> None:
        request.state = State.FINISHED
        self.policy.on_finished(request)
        self.outstanding -= request.num_prompt_tokens + request.max_tokens - request.num_computed_tokens

    def _free(self, request: DraftMember) -> None:
        """Give back the seat and the blocks."""
        if request.held:
            self.running.remove(request)
        self.kv.free(request, request.held, request.num_cached_blocks, ended=True)
        request.held = 0
        if self.talkers.get(request.content.own_id) == [request]:
            del self.talkers[request.content.own_id]
        self.freed.append(request)

    def abort(self, request: DraftMember) -> None:  # type: ignore[override]
        """A request leaves before its end: its seat and its blocks are free, its tokens in flight are lost."""
        if request.state is not State.RUNNING:
            self.waiting.remove(request)
        elif request.joined_at == NOT_A_MEMBER:
            self.part = None
        else:
            future, joined = request.future, request.joined_at
            begin, end = max(self._ended_attempt + 1, joined), joined + len(future.formed)
            self._futures[begin - self._first : end - self._first] -= future.sums[begin - joined :]
            self.write(request)
        self._close(request)
        self._free(request)
