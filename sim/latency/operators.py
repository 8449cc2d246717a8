"""Seconds that each operator of a step takes on one GPU, from datasheet figures: the roofline's physics.

An operator takes the longer of its arithmetic and its memory traffic at a stated share of the
datasheet's peaks. The shares are what well-tuned public kernels reach (cuBLAS, FlashAttention,
NCCL), rounded; none is fitted to a measurement of a serving engine. Everything uses +, -, *, / and
square roots only, which IEEE 754 defines exactly, so that tables are the same on every platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.latency.attention_kinds import GroupedAttention, LatentAttention, Matrix, Reach
from sim.latency.experts import AG_RS, ALONE, ExpertGroup, dispatch_bytes
from sim.latency.gpus import GpuSpec
from sim.latency.layer_kinds import PLAIN, Experts, LayerKind, Mixer, Mlp
from sim.latency.model_spec import ModelSpec
from sim.latency.parallel import kv_heads_per_gpu, ring_all_reduce_s
from sim.latency.precision import Precision

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of datasheet peaks that kernels reach, and fixed costs. All stated in every summary."""

    gemm: float = 0.72
    """Large cuBLAS GEMMs: 0.70-0.77 of an A100's dense peak, 0.65-0.85 of an H100's (power capped)."""
    moe_gemm: float = 0.5
    """Grouped GEMMs of experts: uneven rows per expert waste tiles."""
    memory: float = 0.82
    """Weight-bound GEMMs stream at 0.76-0.80 of an A100's bandwidth, 0.80-0.90 of an H100's."""
    elementwise: float = 0.7
    """Norms, rotary embedding, activation: short kernels that do not reach streaming speed."""
    prefill_attention: float = 0.5
    """FlashAttention-2 and -3, causal, head size 128, prompts of 1-4 thousand tokens."""
    decode_attention: float = 0.75
    """Paged split-KV decode: 0.82-0.87 of copy bandwidth, itself about 0.9 of the datasheet's."""
    link: float = 0.7
    """NCCL's bus bandwidth at large messages, NVLink and PCIe alike."""
    kernel_s: float = 2e-6
    """Start and tail of each kernel within a CUDA graph: the smallest norms and activations last 2-3 us."""
    attention_s: float = 8e-6
    """Attention's own start: plan, one wave, merge of the splits. The shortest decodes take about 10 us."""
    eager_operator_s: float = 25e-6
    """Python, dispatcher and launch per operator without CUDA graphs: a floor under the step."""
    nvlink_latency_s: float = 6e-6
    """A small custom all-reduce of 2 GPUs; each further GPU adds ``nvlink_hop_s`` (12 us for 8)."""
    nvlink_hop_s: float = 1e-6
    pcie_latency_s: float = 15e-6
    """A small NCCL all-reduce of 2 GPUs through the host; each further GPU adds ``pcie_hop_s``."""
    pcie_hop_s: float = 5e-6
    sampler_s: float = 50e-6
    """The sampler's dozen small kernels."""


ELEMENTWISE_OPERATORS = 5
"""Two norms, rotary, cache write, activation."""
ONE_BLOCK_OPERATORS = 3
"""Of a layer that only mixes or only computes: half of them, and one more."""
LAYER_OPERATORS = ELEMENTWISE_OPERATORS + 5
"""And QKV, attention, output, gate and up, down."""
QK_NORM_OPERATORS = 3
"""More than that where queries and keys are normed: two norms, and taking them apart for it."""
QUANTISED_OPERATORS = 4
"""More than that where weights are quantised: of each matrix the inputs, or its kernel's workspace to clear."""
MOE_OPERATORS = 4
"""More than that in an MoE layer: router, top-k, sort, combine."""
SAMPLER_BYTES_PER_LOGIT = 24
"""Cast, scale, softmax, noise and argmax over 32-bit logits: six passes."""


def launched_operators(model: ModelSpec, precision: Precision, tp: int) -> int:
    """Operators of all layers that the host launches one by one without CUDA graphs: 320 for Llama 3.1 8B, 680 for a
    quantised Qwen3-14B."""
    layer = LAYER_OPERATORS + (2 if tp > 1 else 0)
    layer += QK_NORM_OPERATORS if model.qk_norm else 0
    layer += QUANTISED_OPERATORS if precision.weights != precision.activations else 0
    blocks = sum(count * kind.num_blocks for kind, count in model.kinds)
    return blocks * layer // 2 + model.num_moe_layers * MOE_OPERATORS


@dataclass(frozen=True, slots=True)
class AttentionTime:
    """Seconds that all layers' attention of one reach takes on one GPU."""

    window: int | None
    """Tokens that a query sees at most; None = all."""
    context_s: float
    """For each token of KV that decodes read."""
    pair_s: float
    """For each unit of ``prefill_attention_pairs`` (half a query-key pair)."""
    chunk_context_s: float
    """For each token of context that prefill chunks read."""


def slower_of(compute_s: Floats, memory_s: Floats) -> Floats:
    """The 4-norm: the longer of the two, rounded off (+19 %) where they meet, since kernels overlap
    arithmetic and traffic well but not perfectly. Grows with either."""
    rounded: Floats = np.sqrt(np.sqrt(compute_s**2 * compute_s**2 + memory_s**2 * memory_s**2))
    return rounded


def power(base: float, exponents: Floats) -> Floats:
    """``base ** exponents`` for whole exponents by repeated squaring: multiplications only."""
    result: Floats = np.ones_like(exponents)
    left = exponents.astype(np.int64)
    while left.any():
        result = np.where(left & 1, result * base, result)
        base *= base
        left = left >> 1
    return result


def distinct_experts(num_experts: int, experts_per_token: int, tokens: Floats) -> Floats:
    """Expected number of experts that ``tokens`` tokens touch when each chooses evenly at random:
    E * (1 - (1 - k / E) ** tokens)."""
    return num_experts * (1.0 - power(1.0 - experts_per_token / num_experts, tokens))


@dataclass(frozen=True, slots=True)
class Operators:
    """One model on one GPU of ``tp`` * ``pp``. Token counts are arrays; answers are seconds."""

    model: ModelSpec
    gpu: GpuSpec
    precision: Precision
    tp: int
    pp: int
    efficiency: Efficiency
    experts: ExpertGroup = ALONE
    """The GPUs that hold the experts of an MoE model."""

    def _gemm_s(self, tokens: Floats, outputs: float, inputs: float, *, weight_bytes: float, flops: float) -> Floats:
        """``tokens`` rows through an ``outputs`` x ``inputs`` matrix; no rows cost nothing."""
        compute = 2.0 * tokens * (outputs * inputs) / (flops * self.efficiency.gemm)
        traffic = outputs * inputs * weight_bytes + tokens * (outputs + inputs) * self.precision.activation_bytes
        seconds = slower_of(compute, traffic / self._bandwidth) + self.efficiency.kernel_s
        return np.where(tokens > 0, seconds, 0.0)

    @property
    def _bandwidth(self) -> float:
        return self.gpu.memory_bandwidth * self.efficiency.memory

    def matrices_s(self, tokens: Floats, kind: LayerKind, matrices: Sequence[Matrix]) -> Floats:
        """GEMMs of a part of one layer, one after another, each in its own number format."""
        total: Floats | None = None
        for part, outputs, inputs in matrices:
            seconds = self._gemm_s(
                tokens,
                outputs,
                inputs,
                weight_bytes=self.precision.bytes_of(kind, part),
                flops=self.precision.flops_of(kind, part),
            )
            total = seconds if total is None else total + seconds
        return np.zeros_like(tokens) if total is None else total

    def mixing_s(self, tokens: Floats, kind: LayerKind) -> Floats:
        """GEMMs around the attention (or the state) of one layer: query, key and value, and output."""
        mixer = kind.mixer
        if mixer is None:
            return np.zeros_like(tokens)
        return self.matrices_s(tokens, kind, mixer.matrices(self.model.hidden_size, self.tp))

    def mlp_s(self, tokens: Floats, kind: LayerKind, mlp: Mlp, part: str | None = None) -> Floats:
        """Gate-up and down GEMMs of one plain MLP; ``part``: whose format both have (``shared``)."""
        matrices = mlp.matrices(self.model.hidden_size, self.tp)
        if part is not None:
            matrices = [matrix._replace(part=part) for matrix in matrices]
        return self.matrices_s(tokens, kind, matrices)

    def routed_s(self, tokens: Floats, kind: LayerKind) -> Floats:
        """Routed experts of one layer (only those that some token chose are read) on one of the GPUs that hold them,
        for that many tokens of them all. Whole experts and shares of all of them are as much work while tokens choose
        evenly; an imbalance gives the busiest GPU more rows, not more experts."""
        precision, moe = self.precision, _experts(kind)
        width = moe.latent_size or self.model.hidden_size
        rows = tokens * moe.per_token
        touched = distinct_experts(moe.num, moe.per_token, tokens)
        per_gpu = moe.each(self.model.hidden_size) / self.experts.num_gpus
        busiest = rows * (self.experts.imbalance or 1.0)
        compute = 2.0 * busiest * per_gpu / (precision.flops_of(kind, "experts") * self.efficiency.moe_gemm)
        moved = busiest * 4 * width * precision.activation_bytes
        traffic = touched * per_gpu * precision.bytes_of(kind, "experts") + moved
        return slower_of(compute, traffic / self._bandwidth)

    def experts_s(self, tokens: Floats, kind: LayerKind) -> Floats:
        """Router, routed experts and shared experts of one layer."""
        return self.router_and_shared_s(tokens, kind, self.routed_s(tokens, kind))

    def router_and_shared_s(self, tokens: Floats, kind: LayerKind, seconds: Floats | float = 0.0) -> Floats:
        """The part of a layer's experts that every rank computes for its own tokens, added to ``seconds``."""
        precision, moe, hidden = self.precision, _experts(kind), self.model.hidden_size
        router = self._gemm_s(
            tokens,
            moe.num,
            hidden,
            weight_bytes=precision.head_bytes,
            flops=precision.plain_flops,
        )
        fixed = np.where(tokens > 0, (MOE_OPERATORS + 1) * self.efficiency.kernel_s, 0.0)
        shared = np.zeros_like(tokens)
        if moe.shared_width:
            shared = self.mlp_s(tokens, kind, Mlp(width=moe.shared_width, matrices_each=moe.matrices_each), "shared")
        total = seconds + router + fixed + shared
        if moe.latent_size:
            into, out = Matrix("latent", moe.latent_size, hidden), Matrix("latent", hidden, moe.latent_size)
            total = total + self.matrices_s(tokens, kind, (into, out))
        return total

    def elementwise_s(self, tokens: Floats, kind: LayerKind) -> Floats:
        """Norms with residual, rotary embedding, KV write, activation of one layer: bytes over bandwidth, plus their
        starts and attention's."""
        rotary, kv = self._turned_and_kept(kind.mixer)
        width, matrices = _activated(kind)
        elements = kind.num_blocks * 4 * self.model.hidden_size + rotary + matrices * (width / self.tp)
        traffic = tokens * ((elements + kv) * self.precision.activation_bytes + kv * self.precision.kv_bytes)
        seconds = traffic / (self.gpu.memory_bandwidth * self.efficiency.elementwise)
        kernels = ELEMENTWISE_OPERATORS if kind.num_blocks > 1 else ONE_BLOCK_OPERATORS
        starts = kernels * self.efficiency.kernel_s
        starts += 0.0 if kind.mixer is None else self.efficiency.attention_s * len(kind.mixer.reaches())
        return np.where(tokens > 0, seconds + starts, 0.0)

    def _turned_and_kept(self, mixer: Mixer | None) -> tuple[float, float]:
        """Elements of a token that small kernels read and write around attention: rotary embedding (or the convolution
        before a state), and what is written to the KV cache."""
        if isinstance(mixer, GroupedAttention):
            kv_heads = kv_heads_per_gpu(mixer.num_kv_heads, self.tp)
            kept = 0.0 if mixer.shares_kv else float(kv_heads * (mixer.head_size + mixer.v_size))
            return 2 * (mixer.q_size / self.tp + kv_heads * mixer.head_size), kept
        if isinstance(mixer, LatentAttention):
            return 2 * (mixer.q_size / self.tp + mixer.latent_size), float(mixer.latent_size)
        return (0.0 if mixer is None else 2.0 * mixer.conv_width / self.tp), 0.0

    def _collective_s(self, payload: Floats, passes: float, num_gpus: int) -> Floats:
        """``passes`` of (n - 1) / n of the payload over every link, and a latency."""
        seconds = passes * (num_gpus - 1) / num_gpus * payload / (self.gpu.link_bandwidth * self.efficiency.link)
        return np.where(payload > 0, seconds + self._latency_s(num_gpus), 0.0)

    def hidden_gather_s(self, tokens: Floats) -> Floats:
        """The hidden state gathered from the ``tp`` GPUs, each of which has its share of the tokens."""
        return self._collective_s(tokens * (self.model.hidden_size * self.precision.activation_bytes), 1.0, self.tp)

    def exchange_s(self, tokens: Floats, bytes_per_token: float) -> Floats:
        """One layer's tokens of all ranks on their way to the experts, or back."""
        group = self.experts
        if group.backend == AG_RS:
            return self._collective_s(tokens * bytes_per_token, 1.0, group.exchange_gpus)
        each = tokens / group.num_gpus * group.destinations(self.model.experts_per_token) * (group.imbalance or 1.0)
        return self._collective_s(each * bytes_per_token, 1.0, group.num_gpus)

    def group_terms_s(self, tokens: Floats) -> dict[str, Floats]:
        """One step's time of what all ranks do together with ``tokens`` tokens of them all, padding included."""
        model, precision, count = self.model, self.precision, self.model.num_moe_layers
        combined = float(model.hidden_size * precision.activation_bytes)
        moes = [(kind, layers) for kind, layers in model.alike("experts", "formats") if kind.experts is not None]
        routed = sum((layers * self.routed_s(tokens, kind) for kind, layers in moes), np.zeros_like(tokens))
        return {
            "experts": routed,
            "dispatch": count * self.exchange_s(tokens, dispatch_bytes(model, precision)),
            "combine": count * self.exchange_s(tokens, combined),
        }

    def all_reduce_s(self, tokens: Floats) -> Floats:
        """One all-reduce of the hidden state over the ``tp`` GPUs: ring bandwidth plus a latency."""
        if self.tp == 1:
            return np.zeros_like(tokens)
        payload = tokens * (self.model.hidden_size * self.precision.activation_bytes)
        seconds = ring_all_reduce_s(1.0, self.tp, self.gpu.link_bandwidth * self.efficiency.link) * payload
        return np.where(tokens > 0, seconds + self.link_latency_s, 0.0)

    @property
    def link_latency_s(self) -> float:
        """Fixed cost of one small collective."""
        return self._latency_s(self.tp)

    def _latency_s(self, num_gpus: int) -> float:
        costs = self.efficiency
        if self.gpu.nvlink_bandwidth is not None:
            return costs.nvlink_latency_s + costs.nvlink_hop_s * max(0, num_gpus - 2)
        return costs.pcie_latency_s + costs.pcie_hop_s * max(0, num_gpus - 2)

    def layers_s(self, tokens: Floats) -> Floats:
        """All layers but attention over the KV cache, all-reduces included. Of ranks that step together
        (``LockstepCost``), only what each computes for itself."""
        model, group = self.model, self.experts
        total = np.zeros_like(tokens)
        for kind, count in model.alike("mixer", "formats", "num_blocks"):
            total = total + count * (self.mixing_s(tokens, kind) + float(kind.num_blocks) * self.all_reduce_s(tokens))
        for kind, count in model.kinds:
            seconds = self.elementwise_s(tokens, kind)
            if kind.mlp is not None:
                seconds = self.mlp_s(tokens, kind, kind.mlp) + seconds
            if kind.experts is not None:
                experts = self.router_and_shared_s if group.is_lockstep else self.experts_s
                seconds = experts(tokens, kind) + seconds
            total = total + count * seconds
        if group.is_sequence_parallel:  # outputs of experts come back whole, shared out over the GPUs
            swapped = self.hidden_gather_s(tokens) - self.all_reduce_s(tokens)
            total = total + model.num_moe_layers * swapped
        return total

    def embedding_s(self, tokens: Floats) -> Floats:
        """Row lookup, and its all-reduce under tensor parallelism."""
        traffic = 2.0 * tokens * (self.model.hidden_size * self.precision.activation_bytes)
        seconds = traffic / (self.gpu.memory_bandwidth * self.efficiency.elementwise)
        return np.where(tokens > 0, seconds + self.efficiency.kernel_s, 0.0) + self.all_reduce_s(tokens)

    def send_receive_s(self, tokens: Floats) -> Floats:
        """Hidden state and residual from one pipeline stage to the next; each GPU sends its share."""
        if self.pp == 1:
            return np.zeros_like(tokens)
        payload = 2.0 * tokens * (self.model.hidden_size * self.precision.activation_bytes) / self.tp
        seconds = payload / (self.gpu.link_bandwidth * self.efficiency.link)
        return np.where(tokens > 0, seconds + 2 * self.link_latency_s, 0.0)

    def head_s(self, rows: Floats) -> Floats:
        """LM head, gathering of logits and sampler for that many rows."""
        model, precision = self.model, self.precision
        head = self._gemm_s(
            rows,
            model.vocab_size / self.tp,
            model.hidden_size,
            weight_bytes=precision.head_bytes,
            flops=precision.plain_flops,
        )
        logits = rows * model.vocab_size
        sampler = logits * SAMPLER_BYTES_PER_LOGIT / (self.gpu.memory_bandwidth * self.efficiency.elementwise)
        gather = np.zeros_like(rows)
        if self.tp > 1:
            share = (self.tp - 1) / self.tp * precision.activation_bytes
            gather = logits * share / (self.gpu.link_bandwidth * self.efficiency.link) + self.link_latency_s
        return np.where(rows > 0, head + sampler + gather + self.efficiency.sampler_s, 0.0)

    def attention_times(self) -> tuple[AttentionTime, ...]:
        """All layers' attention, by how far it looks back."""
        found: dict[int | None, AttentionTime] = {}
        for mixer, count in self.model.mixers:
            for reach in mixer.reaches(self.tp):
                each = self._attention_time(reach, count)
                known = found.get(reach.window)
                if known is not None:
                    each = AttentionTime(
                        reach.window,
                        known.context_s + each.context_s,
                        known.pair_s + each.pair_s,
                        known.chunk_context_s + each.chunk_context_s,
                    )
                found[reach.window] = each
        return tuple(found.values())

    def _attention_time(self, reach: Reach, count: int) -> AttentionTime:
        """Of ``count`` layers that look back so far."""
        traffic = reach.read * self.precision.kv_bytes if reach.read_bytes is None else reach.read_bytes
        bandwidth = self.gpu.memory_bandwidth * self.efficiency.decode_attention
        flops = self.precision.plain_flops * self.efficiency.prefill_attention
        context = max(traffic / bandwidth, reach.decode_flops / flops)
        chunk = 0.0 if reach.is_state else max(count * traffic / bandwidth, count * reach.context_flops / flops)
        return AttentionTime(reach.window, count * context, count * (reach.prefill_flops / 2) / flops, chunk)

    def eager_floor_s(self) -> float:
        """What launching all layers' operators one by one takes at least."""
        return launched_operators(self.model, self.precision, self.tp) * self.efficiency.eager_operator_s


def _experts(kind: LayerKind) -> Experts:
    """The experts of a layer that is known to have some."""
    if kind.experts is None:
        raise ValueError("a layer without experts has no routed ones")
    return kind.experts


def _activated(kind: LayerKind) -> tuple[float, int]:
    """Width of a layer's activations over all GPUs, and the matrices that go with it."""
    width, matrices = 0, PLAIN
    if kind.mlp is not None:
        width, matrices = kind.mlp.width, kind.mlp.matrices_each
    if kind.experts is not None:
        moe = kind.experts
        width += moe.per_token * moe.width + moe.shared_width
        matrices = moe.matrices_each
    return float(width), matrices
