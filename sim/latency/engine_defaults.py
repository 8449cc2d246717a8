"""What an engine section leaves to its model and GPU: filled in once, when a scenario is loaded.

Seats and token budget are those of vLLM's API server (``EngineArgs.get_batch_defaults`` and
``_set_default_max_num_seqs_and_batched_tokens_args`` of ``vllm/engine/arg_utils.py``, 0.32.0). GPUs of 160 GiB and more
have a row of their own since 0.28.0 (vllm-project/vllm pull request 51726); before, they had that of 70 GiB. A100s
have the small row in all versions known here (pull request 17885, before 0.9.0). All else is as 0.32.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sim.latency.attention_kinds import GroupedAttention, LatentAttention
from sim.latency.formats import FLOATS
from sim.latency.gpus import GIB, GpuSpec, load_gpu
from sim.latency.model_spec import ModelSpec
from sim.latency.models import load_model
from sim.latency.precision import notes_on_checkpoint
from sim.scenario.schema import EngineConfig
from sim.scenario.vllm_version import DEFAULT_VERSION, version_of

if TYPE_CHECKING:
    from sim.scenario.schema import EngineSection

FORMER: Mapping[str, float] = MappingProxyType(
    {"max_model_len": 4096, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
)
"""Keys that are null until they are filled in, and what the format took for them in its earlier versions."""
FORMER_DTYPE = "bfloat16"
LARGEST_GPU_BYTES = 160 * GIB
LARGE_GPU_BYTES = 70 * GIB
SINCE_LARGEST = (0, 28, 0)
SMALLEST_BLOCK, LATENT_BLOCK, SPARSE_LATENT_BLOCK, INDEXED_BLOCK = 16, 32, 64, 128
SINCE_MORE_MEMORY = (0, 20, 0)
"""From here on CUDA graphs are taken from the share that ``gpu_memory_utilization`` grants, and its default is larger
(vllm-project/vllm pull request 38284: 0.9 in 0.19.1, 0.92 in 0.20.0)."""


def batch_defaults(gpu: GpuSpec, vllm_version: str = DEFAULT_VERSION) -> tuple[int, int]:
    """Give the token budget and the seats that vLLM's API server starts from on ``gpu``: 8,192 and 1,024 on an H100."""
    is_large = gpu.memory_bytes >= LARGE_GPU_BYTES and "a100" not in gpu.name.lower()
    if gpu.memory_bytes >= LARGEST_GPU_BYTES and version_of(vllm_version) >= SINCE_LARGEST:
        return 16384, 1024
    return (8192, 1024) if is_large else (2048, 256)


def memory_share(vllm_version: str = DEFAULT_VERSION) -> float:
    """Give vLLM's default of ``gpu_memory_utilization`` (``vllm/config/cache.py``)."""
    return 0.92 if version_of(vllm_version) >= SINCE_MORE_MEMORY else 0.9


def kernel_block_size(model: ModelSpec, gpu: GpuSpec) -> int:
    """Give the smallest KV block that the attention kernels of ``model`` take, which vLLM 0.32.0 falls back on
    (``get_preferred_block_size``): 128 tokens where blocks are chosen by an index, 64 of a latent that is, 32 of a
    latent on Blackwell (FlashInfer), else 16."""
    sizes = [SMALLEST_BLOCK]
    for mixer, _ in model.mixers:
        if isinstance(mixer, LatentAttention):
            on_blackwell = gpu.fp4_flops is not None and gpu.nvlink_bandwidth is not None
            sizes.append(SPARSE_LATENT_BLOCK if mixer.index else LATENT_BLOCK if on_blackwell else SMALLEST_BLOCK)
        elif isinstance(mixer, GroupedAttention) and mixer.index:
            sizes.append(INDEXED_BLOCK)
    return max(sizes)


def resolve_engine(engine: EngineSection, base_dir: Path | None = None) -> tuple[EngineConfig, list[str]]:
    """Fill in what ``engine`` leaves out, and note which number format a checkpoint's config says.

    ``dtype: auto`` becomes the format of a 16- or 32-bit checkpoint; it stays where the checkpoint is quantised, in a
    format of its own. Raises InputError for an unknown model or GPU.
    """
    if isinstance(engine, EngineConfig):
        return engine, []
    model, gpu = load_model(engine.model, base_dir), load_gpu(engine.gpu)
    budget, seats = batch_defaults(gpu, engine.vllm_version)
    length = engine.max_model_len or model.default_context
    num_seqs = engine.max_num_seqs or seats
    if engine.max_num_batched_tokens is not None:
        budget = engine.max_num_batched_tokens
    else:
        if not engine.enable_chunked_prefill:
            budget = max(budget, length)
        budget = min(budget, num_seqs * length)
    if engine.max_num_seqs is None:
        num_seqs = min(num_seqs, budget)
    filled: dict[str, Any] = {key: getattr(engine, key) for key in type(engine).model_fields}
    filled |= {"max_model_len": length, "max_num_seqs": num_seqs, "max_num_batched_tokens": budget}
    if engine.gpu_memory_utilization is None:
        filled["gpu_memory_utilization"] = memory_share(engine.vllm_version)
    notes: list[str] = []
    block = kernel_block_size(model, gpu)
    if "block_size" not in engine.model_fields_set and block > engine.block_size:
        filled["block_size"] = block
    if engine.dtype == "auto" and model.dtype in FLOATS:
        filled["dtype"] = model.dtype
        if "dtype" in engine.model_fields_set or model.dtype != FORMER_DTYPE:
            notes += notes_on_checkpoint("auto", model)
    written = {key for key in engine.model_fields_set if getattr(engine, key) is not None}
    return EngineConfig.model_construct(_fields_set=written, **filled), notes


def notes_on_changed_defaults(
    engine: EngineConfig, *, longest: int, most_running: int, most_tokens: int, share_used: float
) -> list[str]:
    """Say in one line which defaults a run felt that earlier versions of the format did not take.

    ``longest``: prompt plus output of its longest request. ``most_running``: requests that ran at once.
    ``most_tokens``: those of its largest step. ``share_used``: of the GPU's memory, with its KV cache at its fullest.
    A run of at most 256 requests at once is the same with 256 seats and with 1,024.
    """
    felt = {
        "max_model_len": longest,
        "max_num_seqs": most_running,
        "max_num_batched_tokens": most_tokens,
        "gpu_memory_utilization": share_used,
    }
    changed = [key for key in FORMER if key not in engine.model_fields_set and _matters(engine, key, felt[key])]
    if not changed:
        return []
    told = ", ".join(f"{key} {getattr(engine, key)} (was {FORMER[key]})" for key in changed)
    return [f"vLLM's defaults, where earlier versions of simrun had others, change this run: {told}"]


def _matters(engine: EngineConfig, key: str, felt: float) -> bool:
    """Whether a run that reached ``felt`` would have met the smaller of today's default and the former one."""
    now, former = getattr(engine, key), FORMER[key]
    return felt > former if now > former else now < former and felt >= now
