"""An engine configuration resolved once: everything that its replicas share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from policies.registry import uses_predictor
from sim.engine.reference.batch import SchedulerSettings
from sim.latency.base import StepCost
from sim.latency.build import build_step_cost, build_work_model, fit_of
from sim.latency.host_link import HostLink, plan_host_link
from sim.latency.kind import client_overhead_ns, client_token_ns
from sim.latency.lockstep_cost import GroupCost
from sim.latency.memory import MemoryPlan, PlannedEngine, plan_engine
from sim.latency.models import load_model
from sim.latency.noise import NO_NOISE, Noise, noise_of
from sim.latency.pipelining import is_asynchronous, pipeline_depth
from sim.latency.token_weight import token_weight
from sim.results.context import Price
from sim.results.record import DRAFT_COLUMNS, IMAGE_COLUMNS, LORA_COLUMNS, SWAP_COLUMNS, IntColumn
from sim.workload.prompt_images import ImagePlaces

if TYPE_CHECKING:
    from sim.latency.fitted import Fitted
    from sim.latency.model_spec import VisionSpec
    from sim.latency.work import WorkModel
    from sim.scenario.schema import EngineConfig, LatencyConfig

Terms = Callable[[Mapping[str, IntColumn]], dict[str, IntColumn]]
"""From rows of steps to nanoseconds by term of the step cost."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What one engine configuration comes to. ``dataclasses.replace`` gives it another step cost."""

    engine: EngineConfig
    planned: PlannedEngine
    """Models, GPU and memory."""
    settings: SchedulerSettings
    cost: StepCost
    client_overhead_ns: int
    client_token_ns: int
    """More of it for each token of a prompt."""
    work: WorkModel | None
    """FLOPs and bytes of steps; None where step times say nothing of a GPU."""
    price: Price
    noise: Noise = NO_NOISE
    host_link: HostLink | None = None
    """To the host memory that KV is offloaded to; None = it is not."""

    @property
    def client_constant_ns(self) -> int:
        """What lies between a client and the engine for every request; late ones make up the rest of the mean."""
        late = self.noise.client
        return self.client_overhead_ns if late is None else max(self.client_overhead_ns - late.added_ns, 0)

    @property
    def depth(self) -> int:
        """Batches in flight at once."""
        return pipeline_depth(self.engine)

    @property
    def group_cost(self) -> GroupCost | None:
        """The cost of ranks that step together; None where each replica steps by itself."""
        return self.cost if isinstance(self.cost, GroupCost) else None

    @property
    def shape_columns(self) -> tuple[str, ...]:
        """Further columns of steps, which are fields of ``StepShape``."""
        drafts = DRAFT_COLUMNS if self.engine.speculative is not None else ()
        swaps = SWAP_COLUMNS if self.settings.num_swap_blocks else ()
        images = IMAGE_COLUMNS if self.settings.encoder_budget_embeds else ()
        return drafts + swaps + (LORA_COLUMNS if self.settings.max_loras else ()) + images

    @property
    def terms(self) -> Terms | None:
        """How recorded steps part into terms; None where the step cost has none."""
        return getattr(self.cost, "terms", None) if self.cost.kind == "profile" else None

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.engine.tensor_parallel_size * self.engine.pipeline_parallel_size


def resolve_deployment(
    engine: EngineConfig,
    latency: LatencyConfig,
    base_dir: Path | None = None,
    planned: PlannedEngine | None = None,
    cost: StepCost | None = None,
    fitted: Fitted | None = None,
) -> Deployment:
    """Look up and build what ``engine`` needs; ``planned`` is what the checks have looked up already, ``cost`` a step
    cost that has been built already, ``fitted`` what takes the place of ``latency.fit``.

    Raises InputError for an engine that cannot be.
    """
    if planned is None:
        planned = plan_engine(engine, base_dir)
    gpu = planned.gpu
    if fitted is None:
        fitted = fit_of(latency, base_dir)
    if cost is None:
        cost = build_step_cost(engine, latency, base_dir, planned, fitted)
    settings = scheduler_settings(engine, planned.memory, planned.model.vision)
    link = plan_host_link(engine, latency, planned)
    if link is not None:
        settings = replace(settings, num_host_blocks=link.num_host_blocks)
    policy = engine.policy if isinstance(engine.policy, str) else engine.policy.name
    if uses_predictor(policy):
        settings = replace(settings, prompt_tokens_per_output_token=token_weight(engine, cost, planned.memory))
    return Deployment(
        engine=engine,
        planned=planned,
        settings=settings,
        cost=cost,
        client_overhead_ns=client_overhead_ns(engine.gpu, latency, fitted),
        client_token_ns=client_token_ns(engine.gpu, latency),
        work=build_work_model(engine, latency, base_dir, planned),
        noise=noise_of(engine.gpu, latency, fitted),
        host_link=link,
        price=Price(gpu.usd_per_hour, f"example list price of {gpu.name}, not a quote"),
    )


def served_image(engine: EngineConfig, base_dir: Path | None) -> ImagePlaces | None:
    """What an image takes in a prompt of the engine's model; None = it serves none, or that depends on the image."""
    vision = load_model(engine.model, base_dir).vision if engine.enable_images else None
    if vision is None or not vision.tokens_per_image:
        return None
    before, after = vision.frame
    return ImagePlaces(before + vision.tokens_per_image + after, vision.tokens_per_image, before)


def encoder_embeds(engine: EngineConfig, vision: VisionSpec | None) -> int:
    """Embeddings that a step may make, and that are kept (``compute_mm_encoder_budget``): the token budget, and the
    largest image at least. 8,192 for Gemma 3 on an H100, 16,384 for Qwen3-VL."""
    if not engine.enable_images:
        return 0
    return max(engine.max_num_batched_tokens, 0 if vision is None else vision.largest_embeds)


def scheduler_settings(engine: EngineConfig, memory: MemoryPlan, vision: VisionSpec | None = None) -> SchedulerSettings:
    """Take from an engine's configuration what decides what runs; ``vision``: its model's tower."""
    gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size
    block_bytes = memory.kv_bytes_per_token * memory.block_size * gpus
    speculative = engine.speculative
    drafts = 0 if speculative is None else speculative.num_speculative_tokens
    has_draft_model = speculative is not None and speculative.method == "draft_model"
    has_head = speculative is not None and speculative.has_head
    swap_bytes = int(engine.swap_space_gib * 2**30) * gpus if engine.preemption == "swap" else 0
    return SchedulerSettings(
        num_gpu_blocks=memory.num_gpu_blocks,
        block_size=memory.block_size,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        enable_chunked_prefill=engine.enable_chunked_prefill,
        max_prefill_tokens_per_step=engine.max_prefill_tokens_per_step,
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=engine.long_prefill_token_threshold_adaptive,
        scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
        watermark=engine.watermark,
        enable_prefix_caching=engine.enable_prefix_caching,
        async_scheduling=is_asynchronous(engine),
        contiguous_kv=engine.kv == "contiguous",
        static_batching=engine.batching == "static",
        num_swap_blocks=swap_bytes // block_bytes,
        sliding_window=memory.sliding_window,
        kv_groups=memory.kv_groups,
        pipeline_parallel_size=engine.pipeline_parallel_size,
        num_speculative_tokens=drafts,
        num_lookahead_tokens=drafts if has_draft_model or has_head else 0,
        draft_slots=int(has_draft_model),
        drops_last_block=has_head and engine.enable_prefix_caching,
        block_bytes=block_bytes,
        max_loras=engine.max_loras if engine.enable_lora else 0,
        max_cpu_loras=(engine.max_cpu_loras or engine.max_loras) if engine.enable_lora else 0,
        lora_bytes=memory.lora_bytes * gpus // engine.max_loras,
        encoder_budget_embeds=encoder_embeds(engine, vision),
        encoder_cache_embeds=encoder_embeds(engine, vision),
        disable_chunked_mm_input=engine.disable_chunked_mm_input,
    )
