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

from sim.latency.gpus import GIB, GpuSpec, load_gpu
from sim.latency.model_spec import ModelSpec
from sim.latency.models import load_model
from sim.latency.precision import FLOATS, notes_on_checkpoint
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


def resolve_engine(engine: EngineSection, base_dir: Path | None = None) -> tuple[EngineConfig, list[str]]:
    """Fill in what ``engine`` leaves out, and say in notes what was taken and why.

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
    notes = _notes(engine, filled, model, gpu)
    if engine.dtype == "auto" and model.dtype in FLOATS:
        filled["dtype"] = model.dtype
        if "dtype" in engine.model_fields_set or model.dtype != FORMER_DTYPE:
            notes += notes_on_checkpoint("auto", model)
    written = {key for key in engine.model_fields_set if getattr(engine, key) is not None}
    return EngineConfig.model_construct(_fields_set=written, **filled), notes


def _notes(engine: EngineSection, filled: dict[str, Any], model: ModelSpec, gpu: GpuSpec) -> list[str]:
    """Which values were taken for keys that are left out, where they are others than in earlier versions."""
    changed = [key for key in FORMER if getattr(engine, key) is None and filled[key] != FORMER[key]]
    if engine.num_gpu_blocks_override is not None or engine.kv_cache_memory_bytes is not None:
        changed = [key for key in changed if key != "gpu_memory_utilization"]  # without effect
    if not changed:
        return []
    sources = []
    if "max_model_len" in changed:
        sources.append(f"max_model_len {filled['max_model_len']} (the longest context of {model.name})")
    if batch := " and ".join(f"{key} {filled[key]}" for key in changed if key.startswith("max_num")):
        server = f"vLLM {engine.vllm_version}'s API server on {gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB"
        sources.append(f"{batch} (as {server})")
    if "gpu_memory_utilization" in changed:
        sources.append(f"gpu_memory_utilization {filled['gpu_memory_utilization']} (of vLLM {engine.vllm_version})")
    former = ", ".join(str(FORMER[key]) for key in changed)
    return [f"not given, so vLLM's default: {', '.join(sources)}; earlier versions of simrun took {former}"]
