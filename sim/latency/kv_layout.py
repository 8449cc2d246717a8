"""How the layers of a model share KV blocks: vLLM's KV cache groups (``KVCacheConfig.kv_cache_groups``).

A block belongs to one group at a time and holds ``block_size`` tokens of that group's layers. All groups take their
blocks from one pool, and a request has a block table in each. Example: gpt-oss-120b has two groups of 18 layers, one
that keeps all KV and one that keeps a window of 128 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm
from typing import Literal

Kind = Literal["full", "latent", "window", "chunk", "state"]


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers with one block table."""

    kind: Kind
    """``full``: all KV is kept. ``latent``: the same of one compressed vector a token (MLA). ``window``: each token
    looks back on the last ``sliding_window`` tokens, itself included. ``chunk``: each looks back on its own chunk of
    ``sliding_window`` tokens (Llama 4). ``state``: one state of fixed size stands for all tokens (Mamba, gated delta
    net)."""
    block_size: int
    """Tokens of a block. Of a ``state``: how far apart states lie that can be found again; without a prefix cache a
    request has one state whatever it is."""
    sliding_window: int | None = None
    num_layers: int = 1
    """Layers that a block holds, those of padding left out."""
    checkpoint_alignment: int | None = None
    """Of a ``state``: the kernel can write a state in the middle of a chunk, a multiple of so many tokens behind its
    beginning (``prefill_checkpoint_alignment``; 1 for Mamba-2). None = at the end of a chunk only."""

    @property
    def keeps_all(self) -> bool:
        """Whether no block is given back while a request runs."""
        return self.kind in ("full", "latent")


def tokens_per_lookup(groups: tuple[KvGroup, ...]) -> int:
    """Prefixes are found in multiples of so many tokens: the least that is whole blocks of every group."""
    return lcm(*(group.block_size for group in groups))


def why_not_followed(groups: tuple[KvGroup, ...], *, has_prefix_cache: bool, has_drafts: bool) -> str | None:
    """Why the engine does not serve these groups as vLLM does, and what to do about it; None = it does."""
    states = [group for group in groups if group.kind == "state"]
    if states and has_drafts:
        return "drafts beside layers with a state are not simulated; remove engine.speculative"
    if not has_prefix_cache:
        return None
    instead = "set engine.enable_prefix_caching: false"
    smallest, together = gcd(*(group.block_size for group in groups)), tokens_per_lookup(groups)
    if any(group.block_size != smallest for group in states):
        return (
            f"prefixes found inside a block of states, beside KV groups of smaller blocks, are not simulated; {instead}"
        )
    if together != smallest and any(group.checkpoint_alignment is not None for group in states):
        return f"states in the middle of a chunk, beside KV groups of larger blocks, are not simulated; {instead}"
    if any(group.block_size != together for group in groups if group.kind == "chunk"):
        return f"vLLM finds no prefixes in chunks of attention beside KV groups of other block sizes; {instead}"
    return None
