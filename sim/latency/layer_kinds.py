"""What a decoder's layers are made of: attention or a state, an MLP or experts, each with its sizes.

Parameters, memory and step costs of a model are sums over its layers' parts. Sizes are in elements.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.latency.attention_kinds import GroupedAttention, LatentAttention, Matrix
from sim.latency.state_layers import StateLayer

GATED, PLAIN = 3, 2
"""Matrices of an MLP: gate, up and down, or up and down."""

Mixer = GroupedAttention | LatentAttention | StateLayer
"""What lets a token see those before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """A plain MLP."""

    width: int
    matrices_each: int = GATED

    def matrices(self, hidden: int, tp: int = 1) -> list[Matrix]:
        """Gate with up, and down."""
        width = self.width // tp
        return [Matrix("up", (self.matrices_each - 1) * width, hidden), Matrix("down", hidden, width)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Routed experts, of which each token passes some, and shared ones that every token passes."""

    num: int
    per_token: int
    width: int
    """Of one expert."""
    shared_width: int = 0
    """Of the experts that every token passes, all together."""
    matrices_each: int = GATED
    latent_size: int = 0
    """Width that routed experts work in, with a matrix into it and one out of it; 0 = the hidden size."""
    has_float32_router: bool = False
    """The matrix that chooses experts is multiplied in 32 bits (MiniMax-M2)."""
    has_shared_gate: bool = False
    """A gate of one output scales what the shared experts give (Qwen)."""
    has_bias: bool = False
    """Biases of router and experts (gpt-oss)."""

    def each(self, hidden: int) -> int:
        """Parameters of one routed expert's matrices."""
        return self.matrices_each * (self.latent_size or hidden) * self.width

    def shared(self, hidden: int) -> int:
        """Parameters of the shared experts' matrices."""
        return self.matrices_each * hidden * self.shared_width + (hidden if self.has_shared_gate else 0)

    def router(self, hidden: int) -> int:
        """Parameters of the matrix that chooses."""
        return hidden * self.num

    def latent(self, hidden: int) -> int:
        """Parameters of the matrices into and out of the experts' width."""
        return 2 * hidden * self.latent_size

    def biases(self, hidden: int) -> int:
        """Parameters of the biases."""
        if not self.has_bias:
            return 0
        return self.num * (1 + (self.matrices_each - 1) * self.width + (self.latent_size or hidden))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """One layer: what mixes tokens (or nothing), then an MLP, experts, both side by side, or neither."""

    mixer: Mixer | None
    mlp: Mlp | None = None
    experts: Experts | None = None
    formats: tuple[tuple[str, str], ...] = ()
    """Part -> number format, where the checkpoint stores it in another one than ``ModelSpec.dtype``. Parts: those of
    ``Matrix``, ``router``, ``experts``, ``shared`` and ``latent``."""

    def linear_parameters(self, hidden: int, experts: int | None = None) -> int:
        """All matrices; ``experts`` = how many routed ones are counted, None = all."""
        total = 0
        if self.mixer is not None:
            total += self.mixer.parameters(hidden)
        if self.mlp is not None:
            total += self.mlp.matrices_each * hidden * self.mlp.width
        moe = self.experts
        if moe is not None:
            count = moe.num if experts is None else experts
            total += moe.router(hidden) + count * moe.each(hidden) + moe.shared(hidden) + moe.latent(hidden)
        return total

    def small_parameters(self, hidden: int) -> int:
        """Norms and biases."""
        total = hidden * self.num_blocks
        if self.mixer is not None:
            total += self.mixer.small_parameters(hidden)
        return total + (0 if self.experts is None else self.experts.biases(hidden))

    @property
    def num_blocks(self) -> int:
        """Parts with a norm before and an all-reduce after them: 2, or 1 of a layer that does one of both."""
        return int(self.mixer is not None) + int(self.mlp is not None or self.experts is not None)

    @property
    def format_of(self) -> dict[str, str]:
        """``formats`` to look up."""
        return dict(self.formats)

    @property
    def words(self) -> str:
        """What it is, in words."""
        parts = [] if self.mixer is None else [self.mixer.words]
        if self.mlp is not None:
            parts.append(f"MLP of {self.mlp.width}")
        moe = self.experts
        if moe is not None:
            shared = f" and {moe.shared_width} shared" if moe.shared_width else ""
            parts.append(f"{moe.per_token} of {moe.num} experts of {moe.width}{shared}")
        return " + ".join(parts)
