"""What one layer's mixing of tokens takes on one GPU, by kind: attention with KV by head, blocks of tables, states.

Each answers nanoseconds of one layer: ``decode_ns`` of so many requests of one new token, ``prefill_ns`` of so many
prompts. Where no table has the kind, a formula of bytes and arithmetic stands in, and says so (``stand_ins``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.latency.attention_kinds import GroupedAttention, LatentAttention, Reach
from sim.latency.layer_kinds import Mixer
from sim.latency.profile.blocks import BLOCKS, MLA, BlockSizes
from sim.latency.profile.file import Key
from sim.latency.profile.layout import STATES
from sim.latency.profile.operator_tables import ELEMENTWISE_START_NS, Floats
from sim.latency.profile.profiled_operators import ProfiledOperators
from sim.latency.profile.speed_of_light import ELEMENT_BYTES, LAUNCH_NS, STATE_HEAD, causal_pairs
from sim.latency.state_layers import StateLayer

READ_EFFICIENCY, PAIR_EFFICIENCY = 0.75, 0.5
"""Of the datasheet's bandwidth and arithmetic that attention reaches where no table has it, as the roofline's."""
STATE_EFFICIENCY = 0.2
"""Of the arithmetic that prompts reach in layers with a state. Gated delta nets reach 0.23 with 64 prompts of 4,096
tokens on an H200 (8 heads), which is the most in their table; a single prompt, 0.016, since its chunks of 64 tokens
follow each other."""
STATE_CHUNK_TOKENS = 64
STATE_CHUNK_NS = 3300.0
"""Of one chunk after another where there are few heads: 8,192 tokens of 8 heads take 418 us on an H200. Of Mamba-2's
kernels, which compute chunks side by side and add up states after, no table says anything."""
BLOCK_KERNELS = 3
"""Of a block of attention besides projections at least: what goes in, attention, what comes out."""
STATE_KERNELS = 2


class MixerTimes(Protocol):
    """One kind of mixer on one GPU."""

    @property
    def operators(self) -> tuple[str, str]:
        """Those that decodes and prompts are asked of, formulas that stand in included."""
        ...

    @property
    def follows_tokens(self) -> bool:
        """Whether a prompt costs by its tokens, whatever came before it, rather than by query-key pairs."""
        ...

    @property
    def made_ns_per_token(self) -> float:
        """For each token of context of a chunk, its own included: keys and values made of what is kept."""
        ...

    @property
    def pair_ns(self) -> float:
        """Speed of light of one query-key pair."""
        ...

    def decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """Of ``batch`` requests of one new token and this much KV each; ``contexts`` rise."""
        ...

    def mixed_decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """What these decodes add to a batch that holds chunks too."""
        ...

    def prefill_ns(self, batch: int, chunks: Floats) -> Floats:
        """Of ``batch`` prompts of each number of tokens, without ``made_ns_per_token``."""
        ...


@dataclass(frozen=True)
class GroupedTimes:
    """Keys and values by head, every query seeing all tokens before it or those of its window.

    Windows that were measured have curves of their own, and a prompt then costs by its tokens. Other windows are cut
    off the curves of full attention.
    """

    ops: ProfiledOperators
    """Of a model with this attention alone."""
    window: int | None
    made_ns_per_token: float = 0.0
    operators: tuple[str, str] = ("decode_attention", "prefill_attention")

    @property
    def follows_tokens(self) -> bool:
        """See ``MixerTimes``."""
        return self.window is not None and self._has_window

    @property
    def pair_ns(self) -> float:
        """See ``MixerTimes``."""
        return self.ops.pair_ns()

    @property
    def _has_window(self) -> bool:
        key = (*self.ops.attention_key()[:-1], self.window or 0)
        return self.ops.predictor.has("decode_attention", (*key, 1)) and self.ops.predictor.has(
            "prefill_attention", (*key, 1, 0)
        )

    def decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``MixerTimes``."""
        if self.follows_tokens:
            key = (*self.ops.attention_key()[:-1], self.window or 0, batch)
            return self._of_window("decode_attention", key, contexts)
        return self.ops.decode_attention_ns(batch, self._seen(contexts))

    def mixed_decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``MixerTimes``. A decode that sees a window only is little beside a chunk: what it takes alone, less its
        own start."""
        if self.follows_tokens:
            return np.maximum(self.decode_ns(batch, contexts) - LAUNCH_NS, 0.0)
        return self.ops.mixed_decode_attention_ns(batch, self._seen(contexts))

    def prefill_ns(self, batch: int, chunks: Floats) -> Floats:
        """See ``MixerTimes``."""
        if self.follows_tokens:
            key = (*self.ops.attention_key()[:-1], self.window or 0, batch, 0)
            return self._of_window("prefill_attention", key, chunks)
        return self.ops.prefill_ns(batch, chunks)

    def _of_window(self, operator: str, key: Key, at: Floats) -> Floats:
        self.ops.asked[operator, key] = key
        return self.ops.predictor.times_ns(operator, key, np.maximum(at, 1.0))

    def _seen(self, contexts: Floats) -> Floats:
        return contexts if self.window is None else np.minimum(contexts, float(self.window))


@dataclass(frozen=True)
class BlockTimes:
    """Attention that was measured as a block with its projections: the block less those, which the model pays as its
    own matrices. What makes keys and values of a latent, and the choice of tokens, is part of it."""

    ops: ProfiledOperators
    block: str
    heads: int
    weights: str
    """Number format of the projections."""
    follows_tokens: bool = False
    operators: tuple[str, str] = ("block_decode", "block_prefill")

    @property
    def _sizes(self) -> BlockSizes:
        return BLOCKS[self.block]

    @property
    def made_ns_per_token(self) -> float:
        """See ``MixerTimes``: the matrix that makes keys and values of a latent, with many tokens."""
        sizes = self._sizes
        if not sizes.latent or sizes.top_tokens:
            return 0.0
        many = np.array([8192.0])
        with _not_asked(self.ops):
            time = self.ops.linear_ns(many, self.heads * (sizes.nope + sizes.value), sizes.latent, self._dtype)
        return float(time[0] / many[0])

    @property
    def pair_ns(self) -> float:
        """See ``MixerTimes``. Drafts are verified as decodes are computed."""
        return self._sizes.decode_flops_per_token(self.heads) / self.ops.precision.plain_flops * 1e9

    @property
    def _dtype(self) -> str:
        """The measured number format of projections that is nearest to the model's."""
        small = ("fp8_block", "bfloat16") if self.weights.startswith(("fp8", "mxfp8")) else ("bfloat16", "fp8_block")
        kv = self._kv()
        for dtype in (self.weights, *small):
            if self.ops.predictor.has("block_decode", (self.block, dtype, kv, self.heads, 1)):
                return dtype
        return "bfloat16"

    def _kv(self) -> str:
        return "fp8" if self.ops.precision.kv_bytes == 1 else "bfloat16"

    def _less_projections(self, operator: str, batch: int, at: Floats, tokens: Floats) -> Floats:
        key = (self.block, self._dtype, self._kv(), self.heads, batch)
        self.ops.asked[operator, key] = key
        whole = self.ops.predictor.times_ns(operator, key, np.maximum(at, 1.0))
        with _not_asked(self.ops):
            for outputs, inputs in self._sizes.projections(self.heads):
                whole = whole - self.ops.linear_ns(tokens, outputs, inputs, self._dtype)
        return whole

    def decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``MixerTimes``."""
        sizes = self._sizes
        rest = self._less_projections("block_decode", batch, contexts, np.full_like(contexts, float(batch)))
        seen: Floats = np.minimum(contexts, float(sizes.top_tokens)) if sizes.top_tokens else contexts
        read = batch * seen * sizes.elements_per_token(self.heads) * ELEMENT_BYTES[self._kv()]
        least = read / self.ops.device.memory_bandwidth_bytes_per_s * 1e9
        return np.maximum(rest, least + BLOCK_KERNELS * LAUNCH_NS)

    def mixed_decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``MixerTimes``. Decodes and chunks of a latent go through kernels of their own."""
        return self.decode_ns(batch, contexts)

    def prefill_ns(self, batch: int, chunks: Floats) -> Floats:
        """See ``MixerTimes``."""
        sizes = self._sizes
        rest = self._less_projections("block_prefill", batch, chunks, batch * chunks)
        rest = rest - batch * chunks * self.made_ns_per_token
        pairs = batch * causal_pairs(chunks, 0.0, float(sizes.top_tokens))
        least = pairs * sizes.pair_flops(self.heads) / self.ops.precision.plain_flops * 1e9
        return np.maximum(rest, least + BLOCK_KERNELS * LAUNCH_NS)


@dataclass(frozen=True)
class StateTimes:
    """A layer with a state, measured: a decode costs by requests, a prompt by its tokens."""

    ops: ProfiledOperators
    state: str
    key_heads: int
    heads: int
    follows_tokens: bool = True
    made_ns_per_token: float = 0.0
    pair_ns: float = 0.0
    operators: tuple[str, str] = ("state_decode", "state_prefill")

    def decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``MixerTimes``."""
        key: Key = (self.state, self.key_heads, self.heads)
        self.ops.asked["state_decode", key] = key
        return np.full_like(contexts, self.ops.predictor.time_ns("state_decode", key, batch))

    def mixed_decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``MixerTimes``."""
        return self.decode_ns(batch, contexts)

    def prefill_ns(self, batch: int, chunks: Floats) -> Floats:
        """See ``MixerTimes``."""
        key: Key = (self.state, self.key_heads, self.heads, batch)
        self.ops.asked["state_prefill", key] = key
        return self.ops.predictor.times_ns("state_prefill", key, np.maximum(chunks, 1.0))


@dataclass(frozen=True)
class EstimatedTimes:
    """A mixer that no table has: bytes and arithmetic at stated shares of the datasheet's rates."""

    ops: ProfiledOperators
    reaches: tuple[Reach, ...]
    heads: float
    """Of one GPU, of layers with a state."""
    operators: tuple[str, str]

    @property
    def follows_tokens(self) -> bool:
        """See ``MixerTimes``."""
        return all(reach.is_state for reach in self.reaches)

    @property
    def made_ns_per_token(self) -> float:
        """See ``MixerTimes``."""
        rate = self.ops.precision.plain_flops * PAIR_EFFICIENCY
        return sum(reach.context_flops for reach in self.reaches) / rate * 1e9

    @property
    def pair_ns(self) -> float:
        """See ``MixerTimes``."""
        flops = sum(reach.decode_flops for reach in self.reaches if not reach.is_state)
        return flops / self.ops.precision.plain_flops * 1e9

    def decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``MixerTimes``."""
        bandwidth = self.ops.device.memory_bandwidth_bytes_per_s * READ_EFFICIENCY
        rate = self.ops.precision.plain_flops * PAIR_EFFICIENCY
        total = np.full_like(contexts, STATE_KERNELS * (LAUNCH_NS + ELEMENTWISE_START_NS))
        for reach in self.reaches:
            seen: Floats = contexts if reach.window is None else np.minimum(contexts, float(reach.window))
            each = reach.read * self.ops.precision.kv_bytes if reach.read_bytes is None else reach.read_bytes
            total += batch * seen * max(each / bandwidth, reach.decode_flops / rate) * 1e9
        return total

    def mixed_decode_ns(self, batch: int, contexts: Floats) -> Floats:
        """See ``MixerTimes``."""
        return self.decode_ns(batch, contexts)

    def prefill_ns(self, batch: int, chunks: Floats) -> Floats:
        """See ``MixerTimes``."""
        rate = self.ops.precision.plain_flops
        total = np.full_like(chunks, STATE_KERNELS * (LAUNCH_NS + ELEMENTWISE_START_NS))
        for reach in self.reaches:
            if reach.is_state:
                waves = np.ceil(batch * max(self.heads, 1.0) / self.ops.device.num_sms)
                in_turn = np.ceil(chunks / STATE_CHUNK_TOKENS) * waves * STATE_CHUNK_NS
                at_once = batch * chunks * reach.prefill_flops / (rate * STATE_EFFICIENCY) * 1e9
                total += np.maximum(in_turn, at_once)
            else:
                pairs = batch * causal_pairs(chunks, 0.0, float(reach.window or 0))
                total += pairs * reach.prefill_flops / (rate * PAIR_EFFICIENCY) * 1e9
        return total


@contextmanager
def _not_asked(ops: ProfiledOperators) -> Iterator[None]:
    """What is looked up inside is no part of the step by itself: neither its evidence nor what stood in."""
    asked, stand_ins = dict(ops.asked), dict(ops.stand_ins)
    yield
    for own, before in ((ops.asked, asked), (ops.stand_ins, stand_ins)):
        own.clear()
        own.update(before)  # type: ignore[arg-type]


def mixer_times(ops: ProfiledOperators, mixer: Mixer, weights: str) -> MixerTimes:
    """The times of ``mixer`` on one GPU of ``ops``, whose model has it alone; ``weights``: format of its matrices."""
    heads = max(1, mixer.num_heads // ops.tp)
    block = None if isinstance(mixer, StateLayer) else block_of(mixer)
    kv = "fp8" if ops.precision.kv_bytes == 1 else "bfloat16"
    if block is not None and any(
        ops.predictor.has("block_decode", (block, dtype, kv, heads, 1)) for dtype in ("bfloat16", "fp8_block")
    ):
        return BlockTimes(ops, block, heads, weights)
    if isinstance(mixer, GroupedAttention) and mixer.index is None:
        return GroupedTimes(ops, mixer.window or mixer.chunk)
    if isinstance(mixer, StateLayer) and mixer.kind in STATES:
        key = (mixer.kind, max(1, mixer.num_groups // ops.tp), heads)
        if mixer.head_size == mixer.state_size == STATE_HEAD and ops.predictor.has("state_decode", key):
            return StateTimes(ops, *key)
    what = mixer.kind if isinstance(mixer, StateLayer) else "latent" if isinstance(mixer, LatentAttention) else "sparse"
    operators = StateTimes.operators if isinstance(mixer, StateLayer) else BlockTimes.operators
    for operator in operators:
        ops.asked[operator, (what, heads)] = None
        ops.stand_ins[operator] = f"{what}: bytes and arithmetic at stated shares of the datasheet's rates"
    return EstimatedTimes(ops, tuple(mixer.reaches(ops.tp)), heads, operators)


def block_of(mixer: GroupedAttention | LatentAttention) -> str | None:
    """The measured block whose attention has these sizes; None where none has."""
    index = mixer.index
    if isinstance(mixer, LatentAttention):
        own = (mixer.kv_lora_rank, mixer.rope_size, mixer.nope_size, mixer.value_size)
    else:
        own = (0, 0, mixer.head_size, mixer.v_size)
    chosen = (0, 0, 0) if index is None else (index.num_heads, index.head_size, index.top_tokens)
    for name, sizes in BLOCKS.items():
        if own != (sizes.latent, sizes.rope, sizes.nope, sizes.value):
            continue
        if chosen == (sizes.index_heads, sizes.index_size, sizes.top_tokens) and (name == MLA or index is not None):
            return name
    return None
