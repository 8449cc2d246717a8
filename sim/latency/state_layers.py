"""Layers that keep a state of fixed size for a request, in place of keys and values for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sim.latency.attention_kinds import Matrix, Reach

STATE_CHUNK = 64
"""Tokens that kernels of linear attention take together in a prompt."""


class Projection(NamedTuple):
    """A matrix of a layer with a state; ``is_split``: each GPU has its share."""

    part: str
    outputs: int
    inputs: int
    splits: str
    """Which side is split over GPUs: ``outputs``, ``inputs`` or neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLayer:
    """A layer that keeps a state of fixed size for a request in place of keys and values for each token."""

    kind: str
    """``mamba2``, ``gdn`` (gated delta net) or ``kda`` (Kimi delta attention)."""
    projections: tuple[Projection, ...]
    num_heads: int
    """Heads of the state; 0 = the convolution's state is all."""
    head_size: int
    """Of values."""
    state_size: int
    """Of keys: a head's state is ``head_size`` x ``state_size``."""
    num_groups: int = 0
    """Heads of keys; beyond as many GPUs they are replicated."""
    conv_width: int = 0
    conv_kernel: int = 0
    state_bytes_each: int = 4
    """Of an element of the heads' state; 0 = as activations. The convolution's is in activations' format."""
    small: int = 0
    """Parameters beside the matrices."""

    window: None = None

    @property
    def words(self) -> str:
        """What it is, in words."""
        names = {"gdn": "gated delta net", "kda": "Kimi delta attention", "mamba2": "Mamba-2"}
        return f"{names.get(self.kind, self.kind)} of {self.num_heads} heads of {self.head_size} x {self.state_size}"

    def matrices(self, hidden: int, tp: int = 1) -> list[Matrix]:
        """As listed."""
        found = []
        for part, outputs, inputs, splits in self.projections:
            shared = tp if splits else 1
            found.append(
                Matrix(part, outputs, inputs // shared)
                if splits == "inputs"
                else Matrix(part, outputs // shared, inputs)
            )
        return found

    def parameters(self, hidden: int) -> int:
        """Of its matrices."""
        return sum(matrix.size for matrix in self.matrices(hidden))

    def small_parameters(self, hidden: int) -> int:
        """Convolution, decay, norms."""
        return self.small

    def kept_elements(self, tp: int = 1) -> int:
        """None for each token."""
        return 0

    def kept_bytes(self, tp: int, kv_bytes: int) -> int:
        """None for each token."""
        return 0

    def index_bytes(self, kv_bytes: int) -> int:
        """None."""
        return 0

    def state_bytes(self, tp: int, activation_bytes: int) -> int:
        """What a request keeps on one GPU: the convolution's last inputs and the heads' state."""
        width = self.conv_width
        if self.kind == "mamba2" and self.num_groups % tp:  # groups are replicated so that each GPU has one
            width += 2 * (tp - self.num_groups) * self.state_size
        conv = width // tp * max(0, self.conv_kernel - 1) * activation_bytes
        return conv + self.num_heads * self.head_size * self.state_size // tp * (
            self.state_bytes_each or activation_bytes
        )

    def reaches(self, tp: int = 1) -> list[Reach]:
        """A decode reads and writes its state once. A prompt is computed in chunks of 64 tokens: within one as
        attention, between them by the state."""
        state = self.num_heads * self.head_size * self.state_size / tp
        moved = 2.0 * self.state_bytes(tp, 2)
        within = 2.0 * STATE_CHUNK * self.num_heads / tp * (self.head_size + self.state_size)
        return [Reach(1, 0.0, 6.0 * state, 4.0 * state + within, is_state=True, read_bytes=moved)]
