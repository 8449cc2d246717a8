"""Which operators a profile can hold, and what names a measured curve of each: the vocabulary of the profile file.

A curve is one series of times along one axis, everything else about the operator fixed by its key. All times are
nanoseconds of one launch on one GPU. ``docs/profile.md`` is this table in words.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.latency.profile.blocks import BLOCKS, MLA


@dataclass(frozen=True, slots=True)
class OperatorLayout:
    """Names of a curve's fixed attributes, the axis it runs along, and what is timed."""

    key: tuple[str, ...]
    axis: str
    meaning: str


_EXPERTS = ("dtype", "hidden_size", "intermediate_size", "num_experts", "experts_per_token", "tp", "ep")
_ATTENTION = ("dtype", "kv_dtype", "num_heads", "num_kv_heads", "head_size", "window")

OPERATORS: dict[str, OperatorLayout] = {
    "gemm": OperatorLayout(
        ("dtype", "n", "k"), "m", "one linear layer: (m, k) activations times (k, n) weights, scales included"
    ),
    "decode_attention": OperatorLayout(
        (*_ATTENTION, "batch"), "context_tokens", "one layer, batch requests of one new token and this much KV each"
    ),
    "prefill_attention": OperatorLayout(
        (*_ATTENTION, "batch", "prior_tokens"),
        "chunk_tokens",
        "one layer, batch causal chunks, each after prior_tokens of KV",
    ),
    "mixed_attention": OperatorLayout(
        (*_ATTENTION, "chunk_tokens", "prior_tokens", "num_decodes"),
        "decode_context_tokens",
        "one layer, one chunk together with num_decodes decodes of this much KV each",
    ),
    "moe": OperatorLayout(
        _EXPERTS,
        "tokens",
        "routed experts of one layer on one of tp * ep GPUs, without the router; tokens of the whole step",
    ),
    "moe_triton": OperatorLayout(_EXPERTS, "tokens", "as moe, by Triton's kernel where moe's is another"),
    "moe_cutlass": OperatorLayout(_EXPERTS, "tokens", "as moe, by FlashInfer's CUTLASS kernel where moe's is another"),
    "all_reduce": OperatorLayout(("implementation", "num_gpus"), "bytes", "bytes held by each GPU"),
    "all_gather": OperatorLayout(("implementation", "num_gpus"), "bytes", "bytes of the gathered result"),
    "reduce_scatter": OperatorLayout(("implementation", "num_gpus"), "bytes", "bytes of each GPU's input"),
    "all_to_all": OperatorLayout(("implementation", "num_gpus"), "bytes", "bytes that each GPU holds before"),
    "block_decode": OperatorLayout(
        ("block", "dtype", "kv_dtype", "num_heads", "batch"),
        "context_tokens",
        "one layer's attention with its projections (profile.blocks), batch requests of one new token each",
    ),
    "block_prefill": OperatorLayout(
        ("block", "dtype", "kv_dtype", "num_heads", "batch"),
        "chunk_tokens",
        "the same, batch prompts without prior KV",
    ),
    "state_decode": OperatorLayout(
        ("state", "num_key_heads", "num_heads"),
        "requests",
        "convolution and recurrence of one layer with a state, heads of 128 by 128, one new token each",
    ),
    "state_prefill": OperatorLayout(
        ("state", "num_key_heads", "num_heads", "batch"), "chunk_tokens", "the same, batch prompts"
    ),
    "expert_exchange": OperatorLayout(
        ("implementation", "direction", "hidden_size", "experts_per_token", "num_gpus"),
        "tokens",
        "tokens of each GPU on their way to the GPUs of their experts (dispatch) or back (combine)",
    ),
    "encoder_attention": OperatorLayout(
        ("num_heads", "head_size", "batch"), "tokens", "one layer of a vision tower, every token sees every other one"
    ),
    "elementwise": OperatorLayout(
        ("name", "width"),
        "tokens",
        "rms_norm (with residual), silu_and_mul (width of its output), rotary, reshape_and_cache (elements per token)",
    ),
    "sampling": OperatorLayout(("vocab_size",), "rows", "sampler over float32 logits"),
    "host_copy": OperatorLayout(("direction",), "bytes", "to_host or to_gpu, pinned memory"),
    "decode_attention_contiguous": OperatorLayout(
        (*_ATTENTION, "batch"), "context_tokens", "as decode_attention over contiguous KV: the price of paging"
    ),
}
"""``window`` 0 = full attention. ``implementation``: ``custom`` (what vLLM takes at each size, in
graphs), ``custom_eager``, ``trtllm`` (fused with the norm that follows), ``nccl``."""

FOUR_BIT = ("nvfp4", "mxfp4", "mxfp4_marlin", "mxfp4_mxfp8")
"""4-bit floating point: NVFP4 activations and weights, MXFP4 weights under 16-bit (by Marlin's kernel, or Triton's and
TensorRT-LLM's) or under MXFP8 activations."""
DTYPES = ("float32", "float16", "bfloat16", "fp8", "fp8_block", "int8", "int4", *FOUR_BIT)
"""Names of number formats in keys. ``fp8`` per tensor or row, ``fp8_block`` 128 x 128 blocks, ``int4`` weight only."""

TEXT_ATTRIBUTES = frozenset({"dtype", "kv_dtype", "implementation", "name", "direction", "block", "state"})
"""Attributes of keys that are text; all others are whole numbers."""

STATES = ("gdn", "kda")
"""Layers with a state whose kernels were measured: gated delta nets, Kimi delta attention."""
KNOWN_TEXTS: dict[str, tuple[str, ...]] = {"block": tuple(BLOCKS), "state": STATES}
"""Attributes whose texts stand for sizes that the program has to know."""

FAMILIES = ("latent", "sparse", "state", "four_bit", "exchange", "vision")
"""Files beside a built-in profile that hold what most models do not need."""
_FAMILY_OF = {
    "state_decode": "state",
    "state_prefill": "state",
    "expert_exchange": "exchange",
    "encoder_attention": "vision",
}


def family_of(operator: str, key: tuple[str | int, ...]) -> str:
    """Which of ``FAMILIES`` of a built-in profile holds this curve; empty = the profile itself."""
    if operator.startswith("block_"):
        return "latent" if key[0] == MLA else "sparse"
    if operator in ("gemm", "moe"):
        return "four_bit" if key[0] in FOUR_BIT else ""
    return _FAMILY_OF.get(operator, "")
