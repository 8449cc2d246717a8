"""Kinds of attention: what each multiplies with on one of ``tp`` GPUs, keeps of a token, and looks back on.

Sizes are in elements unless a name says bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Matrix(NamedTuple):
    """One matrix product of a layer, as one kernel computes it on one GPU. ``part`` names it in ``LayerKind.formats``:
    query, key and value are one ``qkv``, gate and up one ``up``."""

    part: str
    outputs: int
    inputs: int

    @property
    def size(self) -> int:
        """Parameters."""
        return self.outputs * self.inputs


class Reach(NamedTuple):
    """How attention looks back, on one GPU. One layer may do so twice: once to choose, once to attend."""

    window: int | None
    """Tokens that a query sees at most; None = all. A state is a window of 1."""
    read: float
    """Elements read for each token in sight that a decode or a chunk has."""
    decode_flops: float
    """For each token in sight of a decode."""
    prefill_flops: float
    """For each pair of a prompt's token and a token in its sight."""
    context_flops: float = 0.0
    """For each token of context that a chunk reads: keys and values made anew from what is kept."""
    is_state: bool = False
    """Whether ``read`` is a state that a decode reads and writes, and a chunk hardly at all."""
    read_bytes: float | None = None
    """In place of ``read`` where elements have a size of their own."""


def heads_per_gpu(num_heads: int, tp: int) -> int:
    """Heads that each GPU holds: at least one, so heads are replicated beyond ``num_heads`` GPUs."""
    return max(1, num_heads // tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseIndex:
    """What chooses the tokens that sparse attention reads: small queries and one key for each token."""

    num_heads: int
    head_size: int
    top_tokens: int
    """Tokens that a query attends to at most."""
    has_own: bool = True
    """Whether the layer chooses by itself; else it takes what a layer before it chose."""
    key_bytes: int = 0
    """Kept for each token; 0 = ``head_size`` elements of the KV cache's format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAttention:
    """Keys and values for each token, a head of them for each group of query heads."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    """Of queries and keys."""
    value_size: int = 0
    """Of values; 0 = ``head_size``."""
    window: int | None = None
    """Tokens that a query looks back on; None = all."""
    chunk: int | None = None
    """Queries look back to the last multiple of it (Llama 4)."""
    has_bias: bool = False
    has_output_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised, by head unless ``has_wide_qk_norm``."""
    has_wide_qk_norm: bool = False
    """One norm spans the queries of all heads, one the keys, over GPUs too (MiniMax-M2)."""
    has_gate: bool = False
    """The output is gated by as many more outputs of the query's matrix (Qwen3-Next)."""
    values_are_keys: bool = False
    """One matrix gives keys and values (Gemma 4). vLLM loads it twice, and keeps both."""
    shares_kv: bool = False
    """Keys and values are those of a layer before it: neither computed nor kept (Gemma 3n)."""
    index: SparseIndex | None = None

    @property
    def sight(self) -> int | None:
        """Tokens that a query sees at most; None = all."""
        return self.window or self.chunk

    @property
    def v_size(self) -> int:
        """Width of one head's values."""
        return self.value_size or self.head_size

    @property
    def q_size(self) -> int:
        """Width of the queries of one token."""
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Width of the keys of one token."""
        return self.num_kv_heads * self.head_size

    @property
    def words(self) -> str:
        """What it is, in words."""
        sizes = f"{self.head_size}" if not self.value_size else f"{self.head_size} and {self.value_size}"
        told = f"{self.num_heads} heads of {sizes}, {self.num_kv_heads} KV heads"
        for name, value in (("window", self.window), ("chunks of", self.chunk)):
            told += f", {name} {value}" if value else ""
        if self.index is not None:
            told += f", the {self.index.top_tokens} tokens that an index chooses"
        return told

    def matrices(self, hidden: int, tp: int = 1) -> list[Matrix]:
        """Query, key and value, and output."""
        kv_heads = 0 if self.shares_kv else heads_per_gpu(self.num_kv_heads, tp)
        queries = self.q_size // tp * (2 if self.has_gate else 1)
        outputs = self.num_heads * self.v_size // tp
        found = [
            Matrix("qkv", queries + kv_heads * (self.head_size + self.v_size), hidden),
            Matrix("out", hidden, outputs),
        ]
        index = self.index
        if index is not None and index.has_own:
            heads = heads_per_gpu(index.num_heads, tp)
            found.append(Matrix("index", (heads + 1) * index.head_size, hidden))
        return found

    def parameters(self, hidden: int) -> int:
        """Of its matrices, as a checkpoint has them."""
        twice = self.num_kv_heads * self.v_size * hidden if self.values_are_keys and not self.shares_kv else 0
        return sum(matrix.size for matrix in self.matrices(hidden)) - twice

    def small_parameters(self, hidden: int) -> int:
        """Biases and norms of its own."""
        bias = self.q_size + 2 * self.kv_size if self.has_bias else 0
        return bias + (hidden if self.has_output_bias else 0) + (2 * self.head_size if self.qk_norm else 0)

    def kept_elements(self, tp: int = 1) -> int:
        """Elements of the KV cache for each token, on one GPU."""
        if self.shares_kv:
            return 0
        return heads_per_gpu(self.num_kv_heads, tp) * (self.head_size + self.v_size)

    def kept_bytes(self, tp: int, kv_bytes: int) -> int:
        """Bytes for each token, on one GPU, an index's keys aside (a cache of its own: ``index_bytes``)."""
        return self.kept_elements(tp) * kv_bytes

    def index_bytes(self, kv_bytes: int) -> int:
        """Bytes of the index's key of one token."""
        index = self.index
        if index is None or not index.has_own:
            return 0
        return index.key_bytes or index.head_size * kv_bytes

    def reaches(self, tp: int = 1) -> list[Reach]:
        """One, and one of the index before it."""
        heads, kv_heads = self.num_heads / tp, heads_per_gpu(self.num_kv_heads, tp)
        read = float(kv_heads * (self.head_size + self.v_size))
        flops = 2.0 * heads * (self.head_size + self.v_size)
        window, index = self.sight, self.index
        if index is None:
            return [Reach(window, read, flops, flops)]
        found = [Reach(index.top_tokens, read, flops, flops)]
        if index.has_own:
            scores = 2.0 * index.head_size * heads_per_gpu(index.num_heads, tp)
            found.append(Reach(None, float(index.head_size), scores, scores))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: one compressed vector for each token, from which every head's keys and values are
    made. Each GPU keeps all of it."""

    num_heads: int
    q_lora_rank: int
    """Width that queries pass; 0 = none."""
    kv_lora_rank: int
    rope_size: int
    nope_size: int
    value_size: int
    has_gate: bool = False
    """The output is gated by a matrix of its own (Kimi K3)."""
    index: SparseIndex | None = None

    window: None = None

    @property
    def latent_size(self) -> int:
        """Elements kept for each token: 512 + 64 for DeepSeek-V3."""
        return self.kv_lora_rank + self.rope_size

    @property
    def q_size(self) -> int:
        """Width of the queries of one token."""
        return self.num_heads * (self.nope_size + self.rope_size)

    @property
    def words(self) -> str:
        """What it is, in words."""
        told = f"{self.num_heads} heads over a latent of {self.kv_lora_rank} + {self.rope_size}"
        if self.index is None:
            return told
        whose = "an index" if self.index.has_own else "the index of another layer"
        return f"{told}, the {self.index.top_tokens} tokens that {whose} chooses"

    def matrices(self, hidden: int, tp: int = 1) -> list[Matrix]:
        """Down, up and output. In decodes the second half of ``kv_b`` follows attention: as much work."""
        heads, query = self.num_heads // tp, self.nope_size + self.rope_size
        if self.q_lora_rank:
            found = [
                Matrix("qkv_a", self.q_lora_rank + self.latent_size, hidden),
                Matrix("q_b", heads * query, self.q_lora_rank),
            ]
        else:
            found = [Matrix("q", heads * query, hidden), Matrix("kv_a", self.latent_size, hidden)]
        found += [
            Matrix("kv_b", heads * (self.nope_size + self.value_size), self.kv_lora_rank),
            Matrix("out", hidden, heads * self.value_size),
        ]
        if self.has_gate:
            found.append(Matrix("gate", heads * self.value_size, hidden))
        index = self.index
        if index is not None and index.has_own:
            found.append(Matrix("index", index.num_heads * index.head_size, self.q_lora_rank or hidden))
            found.append(Matrix("index", index.head_size + index.num_heads, hidden))
        return found

    def parameters(self, hidden: int) -> int:
        """Of its matrices."""
        return sum(matrix.size for matrix in self.matrices(hidden))

    def small_parameters(self, hidden: int) -> int:
        """Norms of the compressed queries, keys and values."""
        return self.q_lora_rank + self.kv_lora_rank

    def kept_elements(self, tp: int = 1) -> int:
        """Elements of the KV cache for each token, on every GPU."""
        return self.latent_size

    def kept_bytes(self, tp: int, kv_bytes: int) -> int:
        """Bytes for each token, an index's keys aside. In 8 bits sparse attention keeps 656 for 512 + 64: scales for
        each 128, and the rotary part in 16 bits."""
        if self.index is not None and kv_bytes == 1:
            return self.kv_lora_rank + self.kv_lora_rank // 128 * 4 + 2 * self.rope_size
        return self.latent_size * kv_bytes

    def index_bytes(self, kv_bytes: int) -> int:
        """Bytes of the index's key of one token: 8 bits, and a scale for each 128."""
        index = self.index
        if index is None or not index.has_own:
            return 0
        return index.key_bytes or index.head_size + index.head_size // 128 * 4

    def reaches(self, tp: int = 1) -> list[Reach]:
        """One, and one of the index before it."""
        heads = self.num_heads / tp
        decode = 2.0 * heads * (self.latent_size + self.kv_lora_rank)
        prefill = 2.0 * heads * (self.nope_size + self.rope_size + self.value_size)
        made = 2.0 * heads * (self.nope_size + self.value_size) * self.kv_lora_rank
        read, index = float(self.latent_size), self.index
        if index is None:
            return [Reach(None, read, decode, prefill, made)]
        found = [Reach(index.top_tokens, read, decode, decode)]
        if index.has_own:
            scores = 2.0 * index.num_heads * index.head_size
            found.append(Reach(None, 0.0, scores, scores, read_bytes=float(self.index_bytes(1))))
        return found
