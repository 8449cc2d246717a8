"""Operator tables of NVIDIA's AIConfigurator, from the PyPI package ``aiconfigurator-core`` (Apache-2.0).

Tables lie at ``systems/data/<gpu>/<family>/<engine>/<version>/<table>_perf.parquet``; ``latency`` is milliseconds of
one operator of one layer. How they were measured (the package's collectors, ``collector/vllm`` in
ai-dynamo/aiconfigurator), as far as it matters here:

- GEMM in a CUDA graph over six copies of the weights, so weights of which six fit the L2 come from there. FP8 includes
  quantising the activations (static scale). vLLM's ``fp8_block`` is timed without a graph and shows the host (55 us
  and more a launch): where SGLang's DeepGEMM, timed without quantising, is faster, that is taken.
- Decode attention (``generation_attention``) again and again over one KV cache: what fits the L2 comes from there,
  while an engine reads other layers' weights in between. KV length is ``step`` + 1. Context attention has no prior KV.
- All-reduce: ``message_size`` counts elements of 2 bytes; NCCL: of its ``nccl_dtype``; for all-gather of the gathered
  result, for reduce-scatter of the input.
- MoE: routed experts without the router, tokens of all ranks together, one GPU's share of experts (``moe_ep_size``) or
  of each expert's width (``moe_tp_size``). Routing is drawn from a power law or laid out evenly (``expert_tables``).
  Two kernels that vLLM has beside the one of its newest table come from other tables (``OTHER_EXPERTS``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_calibrate.importers.aic_experts import DTYPES, known_dtypes, moe_table, other_experts
from gpu_calibrate.importers.aic_tables import (
    DISTRIBUTION,
    GPU_NAMES,
    LICENCE,
    Found,
    Place,
    Table,
    find_place,
    make_table,
    need_layout,
    package_version,
)
from gpu_calibrate.importers.devices import device_of, resolve_gpu
from gpu_calibrate.importers.frames import now
from gpu_calibrate.importers.source_tables import Floats, Reuse, build_curves
from sim.errors import InputError
from sim.latency.profile.all_reduce import FUSED_LIMITS
from sim.latency.profile.file import Operator, Profile, Source
from sim.latency.profile.speed_of_light import ELEMENT_BYTES, kv_bytes_per_token

if TYPE_CHECKING:
    import pandas as pd

GEMM_COPIES = 6
"""Copies of the weights that were gone through in turn."""
HOST_BOUND = {("vllm", "fp8_block")}
"""(engine, number format) of GEMM timed without a CUDA graph: most of it is the host's launching."""
STAND_IN = ("sglang", "sglang_deepgemm_gemm_nt_f8f8bf16")
"""Engine and kernel that stand in for ``fp8_block``: DeepGEMM, as in vLLM on Hopper and Blackwell."""


def import_aiconfigurator(
    gpu: str,
    *,
    engine: str = "vllm",
    version: str | None = None,
    path: Path | None = None,
    name: str | None = None,
    command: str = "",
) -> Profile:
    """The profile of one GPU and engine version. Raises InputError (see ``importers.import_profile``)."""
    preset, own = resolve_gpu(gpu, GPU_NAMES, DISTRIBUTION)
    place = find_place(own, engine, version, path)
    found: dict[str, Operator] = {}
    notes: list[str] = []
    device = device_of(preset, preset)
    for read in (_gemm, _prefill, _decode, _moe, other_experts, _custom_all_reduce, _fused_all_reduce, _nccl):
        for operator, table in read(place):
            device = device.model_copy(update={"name": table.reported_device or device.name})
            curves, cleaning = build_curves(table.curves, device)
            if not curves:
                continue
            found[operator] = merged(
                found.get(operator), Operator(kernel=table.kernel, origin=table.origin, curves=curves)
            )
            notes += [cleaning.note(), *table.notes]
    if not found:
        raise InputError(f"{own}, {engine} {place.version}: no table that a profile could be made of")
    return Profile(
        name=name or preset,
        created=now(),
        source=Source(
            kind="imported",
            tool="gpu-calibrate import",
            command=command or f"gpu-calibrate import --from aiconfigurator --gpu {own} --engine {engine}",
            origin=f"{DISTRIBUTION} {package_version(place.data)} ({LICENCE}), {own}, {engine} {place.version}",
            notes=tuple(notes),
        ),
        device=device,
        software={engine: place.version, DISTRIBUTION: package_version(place.data)},
        operators=found,
    )


def merged(first: Operator | None, second: Operator) -> Operator:
    """The curves of both, with both origins."""
    if first is None:
        return second
    return Operator(
        kernel=f"{first.kernel}; {second.kernel}",
        origin=f"{first.origin}; {second.origin}",
        curves=(*first.curves, *second.curves),
    )


def _gemm(place: Place) -> Found:
    read = place.table("gemm", "gemm")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("gemm", version)
    need_layout(rows, ("gemm_dtype", "m", "n", "k"), origin)
    rows, notes = known_dtypes(rows, "gemm_dtype", "gemm")
    host_bound = rows["gemm_dtype"].isin([dtype for of, dtype in HOST_BOUND if of == place.engine])
    if not bool(host_bound.any()):
        return [gemm_table(rows, origin, notes)]
    found = [gemm_table(rows[~host_bound], origin, notes)]
    other = _stand_in(place, rows[host_bound], origin)
    if other is None:
        notes = (*notes, f"gemm: {int(host_bound.sum())} rows of fp8_block left out, timed without a CUDA graph")
        return [gemm_table(rows[~host_bound], origin, notes)]
    return [*found, other]


def _stand_in(place: Place, host_bound: pd.DataFrame, origin: str) -> tuple[str, Table] | None:
    """The lesser of two times: the engine's own, with the host's launching in it, and the stand-in's kernel alone."""
    import pandas as pd

    read = Place(place.data, place.gpu, STAND_IN[0], "9999").table("gemm", "gemm")
    if read is None:
        return None
    rows, version = read
    rows = rows[(rows["gemm_dtype"] == "fp8_block") & (rows["kernel_source"] == STAND_IN[1])]
    if not len(rows):
        return None
    shape = ["gemm_dtype", "m", "n", "k"]
    both = pd.concat([rows, host_bound]).sort_values("latency").drop_duplicates(shape)
    both = both.merge(rows[shape], on=shape)
    also = Place(place.data, place.gpu, STAND_IN[0], version).origin("gemm", version)
    note = (
        "gemm: fp8_block is the lesser of vLLM's time, taken without a CUDA graph, and of SGLang's DeepGEMM, "
        "which does not quantise the activations"
    )
    return gemm_table(both, f"{origin}; {also}", (note,))


def gemm_table(
    rows: pd.DataFrame, origin: str, notes: tuple[str, ...], dtypes: Mapping[str, str] = DTYPES
) -> tuple[str, Table]:
    """Matrices in the number formats of ``dtypes``."""
    columns = {
        "dtype": rows["gemm_dtype"].map(dict(dtypes)).to_numpy(),
        "n": rows["n"].to_numpy(),
        "k": rows["k"].to_numpy(),
    }
    return make_table("gemm", rows, origin, {**columns, "at": rows["m"].to_numpy()}, _GEMM_REUSE, notes)


def _weight_bytes(fields: dict[str, Any], m: Floats) -> Floats:
    return np.full_like(m, float(fields["n"]) * float(fields["k"]) * ELEMENT_BYTES[str(fields["dtype"])])


_GEMM_REUSE = Reuse(_weight_bytes, lambda fields: GEMM_COPIES, share=None)


def _attention_columns(rows: pd.DataFrame) -> dict[str, Any]:
    window = rows["window_size"].to_numpy() if "window_size" in rows else np.zeros(len(rows), dtype=np.int64)
    return {
        "dtype": rows["attn_dtype"].to_numpy(),
        "kv_dtype": rows["kv_cache_dtype"].to_numpy(),
        "num_heads": rows["num_heads"].to_numpy(),
        "num_kv_heads": rows["num_key_value_heads"].to_numpy(),
        "head_size": rows["head_dim"].to_numpy(),
        "window": window,
        "batch": rows["batch_size"].to_numpy(),
    }


_ATTENTION = (
    "attn_dtype",
    "kv_cache_dtype",
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "batch_size",
    "isl",
    "step",
)


def _prefill(place: Place) -> Found:
    read = place.table("attention", "context_attention")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("context_attention", version)
    need_layout(rows, _ATTENTION, origin)
    columns = {**_attention_columns(rows), "prior_tokens": rows["step"].to_numpy(), "at": rows["isl"].to_numpy()}
    return [make_table("prefill_attention", rows, origin, columns)]


def _decode(place: Place) -> Found:
    read = place.table("attention", "generation_attention")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("generation_attention", version)
    need_layout(rows, _ATTENTION, origin)
    columns = {**_attention_columns(rows), "at": rows["step"].to_numpy() + 1}
    return [make_table("decode_attention", rows, origin, columns, _DECODE_REUSE)]


def _kv_bytes(fields: dict[str, Any], context: Floats) -> Floats:
    seen = np.minimum(context, float(fields["window"])) if fields["window"] else context
    held: Floats = seen * float(fields["batch"]) * kv_bytes_per_token(fields)
    return held


_DECODE_REUSE = Reuse(_kv_bytes, lambda fields: 1, share=0.35)
"""What comes nearest to KV read inside a running vLLM (LLMServingSim's tables of the RTX PRO 6000): mean error
7 % and bias +1 %, against 15 % and -12 % with nothing dropped."""


def _moe(place: Place) -> Found:
    found = moe_table(place, DTYPES)
    return [] if found is None else [found]


def _custom_all_reduce(place: Place) -> Found:
    read = place.table("comm", "custom_allreduce")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("custom_allreduce", version)
    need_layout(rows, ("num_gpus", "message_size", "backend"), origin)
    implementation = rows["backend"].map(lambda backend: "custom" if str(backend).endswith("graph") else "custom_eager")
    columns = {
        "implementation": implementation.to_numpy(),
        "num_gpus": rows["num_gpus"].to_numpy(),
        "at": rows["message_size"].to_numpy() * 2,
    }
    return [make_table("all_reduce", rows, origin, columns)]


def _fused_all_reduce(place: Place) -> Found:
    """TensorRT-LLM's kernel, which FlashInfer packages and vLLM fuses with the norm that follows."""
    if device_of(GPU_NAMES[place.gpu], GPU_NAMES[place.gpu]).compute_capability not in FUSED_LIMITS:
        return []
    library = Place(place.data, place.gpu, "trtllm", "9999")
    read = library.table("comm", "custom_allreduce")
    if read is None:
        return []
    rows, version = read
    origin = library.origin("custom_allreduce", version)
    need_layout(rows, ("num_gpus", "message_size"), origin)
    columns = {
        "implementation": np.full(len(rows), "trtllm", dtype=object),
        "num_gpus": rows["num_gpus"].to_numpy(),
        "at": rows["message_size"].to_numpy() * 2,
    }
    return [make_table("all_reduce", rows, origin, columns)]


COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
"""Their name of a collective -> ours."""


def _nccl(place: Place) -> Found:
    library = Place(place.data, place.gpu, "nccl", "9999")
    read = library.table("comm", "nccl")
    if read is None:
        return []
    rows, version = read
    origin = library.origin("nccl", version)
    need_layout(rows, ("nccl_dtype", "op_name", "num_gpus", "message_size"), origin)
    rows = rows[rows["nccl_dtype"] == "half"]
    found = []
    for theirs, ours in COLLECTIVES.items():
        some = rows[rows["op_name"] == theirs]
        if len(some):
            columns = {
                "implementation": np.full(len(some), "nccl", dtype=object),
                "num_gpus": some["num_gpus"].to_numpy(),
                "at": some["message_size"].to_numpy() * 2,
            }
            found.append(make_table(ours, some, origin, columns))
    return found
