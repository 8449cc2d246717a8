"""The prefix cache as a prefix tree of runs of blocks; decides, block by block, as ``PrefixKVCache`` does.

Content comes in segments that are chained: a content id stands for its tokens and for all before them.
So the keyed blocks of all requests form a tree. What one request caches at a stretch is one ``Run`` in it,
however many segments the run spans; it is found by the key of its first block, and it matches a request
whole if the request has the same key at the run's last block. Where only a part matches, the run is split:
a new object is the lower part, the old object stays as the upper part. So a request need only remember the
deepest run it holds, and comes to the others through ``parent``; a split puts the lower part in between.

vLLM's free list, head first, is a number of blank blocks (freed without a key, or never used), and behind
them the free runs in the order of freeing (a linked list), each evicted from its highest index down.

A second copy of a key (another request computed the same block) is in a *later* run. It is not searched,
and takes the place of the primary copy when that one loses its key. A later run lies within one segment.

A request's own content that no other request can have stays out of the tree. When the request is preempted,
it is entered, for that request to find again. When the request ends, it becomes *dead*: a number of blocks
in their place of the free list.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, Protocol

from sim.engine.request import Content
from sim.errors import SimulationError

ENDLESS: Final = 1 << 60
"""End of a request's own content, in blocks."""

BITS: Final = Content.BLOCK_BITS


class Path:
    """The content of a request in blocks: ``ids[i]`` up to block ``stops[i]``; the last one is its own."""

    __slots__ = ("ids", "stops")

    def __init__(self, content: Content, block_size: int) -> None:
        ids, end_tokens = zip(*content.segments, strict=True) if content.segments else ((), ())
        self.ids: tuple[int, ...] = (*ids, content.own_id)
        self.stops: tuple[int, ...] = (*[end_token // block_size for end_token in end_tokens], ENDLESS)

    def key(self, block: int) -> int:
        """Key of ``block``: equal keys, equal tokens from token 0 on."""
        return self.ids[bisect_right(self.stops, block)] << BITS | block

    def common_blocks(self, other: Path) -> int:
        """Count the leading blocks with equal keys."""
        common = 0
        for mine, theirs, my_stop, their_stop in zip(self.ids, other.ids, self.stops, other.stops, strict=False):
            if mine != theirs:
                break
            common = my_stop if my_stop < their_stop else their_stop
        return common


DEAD: Final = Path(Content(0), 1)
"""Path of blocks that can never be found again."""


class Run:
    """Blocks ``[start, end)`` with the keys that they have on ``path``.

    Runs that no request holds (``refs`` 0) are linked through ``older`` and ``newer``, in the order of freeing.
    """

    __slots__ = ("end", "is_later", "newer", "older", "owner", "parent", "path", "refs", "start")

    newer: Run
    older: Run

    def __init__(
        self, path: Path, start: int, end: int, refs: int, parent: Run | None, owner: Holding | None, is_later: bool
    ) -> None:
        self.path = path
        self.start = start
        self.end = end
        self.refs = refs
        """Requests that hold the run."""
        self.parent = parent
        """While held: the run that a holder has below ``start``, unless its ``bends`` say otherwise."""
        self.owner = owner
        """The only request that can find the run, where it is a request's own content."""
        self.is_later = is_later
        if owner is not None:
            owner.private.append(self)

    def link_after(self, older: Run) -> None:
        """Enter the list of free runs behind ``older``."""
        newer = older.newer
        self.older, self.newer = older, newer
        older.newer = newer.older = self

    def unlink(self) -> None:
        """Leave the list of free runs."""
        older, newer = self.older, self.newer
        older.newer, newer.older = newer, older


class Holding:
    """What one request holds of the tree, and what it left there."""

    __slots__ = ("bends", "leaf", "path", "private")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.leaf: Run | None = None
        """The deepest run held; a copy of every block before its end is held too."""
        self.bends: list[tuple[int, Run]] = []
        """(start of a run held, the run held below it) where that is not the run's parent; ascending."""
        self.private: list[Run] = []
        """Runs of the request's own content, held or left behind at a preemption."""


class CachedRequest(Protocol):
    """A request, as far as the cache has to do with it."""

    @property
    def content(self) -> Content | None:
        """What its tokens are; None if they are never looked up."""

    holding: Holding | None
    """Kept by the cache; None until the request holds or left something in the tree."""
    num_cached_blocks: int


class Hits:
    """The longest known prefix of a request; valid until the next call of the cache."""

    __slots__ = ("num_blocks", "num_evictable", "path", "runs")

    def __init__(self, path: Path, runs: list[Run], num_blocks: int, num_evictable: int) -> None:
        self.path = path
        self.runs = runs
        self.num_blocks = num_blocks
        self.num_evictable = num_evictable
        """How many of ``num_blocks`` are free: they leave the free list when they are taken."""


NO_HITS: Final = Hits(DEAD, [], 0, 0)


class SegmentKVCache:
    """See the module. Where ``caches`` is False, blocks are only counted."""

    def __init__(self, num_gpu_blocks: int, block_size: int, *, caches: bool) -> None:
        self.num_usable_blocks = num_gpu_blocks - 1
        self.block_size = block_size
        self.caches = caches
        self._members: dict[CachedRequest, None] = {}
        """Requests that hold blocks or left runs of their own."""
        self._free = Run(DEAD, 0, 0, 0, None, None, False)
        """Both ends of the list of free runs: ``newer`` is evicted first, ``older`` last."""
        self.clear()

    def clear(self) -> None:
        """Free every block and forget all content. Requests hold nothing then: they are not freed."""
        for member in self._members:
            member.holding = None
            member.num_cached_blocks = 0
        self._members.clear()
        self._heads: dict[int, Run] = {}
        """Key of its first block -> primary run."""
        self._later: dict[int, list[Run]] = {}
        """Content id -> later runs, in order of insertion."""
        self.num_free_blocks = self._num_blank = self.num_usable_blocks
        self._free.older = self._free.newer = self._free

    @property
    def is_blank(self) -> bool:
        """Whether no content is known, so that free blocks may be taken in any order."""
        return not self._heads

    def lookup(self, member: CachedRequest, num_tokens: int) -> Hits:
        """Find the longest known prefix of ``member``, which has ``num_tokens``; at least one token is computed."""
        content, heads, block_size = member.content, self._heads, self.block_size
        if not heads or content is None:
            return NO_HITS
        segments = content.segments
        first_id, first_end = segments[0] if segments else (content.own_id, ENDLESS)
        if first_end >= block_size and first_id << BITS not in heads:
            return NO_HITS
        path = Path(content, block_size) if member.holding is None else member.holding.path
        runs, num_blocks = self._walk(path, (num_tokens - 1) // block_size)
        if not num_blocks:
            return NO_HITS
        num_evictable = sum([run.end - run.start for run in runs if not run.refs])
        if not runs[-1].refs:
            num_evictable -= runs[-1].end - num_blocks
        return Hits(path, runs, num_blocks, num_evictable)

    def _walk(self, path: Path, limit: int) -> tuple[list[Run], int]:
        """Find the primary runs along ``path``, and how many of their blocks match (at most ``limit``).

        Only at the limit can the last run have blocks beyond: where contents part, the run is split, since
        other runs may go on from there.
        """
        heads = self._heads
        runs: list[Run] = []
        end = 0
        while end < limit and (run := heads.get(path.key(end))) is not None:
            end = run.end
            if end > limit or path.key(end - 1) != run.path.key(end - 1):
                end = min(limit, path.common_blocks(run.path))
                if end < limit:
                    run = self._split(run, end)
            runs.append(run)
        return runs, end

    def _split(self, run: Run, at: int) -> Run:
        """Cut ``run`` at block ``at``; returns the lower part. Both parts keep the holders and the place."""
        path = run.path
        lower = Run(path, run.start, at, run.refs, run.parent, run.owner, run.is_later)
        run.start = at
        if run.is_later:
            copies = self._later[path.key(at) >> BITS]
            copies.insert(copies.index(run), lower)
        else:
            self._heads[path.key(lower.start)] = lower
            self._heads[path.key(at)] = run
        if run.refs:
            run.parent = lower
        else:
            lower.link_after(run)
        return lower

    def admit(self, member: CachedRequest, hits: Hits, num_blocks: int) -> None:
        """Give ``member``, which holds nothing, its hits and new blocks up to ``num_blocks`` in all; they must fit."""
        self._members[member] = None
        num_hits = member.num_cached_blocks = hits.num_blocks
        if num_hits:
            holding = member.holding
            if holding is None:
                holding = member.holding = Holding(hits.path)
            below: Run | None = None
            for run in hits.runs:
                if run.end > num_hits:
                    run = self._split(run, num_hits)
                if not run.refs:
                    run.unlink()
                    self.num_free_blocks -= run.end - run.start
                    run.parent = below
                elif run.parent is not below and below is not None:
                    holding.bends.append((run.start, below))
                run.refs += 1
                below = run
            holding.leaf = below
        self.take(num_blocks - num_hits)

    def take(self, num_blocks: int) -> None:
        """Take ``num_blocks`` off the head of the free list; the caller knows for which requests."""
        self.num_free_blocks -= num_blocks
        num_blank = self._num_blank
        if num_blocks <= num_blank:
            self._num_blank = num_blank - num_blocks
            return
        self._num_blank = 0
        num_blocks -= num_blank
        while num_blocks:
            run = self._free.newer
            size = run.end - run.start
            if size > num_blocks:
                self._evict(run, run.end - num_blocks)
                return
            run.unlink()
            self._evict(run, run.start)
            num_blocks -= size

    def _evict(self, run: Run, start: int) -> None:
        """Drop the keys of the blocks of ``run`` from ``start`` on."""
        path, end = run.path, run.end
        run.end = start
        if path is DEAD:
            return
        if start == run.start:
            self._drop(run)
        while start < end and self._later and not run.is_later:
            segment = bisect_right(path.stops, start)
            stop = min(end, path.stops[segment])
            self._promote(path.ids[segment], start, stop)
            start = stop

    def _promote(self, content_id: int, start: int, end: int) -> None:
        """Put the oldest later copies of blocks ``[start, end)`` in the place of the primary ones, which are gone."""
        for run in self._later.get(content_id, ()):
            # A request's copies of lower blocks are older: the oldest of ``start`` is the oldest of what it covers.
            if run.start <= start < run.end:
                stop = min(end, run.end)
                if stop < run.end:
                    run = self._split(run, stop)
                if run.start < start:
                    self._split(run, start)
                self._drop(run)
                run.is_later = False
                self._heads[content_id << BITS | start] = run
                if stop < end:
                    self._promote(content_id, stop, end)
                return

    def _drop(self, run: Run) -> None:
        """Take ``run`` out of the tree."""
        key = run.path.key(run.start)
        if not run.is_later:
            del self._heads[key]
            return
        copies = self._later[key >> BITS]
        copies.remove(run)
        if not copies:
            del self._later[key >> BITS]

    def cache(self, member: CachedRequest, num_full_blocks: int) -> None:
        """Note that the first ``num_full_blocks`` of ``member`` are full.

        Those that other requests can have are findable from now on. For one content id this must be told in
        the order in which requests fill its blocks, and before they are next looked up, cached or evicted.
        """
        content = member.content
        if num_full_blocks > member.num_cached_blocks and content is not None and self.caches:
            member.num_cached_blocks = num_full_blocks
            if content.segments or content.own_is_shared:
                self._enter_shared(member, content, num_full_blocks)

    def _enter_shared(self, member: CachedRequest, content: Content, end: int) -> Holding:
        """Make those of the first ``end`` blocks findable that other requests can have."""
        holding = member.holding
        if holding is None:
            holding = member.holding = Holding(Path(content, self.block_size))
        if not content.own_is_shared:
            end = min(end, holding.path.stops[-2] if content.segments else 0)
        self._enter(holding, end, None)
        return holding

    def _enter(self, holding: Holding, end: int, owner: Holding | None) -> None:
        """Make the first ``end`` blocks findable; those that are not yet so are held by this request alone."""
        path, leaf = holding.path, holding.leaf
        start = 0 if leaf is None else leaf.end
        if start >= end:
            return
        if (leaf is not None and leaf.is_later) or path.key(start) in self._heads:
            known = self._walk(path, end)[1]
            while start < known:
                segment = bisect_right(path.stops, start)
                stop = min(known, path.stops[segment])
                copies = self._later.setdefault(path.ids[segment], [])
                # Only the newest may get longer: its place in the list counts for all of its blocks.
                if leaf is not None and copies and copies[-1] is leaf:
                    leaf.path, leaf.end = path, stop
                else:
                    leaf = Run(path, start, stop, 1, leaf, owner, True)
                    copies.append(leaf)
                start = stop
        if start < end:
            if leaf is not None and leaf.refs == 1 and leaf.owner is owner and not leaf.is_later:
                leaf.path, leaf.end = path, end
            else:
                leaf = self._heads[path.key(start)] = Run(path, start, end, 1, leaf, owner, False)
        holding.leaf = leaf

    def free(self, member: CachedRequest, num_blocks: int, num_cached_blocks: int, *, ended: bool) -> None:
        """Give back all ``num_blocks`` of ``member``; the first ``num_cached_blocks`` have a key.

        The request comes back (it was preempted) unless it ``ended``. One that ends while it waits gives back 0.
        """
        self._members.pop(member, None)
        content, holding = member.content, member.holding
        member.num_cached_blocks = num_entered = 0
        if content is None or not self.caches:
            num_cached_blocks = 0
        elif num_cached_blocks and (content.segments or content.own_is_shared or not ended):
            holding = self._enter_shared(member, content, num_cached_blocks)
            if not ended:
                self._enter(holding, num_cached_blocks, holding)
        if holding is not None:
            if holding.leaf is not None:
                num_entered = holding.leaf.end
            if ended and holding.private:
                for run in holding.private:
                    if run.start < run.end:
                        self._drop(run)
                        run.path, run.owner = DEAD, None
                holding.private = []
        self.num_free_blocks += num_blocks - num_entered
        self._num_blank += num_blocks - num_cached_blocks
        if num_entered < num_cached_blocks:
            newest = self._free.older
            if newest is self._free or newest.path is not DEAD:
                newest = Run(DEAD, 0, 0, 0, None, None, False)
                newest.link_after(self._free.older)
            newest.end += num_cached_blocks - num_entered
        if holding is not None:
            self._release(holding)
            if holding.private:
                self._members[member] = None
            else:
                member.holding = None
        if not self._heads:
            # No free block can be found again: their order is without meaning.
            self._num_blank = self.num_free_blocks
            self._free.older = self._free.newer = self._free

    def _release(self, holding: Holding) -> None:
        """Give back all runs held, the deepest one first."""
        bends, run = holding.bends, holding.leaf
        holding.leaf = None
        above: Run | None = None
        while run is not None:
            below = run.parent
            if bends and bends[-1][0] == run.start:
                below = bends.pop()[1]
            run.refs -= 1
            if not run.refs:
                run.parent = None
                self.num_free_blocks += run.end - run.start
            if above is None or above.refs != run.refs or not self._extend_down(above, run):
                if not run.refs:
                    run.link_after(self._free.older)
                above = run
            run = below

    def _extend_down(self, above: Run, run: Run) -> bool:
        """Make ``run`` a part of the run given back just before, which as many hold, where it is the part below.

        It undoes a split: prompts cut to many lengths would leave their prefix in single blocks. All that hold a
        primary run hold its parent, where that is primary too (a bend leads to the primary run, past a later one),
        so as many are the same ones.
        """
        is_odd = run.is_later or above.is_later or run.owner or above.owner or above.path is DEAD
        if is_odd or run.end != above.start or (run.refs and above.parent is not run):
            return False
        del self._heads[above.path.key(above.start)]
        above.start, above.parent = run.start, run.parent
        self._heads[run.path.key(run.start)] = above
        return True

    def check_empty(self) -> None:
        """Raise SimulationError, naming the holders, unless every block is free."""
        if self.num_free_blocks != self.num_usable_blocks:
            raise SimulationError(
                f"KV blocks leaked: {self.num_free_blocks} of {self.num_usable_blocks} are free at the end; "
                f"still held by request: {list(self._members) or 'unknown'}"
            )
