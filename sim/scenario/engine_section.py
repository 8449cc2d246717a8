"""The part of the scenario format that describes one engine: vLLM's settings under vLLM's names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from sim.scenario.hardware import GpuConfig
from sim.scenario.types import (
    LARGEST,
    All2AllBackend,
    Bytes,
    Flag,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Replicas,
    Strict,
    Text,
    Whole,
    name_or_section,
)
from sim.scenario.vllm_version import DEFAULT_VERSION


def _rate_or_rates(value: Any) -> str:
    return "rates" if isinstance(value, list | tuple) else "rate"


class NamedSpec(Strict):
    """A name (``fcfs``), or a name with parameters (``{name: hybrid, latency_weight: 0.5}``)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Text
    """Its name, or ``module:Class`` of one's own: a file in the scenario's folder, else on Python's path."""

    @property
    def params(self) -> dict[str, Any]:
        """Every key beside ``name``."""
        return dict(self.model_extra or {})


Spec = Annotated[
    Annotated[Text, Tag("name")] | Annotated[NamedSpec, Tag("section")],
    Discriminator(name_or_section),
]


class SpeculativeConfig(Strict):
    """Speculative decoding: tokens are drafted cheaply, and each step verifies those of the step before."""

    method: Literal["draft_model", "ngram", "eagle", "eagle3", "mtp"]
    """``draft_model``: a small model drafts, on the same GPUs; ``ngram``: what followed the same tokens before;
    ``eagle``, ``eagle3``: a head of one layer on the model's hidden states; ``mtp``: the model's own layer for it."""
    num_speculative_tokens: PositiveInt = 3
    """Tokens drafted for each request and step."""
    acceptance: Annotated[
        Annotated[Probability, Tag("rate")]
        | Annotated[Annotated[list[Probability], Field(min_length=1)], Tag("rates")],
        Discriminator(_rate_or_rates),
    ] = 0.7
    """Probability that a draft is accepted where those before it were: one for all positions, or a list of one each."""
    draft_model: Text | None = None
    """``method: draft_model``: a model preset, or the path of a ``config.json``, with the vocabulary of ``model``."""

    @property
    def has_head(self) -> bool:
        """Whether a head on the model's hidden states drafts (``SpeculativeConfig.use_eagle``)."""
        return self.method in ("eagle", "eagle3", "mtp")

    @property
    def rates(self) -> list[float]:
        """The probability of each position."""
        rates = self.acceptance
        return list(rates) if isinstance(rates, list) else [rates] * self.num_speculative_tokens


class PassConfig(Strict):
    """Fusions of kernels, as vLLM's ``compilation_config.pass_config`` names them; those that change what a step takes
    here."""

    fuse_allreduce_rms: Flag | None = None
    """All-reduce and the norm after it in one kernel, up to a size; null = as the version has it on that GPU (from
    0.17 on under tensor parallelism, on Hopper and B200)."""


class CompilationConfig(Strict):
    """The part of vLLM's ``compilation_config`` that changes what a step takes here."""

    max_cudagraph_capture_size: PositiveInt | None = None
    """Tokens of the largest batch that is captured; null = twice ``max_num_seqs``, at most 512."""
    pass_config: PassConfig = PassConfig()
    """Fusions."""


class EngineSection(Strict):
    """One replica. vLLM's names and defaults, so that settings can be copied over."""

    model: Text
    """A model preset (``llama-3.1-8b``), its repository's name (``meta-llama/Llama-3.1-8B-Instruct``: case,
    ``-Instruct``, ``-it``, ``-chat``, ``-base`` and ``-hf`` do not count), or the path of a Hugging Face
    ``config.json``."""
    gpu: Annotated[
        Annotated[Text, Tag("name")] | Annotated[GpuConfig, Tag("section")],
        Discriminator(name_or_section),
    ]
    """A GPU preset (``a100-80gb-sxm``), or a section with the figures of another."""
    vllm_version: Text = DEFAULT_VERSION
    """The engine's version, 0.9.0 to 0.32.0: rules of defaults, memory, host time and sampling differ.
    Scheduling decisions are those of 0.32.0 whatever it says."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that each layer is split over."""
    pipeline_parallel_size: PositiveInt = 1
    """Groups of GPUs that the layers are split over."""
    data_parallel_size: Replicas = 1
    """Engine cores (ranks) of one deployment, each with its own scheduler, KV cache and GPUs for attention; experts are
    spread over the GPUs of all ranks, which then step together. In the results each rank is a replica."""
    enable_expert_parallel: Flag = False
    """Whole experts on each GPU of the deployment, in place of a share of every expert."""
    all2all_backend: All2AllBackend = "allgather_reducescatter"
    """How ranks exchange tokens for experts; only ``allgather_reducescatter`` and ``deepep_high_throughput`` have a
    cost here, the others are refused with the reason."""
    moe_backend: Literal["auto", "triton", "flashinfer_cutlass", "marlin", "flashinfer_trtllm_afp8"] = "auto"
    """Kernel of experts in FP8 with a scale per block (``triton``, ``flashinfer_cutlass``) or in MXFP4 (``triton``,
    ``marlin``; ``flashinfer_trtllm_afp8`` = activations in MXFP8); ``auto`` = what the version takes on that GPU, the
    others where a profile has curves of it."""
    dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8", "int8", "int4"] = "auto"
    """Weights (AWQ and GPTQ: ``int4``); ``auto`` = what a config.json says by ``torch_dtype`` and
    ``quantization_config``, float32 cast to bfloat16 as by vLLM; presets are bfloat16."""
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8", "int8"] = "auto"
    """KV cache; ``auto`` = the activations' type."""
    block_size: PositiveInt = 16
    """Tokens per KV block; a multiple of 16 on NVIDIA GPUs."""
    gpu_memory_utilization: Fraction | None = None
    """Share of the GPU's memory for weights, activations and KV cache together; null = 0.92, 0.9 before 0.20."""
    kv_cache_memory_bytes: Bytes | None = None
    """KV cache per GPU in bytes, in place of what ``gpu_memory_utilization`` leaves; null = that."""
    num_gpu_blocks_override: Annotated[int, Field(strict=True, ge=2, le=LARGEST), Whole] | None = None
    """KV blocks including vLLM's null block, so one less is usable; null = what the memory leaves."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus output; null = the model's."""
    max_num_seqs: PositiveInt | None = None
    """Most requests running at once; null = as vLLM's API server picks it: 1,024 on GPUs of 70 GiB and more that are no
    A100, else 256; never more than ``max_num_batched_tokens``."""
    max_num_batched_tokens: PositiveInt | None = None
    """Token budget of a step; null = as vLLM's API server picks it: 16,384 on GPUs of 160 GiB and more (since 0.28),
    8,192 on those of 70 GiB and more that are no A100, else 2,048; ``max_model_len`` at least without chunks."""
    enable_chunked_prefill: Flag = True
    """Whether a prompt may be computed over several steps. Off, ``max_num_batched_tokens`` is at least
    ``max_model_len``."""
    max_prefill_tokens_per_step: PositiveInt | None = None
    """Cap on the prefill tokens of a step, needs chunked prefill; null = none. vLLM has no such setting."""
    long_prefill_token_threshold: NonNegativeInt = 0
    """Most tokens of one request in one step while others wait or run; 0 = off."""
    long_prefill_token_threshold_adaptive: Flag = False
    """Raise that threshold to a fair share of the token budget when few requests are around."""
    scheduler_reserve_full_isl: Flag = True
    """Admit a request only if all its tokens known so far fit the free blocks, not only its first chunk."""
    watermark: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of the KV blocks kept free when admitting."""
    enable_prefix_caching: Flag = True
    """Reuse the KV blocks of equal prompt beginnings."""
    cache_isolation: Literal["none", "tenant"] = "none"
    """``tenant``: requests of different tenants never reuse each other's blocks, as with a ``cache_salt`` per tenant
    in vLLM."""
    async_scheduling: Flag = True
    """Form a step while the one before it runs: vLLM's default on GPUs."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """What happens to a request's KV when space runs out; ``swap`` is the older engine's way, not in vLLM V1."""
    swap_space_gib: NonNegativeFloat = 4.0
    """``preemption: swap``: host memory for swapped KV, per GPU, in GiB."""
    kv: Literal["paged", "contiguous"] = "paged"
    """``contiguous`` reserves ``max_model_len`` per request: a baseline, not in vLLM."""
    batching: Literal["continuous", "static"] = "continuous"
    """``static`` runs a batch until its last request ends: a baseline, not in vLLM."""
    static_batch_wait_s: NonNegativeFloat = 0.0
    """Static batching: how long the first request of a batch waits for ``max_num_seqs`` to gather."""
    stepping: Literal["fast", "reference"] = "fast"
    """``fast`` jumps over steps in which nothing is decided, to the same results; ``reference`` takes every step."""
    enforce_eager: Flag = False
    """No CUDA graphs: more host time per step."""
    compilation_config: CompilationConfig = CompilationConfig()
    """CUDA graphs and fused kernels."""
    speculative: SpeculativeConfig | None = None
    """Speculative decoding; null = none."""
    enable_lora: Flag = False
    """Serve LoRA adapters beside the model: requests name theirs by ``workload.lora``."""
    max_loras: PositiveInt = 1
    """Different adapters in one step, and slots for them on the GPU."""
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    """What each slot, and each adapter's kernels, are sized for."""
    max_cpu_loras: PositiveInt | None = None
    """Adapters kept in host memory; one that is not there is read from its file again. null = ``max_loras``."""
    enable_images: Flag = False
    """Serve images in prompts (``workload.images``): a model with a vision tower, its encoder's budget and cache."""
    disable_chunked_mm_input: Flag = False
    """Compute the places of an image in one step or not at all."""
    kv_offloading_size: PositiveFloat | None = None
    """Offload the KV of prompts to host memory, as vLLM's native connector does, and load it from there: GiB over all
    GPUs of a replica; null = none."""
    kv_offloading_backend: Literal["native", "lmcache"] = "native"
    """Where offloaded KV is kept. ``lmcache`` is a server of its own, and is not modelled."""
    policy: Spec = "fcfs"
    """Scheduling policy; ``fcfs`` and ``priority`` are vLLM's two stock modes. ``simrun policies`` lists them."""
    predictor: Spec = "exact"
    """Where policies that need it get the expected output length from."""

    @property
    def gpu_name(self) -> str:
        """The GPU's name: a preset's, or that of one's own."""
        return self.gpu if isinstance(self.gpu, str) else self.gpu.name


class EngineConfig(EngineSection):
    """One replica, with what the section leaves to its model and GPU filled in (``sim.latency.engine_defaults``)."""

    gpu_memory_utilization: Fraction
    max_model_len: PositiveInt
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
