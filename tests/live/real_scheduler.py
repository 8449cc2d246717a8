"""Drives vLLM's own V1 scheduler, without a model: the reference the simulator is held against.

The worker's side is played here: a request whose scheduled tokens reach the end of what is known of it
gets one new token per step, as the model runner would return.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from traces import MAX_RECORDS, Case, CaseGroup, CaseRequest, CaseSettings, Replay, StepRecord

PINNED_VERSION = "0.32.0"
"""The vLLM the simulator follows."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
"""Set before the first import of vllm."""

STOP_TOKEN = 7
"""Ends a request before ``max_tokens``; content never uses it."""

_SEGMENT_BASE, _SESSION_BASE, _PROMPT_BASE, _OUTPUT_BASE = 1_000_000, 2_000_000, 3_000_000, 4_000_000
_IMAGE_TOKEN = 5_000_000

_MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 65536,
    "torch_dtype": "float32",
}
_WITH_MTP = {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
"""What makes it one that has a layer which drafts."""


def prepare_environment() -> None:
    """Settings vLLM reads at import: offline, quiet, one thread."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@lru_cache(maxsize=2)
def _model_directory(kind: str = "llama") -> str:
    """A directory that holds the configuration of a small model: the scheduler asks for no more."""
    directory = tempfile.mkdtemp(prefix=f"tiny_{kind}_")
    Path(directory, "config.json").write_text(json.dumps(_MODEL_CONFIG | (_WITH_MTP if kind == "mimo" else {})))
    return directory


@lru_cache(maxsize=32)
def _model_config(max_model_len: int, kind: str = "llama") -> Any:
    from vllm.config import ModelConfig

    directory = _model_directory(kind)
    return ModelConfig(
        model=directory, tokenizer=directory, skip_tokenizer_init=True, dtype="float32", max_model_len=max_model_len
    )


@lru_cache(maxsize=1)
def _block_hash_function() -> Callable[[Any], bytes]:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash

    init_none_hash(sha256)
    hash_function: Callable[[Any], bytes] = sha256
    return hash_function


NS_PER_STEP = 1_000_000_000
"""A step stands for a second: vLLM's arrival times are float seconds, the simulator's integer nanoseconds."""


class StepClock:
    """The clock of the plugin, set by steps."""

    def __init__(self) -> None:
        self.instant_ns = 0

    def now_ns(self) -> int:
        """The present instant."""
        return self.instant_ns

    def arrival_ns(self, arrival_time: float) -> int:
        """The instant of an arrival (s)."""
        return round(arrival_time * 1e9)


def hints_of(request: CaseRequest) -> dict[str, Any]:
    """What a client would send as ``vllm_xargs``."""
    hints: dict[str, Any] = {"tenant": request.tenant, "tier": request.tier, "class_name": request.class_name}
    if request.expected_output_tokens is not None:
        hints["expected_output_tokens"] = request.expected_output_tokens
    if request.deadline_steps is not None:
        hints["deadline_s"] = float(request.deadline_steps)
    return hints


def build_scheduler(settings: CaseSettings, scheduler_cls: str | None = None) -> Any:
    """vLLM's ``Scheduler``, or its ``AsyncScheduler`` where scheduling is asynchronous, with these settings.

    ``scheduler_cls``: another class, as ``--scheduler-cls`` names it.
    """
    from vllm.config import CacheConfig, DeviceConfig, LoRAConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    wanted_scheduler = {
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "enable_chunked_prefill": settings.enable_chunked_prefill,
        "long_prefill_token_threshold": settings.long_prefill_token_threshold,
        "long_prefill_token_threshold_adaptive": settings.long_prefill_token_threshold_adaptive,
        "policy": settings.policy,
        "scheduler_reserve_full_isl": settings.scheduler_reserve_full_isl,
        "watermark": settings.watermark,
        "async_scheduling": settings.async_scheduling,
    }
    wanted_cache = {
        "block_size": settings.block_size,
        "enable_prefix_caching": settings.enable_prefix_caching,
        "num_gpu_blocks": settings.num_gpu_blocks,
        "mamba_cache_mode": "align" if settings.enable_prefix_caching else "none",
    }
    config = VllmConfig(
        model_config=_model_config(settings.max_model_len),
        scheduler_config=SchedulerConfig(
            max_model_len=settings.max_model_len,
            is_encoder_decoder=False,
            scheduler_cls=scheduler_cls,
            **wanted_scheduler,
        ),
        cache_config=CacheConfig(block_size=settings.block_size, enable_prefix_caching=settings.enable_prefix_caching),
        device_config=DeviceConfig(device="cpu"),
        speculative_config=_speculative_config(settings),
        lora_config=LoRAConfig(max_loras=settings.max_loras) if settings.max_loras else None,
        kv_transfer_config=_kv_transfer_config(settings),
    )
    # The CPU platform's own preferences (block size, chunking, asynchrony) must not leak in.
    for section, wanted in ((config.scheduler_config, wanted_scheduler), (config.cache_config, wanted_cache)):
        for name, value in wanted.items():
            setattr(section, name, value)
    kv_cache_config = KVCacheConfig(
        num_blocks=settings.num_gpu_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[
            KVCacheGroupSpec([f"layer{number}"], _layer(settings, group))
            for number, group in enumerate(_groups(settings))
        ],
        prefix_cache_retention_interval=settings.prefix_cache_retention_interval,
    )
    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_cache_config, config)
    config.scheduler_config.disable_chunked_mm_input = settings.disable_chunked_mm_input
    scheduler = config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=kv_cache_config,
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        hash_block_size=hash_block_size,
    )
    if settings.encoder_budget:
        _encode_images(scheduler, settings)
    return scheduler


def _encode_images(scheduler: Any, settings: CaseSettings) -> None:
    """Give a scheduler of a text model the budget and the cache of an encoder: a model with one would need its
    processor's files."""
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

    scheduler.max_num_encoder_input_tokens = settings.encoder_budget
    scheduler.encoder_cache_manager = EncoderCacheManager(cache_size=settings.encoder_cache)


def _groups(settings: CaseSettings) -> tuple[CaseGroup, ...]:
    if settings.kv_groups:
        return settings.kv_groups
    window = settings.sliding_window
    return (CaseGroup("full" if window is None else "window", settings.block_size, window),)


def _layer(settings: CaseSettings, group: CaseGroup) -> Any:
    """The KV of the only layer of a group."""
    import torch
    from vllm.v1 import kv_cache_interface as specs

    shape: dict[str, Any] = {"num_kv_heads": 1, "head_size": 32, "dtype": torch.float32}
    size = group.block_size
    if group.kind == "full":
        return specs.FullAttentionSpec(block_size=size, **shape)
    if group.kind == "latent":
        return specs.MLAAttentionSpec(block_size=size, **shape)
    if group.kind == "window":
        return specs.SlidingWindowSpec(block_size=size, sliding_window=group.window or 0, **shape)
    if group.kind == "chunk":
        return specs.ChunkedLocalAttentionSpec(block_size=size, attention_chunk_size=group.window or 0, **shape)
    return specs.MambaSpec(
        block_size=size if settings.enable_prefix_caching else settings.max_model_len,
        shapes=((32,),),
        dtypes=(torch.float32,),
        mamba_cache_mode="align" if settings.enable_prefix_caching else "none",
        num_prefill_checkpoint_blocks=int(group.checkpoint_alignment is not None),
        prefill_checkpoint_alignment=group.checkpoint_alignment,
    )


def _kv_transfer_config(settings: CaseSettings) -> Any:
    """What ``--kv-offloading-size`` makes of itself (``VllmConfig._post_init_kv_transfer_config``), or None."""
    from vllm.config import KVTransferConfig

    if not settings.num_host_blocks:
        return None
    bytes_per_block = 2 * 32 * 4 * settings.block_size
    aligned = -(-bytes_per_block // mmap.PAGESIZE) * mmap.PAGESIZE
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"cpu_bytes_to_use": settings.num_host_blocks * aligned},
    )


def _speculative_config(settings: CaseSettings) -> Any:
    """vLLM's settings of speculative decoding, or None."""
    from vllm.config import ParallelConfig, SpeculativeConfig

    if not settings.num_speculative_tokens:
        return None
    method = {"method": "draft_model", "model": _model_directory()} if settings.has_draft_model else {"method": "ngram"}
    target = _model_config(settings.max_model_len)
    if settings.draft_head:
        method = {"method": settings.draft_head, "model": _model_directory()}
        if settings.draft_head == "mtp":
            # The head is a part of the model, which has to be of a kind that has one.
            method["model"] = _model_directory("mimo")
            target = _model_config(settings.max_model_len, "mimo")
    return SpeculativeConfig(
        num_speculative_tokens=settings.num_speculative_tokens,
        target_model_config=target,
        target_parallel_config=ParallelConfig(),
        **method,
    )


def prompt_content(request: CaseRequest, index: int) -> list[int]:
    """Token ids of a prompt: equal tokens where content is shared, tokens of its own elsewhere, one token for all
    places of images."""
    tokens = _text(request, index)
    for image in request.images:
        tokens[image.start : image.start + image.num_tokens] = [_IMAGE_TOKEN] * image.num_tokens
    return tokens


def _features(request: CaseRequest) -> list[Any]:
    """The images of a prompt as vLLM's processor describes them."""
    import torch
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    features = []
    for image in request.images:
        mask = None
        if image.num_embeds < image.num_tokens:
            mask = torch.zeros(image.num_tokens, dtype=torch.bool)
            mask[image.num_before : image.num_before + image.num_embeds] = True
        features.append(
            MultiModalFeatureSpec(
                data=None,
                modality="image",
                identifier=f"image{image.content}",
                mm_position=PlaceholderRange(offset=image.start, length=image.num_tokens, is_embed=mask),
            )
        )
    return features


def _text(request: CaseRequest, index: int) -> list[int]:
    if request.session is not None:
        return [_SESSION_BASE + request.session] * request.prompt_tokens
    tokens: list[int] = []
    for content_id, end in request.segments:
        tokens += [_SEGMENT_BASE + content_id] * (end - len(tokens))
    return tokens + [_PROMPT_BASE + index] * (request.prompt_tokens - len(tokens))


class RealScheduler:
    """One case on vLLM's scheduler, a step at a time."""

    def __init__(self, case: Case, scheduler_cls: str | None = None) -> None:
        self.settings = case.settings
        self.scheduler = build_scheduler(case.settings, scheduler_cls)
        self.clock = StepClock()
        if scheduler_cls is not None:
            self.scheduler.clock = self.clock
        self._requests: dict[str, tuple[int, CaseRequest]] = {}
        self._preempted: list[str] = []
        self._in_flight: deque[tuple[Any, frozenset[str]]] = deque()
        self._watch_preemptions()

    def _watch_preemptions(self) -> None:
        """Note preemptions in the order they happen: the scheduler's output holds them as a set."""
        original = self.scheduler._preempt_request

        def preempt(request: Any, *args: Any, **kwargs: Any) -> None:
            self._preempted.append(request.request_id)
            original(request, *args, **kwargs)

        self.scheduler._preempt_request = preempt

    @property
    def is_idle(self) -> bool:
        """Whether nothing is waiting, running or in flight."""
        return not self._in_flight and not self.scheduler.has_unfinished_requests()

    @property
    def free_blocks(self) -> int:
        """Blocks on the free list."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def add_request(self, request: CaseRequest) -> None:
        """A request joins the waiting queue; its arrival time is its step, in seconds."""
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        self.clock.instant_ns = request.arrival_step * NS_PER_STEP
        index = len(self._requests)
        self._requests[request.request_id] = (index, request)
        hasher = None
        if self.settings.enable_prefix_caching:
            hasher = get_request_block_hasher(self.scheduler.hash_block_size, _block_hash_function())
        self.scheduler.add_request(
            Request(
                request_id=request.request_id,
                prompt_token_ids=prompt_content(request, index),
                sampling_params=SamplingParams(
                    max_tokens=request.max_tokens,
                    ignore_eos=True,
                    stop_token_ids=[STOP_TOKEN],
                    detokenize=False,
                    extra_args=hints_of(request),
                ),
                pooling_params=None,
                arrival_time=float(request.arrival_step),
                priority=request.priority,
                cache_salt=request.tenant if self.settings.has_salts else None,
                block_hasher=hasher,
                mm_features=_features(request),
                lora_request=LoRARequest(f"lora{request.lora}", request.lora, "nowhere") if request.lora else None,
            )
        )

    def abort(self, request_id: str) -> tuple[str, ...]:
        """A client leaves; its request's id, unless the request has ended already."""
        from vllm.v1.request import RequestStatus

        ended = self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        return tuple(request.request_id for request in ended)

    def schedule(self, step: int) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        """One ``schedule()``: what it scheduled and what it preempted; the batch is then in flight."""
        self.clock.instant_ns = step * NS_PER_STEP
        self._preempted.clear()
        output = self.scheduler.schedule()
        samples = frozenset(
            request_id
            for request_id in output.num_scheduled_tokens
            if not self.scheduler.requests[request_id].is_prefill_chunk
        )
        self._in_flight.append((output, samples))
        return tuple(output.num_scheduled_tokens.items()), tuple(self._preempted)

    def settle(self, was_empty: bool) -> tuple[str, ...]:
        """Complete what must be complete before the next ``schedule()``; the requests that ended, in order.

        The oldest batch when the pipeline is full; every batch after a step that scheduled nothing.
        """
        finished: list[str] = []
        while self._in_flight and (was_empty or len(self._in_flight) >= self.settings.depth):
            finished += self._complete_oldest()
        return tuple(finished)

    def _complete_oldest(self) -> list[str]:
        from vllm.v1.outputs import ModelRunnerOutput

        output, samples = self._in_flight.popleft()
        ids = list(output.num_scheduled_tokens)
        result = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={request_id: row for row, request_id in enumerate(ids)},
                sampled_token_ids=[
                    [self._next_token(request_id)] if request_id in samples else [] for request_id in ids
                ],
                kv_connector_output=self.worker_output(output),
            ),
        )
        return [
            item.request_id for outputs in result.values() for item in outputs.outputs if item.finish_reason is not None
        ]

    def worker_output(self, output: Any) -> Any:
        """What the worker's side of a KV connector says when the step of ``output`` has run."""
        return None

    def _next_token(self, request_id: str) -> int:
        """The token the model would sample next for a request."""
        index, request = self._requests[request_id]
        live = self.scheduler.requests.get(request_id)
        generated = 0 if live is None else live.num_output_tokens
        if request.output_tokens < request.max_tokens and generated + 1 >= request.output_tokens:
            return STOP_TOKEN
        return _OUTPUT_BASE + index if request.session is None else _SESSION_BASE + request.session


def replay_real(case: Case) -> Replay:
    """Replay a case on vLLM's scheduler."""
    return drive(case, RealScheduler(case))


def drive(case: Case, scheduler: Any) -> Replay:
    """Run a case by steps on anything with this module's ``RealScheduler`` face.

    An idle scheduler is not stepped: time jumps to the next arrival. Stops after ``MAX_RECORDS`` steps.
    """
    replay = Replay()
    waiting = deque(case.requests)
    leaving: dict[tuple[int, bool], list[str]] = {}
    for request in case.requests:
        if request.abort_step is not None:
            leaving.setdefault((request.abort_step, request.aborts_in_flight), []).append(request.request_id)
    finished: tuple[str, ...] = ()
    step = 0
    while (waiting or not scheduler.is_idle) and len(replay.records) < MAX_RECORDS:
        if scheduler.is_idle and waiting:
            step = max(step, waiting[0].arrival_step)
        while waiting and waiting[0].arrival_step <= step:
            scheduler.add_request(waiting.popleft())
        for request_id in leaving.pop((step, False), ()):
            finished += scheduler.abort(request_id)
        scheduled, preempted = scheduler.schedule(step)
        replay.records.append(StepRecord(step, scheduled, preempted, finished, scheduler.free_blocks))
        finished = ()
        for request_id in leaving.pop((step, True), ()):
            finished += scheduler.abort(request_id)
        finished += scheduler.settle(was_empty=not scheduled)
        step += 1
    replay.last_finished = finished
    replay.has_ended = not waiting and scheduler.is_idle
    replay.final_free_blocks = scheduler.free_blocks
    return replay
