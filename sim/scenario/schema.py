"""The scenario format, strict: a key that nothing reads is refused. Engine settings carry vLLM's names.

The docstrings here are the format's documentation: the JSON Schema and ``docs/scenario.md`` are made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from sim.scenario.distributions import (
    Arrival,
    BurstArrival,
    ClosedLoopArrival,
    ConstantArrival,
    DiurnalArrival,
    ExponentialLength,
    FixedLength,
    GammaArrival,
    Length,
    LognormalLength,
    NormalLength,
    PoissonArrival,
    QuantilesLength,
    Stage,
    StagesArrival,
    UniformLength,
    ValuesLength,
    WeibullArrival,
    ZipfLength,
)
from sim.scenario.engine_section import (
    CompilationConfig,
    EngineConfig,
    EngineSection,
    NamedSpec,
    PassConfig,
    Spec,
    SpeculativeConfig,
)
from sim.scenario.hardware import GpuConfig
from sim.scenario.noise_config import NoiseConfig
from sim.scenario.types import (
    Flag,
    Fraction,
    Int,
    NonNegativeFloat,
    NonNegativeInt,
    NumOutputs,
    PositiveFloat,
    PositiveInt,
    Probability,
    Ratio,
    Replicas,
    Seed,
    Strict,
    Text,
    name_or_section,
)

__all__ = [
    "Arrival",
    "BurstArrival",
    "ClassConfig",
    "ClosedLoopArrival",
    "ClusterConfig",
    "CompilationConfig",
    "ConstantArrival",
    "DiurnalArrival",
    "EngineConfig",
    "EngineSection",
    "ExponentialLength",
    "FixedLength",
    "Fraction",
    "GammaArrival",
    "GpuConfig",
    "ImagesConfig",
    "LatencyConfig",
    "Length",
    "LognormalLength",
    "LoraConfig",
    "MeasureConfig",
    "NamedSpec",
    "NoiseConfig",
    "NonNegativeFloat",
    "NonNegativeInt",
    "NormalLength",
    "OutputsConfig",
    "PassConfig",
    "PoissonArrival",
    "PositiveFloat",
    "PositiveInt",
    "PrefixConfig",
    "QuantilesLength",
    "ResolvedScenario",
    "Scenario",
    "SessionsConfig",
    "SloConfig",
    "Spec",
    "SpeculativeConfig",
    "Stage",
    "StagesArrival",
    "Strict",
    "TraceConfig",
    "TrafficFields",
    "UniformLength",
    "ValuesLength",
    "WeibullArrival",
    "WorkloadConfig",
    "ZipfLength",
]


def _count_or_length(value: Any) -> str:
    return "length" if isinstance(value, dict | BaseModel) else "count"


# --- workload --------------------------------------------------------------------------------


def _name_or_many(value: Any) -> str:
    return "name" if isinstance(value, str) else "section"


class PrefixConfig(Strict):
    """Each request opens with one of ``groups`` shared prompts of ``tokens`` tokens (counted in its input)."""

    groups: PositiveInt
    """Different shared prompts, drawn uniformly."""
    tokens: PositiveInt
    """Length of a shared prompt; a shorter request shares all of its input."""


class SessionsConfig(Strict):
    """Multi-turn: each arrival opens a conversation of ``turns`` requests; a turn's prompt is the whole
    conversation so far (earlier prompts and outputs) plus its own ``input_tokens``."""

    turns: Annotated[
        Annotated[PositiveInt, Tag("count")] | Annotated[Length, Tag("length")], Discriminator(_count_or_length)
    ]
    """Requests per conversation: a number, or a distribution as for ``input_tokens``."""
    think_time_s: NonNegativeFloat = 0.0
    """Seconds between the end of a turn and the next one."""


class LoraConfig(Strict):
    """Several LoRA adapters, of which each request (each conversation) has one drawn by chance."""

    adapters: PositiveInt
    """How many there are."""
    skew: NonNegativeFloat = 0.0
    """How uneven their use is: the n-th most used has a weight of 1 / n ** skew; 0 = all alike."""


class ImagesConfig(Strict):
    """Images of each prompt (each turn of a conversation), behind its text. Their places come on top of
    ``input_tokens``, as in ``vllm bench serve --dataset-name random-mm``."""

    per_request: Annotated[
        Annotated[NonNegativeInt, Tag("count")] | Annotated[Length, Tag("length")], Discriminator(_count_or_length)
    ] = 1
    """How many: a number, or a distribution as for ``input_tokens``. A trace that says how many has its own."""
    tokens: PositiveInt | None = None
    """Places in the prompt that an image takes, each an embedding; null = as the model's config says."""
    shared: PositiveInt | None = None
    """So many different images there are, of which each is one by chance; null = no two are the same."""


class TraceConfig(Strict):
    """A recorded workload, plain or gzip. What is read of each format: ``docs/traces.md``."""

    path: Text
    """The file; looked for beside the scenario file, then in the current directory."""
    format: Literal["azure", "burstgpt", "mooncake", "servegen", "generic", "vllm_bench"]
    """Azure LLM inference CSV, BurstGPT CSV, Mooncake JSONL, ServeGen's requests, this project's CSV or JSONL,
    ``vllm bench serve`` result JSON."""
    columns: dict[str, Text] | None = None
    """Names of the file's own columns or keys, as ``{input_tokens: prompt_len}``: on the left ``arrival_s``,
    ``input_tokens``, ``output_tokens`` or another column that the format may have, on the right the file's name."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """What arrivals (and Mooncake's ``delay``) are counted in; null = ms for ``mooncake``, else s."""
    block_size: PositiveInt | None = None
    """``mooncake``: tokens that each of the ``hash_ids`` stands for; null = 512."""
    turns: Literal["whole", "added"] | None = None
    """``mooncake`` rows of one ``session_id``: whether ``input_length`` is the ``whole`` prompt (Mooncake, Dynamo) or
    what a turn has ``added`` to the conversation (AIPerf, Dynamo's mooncake-delta); null = whole."""
    rate_scale: PositiveFloat = 1.0
    """2 replays the trace twice as fast."""
    limit: PositiveInt | None = None
    """Only the first so many rows; null = all."""


class SloConfig(Strict):
    """Limits on percentiles of the run, in ms, and on the shares of requests that were not served. Goodput counts
    requests that completed and whose own values stay under the limits in ms."""

    ttft_mean_ms: PositiveFloat | None = None
    ttft_p50_ms: PositiveFloat | None = None
    ttft_p90_ms: PositiveFloat | None = None
    ttft_p95_ms: PositiveFloat | None = None
    ttft_p99_ms: PositiveFloat | None = None
    tpot_mean_ms: PositiveFloat | None = None
    tpot_p50_ms: PositiveFloat | None = None
    tpot_p90_ms: PositiveFloat | None = None
    tpot_p95_ms: PositiveFloat | None = None
    tpot_p99_ms: PositiveFloat | None = None
    itl_mean_ms: PositiveFloat | None = None
    itl_p50_ms: PositiveFloat | None = None
    itl_p90_ms: PositiveFloat | None = None
    itl_p95_ms: PositiveFloat | None = None
    itl_p99_ms: PositiveFloat | None = None
    e2el_mean_ms: PositiveFloat | None = None
    e2el_p50_ms: PositiveFloat | None = None
    e2el_p90_ms: PositiveFloat | None = None
    e2el_p95_ms: PositiveFloat | None = None
    e2el_p99_ms: PositiveFloat | None = None
    max_rejected: Probability | None = None
    """Share of the submitted requests that may be rejected; null = 0."""
    max_failed: Probability | None = None
    """Share of the submitted requests that may fail, time out or be cancelled; null = 0."""


class TrafficFields(Strict):
    """What a workload and each of its ``classes`` have in common; what a class leaves out is the workload's."""

    requests: PositiveInt | None = None
    """How many requests, turns of conversations included; null = until ``duration_s``, or as many as the trace or
    preset has. With both, whichever comes first."""
    duration_s: PositiveFloat | None = None
    """Requests (and conversations) arrive only before this many seconds; null = no bound."""
    arrival: Arrival | None = None
    """When requests arrive."""
    input_tokens: Length | None = None
    """Prompt length."""
    output_tokens: Length | None = None
    """True output length: what the model would generate before it stops."""
    max_tokens: Length | None = None
    """What clients ask for at most; null = exactly the output (a benchmark with ``ignore_eos``)."""
    n: NumOutputs = 1
    """Outputs of each prompt, at most 16384 as in vLLM. Each is a request of its own in every figure, with the whole
    prompt as its input; they share its full blocks and go to one replica, and ``parent`` in requests.parquet numbers
    the prompts. ``requests`` counts prompts. With ``max_tokens`` and ``output_tokens``, each output has its own length.
    """
    trace: TraceConfig | None = None
    """A recorded workload instead of ``arrival``, ``input_tokens`` and ``output_tokens``."""
    preset: Text | None = None
    """A built-in workload by name: lengths and arrivals, either of which can still be given here."""
    prefix: PrefixConfig | None = None
    """Prompts shared between requests."""
    sessions: SessionsConfig | None = None
    """Multi-turn conversations."""
    tenant: Text = "default"
    """The sender of the requests: the line they are reported under and the one fair shares are counted by."""
    tier: Text | None = None
    """Service tier, for ``tiered``; null = the tenant's name."""
    priority: Int = 0
    """The client's own priority, as in vLLM: smaller is more urgent."""
    deadline_s: PositiveFloat | None = None
    """Time allowed from arrival to end, for ``deadline``, and for ``fair`` with ``shares``."""
    patience_s: PositiveFloat | None = None
    """How long a client waits from its request's arrival for the last token; then it leaves: the request is cancelled
    and its blocks are free. It sends no further turns of that conversation; a client of a closed loop goes on with its
    next request. null = it waits for ever."""
    lora: (
        Annotated[Annotated[Text, Tag("name")] | Annotated[LoraConfig, Tag("section")], Discriminator(_name_or_many)]
        | None
    ) = None
    """The LoRA adapter of these requests, by name, or several of them: ``{adapters: 20, skew: 1}``. Needs
    ``engine.enable_lora``. null = the model itself."""
    images: ImagesConfig | None = None
    """Images in the prompts. Needs ``engine.enable_images``. null = text alone."""
    slo: SloConfig | None = None
    """Limits of these requests; null = the scenario's ``slo``."""


class ClassConfig(TrafficFields):
    """One class of a mixed workload: its own ``arrival``, or a ``share`` of the workload's."""

    name: Text
    """Its name in the results; each name once."""
    share: PositiveFloat | None = None
    """Weight of this class among those that share the workload's ``arrival``; only the proportions count."""


class WorkloadConfig(TrafficFields):
    """The traffic: one class, or several."""

    classes: list[ClassConfig] | None = Field(default=None, min_length=1)
    """Several kinds of request in one workload."""


# --- cluster, engine, latency ----------------------------------------------------------------


class ClusterConfig(Strict):
    """Replicas of one engine behind a router."""

    replicas: Replicas = 1
    """Deployments of the engine, all alike; each has ``engine.data_parallel_size`` ranks."""
    router: Spec = "round_robin"
    """Which replica (which rank, under data parallelism) an arriving request goes to."""


class LatencyConfig(Strict):
    """Where step times come from."""

    kind: Literal["roofline", "constant", "profile"] | None = None
    """``profile``: measured on a GPU; ``roofline``: an estimate from model and GPU figures; ``constant``; null = a
    profile where one is named here or comes with the GPU, else roofline."""
    step_s: PositiveFloat | None = None
    """``constant``: every step takes this long."""
    profile: Text | None = None
    """``profile``: a built-in profile's name or a profile file, looked for in the scenario's folder, then in the
    current one; null = the one that comes with the GPU."""
    fit: Text | None = None
    """A file that ``simrun fit`` wrote: what it fitted takes the place of the defaults and of the keys here. Looked for
    as ``profile`` is; null = none."""
    host_overhead_ms: NonNegativeFloat | None = None
    """``roofline`` and ``profile``: host time per step; null = the model's stated default."""
    link_bandwidth_gb_s: PositiveFloat | None = None
    """GB/s per direction between the GPUs of a replica, where they are linked otherwise than the profile's or the GPU
    preset's (PCIe without peer access, NVLink that fell back); replaces measured collectives. null = as they are."""
    link_latency_us: NonNegativeFloat | None = None
    """With ``link_bandwidth_gb_s``: what a collective takes beside its bytes; null = 20."""
    expert_load_imbalance: Ratio | None = None
    """Whole experts per GPU: tokens on the busiest GPU over the mean, 1 (even) to the number of GPUs that share the
    experts. null = the routing that a profile's experts were measured with, even for a roofline."""
    time_scale: PositiveFloat = 1.0
    """Every accelerator time is multiplied by it: for what-ifs, and for what ``simrun validate`` found to be off. So is
    waiting for the launches of kernels; host and client times stay."""
    sampling: Literal["plain", "top_p"] | None = None
    """``profile``: how tokens are drawn. ``plain``: the most probable one, or from all of them; ``top_p``: from the
    most probable ones (``top_p``, ``top_k``), for which vLLM 0.11.1 to 0.16 sorts all logits. null = as requests
    that state nothing are drawn, by the model's ``generation_config.json``: ``top_p`` for Llama, Qwen and MiniMax."""
    client_overhead_ms: NonNegativeFloat | None = None
    """Between a client and the engine, there and back: HTTP, processes. Part of TTFT and E2E; null = 4 for ``profile``,
    0 otherwise."""
    client_token_us: NonNegativeFloat | None = None
    """Beside it for each token of the prompt: tokenising; null = 2 for ``profile`` where ``client_overhead_ms`` is not
    given, 0 otherwise."""
    noise: (
        Annotated[
            Annotated[Literal["none"], Tag("name")] | Annotated[NoiseConfig, Tag("section")],
            Discriminator(name_or_section),
        ]
        | None
    ) = None
    """Chance in client times and step times, ``none``, or null = the defaults of the section."""


class MeasureConfig(Strict):
    """Which part of a run the steady figures under ``load`` of the summary are taken from. The figures at the top of
    the summary are always those of the whole run."""

    warmup_s: NonNegativeFloat | None = None
    """Seconds from the first arrival on that are left out; null = three mean times between a request's first step and
    its end, at most a quarter of the time of arrivals."""
    until: Literal["last_arrival", "end"] = "last_arrival"
    """``last_arrival``: without the drain after it, in which load falls; ``end``: with it."""


class OutputsConfig(Strict):
    """Which files ``--out`` gets, beside ``summary.json`` and ``scenario.resolved.yaml``."""

    report: Flag = True
    """``report.html``."""
    trace: Flag = True
    """``trace.json.gz`` (Perfetto)."""
    requests: Flag = True
    """``requests.parquet``."""
    steps: Flag = True
    """``steps.parquet``."""


class Scenario(Strict):
    """One scenario file."""

    name: Text
    """What the results are called."""
    seed: Seed = 0
    """Same scenario and seed, same results."""
    workload: WorkloadConfig
    """The traffic."""
    cluster: ClusterConfig = ClusterConfig()
    """How many engines, and the router that chooses between them."""
    engine: EngineSection
    """One replica."""
    latency: LatencyConfig = LatencyConfig()
    """Where step times come from."""
    slo: SloConfig | None = None
    """Limits that goodput and ``--check-slo`` go by."""
    measure: MeasureConfig = MeasureConfig()
    """Which part of the run counts as steady."""
    outputs: OutputsConfig = OutputsConfig()
    """Which files are written."""


class ResolvedScenario(Scenario):
    """A scenario whose engine is filled in."""

    engine: EngineConfig
