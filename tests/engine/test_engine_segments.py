"""Content kept as a tree of runs decides, block by block, as content kept block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sim.engine.fast.segments import DEAD, Hits, Holding, Run, SegmentKVCache
from sim.engine.reference.kv_cache import PrefixKVCache, ceil_div
from sim.engine.request import Content, Request
from sim.errors import SimulationError

NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example is one seed: there is nothing to shrink."""


class Member:
    """One request in both caches."""

    def __init__(self, row: int, content: Content, num_tokens: int) -> None:
        self.content = content
        self.holding: Holding | None = None
        self.num_cached_blocks = 0
        self.num_tokens = num_tokens
        """Known tokens: prompt and output so far."""
        self.num_computed = 0
        self.num_blocks = 0
        self.is_running = False
        self.twin = Request(
            row=row,
            request_id=str(row),
            arrival_ns=0,
            num_prompt_tokens=num_tokens,
            output_tokens=1,
            max_tokens=1,
            max_model_len=1 << 20,
            content=content,
        )

    def __repr__(self) -> str:
        return f"Member({self.twin.row})"


class CountedCache(SegmentKVCache):
    """Counts how often each shortcut is taken."""

    def __init__(self, num_gpu_blocks: int, block_size: int, counts: Counter[str]) -> None:
        self.counts = counts
        super().__init__(num_gpu_blocks, block_size, caches=True)

    def _split(self, run: Run, at: int) -> Run:
        kind = "later" if run.is_later else "private" if run.owner else "shared"
        self.counts[f"split {kind} {'held' if run.refs else 'free'}"] += 1
        return super()._split(run, at)

    def _promote(self, content_id: int, start: int, end: int) -> None:
        self.counts["promoted"] += content_id in self._later
        super()._promote(content_id, start, end)

    def _evict(self, run: Run, start: int) -> None:
        kind = "dead" if run.path is DEAD else "later" if run.is_later else "primary"
        self.counts[f"evicted {kind} {'whole' if start == run.start else 'in part'}"] += 1
        super()._evict(run, start)

    def _enter(self, holding: Holding, end: int, owner: Holding | None) -> None:
        before = holding.leaf, holding.leaf and holding.leaf.end
        super()._enter(holding, end, owner)
        leaf = holding.leaf
        if leaf is not None and before != (leaf, leaf.end):
            kind = f"{'later ' if leaf.is_later else ''}{'private ' if owner else ''}"
            self.counts[kind + ("extended" if leaf is before[0] else "entered")] += 1

    def admit(self, member: Member, hits: Hits, num_blocks: int) -> None:  # type: ignore[override]
        super().admit(member, hits, num_blocks)
        if member.holding is not None:
            self.counts["bends"] += len(member.holding.bends)
            leaf = member.holding.leaf
            self.counts["private found again"] += leaf is not None and leaf.owner is member.holding

    def free(self, member: Member, num_blocks: int, num_cached_blocks: int, *, ended: bool) -> None:  # type: ignore[override]
        had_order = self._free.newer is not self._free
        super().free(member, num_blocks, num_cached_blocks, ended=ended)
        self.counts["blanked"] += had_order and self.is_blank


BOUNDS = {
    "split shared free": 500,
    "split shared held": 500,
    "split private free": 50,
    "split later free": 20,
    "split later held": 20,
    "promoted": 200,
    "evicted dead whole": 500,
    "evicted dead in part": 500,
    "evicted later whole": 200,
    "evicted later in part": 50,
    "evicted primary whole": 500,
    "evicted primary in part": 500,
    "extended": 500,
    "new run": 500,
    "later entered": 500,
    "later extended": 50,
    "later private entered": 20,
    "bends": 50,
    "private found again": 200,
    "blanked": 50,
}
"""How often each shortcut is taken at least in ``SEEDS`` runs."""
SEEDS = 250

FIRST_TALK, FIRST_OWN_ID = 1 << 20, 1 << 21


class Pair:
    """The two caches, the requests of a random run, and their comparison."""

    def __init__(self, seed: int, counts: Counter[str]) -> None:
        self.random = random = Random(seed)
        self.block_size = random.choice([1, 2, 4, 4, 8])
        num_gpu_blocks = random.choice([8, 14, 20, 30, 60, 90])
        self.fast = CountedCache(num_gpu_blocks, self.block_size, counts)
        self.slow = PrefixKVCache(num_gpu_blocks, self.block_size)
        self.most_tokens = (num_gpu_blocks - 1) * self.block_size
        self.segment_tokens = random.choice([2, 5, 8, 16, 40])
        self.growing = random.choice([0.5, 0.8])
        self.kinds = random.sample(["plain", "group", "tree", "talk", "same", "same"], random.randint(1, 5))
        if random.random() < 0.4:
            # Many compute the same at once, in small chunks: much is computed twice.
            self.kinds = ["same"] * 5 + [random.choice(["tree", "group"])]
            self.segment_tokens = random.choice([3, 10]) * self.block_size + random.randint(0, 1)
        self.longest_chunk = random.choice([2 * self.block_size + 1, self.most_tokens])
        self.tree: dict[tuple[int, ...], int] = {}
        self.talks = [0] * 3
        self.rows = 0
        self.ended_ids: set[int] = set()
        self.probes: list[Content] = []
        self.members = [self.new_member() for _ in range(random.choice([2, 5, 9]))]

    def new_member(self) -> Member:
        random = self.random
        self.rows += 1
        tokens = random.randint(1, max(1, self.most_tokens // random.choice([1, 2, 4])))
        if random.random() < 0.5:
            tokens = max(self.block_size, tokens // self.block_size * self.block_size)
        own_id = FIRST_OWN_ID + self.rows
        kind = random.choice(self.kinds)
        others = [probe for probe in self.probes if probe.segments]
        if kind == "plain":
            content = Content(own_id)
        elif kind == "group":
            content = Content(own_id, ((random.randint(1, 2), random.randint(1, tokens)),))
        elif kind == "talk":
            talk = random.randrange(len(self.talks))
            prefix = ((1, 7),) if talk == 2 else ()
            tokens = self.talks[talk] = min(max(self.talks[talk], 7) + random.randint(1, 9), self.most_tokens)
            content = Content(FIRST_TALK + talk, prefix, own_is_shared=True)
        elif kind == "same" and others:
            content = Content(own_id, others[-1].segments)
            tokens = max(tokens, others[-1].segments[-1][1])
        else:
            path: tuple[int, ...] = ()
            segments = []
            shared = random.choice([tokens, random.randint(1, tokens)])
            end = 0
            while end < shared:
                path = (*path, random.choice([0, 0, 0, 1]))
                content_id = self.tree.setdefault(path, 100 + len(self.tree))
                segment_tokens = self.segment_tokens
                if random.random() < 0.1:
                    # Others have more of this segment.
                    segment_tokens = ceil_div(segment_tokens, 2)
                    path = (*path, 2)
                end = min(end + segment_tokens, shared)
                segments.append((content_id, end))
            content = Content(own_id, tuple(segments))
        member = Member(self.rows, content, tokens)
        if len(self.probes) < 12:
            self.probes.append(content)
        else:
            self.probes[random.randrange(12)] = content
        return member

    def step(self) -> None:
        random = self.random
        place = random.randrange(len(self.members))
        member = self.members[place]
        if random.random() < 0.002:
            self.crash()
        elif not member.is_running:
            if random.random() < 0.05:
                self.end(place)
            else:
                self.admit(member)
        elif (chance := random.random()) < self.growing:
            self.grow(member)
        elif chance < self.growing + 0.1:
            self.give_back(member, ended=False)
        else:
            self.end(place)
        self.compare()

    def admit(self, member: Member) -> None:
        hits, slow_hits = self.fast.lookup(member, member.num_tokens), self.lookup_slow(member)
        num_hits = len(slow_hits)
        chunk = self.random.randint(1, member.num_tokens - num_hits * self.block_size)
        if self.random.random() < 0.4:
            chunk = member.num_tokens - num_hits * self.block_size
        chunk = min(chunk, self.longest_chunk)
        computed = num_hits * self.block_size + chunk
        slots = computed + self.random.choice([0, 0, 1, 5])
        num_blocks = ceil_div(slots, self.block_size)
        if num_blocks > self.slow.num_free_blocks - self.slow.num_evictable(slow_hits) + num_hits:
            return
        self.slow.admit(member.twin, slow_hits, slots)
        self.fast.admit(member, hits, num_blocks)
        assert member.num_cached_blocks == num_hits
        member.is_running, member.num_blocks = True, num_blocks
        self.cache(member, computed)

    def grow(self, member: Member) -> None:
        tokens = self.random.choice([1, 2, 9, 5 * self.block_size])
        if self.random.random() < 0.3:
            # To the last block's end: what the next one computes is a block that may be known.
            tokens = -member.num_computed % self.block_size or self.block_size
        computed = member.num_computed + tokens
        slots = max(computed + self.random.choice([0, 0, 1]), member.num_blocks * self.block_size)
        need = ceil_div(slots, self.block_size) - member.num_blocks
        fits = need <= self.slow.num_free_blocks
        assert self.slow.grow(member.twin, slots) == fits
        if not fits:
            return
        self.fast.take(need)
        member.num_blocks += need
        member.num_tokens = max(member.num_tokens, computed + self.random.choice([0, 1]))
        if member.content.own_is_shared:
            talk = member.content.own_id - FIRST_TALK
            self.talks[talk] = max(self.talks[talk], member.num_tokens)
        self.cache(member, computed)

    def cache(self, member: Member, computed: int) -> None:
        member.num_computed = computed
        self.slow.cache_blocks(member.twin, computed)
        content, num_full = member.content, computed // self.block_size
        # What no other request can have need not be told before the blocks are given back.
        if content.own_is_shared or content.segments or self.random.random() < 0.5:
            self.fast.cache(member, num_full)

    def give_back(self, member: Member, *, ended: bool) -> None:
        num_cached = member.twin.num_cached_blocks
        assert member.num_blocks == member.twin.num_blocks
        self.slow.free(member.twin)
        self.fast.free(member, member.num_blocks, num_cached, ended=ended)
        member.is_running, member.num_blocks, member.num_computed = False, 0, 0
        member.num_tokens = min(member.num_tokens, self.most_tokens)
        member.twin.num_tokens = member.num_tokens

    def end(self, place: int) -> None:
        member = self.members[place]
        self.give_back(member, ended=True)
        assert member.holding is None
        if not member.content.own_is_shared:
            self.ended_ids.add(member.content.own_id)
        self.members[place] = self.new_member()

    def crash(self) -> None:
        self.fast.clear()
        self.slow = PrefixKVCache(self.slow.num_usable_blocks + 1, self.block_size)
        self.members = [self.new_member() for _ in self.members]

    def lookup_slow(self, member: Member) -> list[int]:
        member.twin.num_tokens = member.num_tokens
        return self.slow.lookup(member.twin)

    def compare(self) -> None:
        fast, slow = self.fast, self.slow
        assert fast.num_free_blocks == slow.num_free_blocks
        check(fast, self.members)
        probes = [Member(0, content, self.most_tokens + self.block_size) for content in self.probes]
        for member in [*(m for m in self.members if not m.is_running), *probes]:
            is_own = member in self.members
            if not is_own and not member.content.own_is_shared:
                member.content = Content(0, member.content.segments)
                member.twin.content = member.content
            hits, slow_hits = fast.lookup(member, member.num_tokens), self.lookup_slow(member)
            assert hits.num_blocks == len(slow_hits)
            assert evictable_of(hits) == [block not in slow._references for block in slow_hits]
            assert hits.num_evictable == slow.num_evictable(slow_hits)
        free = free_keys(fast)
        keys = [slow._key_of[block] for block in slow._evictable]
        expected = [None if key >> Content.BLOCK_BITS in self.ended_ids else key for key in keys]
        # Blocks of requests that ended may have become blank.
        num_blanked = len(expected) - len(free)
        assert expected[:num_blanked] == [None] * num_blanked
        assert expected[num_blanked:] == free

    def end_all(self) -> None:
        for place, member in enumerate(self.members):
            if member.is_running:
                with pytest.raises(SimulationError, match=r"still held by request: \[.*Member"):
                    self.fast.check_empty()
                self.end(place)
        self.fast.check_empty()
        self.compare()


def evictable_of(hits: Hits) -> list[bool]:
    """Whether each hit block is free."""
    return [not run.refs for run in hits.runs for _ in range(run.start, run.end)][: hits.num_blocks]


def free_runs(kv: SegmentKVCache) -> list[Run]:
    runs, run = [], kv._free.newer
    while run is not kv._free:
        assert run.older.newer is run
        assert run.newer.older is run
        runs.append(run)
        run = run.newer
    return runs


def keys_of(run: Run) -> list[int]:
    return [run.path.key(block) for block in range(run.start, run.end)]


def free_keys(kv: SegmentKVCache) -> list[int | None]:
    """Keys of the free blocks that are not blank, in the order of eviction; None where the block is dead."""
    keys: list[int | None] = []
    for run in free_runs(kv):
        keys.extend(reversed(keys_of(run)) if run.path is not DEAD else [None] * (run.end - run.start))
    return keys


def check(kv: SegmentKVCache, members: Sequence[Member]) -> None:
    """Counts add up, a run has as many references as holders, primary copies are one per key."""
    free = free_runs(kv)
    assert kv._num_blank + sum(run.end - run.start for run in free) == kv.num_free_blocks
    held: Counter[Run] = Counter()
    for member in members:
        holding = member.holding
        if holding is None or holding.leaf is None:
            continue
        bends, end = dict(holding.bends), holding.leaf.end
        run: Run | None = holding.leaf
        assert end <= member.num_blocks
        own = member.content.block_keys(0, end, kv.block_size)
        while run is not None:
            held[run] += 1
            assert run.end == end
            assert keys_of(run) == own[run.start : run.end]
            end = run.start
            run = bends.get(run.start, run.parent)
        assert end == 0
    primary = list(kv._heads.values())
    later = [run for runs in kv._later.values() for run in runs]
    known = {*primary, *later}
    assert set(held) <= known
    assert {run for run in free if run.path is not DEAD} == known - set(held)
    assert all(run.refs == held[run] for run in known)
    assert all(run.is_later for run in later)
    assert not any(run.is_later for run in primary)
    assert all(run.path.key(run.start) == key for key, run in kv._heads.items())
    keys = [key for run in primary for key in keys_of(run)]
    assert len(set(keys)) == len(keys)
    assert {key for run in later for key in keys_of(run)} <= set(keys)


def play(seed: int, counts: Counter[str]) -> None:
    pair = Pair(seed, counts)
    for _ in range(120):
        pair.step()
    pair.end_all()


def test_a_tree_of_runs_decides_as_blocks_do_and_every_shortcut_is_taken() -> None:
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        play(seed, counts)
    assert {name: counts[name] for name in BOUNDS if counts[name] < BOUNDS[name]} == {}


@settings(max_examples=50, deadline=None, phases=NO_SHRINK)
@given(seed=st.integers(SEEDS, 1 << 60))
def test_a_tree_of_runs_decides_as_blocks_do_whatever_comes(seed: int) -> None:
    play(seed, Counter())


def test_without_caching_blocks_are_a_number() -> None:
    kv = SegmentKVCache(11, 4, caches=False)
    member = Member(0, Content(1, ((2, 16),)), 20)
    kv.admit(member, kv.lookup(member, 20), 5)
    kv.cache(member, 5)
    assert kv.num_free_blocks == 5
    assert member.num_cached_blocks == 0
    kv.free(member, 5, 0, ended=True)
    assert kv.is_blank
    assert kv.lookup(member, 20).num_blocks == 0
    kv.check_empty()


def test_a_crash_forgets_what_is_held_and_what_was_left() -> None:
    kv = SegmentKVCache(31, 4, caches=True)
    left, held = Member(0, Content(1), 20), Member(1, Content(2, ((3, 16),)), 20)
    for member in (left, held):
        kv.admit(member, kv.lookup(member, 20), 5)
        kv.cache(member, 5)
    kv.free(left, 5, 5, ended=False)
    assert kv.lookup(left, 20).num_blocks == 4
    kv.clear()
    kv.check_empty()
    for member in (left, held):
        assert member.holding is None
        assert kv.lookup(member, 20).num_blocks == 0
