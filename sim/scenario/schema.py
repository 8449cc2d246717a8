"""The scenario format, strict: a key that nothing reads is refused. Engine settings carry vLLM's names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Strict(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# --- lengths ---------------------------------------------------------------------------------


class FixedLength(Strict):
    """Every request the same."""

    dist: Literal["fixed"]
    value: PositiveInt


class UniformLength(Strict):
    """Whole numbers from low to high, both included."""

    dist: Literal["uniform"]
    low: PositiveInt
    high: PositiveInt


class NormalLength(Strict):
    """Normal, rounded, at least 1."""

    dist: Literal["normal"]
    mean: PositiveFloat
    cv: NonNegativeFloat
    max: PositiveInt | None = None


class LognormalLength(Strict):
    """Lognormal with this mean and coefficient of variation, rounded, at least 1."""

    dist: Literal["lognormal"]
    mean: PositiveFloat
    cv: NonNegativeFloat
    max: PositiveInt | None = None


class ExponentialLength(Strict):
    """Exponential with this mean, rounded, at least 1."""

    dist: Literal["exponential"]
    mean: PositiveFloat
    max: PositiveInt | None = None


class ZipfLength(Strict):
    """Zipf over low..high: P(low + k) proportional to 1 / (k + 1)**alpha."""

    dist: Literal["zipf"]
    alpha: PositiveFloat
    low: PositiveInt = 1
    high: PositiveInt


class QuantilesLength(Strict):
    """Linear interpolation between (probability, tokens) points; the first at 0, the last at 1."""

    dist: Literal["quantiles"]
    points: list[tuple[float, NonNegativeFloat]] = Field(min_length=2)


class ValuesLength(Strict):
    """These values, in order, over and over (for hand-made examples)."""

    dist: Literal["values"]
    values: list[PositiveInt] = Field(min_length=1)


Length = Annotated[
    FixedLength
    | UniformLength
    | NormalLength
    | LognormalLength
    | ExponentialLength
    | ZipfLength
    | QuantilesLength
    | ValuesLength,
    Field(discriminator="dist"),
]

# --- arrivals --------------------------------------------------------------------------------


class PoissonArrival(Strict):
    """Exponential gaps."""

    process: Literal["poisson"]
    rate: PositiveFloat


class ConstantArrival(Strict):
    """Equal gaps; the first request at 0."""

    process: Literal["constant"]
    rate: PositiveFloat


class GammaArrival(Strict):
    """Gamma gaps with this coefficient of variation (burstiness of ``vllm bench serve`` = 1 / cv**2)."""

    process: Literal["gamma"]
    rate: PositiveFloat
    cv: PositiveFloat


class WeibullArrival(Strict):
    """Weibull gaps with this coefficient of variation."""

    process: Literal["weibull"]
    rate: PositiveFloat
    cv: PositiveFloat


class Stage(Strict):
    """Poisson at ``rate`` for ``duration_s``."""

    rate: NonNegativeFloat
    duration_s: PositiveFloat


class StagesArrival(Strict):
    """One Poisson stage after the other; ends the workload by itself."""

    process: Literal["stages"]
    stages: list[Stage] = Field(min_length=1)


class DiurnalArrival(Strict):
    """Poisson whose rate swings as a cosine: mean ``rate``, peak ``rate * (1 + amplitude)`` at ``peak_s``."""

    process: Literal["diurnal"]
    rate: PositiveFloat
    amplitude: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    period_s: PositiveFloat = 86400.0
    peak_s: NonNegativeFloat = 0.0


class ClosedLoopArrival(Strict):
    """``concurrency`` clients, each sending its next request ``think_time_s`` after its last one ended."""

    process: Literal["closed_loop"]
    concurrency: PositiveInt
    think_time_s: NonNegativeFloat = 0.0


class BurstArrival(Strict):
    """Everything at one instant: the backlog."""

    process: Literal["burst"]
    at_s: NonNegativeFloat = 0.0


Arrival = Annotated[
    PoissonArrival
    | ConstantArrival
    | GammaArrival
    | WeibullArrival
    | StagesArrival
    | DiurnalArrival
    | ClosedLoopArrival
    | BurstArrival,
    Field(discriminator="process"),
]

# --- workload --------------------------------------------------------------------------------


class PrefixConfig(Strict):
    """Each request opens with one of ``groups`` shared prompts of ``tokens`` tokens (counted in its input)."""

    groups: PositiveInt
    tokens: PositiveInt


class SessionsConfig(Strict):
    """Multi-turn: each arrival opens a conversation of ``turns`` requests; a turn's prompt is the whole
    conversation so far (earlier prompts and outputs) plus its own ``input_tokens``."""

    turns: PositiveInt | Length
    think_time_s: NonNegativeFloat = 0.0


class TraceConfig(Strict):
    """A recorded workload. ``rate_scale: 2`` replays it twice as fast."""

    path: str
    format: Literal["azure", "mooncake", "generic", "vllm_bench"]
    rate_scale: PositiveFloat = 1.0
    limit: PositiveInt | None = None


class SloConfig(Strict):
    """Limits on percentiles of the run, in ms. Goodput counts requests whose own values stay under them."""

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


class TrafficFields(Strict):
    """What a workload of one class and each entry of ``classes`` have in common."""

    requests: PositiveInt | None = None
    duration_s: PositiveFloat | None = None
    arrival: Arrival | None = None
    input_tokens: Length | None = None
    output_tokens: Length | None = None
    max_tokens: Length | None = None
    """What clients ask for at most; null = exactly the output (a benchmark with ``ignore_eos``)."""
    trace: TraceConfig | None = None
    preset: str | None = None
    prefix: PrefixConfig | None = None
    sessions: SessionsConfig | None = None
    tenant: str = "default"
    tier: str | None = None
    """Service tier; null = the tenant's name."""
    priority: int = 0
    deadline_s: PositiveFloat | None = None
    """Time allowed from arrival to end, for ``deadline`` and ``tiered``."""
    slo: SloConfig | None = None


class ClassConfig(TrafficFields):
    """One class of a mixed workload: its own ``arrival``, or a ``share`` of the workload's."""

    name: str
    share: PositiveFloat | None = None


class WorkloadConfig(TrafficFields):
    """The traffic: one class, or several."""

    classes: list[ClassConfig] | None = Field(default=None, min_length=1)


# --- cluster, engine, latency ----------------------------------------------------------------


class NamedSpec(Strict):
    """A policy, predictor or router by name with its parameters: ``fcfs`` or ``{name: hybrid, latency_weight: 0.5}``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def params(self) -> dict[str, Any]:
        """Every key beside ``name``."""
        return dict(self.model_extra or {})


class ClusterConfig(Strict):
    """Replicas of one engine behind a router."""

    replicas: PositiveInt = 1
    router: str | NamedSpec = "round_robin"


class EngineConfig(Strict):
    """One replica. vLLM's names and defaults, so that settings can be copied over."""

    model: str
    gpu: str
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8", "int8", "int4"] = "bfloat16"
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8", "int8"] = "auto"
    block_size: PositiveInt = 16
    gpu_memory_utilization: Fraction = 0.9
    num_gpu_blocks_override: Annotated[int, Field(ge=2)] | None = None
    max_model_len: PositiveInt = 4096
    max_num_seqs: PositiveInt = 256
    max_num_batched_tokens: PositiveInt = 2048
    enable_chunked_prefill: bool = True
    max_prefill_tokens_per_step: PositiveInt | None = None
    long_prefill_token_threshold: NonNegativeInt = 0
    long_prefill_token_threshold_adaptive: bool = False
    scheduler_reserve_full_isl: bool = True
    watermark: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    enable_prefix_caching: bool = True
    async_scheduling: bool = True
    preemption: Literal["recompute", "swap"] = "recompute"
    swap_space_gib: NonNegativeFloat = 4.0
    kv: Literal["paged", "contiguous"] = "paged"
    batching: Literal["continuous", "static"] = "continuous"
    static_batch_wait_s: NonNegativeFloat = 0.0
    """Static batching: how long the first request of a batch waits for ``max_num_seqs`` to gather."""
    enforce_eager: bool = False
    policy: str | NamedSpec = "fcfs"
    predictor: str | NamedSpec = "exact"


class LatencyConfig(Strict):
    """Where step times come from."""

    kind: Literal["roofline", "constant", "profile"] = "roofline"
    step_s: PositiveFloat | None = None
    """``constant``: every step takes this long."""
    profile: str | None = None
    """``profile``: a built-in profile's name or a profile file."""
    host_overhead_ms: NonNegativeFloat | None = None
    """``roofline``: host time per step; null = the model's stated default."""


class OutputsConfig(Strict):
    """Which files ``--out`` gets, beside ``summary.json`` and ``scenario.resolved.yaml``."""

    report: bool = True
    trace: bool = True
    requests: bool = True
    steps: bool = True


class Scenario(Strict):
    """One scenario file."""

    name: str
    seed: NonNegativeInt = 0
    workload: WorkloadConfig
    cluster: ClusterConfig = ClusterConfig()
    engine: EngineConfig
    latency: LatencyConfig = LatencyConfig()
    slo: SloConfig | None = None
    outputs: OutputsConfig = OutputsConfig()
