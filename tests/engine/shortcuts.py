"""How often each shortcut of the fast engine was taken: its methods are wrapped, and nothing in it is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sim.cluster import simulate
from sim.cluster.gateway import Gateway
from sim.engine.fast.allowed import NotFollowed
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.fast.plan import Plan
from sim.engine.fast.segments import SegmentKVCache
from sim.engine.fast.sums import DecodeSums
from sim.engine.request import State
from sim.engine.variants.drafts_fast import FastDrafts
from sim.engine.variants.lockstep_fast import FastGroup, FastRank
from sim.engine.variants.window_fast import WindowReplica
from sim.workload.senders import Senders

After = Callable[[Counter[str], Any, tuple[Any, ...], Any, Any], None]
"""Takes the counts, the object, the arguments, what the method returned and what ``before`` saw."""


def _owner(cls: Any, name: str) -> Any:
    return next(each for each in cls.__mro__ if name in vars(each))


class Shortcuts:
    """Counts while a test runs."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self._patch = patch
        self._is_planning = False
        self._num_written = 0
        self._wrap_all()

    def _wrap(self, cls: Any, name: str, after: After, before: Callable[..., Any] | None = None) -> None:
        owner = _owner(cls, name)
        real = vars(owner)[name]
        counts = self.counts

        def counted(this: Any, *args: Any, **more: Any) -> Any:
            seen = before(this, *args) if before is not None else None
            result = real(this, *args, **more)
            after(counts, this, args, result, seen)
            return result

        self._patch.setattr(owner, name, counted)

    def _count(self, cls: Any, name: str, key: str) -> None:
        def after(counts: Counter[str], *_: Any) -> None:
            counts[key] += 1

        self._wrap(cls, name, after)

    def _wrap_all(self) -> None:
        self._wrap_plans()
        self._wrap_steps()
        self._wrap_ends()
        self._wrap_others()

    # --- many steps at once ------------------------------------------------------------------

    def _wrap_plans(self) -> None:
        self._wrap(FastReplica, "_write_first_row", self._after_row)
        self._wrap(FastReplica, "_cruise", self._after_cruise, lambda it, *_: len(it._rows) + self._num_written)
        self._wrap(FastReplica, "_make_plan", self._after_plan, self._before_plan)
        self._wrap(FastReplica, "_most_by_blocks", self._after_most)
        self._wrap(Plan, "num_formed", self._after_formed, lambda plan, _: plan.steps)
        self._wrap(FastReplica, "_cut", self._after_cut, lambda it, plan, now: plan.num_formed(now) < plan.steps)
        self._wrap(Plan, "_one_by_one", self._after_one_by_one)
        self._wrap(FastReplica, "_write_ended", self._after_written, self._before_written)
        self._count(DecodeSums, "make_short", "stretch made for once")
        self._wrap(DecodeSums, "make", self._after_make, lambda sums, *_: len(sums.stretches))

    def _after_row(self, *_: Any) -> None:
        self._num_written += 1

    def _after_cruise(self, counts: Counter[str], it: Any, args: Any, result: Any, before: int) -> None:
        counts["cruised round"] += len(it._rows) + self._num_written - before

    def _before_plan(self, *_: Any) -> None:
        self._is_planning = True

    def _after_plan(self, counts: Counter[str], it: Any, args: Any, made: bool, _: Any) -> None:
        self._is_planning = False
        if not made:
            return
        plan = it._plan
        counts["plan"] += 1
        counts["plan behind a stuck head"] += plan.num_waiting > 0
        counts["plan of talkers"] += bool(it.talkers)
        most = 1 if it.leaving else it.first_leave() - it.latest - 1
        counts["plan to a leave"] += plan.steps == most
        counts["plan of one step for a last token in flight"] += bool(it.leaving)

    def _after_most(self, counts: Counter[str], it: Any, args: tuple[int, int], most: int, _: Any) -> None:
        counts["plan to a shortage of blocks"] += 0 < most < args[0]
        counts["no block for a plan"] += most == 0

    def _after_formed(self, counts: Counter[str], plan: Any, args: Any, formed: int, steps: int) -> None:
        counts["plan to a change of rank"] += self._is_planning and formed < steps

    def _after_cut(self, counts: Counter[str], it: Any, args: Any, result: Any, is_short: bool) -> None:
        counts["plan cut"] += is_short

    def _after_one_by_one(self, counts: Counter[str], *_: Any) -> None:
        counts["plan one by one"] += 1

    def _before_written(self, it: Any, now_ns: int) -> tuple[int, int]:
        rows = [row for _, row, plan in it._rows if plan is not None and row[3] > now_ns and row[4] > 1]
        cruised = [plan for _, _, plan in it._rows if plan is not None and not isinstance(plan, Plan)]
        return len(rows), len(cruised)

    def _after_written(self, counts: Counter[str], it: Any, args: Any, result: Any, before: tuple[int, int]) -> None:
        counts["crash in a plan's row"] += before[0]
        counts["crash in a cruised row"] += before[1]

    def _after_make(self, counts: Counter[str], sums: Any, args: Any, result: Any, before: int) -> None:
        counts["stretch made"] += 1
        counts["stretches dropped"] += len(sums.stretches) <= before

    # --- one step ----------------------------------------------------------------------------

    def _wrap_steps(self) -> None:
        self._count(FastReplica, "_step", "step")
        self._count(FastReplica, "_serve_one_by_one", "served one by one")
        self._wrap(FastReplica, "_evict_for", self._after_evict)
        self._wrap(FastReplica, "_skip_behind", self._after_skip, lambda it, *_: len(it.skipped))
        self._wrap(FastReplica, "_go_on", self._after_part)
        self._wrap(FastReplica, "_admit", self._after_admit)
        self._wrap(FastReplica, "_write_keys_in_order", self._after_keys)
        self._count(FastReplica, "_write_keys", "keys written on demand")
        self._wrap(FastReplica, "_preempt_proactively", self._after_proactive, lambda it, *_: len(it.preempted))
        self._wrap(FastReplica, "preempt", self._after_preempt)
        self._wrap(FastReplica, "join", self._after_join)
        self._count(FastReplica, "feed", "tokens told to a policy")

    def _after_evict(self, counts: Counter[str], it: Any, args: Any, victim: Any, _: Any) -> None:
        counts["evicted by rank" if it.ranked else "evicted by order"] += 1
        counts["evicted itself"] += victim is args[0]

    def _after_skip(self, counts: Counter[str], it: Any, args: Any, result: Any, before: int) -> None:
        counts["skipped"] += len(it.skipped) - before

    def _after_part(self, counts: Counter[str], it: Any, args: Any, tokens: int, _: Any) -> None:
        counts["chunk of a part"] += tokens > 0
        counts["part evicted itself"] += tokens == 0

    def _after_admit(self, counts: Counter[str], it: Any, *_: Any) -> None:
        counts["stuck head"] += it.is_stuck
        counts["passed over a stale request"] += any(request.num_stale_batches for request in it.waiting)

    def _after_keys(self, counts: Counter[str], it: Any, *_: Any) -> None:
        counts["crowded conversation"] += any(len(turns) > 1 for turns in it.talkers.values())

    def _after_proactive(self, counts: Counter[str], it: Any, args: Any, result: Any, before: int) -> None:
        counts["preempted proactively"] += len(it.preempted) - before

    def _after_preempt(self, counts: Counter[str], it: Any, args: Any, result: Any, before: Any) -> None:
        counts["preempted"] += 1
        counts["preempted with a token in flight"] += args[0].num_stale_batches
        counts["preempted with what it got in the step"] += len(args) > 2 and args[3] > 0

    def _after_join(self, counts: Counter[str], it: Any, args: Any, *_: Any) -> None:
        counts["end not known beforehand"] += args[0].last_batch > args[0].ends_at
        counts["one token and done"] += not args[0].is_counted

    # --- ends, from inside and outside ---------------------------------------------------------

    def _wrap_ends(self) -> None:
        self._wrap(FastReplica, "abort", lambda *_: None, self._before_abort)
        self._wrap(FastReplica, "end_all", lambda *_: None, self._before_end)
        self._wrap(FastReplica, "crash", lambda *_: None, self._before_crash)
        self._wrap(FastReplica, "_on_timeout", self._counter("a client leaves, watched"))
        self._count(FastReplica, "_on_step_end", "watched end of a step")
        self._count(FastReplica, "_on_start", "watched start of a step")
        self._count(FastReplica, "drain", "drain")
        self._count(FastReplica, "undrain", "undrain")
        self._count(FastReplica, "set_cost", "set_cost")
        self._count(FastReplica, "take_feed", "fed beforehand")

    def _counter(self, key: str) -> After:
        def after(counts: Counter[str], *_: Any) -> None:
            counts[key] += 1

        return after

    def _before_abort(self, it: Any, request: Any) -> None:
        counts = self.counts
        counts[f"abort {_state_of(it, request)}"] += 1
        counts["abort with a token in flight"] += request.state is State.RUNNING and it.completed < it.latest

    def _before_end(self, it: Any, ended: list[Any], now_ns: int) -> None:
        self.counts["ended while it waits"] += sum(request.state is State.PREEMPTED for request in ended)
        self.counts["several end at once"] += len(ended) > 1

    def _before_crash(self, it: Any) -> None:
        it.advance(it.env.now, is_fault=True)
        self.counts["crash"] += 1
        self.counts["crash in a plan"] += it._plan is not None
        for request in (*it.running, *it.waiting):
            self.counts[f"crash {_state_of(it, request)}"] += 1

    # --- caches, windows, ranks ------------------------------------------------------------------

    def _wrap_others(self) -> None:
        self._wrap(SegmentKVCache, "lookup", self._after_lookup)
        self._count(SegmentKVCache, "_split", "run split")
        self._count(SegmentKVCache, "_promote", "later copy promoted")
        self._count(SegmentKVCache, "_evict", "run evicted")
        self._wrap(WindowReplica, "_take_turns", lambda *_: None)
        self._wrap(WindowReplica, "_make_plan", self._after_window_plan)
        self._count(WindowReplica, "_drop_alone", "window dropped one by one")
        self._count(WindowReplica, "_set_turn", "window turn set")
        self._wrap(FastGroup, "_launch", lambda *_: None, self._before_launch)
        self._count(FastRank, "form_part", "rank's part")
        self._count(FastGroup, "crash", "crash of a group")
        self._count(FastDrafts, "_look_ahead", "future of drafts")
        self._count(FastDrafts, "_forget", "row of sums forgotten")
        self._count(Gateway, "_arrive_after_thought", "sent after its parent")
        self._wrap(Senders, "take_seat", self._after_take_seat)
        self._wrap(Senders, "give_seat_back", self._after_give_seat_back)
        real = simulate._simulate

        def counted(*args: Any, **more: Any) -> Any:
            try:
                return real(*args, **more)
            except NotFollowed:
                self.counts["not followed"] += 1
                raise

        self._patch.setattr(simulate, "_simulate", counted)

    def _after_take_seat(self, counts: Counter[str], it: Any, args: Any, is_taken: bool, _: Any) -> None:
        counts["held at its client"] += not is_taken

    def _after_give_seat_back(self, counts: Counter[str], it: Any, args: Any, following: int | None, _: Any) -> None:
        counts["sent after an end"] += following is not None

    def _after_lookup(self, counts: Counter[str], kv: Any, args: Any, hits: Any, _: Any) -> None:
        counts["hit"] += hits.num_blocks > 0
        counts["hit of free blocks"] += hits.num_evictable > 0

    def _after_window_plan(self, counts: Counter[str], it: Any, args: Any, made: bool, _: Any) -> None:
        counts["plan with blocks given back"] += made and any(it.drops)
        counts["window turn before a plan"] += not made and it._next_turn() <= it.latest + 1

    def _before_launch(self, group: Any) -> None:
        self.counts["step of a group"] += 1
        self.counts["dummy of a rank"] += any(rank.is_dummy for rank in group.ranks)


def _state_of(it: Any, request: Any) -> str:
    if request.state is not State.RUNNING:
        if request.num_stale_batches:
            return "stale"
        return "preempted" if request.state is State.PREEMPTED else "waiting"
    if request is it.part:
        return "part"
    if request in it.skipped:
        return "skipped"
    return "leaving" if request in it.leaving else "member"
