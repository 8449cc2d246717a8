"""The terms of the memory plan that vLLM measures and that are formulas here, each with what it was held against.

Bytes of one GPU. ``MiB`` and ``GiB`` figures are what vLLM logged; ``docs/memory.md`` has the logs, and which of them
gave a figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.latency.experts import ExpertGroup
from sim.latency.gpus import GpuSpec
from sim.latency.memory_rules import MemoryRules, is_hopper_or_newer
from sim.latency.model_spec import ModelSpec
from sim.latency.precision import Precision
from sim.latency.profile.graphs import graph_sizes

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

MIB = 1 << 20

NON_TORCH_BYTES = 128 * MIB
"""CUDA libraries, kernels and workspaces outside PyTorch's pool; vLLM 0.11 logs 0.13-0.14 GiB for one GPU."""
LEFT_BY_GRAPHS_BYTES = 128 * MIB
"""What the capture for the estimate of CUDA graphs leaves behind, where it is measured along: vLLM 0.19 logs 0.24-0.26
GiB outside PyTorch for one GPU, 0.07 on a pipeline stage that does not sample."""
MULTICAST_COMMUNICATOR_BYTES = 1850 * MIB
"""NCCL with NVLink multicast, symmetric memory and the fused all-reduce's workspace: vLLM 0.19 logs 1.82-1.96 GiB more
for two and four H100 than for one, whatever the model."""
NVLINK_COMMUNICATOR_BYTES = 416 * MIB
"""NCCL and custom all-reduce over NVLink without those; vLLM 0.11 logs 0.40-0.42 GiB more than for one GPU."""
PCIE_COMMUNICATOR_BYTES = 96 * MIB
"""The same over PCIe, where custom all-reduce is off: 0-0.13 GiB by what vLLM logs."""

WITHOUT_WORKSPACE = frozenset({"GptOssForCausalLM"})
"""Models whose expert kernels allocate as they go."""

HOPPER_CUBLAS_BYTES = 32 * MIB
CUBLAS_BYTES = 8 * MIB
"""PyTorch's workspace for cuBLAS, taken from its own pool."""

GRAPHS_BASE_BYTES = {True: 350 * MIB, False: 150 * MIB}
GRAPHS_BYTES_PER_LAYER = {True: 0.19 * MIB, False: 0.125 * MIB}
"""A base, and so much for each layer of each graph, on Hopper and newer (FlashAttention 3) and on others: what vLLM
extrapolates from a few captures.

Hopper: vLLM 0.19.0 estimates on H100 0.51 GiB for 8 layers, 0.84-0.96 for 32-36, 1.61-1.66 for 80.

Others: two starts on an RTX 4090 with 86 graphs. One gave the pair: vLLM 0.24.0 with 28 layers, 0.41 GiB that nothing
else in its plan takes (0.44 by this). The other tests it: vLLM 0.20.2 estimates 0.52 for 36 layers (0.52 by this). Two
starts so near to each other say little of how the sum parts into base and slope."""


def activation_bytes(
    engine: EngineConfig, model: ModelSpec, precision: Precision, rules: MemoryRules, gpu: GpuSpec, *, head: bool
) -> int:
    """Peak of vLLM's profiling pass (``profile_run``): the larger of one layer at ``max_num_batched_tokens`` and, with
    ``head``, the sampler at ``max_num_seqs`` rows; beside either what stays: workspaces, and the images of the pass."""
    kept = cublas_bytes(gpu) + moe_workspace_bytes(engine, model, precision) + vision_bytes(engine, model, precision)
    peak = forward_bytes(engine, model, precision, rules)
    if head:
        peak = max(peak, sampler_bytes(engine, model, precision, rules, gpu))
    return peak + (0 if rules.is_sorted else kept)


def forward_bytes(engine: EngineConfig, model: ModelSpec, precision: Precision, rules: MemoryRules) -> int:
    """One layer at the token budget: four hidden states (the attention's output, the residual stream before and after,
    its norm), three under the V2 runner, and the wider of MLP (gate, up and their product) and attention. vLLM 0.19
    logs 0.77 and 0.85 GiB for CodeLlama 7B and Granite 3.1 8B at 8,192 tokens (0.79 and 0.87 by this), and two more
    hidden states on a pipeline stage. Under data parallelism the experts see the tokens of all ranks, each with its
    full budget."""
    tp, dp = engine.tensor_parallel_size, ExpertGroup.of(engine, model).dp
    dense = model.intermediate_size if model.num_moe_layers < model.num_layers else 0
    mlp = (model.mlp_matrices) * max(dense, model.shared_expert_intermediate_size) / tp
    if dp > 1:
        mlp += 2 * dp * model.hidden_size
    attention = 2 * (model.q_size + model.kv_size) / tp
    hidden = (4 if rules.runner == 1 else 3) + (2 if engine.pipeline_parallel_size > 1 else 0)
    per_token = hidden * model.hidden_size + max(mlp, attention)
    return round(engine.max_num_batched_tokens * per_token * precision.activation_bytes)


def sampler_bytes(
    engine: EngineConfig, model: ModelSpec, precision: Precision, rules: MemoryRules, gpu: GpuSpec
) -> int:
    """The pass's hidden states, the rows that are sampled, and what the sampler makes of their logits. Llama-3.1-8B,
    1,024 rows, vLLM 0.19: 14 bytes x 131 million logits + 132 x 128,256 x 4 + hidden states = 1.85 GiB."""
    rows = min(engine.max_num_seqs, engine.max_num_batched_tokens)
    hidden = engine.max_num_batched_tokens * model.hidden_size * precision.activation_bytes
    logits = rows * model.vocab_size * rules.logit_bytes
    if rules.is_sorted:
        return round(hidden + logits)
    sampled = rows * model.hidden_size * precision.activation_bytes * (2 if rules.runner == 1 else 1)
    scratch = min(rows, gpu.num_sms) * model.vocab_size * 4 if rules.has_scratch else 0
    return round(hidden + sampled + logits + scratch)


def cublas_bytes(gpu: GpuSpec) -> int:
    """PyTorch's cuBLAS workspace."""
    return HOPPER_CUBLAS_BYTES if is_hopper_or_newer(gpu) else CUBLAS_BYTES


def moe_workspace_bytes(engine: EngineConfig, model: ModelSpec, precision: Precision) -> int:
    """The two buffers that fused experts keep (``TritonExperts.workspace_shapes``): each token's chosen experts, times
    the wider of hidden state and gate with up, and of hidden state and their product. Qwen3-30B-A3B at 8,192 tokens:
    2 x 8,192 x 8 x 2,048 x 2 bytes = 0.5 GiB, which vLLM 0.19 logs beyond the sampler's peak. The kernels of gpt-oss
    keep none: 2.87 GiB logged, which is the sampler's."""
    if not model.num_experts or model.architecture in WITHOUT_WORKSPACE:
        return 0
    group = ExpertGroup.of(engine, model)
    split = 1 if engine.enable_expert_parallel else engine.tensor_parallel_size * group.dp
    product = model.moe_intermediate_size / split
    gate_up = product * (2 if model.gated_mlp else 1)
    widths = max(gate_up, model.hidden_size) + max(product, model.hidden_size)
    rows = engine.max_num_batched_tokens * group.dp * model.experts_per_token
    return round(rows * widths * precision.activation_bytes)


def vision_bytes(engine: EngineConfig, model: ModelSpec, precision: Precision) -> int:
    """The images of the profiling pass, as many as fill the token budget, and what the tower makes of them. Gemma 3 4B
    at 8,192 tokens: 32 images of 3 x 896 x 896 and 8,192 hidden states = 0.18 GiB, which vLLM 0.19 logs beyond the
    sampler's peak."""
    vision = model.vision
    if vision is None or not vision.tokens_per_image:
        return 0
    images = max(1, engine.max_num_batched_tokens // vision.tokens_per_image)
    made = images * vision.tokens_per_image * model.hidden_size
    return round((images * vision.values_per_image + made) * precision.activation_bytes)


def non_torch_bytes(engine: EngineConfig, gpu: GpuSpec, rules: MemoryRules, dp: int = 1) -> int:
    """What lives outside PyTorch's pool: libraries and, with several GPUs, communicators. ``dp``: ranks that exchange
    tokens with each other."""
    alone = NON_TORCH_BYTES + (LEFT_BY_GRAPHS_BYTES if rules.graphs_leave_memory else 0)
    if engine.tensor_parallel_size * dp == 1 and (engine.pipeline_parallel_size == 1 or not rules.is_sorted):
        return alone
    if gpu.nvlink_bandwidth is None:
        return alone + PCIE_COMMUNICATOR_BYTES
    if rules.is_sorted or not is_hopper_or_newer(gpu):
        return alone + NVLINK_COMMUNICATOR_BYTES
    return alone + MULTICAST_COMMUNICATOR_BYTES


def captured_graphs(engine: EngineConfig) -> int:
    """CUDA graphs of mixed batches and of pure decodes: 51 and 35 with 256 seats. Drafted tokens are verified as part
    of a decode."""
    tokens = 1 + (0 if engine.speculative is None else engine.speculative.num_speculative_tokens)
    captured = engine.compilation_config.max_cudagraph_capture_size
    sizes = graph_sizes(engine.max_num_seqs, engine.max_num_batched_tokens, tokens, captured)
    return len(sizes) + sum(size <= engine.max_num_seqs * tokens for size in sizes)


def graph_bytes(engine: EngineConfig, rules: MemoryRules, gpu: GpuSpec, layers: int) -> int:
    """CUDA graphs, as far as the version takes them from the KV cache."""
    if not rules.counts_graphs:
        return 0
    newer = is_hopper_or_newer(gpu)
    return round(GRAPHS_BASE_BYTES[newer] + GRAPHS_BYTES_PER_LAYER[newer] * layers * captured_graphs(engine))
