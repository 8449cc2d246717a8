"""Content kept as a tree of runs decides, block by block, as content kept block by block."""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kv_pair import Member, Pair

from sim.engine.fast.segments import SegmentKVCache
from sim.engine.reference.kv_cache import PrefixKVCache, ceil_div
from sim.engine.request import Content
from sim.errors import SimulationError

NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example is one seed: there is nothing to shrink."""


BOUNDS = {
    "split shared free": 150,
    "split shared held": 300,
    "split private free": 80,
    "split later free": 4,
    "split later held": 10,
    "promoted": 300,
    "evicted dead whole": 800,
    "evicted dead in part": 1300,
    "evicted later whole": 300,
    "evicted later in part": 25,
    "evicted primary whole": 900,
    "evicted primary in part": 800,
    "entered": 800,
    "extended": 700,
    "later entered": 450,
    "later extended": 35,
    "later private entered": 6,
    "private entered": 450,
    "private extended": 80,
    "bends": 70,
    "private found again": 300,
    "merged free": 500,
    "merged held": 400,
    "blanked": 20,
}
"""How often each shortcut is taken at least in ``SEEDS`` runs."""
SEEDS = 250

FIRST_TALK, FIRST_OWN_ID = 1 << 20, 1 << 21


class RandomRun(Pair):
    """Requests that come, grow, are preempted and end at random."""

    def __init__(self, seed: int, counts: Counter[str]) -> None:
        self.random = random = Random(seed)
        super().__init__(random.choice([8, 14, 20, 30, 60, 90]), random.choice([1, 2, 4, 4, 8]), counts)
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
        self.tells_all = random.random() < 0.5
        if random.random() < 0.002:
            self.crash()
        elif not member.is_running:
            if random.random() < 0.05:
                self.replace(place)
            else:
                chunk = member.num_tokens if random.random() < 0.4 else random.randint(1, member.num_tokens)
                self.admit(member, min(chunk, self.longest_chunk), random.choice([0, 0, 1, 5]))
        elif (chance := random.random()) < self.growing:
            self.grow_some(member)
        elif chance < self.growing + 0.1:
            self.give_back(member, ended=False)
        else:
            self.replace(place)
        # A lookup splits runs: not after every step.
        self.compare(with_lookups=random.random() < 0.4)

    def grow_some(self, member: Member) -> None:
        tokens = self.random.choice([1, 2, 9, 5 * self.block_size])
        if self.random.random() < 0.3:
            # To the last block's end: what the next one computes is a block that may be known.
            tokens = -member.num_computed % self.block_size or self.block_size
        if self.grow(member, tokens, self.random.choice([0, 0, 1])):
            member.num_tokens += self.random.choice([0, 1])
            if member.content.own_is_shared:
                talk = member.content.own_id - FIRST_TALK
                self.talks[talk] = max(self.talks[talk], member.num_tokens)

    def replace(self, place: int) -> None:
        self.end(self.members[place])
        self.members[place] = self.new_member()

    def crash(self) -> None:
        self.fast.clear()
        self.slow = PrefixKVCache(self.slow.num_usable_blocks + 1, self.block_size)
        self.members = [self.new_member() for _ in self.members]

    def end_all(self) -> None:
        for place, member in enumerate(self.members):
            if member.is_running:
                with pytest.raises(SimulationError, match=r"still held by request: \[.*Member"):
                    self.fast.check_empty()
                self.replace(place)
        self.fast.check_empty()
        self.compare()


def play(seed: int, counts: Counter[str]) -> None:
    run = RandomRun(seed, counts)
    for _ in range(120):
        run.step()
    run.end_all()


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


@pytest.mark.parametrize("bites", [(4,), (2, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("chunks", [((2, 2), (4,)), ((2, 2), (1, 3)), ((4,), (4,)), ((3, 1), (2, 2))])
def test_the_oldest_copies_take_the_place_of_what_is_evicted(
    chunks: tuple[tuple[int, ...], tuple[int, ...]], bites: tuple[int, ...]
) -> None:
    pair = Pair(61, 1, Counter())
    root, first, second, third = pair.members = [Member(row, Content(100 + row, ((1, 20),)), 21) for row in range(4)]
    pair.probes = [Content(0, ((1, 20),))]
    assert pair.admit(root, 8)
    assert all(pair.admit(member, 0) for member in (first, second, third))
    assert pair.grow(first, 4)
    # The same four blocks twice again, by turns.
    for chunk, other_chunk in zip_longest(*chunks, fillvalue=0):
        assert pair.grow(second, chunk)
        assert pair.grow(third, other_chunk)
    pair.end(first)
    filler = Member(4, Content(200), 61)
    pair.members.append(filler)
    assert pair.admit(filler, pair.slow.num_free_blocks - 4)
    for bite in bites:
        assert pair.grow(filler, bite)
        pair.compare(with_lookups=False)
    for member in (second, third):
        pair.end(member)
        pair.compare()
    while pair.grow(filler, 1):
        pair.compare()
