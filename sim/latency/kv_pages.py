"""How vLLM 0.32.0 puts the layers' KV caches and states into one pool of blocks.

Layers of one kind share a block table, and are a group. All groups take blocks of equally many bytes from one pool
(``get_kv_cache_groups`` of ``v1/core/kv_cache_utils.py``), so

- block sizes of layers that keep less for a token are multiplied until pages are equally large
  (``unify_kv_cache_spec_page_size``), or their pages are padded;
- where layers keep a state, blocks of attention are made as large as a state
  (``Platform._align_hybrid_block_size``), and states are padded to them;
- all groups have equally many layers: as many as the rarest kind has, or the most frequent one where it has less than
  half as many more (``_get_kv_cache_groups_uniform_page_size``). The last group of a kind is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.latency.attention_kinds import GroupedAttention, LatentAttention
from sim.latency.kv_layout import Kind, KvGroup
from sim.latency.model_spec import ModelSpec
from sim.latency.state_layers import StateLayer

LARGER_KIND_DECIDES = 1.5
KERNEL_BLOCK_TOKENS, LATENT_BLOCK_TOKENS = 16, 128
"""Blocks beside states are multiples of it, and of this where attention is latent."""
STATES_KEPT, STATES_FOUND_AGAIN = 1, 2
"""States of a running request; with a prefix cache, where one lies at the end of a block (``mamba_cache_mode``)."""


@dataclass(frozen=True, slots=True)
class Page:
    """One layer's part of a block, on one GPU."""

    kind: Kind
    num_bytes: int
    block_size: int
    """Tokens of a block of that layer."""
    window: int | None = None
    checkpoint_alignment: int | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether KV is kept as long as the request runs."""
        return self.kind in ("full", "latent")


@dataclass(frozen=True, slots=True)
class PageGroup:
    """Layers with one block table. ``layers``: their numbers, in order; a group may have fewer than others."""

    kind: Kind
    block_size: int
    window: int | None
    layers: tuple[int, ...]
    checkpoint_alignment: int | None = None
    """Of Mamba-2: states can be written anywhere in a chunk."""

    def blocks_per_request(self, max_model_len: int, in_flight_tokens: int, *, has_prefix_cache: bool) -> int:
        """Most blocks that a request of ``max_model_len`` holds (``max_memory_usage_bytes`` of its spec)."""
        if self.kind == "state":
            return STATES_FOUND_AGAIN if has_prefix_cache else STATES_KEPT
        if self.window is None:
            return -(-max_model_len // self.block_size)
        if self.kind == "chunk":
            return -(-min(self.window + in_flight_tokens, max_model_len) // self.block_size)
        tokens = min(self.window - 1 + in_flight_tokens, max_model_len)
        return -(-tokens // self.block_size) + 1


def pages_of(model: ModelSpec, tp: int, kv_bytes: int, activation_bytes: int, block_size: int) -> list[Page | None]:
    """The page of every layer; None = it keeps nothing. Blocks beside states are as large as those."""
    state = max(
        (mixer.state_bytes(tp, activation_bytes) for mixer, _ in model.mixers if isinstance(mixer, StateLayer)),
        default=0,
    )
    if state:
        block_size = _block_beside_states(model, tp, kv_bytes, block_size, state)
    pages: list[Page | None] = []
    for kind in model.layer_list:
        mixer = kind.mixer
        if isinstance(mixer, StateLayer):
            alignment = 1 if mixer.kind == "mamba2" else None
            pages.append(Page("state", mixer.state_bytes(tp, activation_bytes), block_size, None, alignment))
        elif mixer is None or not mixer.kept_bytes(tp, kv_bytes):
            pages.append(None)
        else:
            num_bytes = (mixer.kept_bytes(tp, kv_bytes) + mixer.index_bytes(kv_bytes)) * block_size
            if isinstance(mixer, LatentAttention):
                pages.append(Page("latent", num_bytes, block_size))
            else:
                pages.append(Page(_kind(mixer), num_bytes, block_size, mixer.window or mixer.chunk))
    return pages


def _kind(mixer: GroupedAttention) -> Kind:
    if mixer.window is not None:
        return "window"
    return "full" if mixer.chunk is None else "chunk"


def _block_beside_states(model: ModelSpec, tp: int, kv_bytes: int, block_size: int, state: int) -> int:
    """Tokens of a block that has room for a state: 544 for Qwen3-Next on one GPU."""
    attention = [mixer for mixer, _ in model.mixers if not isinstance(mixer, StateLayer)]
    if not attention:
        return block_size
    multiple = max(block_size, KERNEL_BLOCK_TOKENS)
    if isinstance(attention[0], LatentAttention):
        multiple = max(multiple, LATENT_BLOCK_TOKENS)
    each = max(mixer.kept_bytes(tp, kv_bytes) for mixer in attention)
    return max(block_size, multiple * -(-state // (multiple * each)))


def page_groups(pages: Sequence[Page | None]) -> tuple[list[PageGroup], list[int]]:
    """Groups of layers, and the bytes of every layer's page in the pool (0 = none)."""
    kept = {number: page for number, page in enumerate(pages) if page is not None}
    if all(page.keeps_all for page in kept.values()):
        group = _group("full", kept, tuple(kept))
        return [group] if kept else [], [0 if page is None else page.num_bytes for page in pages]
    largest = max(page.num_bytes for page in kept.values())
    unified = {number: _as_large(page, largest) for number, page in kept.items()}
    kinds: dict[tuple[Kind, int, int | None], list[int]] = {}
    for number, page in unified.items():
        kinds.setdefault((page.kind, page.block_size, page.window), []).append(number)
    counts = [len(layers) for layers in kinds.values()]
    fewest, most = min(counts), max(counts)
    each = most if most < LARGER_KIND_DECIDES * fewest else fewest
    groups = []
    for layers in kinds.values():
        number_of_groups = -(-len(layers) // each)
        for first in range(number_of_groups):
            chosen = tuple(layers[first::number_of_groups])
            groups.append(_group(unified[chosen[0]].kind, unified, chosen))
    return groups, [0 if page is None else largest for page in pages]


def _group(kind: Kind, pages: dict[int, Page], layers: tuple[int, ...]) -> PageGroup:
    first = pages[layers[0]] if layers else Page(kind, 0, 1)
    return PageGroup(first.kind, first.block_size, first.window, layers, first.checkpoint_alignment)


def _as_large(page: Page, largest: int) -> Page:
    """With a page of ``largest`` bytes: more tokens in a block where that goes evenly, else padding."""
    if page.kind != "state" and largest % page.num_bytes == 0:
        return replace(page, num_bytes=largest, block_size=page.block_size * (largest // page.num_bytes))
    return replace(page, num_bytes=largest)


def _kept_whole(page: Page | None) -> Page | None:
    return None if page is None or page.kind == "state" else replace(page, kind="full", window=None)


@dataclass(frozen=True, slots=True)
class KvPool:
    """All groups of a model, and what each layer's page takes of a block."""

    groups: tuple[PageGroup, ...]
    page_bytes: tuple[int, ...]
    """Of every layer; 0 = it keeps nothing."""

    @classmethod
    def of(
        cls,
        model: ModelSpec,
        tp: int,
        kv_bytes: int,
        activation_bytes: int,
        block_size: int,
        *,
        keeps_all: bool = False,
    ) -> KvPool:
        """The pool of ``model`` on one of ``tp`` GPUs. ``keeps_all``: a block holds all layers; windows do not shorten
        what is kept, and states are left out."""
        pages = pages_of(model, tp, kv_bytes, activation_bytes, block_size)
        if keeps_all:
            pages = [_kept_whole(page) for page in pages]
        groups, page_bytes = page_groups(pages)
        return cls(tuple(groups), tuple(page_bytes))

    def block_bytes(self, layers: range) -> int:
        """Bytes of a block on the GPU that holds ``layers``: the largest group's."""
        sums = [sum(self.page_bytes[layer] for layer in group.layers if layer in layers) for group in self.groups]
        return max(1, *sums)

    def bytes_per_token(self, layers: range) -> float:
        """Bytes that one more token takes of the pool, padding included; a state takes none."""
        attention = [group for group in self.groups if group.kind != "state"]
        return self.block_bytes(layers) * sum(1.0 / group.block_size for group in attention)

    def request_blocks(self, max_model_len: int, in_flight_tokens: int, *, has_prefix_cache: bool) -> int:
        """Blocks that a request of ``max_model_len`` holds at most, of all groups."""
        return sum(
            group.blocks_per_request(max_model_len, in_flight_tokens, has_prefix_cache=has_prefix_cache)
            for group in self.groups
        )

    @property
    def kv_groups(self) -> tuple[KvGroup, ...]:
        """The groups as an engine has them; empty where one block table is all there is."""
        if len(self.groups) < 2:
            return ()
        return tuple(
            KvGroup(group.kind, group.block_size, group.window, len(group.layers), group.checkpoint_alignment)
            for group in self.groups
        )

    def block_size(self, told: int) -> int:
        """Tokens that prefixes are found in, and blocks are counted by: where layers have a state, as vLLM sets it
        beside that (``cache_config.block_size``); else as ``told``."""
        if not any(group.kind == "state" for group in self.groups):
            return told
        return min((group.block_size for group in self.groups if group.kind != "state"), default=told)
