"""Drives the prefix cache of the fast engine and the reference's side by side, and compares all that they know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sim.engine.fast.segments import DEAD, Hits, Holding, Run, SegmentKVCache
from sim.engine.reference.kv_cache import Hit, PrefixKVCache, ceil_div
from sim.engine.request import Content, Request


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

    def _extend_down(self, above: Run, run: Run) -> bool:
        is_merged = super()._extend_down(above, run)
        self.counts[f"merged {'held' if run.refs else 'free'}"] += is_merged
        return is_merged

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


class Pair:
    """The two caches side by side."""

    def __init__(self, num_gpu_blocks: int, block_size: int, counts: Counter[str]) -> None:
        self.block_size = block_size
        self.fast = CountedCache(num_gpu_blocks, block_size, counts)
        self.slow = PrefixKVCache(num_gpu_blocks, block_size)
        self.most_tokens = (num_gpu_blocks - 1) * block_size
        self.tells_all = True
        """Whether blocks that no other request can have are told as they fill, and not when given back."""
        self.members: list[Member] = []
        self.probes: list[Content] = []
        self.ended_ids: set[int] = set()

    def admit(self, member: Member, chunk: int, slack: int = 0) -> bool:
        """Admit with its hits, ``chunk`` more tokens and blocks for ``slack`` more; False if they do not fit."""
        hits, slow_hits = self.fast.lookup(member, member.num_tokens), self.lookup_slow(member)
        num_hits = len(slow_hits.blocks)
        assert hits.num_blocks == num_hits
        computed = min(num_hits * self.block_size + chunk, member.num_tokens)
        num_blocks = ceil_div(computed + slack, self.block_size)
        if num_blocks > self.slow.num_free_blocks - slow_hits.num_evictable + num_hits:
            return False
        self.slow.admit(member.twin, slow_hits, computed + slack)
        self.fast.admit(member, hits, num_blocks)
        assert member.num_cached_blocks == num_hits
        member.is_running, member.num_blocks = True, num_blocks
        self.cache(member, computed)
        return True

    def grow(self, member: Member, tokens: int, slack: int = 0) -> bool:
        """Compute ``tokens`` more, with blocks for ``slack`` more; False if they do not fit."""
        computed = member.num_computed + tokens
        slots = max(computed + slack, member.num_blocks * self.block_size)
        need = ceil_div(slots, self.block_size) - member.num_blocks
        fits = need <= self.slow.num_free_blocks
        assert self.slow.grow(member.twin, slots) == fits
        if fits:
            self.fast.take(need)
            member.num_blocks += need
            member.num_tokens = max(member.num_tokens, computed)
            self.cache(member, computed)
        return fits

    def cache(self, member: Member, computed: int) -> None:
        member.num_computed = computed
        self.slow.cache_blocks(member.twin, computed)
        content, num_full = member.content, computed // self.block_size
        # What no other request can have need not be told before the blocks are given back.
        if content.own_is_shared or content.segments or self.tells_all:
            self.fast.cache(member, num_full)

    def give_back(self, member: Member, *, ended: bool) -> None:
        num_cached = member.twin.num_cached_blocks
        assert member.num_blocks == member.twin.num_blocks
        self.slow.free(member.twin)
        self.fast.free(member, member.num_blocks, num_cached, ended=ended)
        member.is_running, member.num_blocks, member.num_computed = False, 0, 0
        member.num_tokens = min(member.num_tokens, self.most_tokens)
        member.twin.num_tokens = member.num_tokens

    def end(self, member: Member) -> None:
        self.give_back(member, ended=True)
        assert member.holding is None
        if not member.content.own_is_shared:
            self.ended_ids.add(member.content.own_id)

    def lookup_slow(self, member: Member) -> Hit:
        member.twin.num_tokens = member.num_tokens
        return self.slow.lookup(member.twin)

    def compare(self, *, with_lookups: bool = True) -> None:
        fast, slow = self.fast, self.slow
        assert fast.num_free_blocks == slow.num_free_blocks
        check(fast, self.members)
        probes = [Member(0, content, self.most_tokens + self.block_size) for content in self.probes]
        for member in [*(m for m in self.members if not m.is_running), *probes] if with_lookups else ():
            is_own = member in self.members
            if not is_own and not member.content.own_is_shared:
                member.content = Content(0, member.content.segments)
                member.twin.content = member.content
            hits, slow_hits = fast.lookup(member, member.num_tokens), self.lookup_slow(member)
            assert hits.num_blocks == len(slow_hits.blocks)
            assert evictable_of(hits) == [block not in slow._references for block in slow_hits.blocks]
            assert hits.num_evictable == slow_hits.num_evictable
        free = free_keys(fast)
        keys = [slow._key_of[block] for block in slow._evictable]
        expected = [None if key >> Content.BLOCK_BITS in self.ended_ids else key for key in keys]
        # Blocks of requests that ended may have become blank.
        num_blanked = len(expected) - len(free)
        assert expected[:num_blanked] == [None] * num_blanked
        assert expected[num_blanked:] == free


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
