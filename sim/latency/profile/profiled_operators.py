"""What each part of a step takes on one GPU, from a profile: which operators a model's layers are made of.

Token counts are arrays, answers nanoseconds of one launch or one layer as said.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.latency.layer_kinds import LayerKind
from sim.latency.operators import launched_operators
from sim.latency.profile.expert_kernels import OPERATORS
from sim.latency.profile.expert_routing import table_imbalance
from sim.latency.profile.file import Key
from sim.latency.profile.fill import distinct
from sim.latency.profile.gemm_kernels import LAST_BELOW, few_rows_ns, is_dispatched, many_rows_ns
from sim.latency.profile.mixed import mixed_ratio, on_another_gpu, uses_flash_attention_2
from sim.latency.profile.operator_tables import ELEMENTWISE_EFFICIENCY, Floats, OperatorTables
from sim.latency.profile.speed_of_light import LAUNCH_NS, peak_flops

Booleans = npt.NDArray[np.bool_]

QUANTISING_LAYER = "FP8ScaledMMLinearKernel"
"""In the name of what was timed: vLLM's layer, which quantises its inputs first."""
LEAST_LINEAR = 0.5
"""Of its time with quantising, that a linear layer takes without."""
SAMPLER_NS = 50_000.0
"""The sampler's dozen small kernels, where it was not measured."""
SAMPLER_BYTES_PER_LOGIT = 24.0
STEP_NS = 250_000.0
"""Kernels of a step outside its layers that no table holds: copies of the inputs, slot mapping, attention's plan, cast
and copy of logits, the tokens' way back. Some thirty that do little but start, one by one; an engineer's figure."""
GEMM_SIZES = np.array([*range(8, 256, 8), *range(256, 1025, 32)], dtype=np.float64)
"""Numbers of tokens that a smaller number's time is held against."""
EXPERT_SIZES = distinct(np.rint(2.0 ** (np.arange(0, 17 * 8 + 1) / 8.0)))
"""Numbers of tokens between which experts under a stated imbalance are interpolated."""
ROUTER_TILE, ROUTER_FEW, ROUTER_SPLITS, ROUTER_EFFICIENCY, SMS = 64, 16, 4, 0.75, 132
"""Of a 32-bit matrix of few columns: side of a tile, rows that a lower tile holds, parts that its depth is split into,
share of the peak where all cores are busy; cores where the profile does not say. For MiniMax-M2.5 on a B200 that is
11 us up to 16 tokens, 23 us up to 128 and 0.28 ms at 8,192. Measured: 20 us at 64 (9.1 % of its decode step, sglang's
pull request 22744). With TensorFloat-32 in its place (``VLLM_FLOAT32_MATMUL_PRECISION=high``) InferenceX's steps are
0.3 ms = 62 x 5 us shorter up to 16 clients, 1.1 ms = 62 x 18 us from 32 on, and prompts of 8,192 tokens 15 to 20 ms =
62 x 0.3 ms."""
L2_SHARE = 1.2
"""KV of this many times the L2 cache's size comes from memory however often a benchmark repeats."""
MIXED_CHUNK = 512
"""Size of the prefill chunk beside which decodes are looked up."""
LEAST_MIXED = 0.05
"""Of their time alone, that decodes cost in a mixed batch at least."""
EAGER_OPERATOR_NS = 25_000
"""Python, dispatcher and launch of one operator without CUDA graphs, where it was not measured."""
ROUTER_KERNELS = 1
"""Softmax with top-k; sorting rows by expert is part of the experts' times."""


@dataclass(slots=True)
class ProfiledOperators(OperatorTables):
    """What a model's layers are made of, and what lies around them."""

    def mixing_ns(self) -> dict[str, dict[str, float]]:
        """What shares the terms of attention where layers are of several kinds: of each term, nanoseconds of a typical
        batch by operator. Empty = each term is one operator."""
        return {}

    # -- matrices ---------------------------------------------------------------------------------

    def linear_ns(
        self, tokens: Floats, n: int, k: int, dtype: str | None = None, *, is_ready: bool | Booleans = False
    ) -> Floats:
        """One linear layer of ``n`` outputs and ``k`` inputs on this GPU; 0 for no tokens. ``is_ready``: the kernel
        before has left the inputs in the number format of the weights.

        No more than the time of any larger number of tokens: where a table says so, it is its noise, or a choice of
        kernel that differs from release to release.
        """
        key = (dtype or self.precision.weights, n, k)
        some = np.maximum(tokens, 1.0)
        sizes = distinct(np.concatenate([some, GEMM_SIZES]))
        times = self._times("gemm", key, (0,), sizes)
        if times is None:
            raise self._lacks("gemm")
        padded = np.minimum.accumulate(times[::-1])[::-1]
        if self.has_dispatch(str(key[0])):
            padded = few_rows_ns(sizes, times, padded)
            if sizes[-1] > LAST_BELOW:
                last = self.predictor.time_ns("gemm", self.asked["gemm", key] or key, LAST_BELOW)
                padded = many_rows_ns(sizes, padded, last, k, has_wide=self.has_wide_gemm)
        charged = padded[np.searchsorted(sizes, some)]
        if self.has_quantising_timed(str(key[0])):
            ready = np.maximum(charged - self.quantising_ns(k, some), LEAST_LINEAR * charged)
            charged = np.where(is_ready, ready, charged)
        return np.where(tokens > 0, charged, 0.0)

    def is_normed_ready(self, tokens: Floats) -> Booleans:
        """Where a norm leaves 8 bits: as compiled with its neighbour, or in one kernel with the all-reduce."""
        return self.is_fused(tokens) | (not self.quantises_apart)

    def quantising_ns(self, width: int, tokens: Floats) -> Floats:
        """A kernel of its own that makes 8 bits of 16."""
        return self.kernel_ns("quantise", width, tokens, self.precision.activation_bytes + 1.0)

    def has_quantising_timed(self, dtype: str) -> bool:
        """Whether times of linear layers are with making 8 bits of their inputs: the table's of vLLM's FP8 layers are
        (4.8 us where the matrix is next to nothing, 2.6 us in 16 bits; aiconfigurator takes both kernels off again for
        inputs that come in 8 bits)."""
        return dtype == "fp8" and QUANTISING_LAYER in self.profile.operators["gemm"].kernel

    def has_dispatch(self, dtype: str) -> bool:
        """Whether matrices of that number format have a kernel for each range of rows, of which a later one may be
        faster."""
        return is_dispatched(dtype, self.device.compute_capability)

    def attention_projections_ns(self, tokens: Floats) -> Floats:
        """QKV and output projection of one layer."""
        model = self.model
        qkv, out = (self.heads + 2 * self.kv_heads) * model.head_size, self.heads * model.head_size
        kind = model.kinds[0][0]
        ready = self.is_normed_ready(tokens)
        return self.linear_ns(
            tokens, qkv, model.hidden_size, self.precision.format_of(kind, "qkv"), is_ready=ready
        ) + self.linear_ns(tokens, model.hidden_size, out, self.precision.format_of(kind, "out"))

    def mlp_ns(self, tokens: Floats, width: int, part: str = "up") -> Floats:
        """Gate and up, and down, of an MLP ``width`` wide over all GPUs; ``part``: whose number format they have."""
        hidden, share = self.model.hidden_size, width // self.tp
        ups = self.model.mlp_matrices - 1
        stored = next((self.precision.format_of(kind, part) for kind, _ in self.model.kinds if kind.mlp), None)
        if part == "shared":
            stored = self.precision.format_of(self._moe_kind, part)
        return self.linear_ns(
            tokens, ups * share, hidden, stored, is_ready=self.is_normed_ready(tokens)
        ) + self.linear_ns(tokens, hidden, share, stored, is_ready=not self.quantises_apart)

    @property
    def _moe_kind(self) -> LayerKind:
        return next(kind for kind, _ in self.model.kinds if kind.experts is not None)

    def experts_ns(self, tokens: Floats) -> Floats:
        """Router, routed and shared experts of one layer."""
        return self.router_and_shared_ns(tokens, self.routed_ns(tokens))

    def router_and_shared_ns(self, tokens: Floats, routed: Floats | float = 0.0) -> Floats:
        """The part of a layer's experts that every rank computes for its own tokens, added to ``routed``."""
        model = self.model
        shared = model.shared_expert_intermediate_size
        total = routed + self.router_ns(tokens) + self.small_kernels_ns(tokens, ROUTER_KERNELS)
        return total + self.mlp_ns(tokens, shared) if shared else total

    def router_ns(self, tokens: Floats) -> Floats:
        """The matrix that chooses experts, in 16 bits, or in 32 on the ordinary cores where the model wants that."""
        model = self.model
        plain = self.linear_ns(tokens, model.num_experts, model.hidden_size, self.precision.activations)
        if not model.has_float32_router:
            return plain
        slower: Floats = np.maximum(plain, self._wide_router_ns(tokens))
        return slower

    def _wide_router_ns(self, tokens: Floats) -> Floats:
        """Without tensor cores: the activations widened by a kernel of their own, then few tiles for many cores."""
        model = self.model
        tiles = np.ceil(tokens / ROUTER_TILE) * np.ceil(model.num_experts / ROUTER_TILE) * ROUTER_SPLITS
        busy = np.minimum(tiles / (self.device.num_sms or SMS), 1.0)
        rows = np.where(tokens <= ROUTER_FEW, ROUTER_FEW, np.ceil(tokens / ROUTER_TILE) * ROUTER_TILE)
        flops = np.where(tokens > 0, 2.0, 0.0) * rows * model.num_experts * model.hidden_size
        peak = peak_flops(self.device, "float32") * ROUTER_EFFICIENCY
        some = np.where(tokens > 0, 2.0 * LAUNCH_NS, 0.0)  # and one that adds up the parts
        widened = self.kernel_ns("widen", model.hidden_size, tokens, 6.0)
        total: Floats = some + widened + flops / np.maximum(peak * busy, 1.0) * 1e9
        return total

    def routed_ns(self, tokens: Floats) -> Floats:
        """Routed experts of one layer on one of the GPUs that hold them, for that many tokens of them all."""
        imbalance = self.experts.imbalance
        if imbalance is None:
            return np.where(tokens > 0, self._measured_routed_ns(tokens), 0.0)
        model = self.model
        measured = table_imbalance(model.num_experts, model.experts_per_token, self.experts.ep)
        least = np.minimum.accumulate(self._measured_routed_ns(EXPERT_SIZES)[::-1])[::-1]
        return np.where(tokens > 0, np.interp(tokens * (imbalance / measured), EXPERT_SIZES, least), 0.0)

    def _measured_routed_ns(self, tokens: Floats) -> Floats:
        model = self.model
        shape = (model.hidden_size, model.moe_intermediate_size, model.num_experts, model.experts_per_token)
        stored = self.precision.format_of(self._moe_kind, "experts")
        key = (stored, *shape, *self.experts.split)
        operator = self._expert_operator(key)
        if operator != "moe":
            self.asked[operator, key] = key
            return self.predictor.times_ns(operator, key, np.maximum(tokens, 1.0))
        routed = self._times("moe", key, (0,), np.maximum(tokens, 1.0))
        if routed is None:
            self.stand_ins["moe"] = "two linear layers over the rows of the experts that are touched"
            routed = self._experts_as_linear_ns(tokens)
        return routed

    def _expert_operator(self, key: Key) -> str:
        """Which curves of experts to follow: those of the kernel that runs, where they are as near as the table's."""
        operator = OPERATORS.get(self.expert_backend or "")
        basis = None if operator is None else self.predictor.basis(operator, key)
        if operator is None or basis is None:
            return "moe"
        of_table = self.predictor.basis("moe", key)
        return operator if of_table is None or basis <= of_table else "moe"

    def _experts_as_linear_ns(self, tokens: Floats) -> Floats:
        model, (tp, ep) = self.model, self.experts.split
        local, width = model.num_experts / ep, model.moe_intermediate_size // tp
        touched = local * (1.0 - (1.0 - model.experts_per_token / model.num_experts) ** np.maximum(tokens, 1.0))
        rows = np.maximum(tokens, 1.0) * model.experts_per_token / ep / touched
        up = self.linear_ns(np.maximum(rows, 1.0), 2 * width, model.hidden_size)
        down = self.linear_ns(np.maximum(rows, 1.0), model.hidden_size, width)
        return touched * (up + down - 2.0 * LAUNCH_NS) + 2.0 * LAUNCH_NS

    # -- outside the layers -----------------------------------------------------------------------

    def lookup_ns(self, tokens: Floats) -> Floats:
        """Rows of the embedding."""
        return self.kernel_ns("embedding", self.model.hidden_size, tokens, 2.0 * self.precision.activation_bytes)

    def launches_ns(self, tokens: Floats) -> Floats:
        """What launching all layers' kernels one by one takes the host, without CUDA graphs."""
        model, host = self.model, self.profile.host
        each = host.eager_launch_ns if host is not None and host.eager_launch_ns is not None else EAGER_OPERATOR_NS
        return np.where(tokens > 0, float(launched_operators(model, self.precision, self.tp) * each), 0.0)

    def head_ns(self, rows: Floats) -> Floats:
        """Final norm, LM head, gathering of logits and sampler for that many rows."""
        model = self.model
        head = self.linear_ns(rows, model.vocab_size // self.tp, model.hidden_size, self.precision.activations)
        norm = self.kernel_ns("rms_norm", model.hidden_size, rows, 4.0 * self.precision.activation_bytes)
        return np.where(rows > 0, STEP_NS + head + norm + self.sampler_ns(rows) + self._gather_ns(rows), 0.0)

    def sampler_ns(self, rows: Floats) -> Floats:
        """The sampler alone, of one row at least."""
        key: Key = (self.model.vocab_size,)
        at = np.maximum(rows, 1.0)
        has = self.predictor.has("sampling", key)
        self.asked["sampling", key] = key if has else None
        if has:
            return self.predictor.times_ns("sampling", key, at)
        self.stand_ins["sampling"] = f"{SAMPLER_NS / 1e3:g} us and six passes over 32-bit logits"
        bandwidth = self.device.memory_bandwidth_bytes_per_s * ELEMENTWISE_EFFICIENCY
        return SAMPLER_NS + at * (self.model.vocab_size * SAMPLER_BYTES_PER_LOGIT) / bandwidth * 1e9

    def _gather_ns(self, rows: Floats) -> Floats:
        if self.tp == 1:
            return np.zeros_like(rows)
        payload = np.maximum(rows, 1.0) * (self.model.vocab_size * self.precision.activation_bytes)
        if any(self.predictor.has("all_gather", (each, self.tp)) for each in ("custom", "nccl")):
            return self.collective_ns("all_gather", payload)
        return 0.5 * self.collective_ns("all_reduce", payload)

    # -- attention --------------------------------------------------------------------------------

    def attention_key(self) -> Key:
        """Number formats, heads and window (none) of attention's curves."""
        model, precision = self.model, self.precision
        activations = "bfloat16" if precision.activations == "float16" else precision.activations
        kv = "bfloat16" if precision.kv == "float16" else precision.kv
        return (activations, kv, self.heads, self.kv_heads, model.head_size, 0)

    def decode_attention_ns(self, batch: int, contexts: Floats) -> Floats:
        """One layer's attention of ``batch`` decodes of this many tokens of KV each; ``contexts`` rise.

        Times are of a KV cache that comes from memory. Benchmarks that repeat one launch find a small one in the L2
        cache, where no engine finds it after a layer's weights went through; so times below the L2's size are at least
        those of the straight line from the shortest context to the first that is well beyond it.
        """
        times = self._times("decode_attention", (*self.attention_key(), batch), (0, 1), np.maximum(contexts, 1.0))
        if times is None:
            raise self._lacks("decode_attention")
        cached = batch * contexts * self.kv_bytes_per_token() < L2_SHARE * self.device.l2_bytes
        beyond = int(np.argmin(cached)) if not cached.all() else len(contexts) - 1
        if cached[0] and contexts[beyond] > contexts[0]:
            share = (contexts - contexts[0]) / (contexts[beyond] - contexts[0])
            cold = times[0] + share * (times[beyond] - times[0])
            times = np.where(np.arange(len(contexts)) < beyond, np.maximum(times, cold), times)
        return times

    def mixed_decode_attention_ns(self, batch: int, contexts: Floats) -> Floats:
        """What these decodes add to one layer's attention of a batch that holds chunks too; ``contexts`` rise."""
        alone = self.decode_attention_ns(batch, contexts)
        key = self.attention_key()
        mixed = self._times("mixed_attention", (*key, MIXED_CHUNK, 0, batch), (0, 1), np.maximum(contexts, 1.0))
        if mixed is not None:
            chunk = self._times("prefill_attention", (*key, 1, 0), (0, 1), np.array([float(MIXED_CHUNK)]))
            if chunk is not None:
                return np.maximum(mixed - chunk, LEAST_MIXED * alone)
        if uses_flash_attention_2(self.profile.operators["decode_attention"].kernel):
            self.stand_ins["mixed_attention"] = "FlashAttention-2's mixed batches on another GPU, by their arithmetic"
            ratio = mixed_ratio(self.heads / self.kv_heads, batch * self.kv_heads, np.maximum(contexts, 1.0))
            read, flops = batch * contexts * self.kv_bytes_per_token(), self.precision.plain_flops
            return alone * on_another_gpu(ratio, read, flops, self.device.memory_bandwidth_bytes_per_s)
        self.stand_ins["mixed_attention"] = "what the decodes take alone, less a launch"
        return np.maximum(alone - LAUNCH_NS, LEAST_MIXED * alone)

    def prefill_ns(self, batch: int, chunks: Floats) -> Floats:
        """One layer's attention of ``batch`` prompts of each number of tokens."""
        times = self._times("prefill_attention", (*self.attention_key(), batch, 0), (0, 1), chunks)
        if times is None:
            raise self._lacks("prefill_attention")
        return times

    def pair_ns(self) -> float:
        """Speed of light of one query-key pair of one layer."""
        return 4.0 * self.heads * self.model.head_size / self.precision.plain_flops * 1e9

    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token in one layer, on one GPU."""
        return 2.0 * self.kv_heads * self.model.head_size * self.precision.kv_bytes
