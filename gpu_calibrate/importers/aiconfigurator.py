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

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_calibrate.importers.devices import device_of, resolve_gpu
from gpu_calibrate.importers.expert_tables import SHAPE, no_slower, routed
from gpu_calibrate.importers.frames import now
from gpu_calibrate.importers.source_tables import CurveTable, Floats, Reuse, build_curves
from sim.errors import InputError
from sim.latency.profile.all_reduce import FUSED_LIMITS
from sim.latency.profile.file import Operator, Profile, Source
from sim.latency.profile.speed_of_light import ELEMENT_BYTES, kv_bytes_per_token

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "aiconfigurator_core"
DISTRIBUTION = "aiconfigurator-core"
LICENCE = "Apache-2.0"

GPU_NAMES = {
    "a100_sxm": "a100-80gb-sxm",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
"""Their name of a GPU -> preset."""

KNOWN_BAD = {
    ("h200_sxm", "vllm", "0.19.0"): "its context attention table is wrong",
    ("l40s", "vllm", "0.14.0"): "its context attention with FP8 KV is wrong",
    ("a100_sxm", "trtllm", ""): "its decode attention reads memory at 165 % of the peak bandwidth",
}
"""(GPU, engine, version; "" = every version) of tables that are not to be believed."""

DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "fp8": "fp8", "fp8_block": "fp8_block", "int4_wo": "int4"}
"""Their names of number formats -> ours. Others (nvfp4, mxfp4) are left out and counted."""

GEMM_COPIES = 6
"""Copies of the weights that were gone through in turn."""
HOST_BOUND = {("vllm", "fp8_block")}
"""(engine, number format) of GEMM timed without a CUDA graph: most of it is the host's launching."""
STAND_IN = ("sglang", "sglang_deepgemm_gemm_nt_f8f8bf16")
"""Engine and kernel that stand in for ``fp8_block``: DeepGEMM, as in vLLM on Hopper and Blackwell."""


@dataclass(frozen=True)
class _Place:
    """Where one GPU's tables of one engine version are."""

    data: Path
    gpu: str
    engine: str
    version: str

    def table(self, family: str, name: str) -> tuple[pd.DataFrame, str] | None:
        """A table and the version it is of: the newest that is not newer than asked for. None: there is none."""
        import pandas as pd

        folder = self.data / self.gpu / family / self.engine
        fitting = [v for v in _versions(folder, name) if _order(v) <= _order(self.version)]
        if not fitting:
            return None
        path = folder / fitting[-1] / f"{name}_perf.parquet"
        try:
            return pd.read_parquet(path), fitting[-1]
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}") from None

    def origin(self, table: str, version: str) -> str:
        return f"{DISTRIBUTION} {_package_version(self.data)}, {self.gpu}, {self.engine} {version}, {table}"


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
    place = _place(own, engine, version, path)
    found: dict[str, Operator] = {}
    notes: list[str] = []
    device = device_of(preset, preset)
    for read in (_gemm, _prefill, _decode, _moe, _other_experts, _custom_all_reduce, _fused_all_reduce, _nccl):
        for operator, table in read(place):
            device = device.model_copy(update={"name": table.reported_device or device.name})
            curves, cleaning = build_curves(table.curves, device)
            if not curves:
                continue
            found[operator] = _merged(
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
            origin=f"{DISTRIBUTION} {_package_version(place.data)} ({LICENCE}), {own}, {engine} {place.version}",
            notes=tuple(notes),
        ),
        device=device,
        software={engine: place.version, DISTRIBUTION: _package_version(place.data)},
        operators=found,
    )


def _merged(first: Operator | None, second: Operator) -> Operator:
    if first is None:
        return second
    return Operator(
        kernel=f"{first.kernel}; {second.kernel}",
        origin=f"{first.origin}; {second.origin}",
        curves=(*first.curves, *second.curves),
    )


@dataclass(frozen=True)
class _Table:
    curves: CurveTable
    kernel: str
    origin: str
    reported_device: str | None
    notes: tuple[str, ...] = ()


_Found = list[tuple[str, _Table]]


def _table(
    operator: str,
    rows: pd.DataFrame,
    origin: str,
    columns: dict[str, Any],
    reuse: Reuse | None = None,
    notes: tuple[str, ...] = (),
) -> tuple[str, _Table]:
    """Rows with the given columns beside ``latency`` in milliseconds."""
    import pandas as pd

    frame = pd.DataFrame({**columns, "time_ns": rows["latency"].to_numpy(dtype=np.float64) * 1e6})
    kernels = sorted(str(kernel) for kernel in rows["kernel_source"].unique())
    names = rows["device"].dropna().tolist() if "device" in rows else []
    return operator, _Table(
        CurveTable(operator, frame, reuse),
        kernel=", ".join(kernels),
        origin=origin,
        reported_device=str(names[0]) if names else None,
        notes=notes,
    )


def _need(rows: pd.DataFrame, columns: tuple[str, ...], origin: str) -> None:
    missing = [column for column in (*columns, "latency", "kernel_source") if column not in rows]
    if missing:
        raise InputError(f"{origin}: not the layout this reads; columns missing: {', '.join(missing)}")


def _known_dtypes(rows: pd.DataFrame, column: str, table: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows in number formats that a profile has names for, and what to say of the others."""
    known = rows[column].isin(list(DTYPES))
    if bool(known.all()):
        return rows, ()
    others = ", ".join(sorted(str(name) for name in rows[column][~known].unique()))
    return rows[known], (f"{table}: {int((~known).sum())} rows in other number formats left out ({others})",)


def _gemm(place: _Place) -> _Found:
    read = place.table("gemm", "gemm")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("gemm", version)
    _need(rows, ("gemm_dtype", "m", "n", "k"), origin)
    rows, notes = _known_dtypes(rows, "gemm_dtype", "gemm")
    host_bound = rows["gemm_dtype"].isin([dtype for of, dtype in HOST_BOUND if of == place.engine])
    if not bool(host_bound.any()):
        return [_gemm_table(rows, origin, notes)]
    found = [_gemm_table(rows[~host_bound], origin, notes)]
    other = _stand_in(place, rows[host_bound], origin)
    if other is None:
        notes = (*notes, f"gemm: {int(host_bound.sum())} rows of fp8_block left out, timed without a CUDA graph")
        return [_gemm_table(rows[~host_bound], origin, notes)]
    return [*found, other]


def _stand_in(place: _Place, host_bound: pd.DataFrame, origin: str) -> tuple[str, _Table] | None:
    """The lesser of two times: the engine's own, with the host's launching in it, and the stand-in's kernel alone."""
    import pandas as pd

    read = _Place(place.data, place.gpu, STAND_IN[0], "9999").table("gemm", "gemm")
    if read is None:
        return None
    rows, version = read
    rows = rows[(rows["gemm_dtype"] == "fp8_block") & (rows["kernel_source"] == STAND_IN[1])]
    if not len(rows):
        return None
    shape = ["gemm_dtype", "m", "n", "k"]
    both = pd.concat([rows, host_bound]).sort_values("latency").drop_duplicates(shape)
    both = both.merge(rows[shape], on=shape)
    also = _Place(place.data, place.gpu, STAND_IN[0], version).origin("gemm", version)
    note = (
        "gemm: fp8_block is the lesser of vLLM's time, taken without a CUDA graph, and of SGLang's DeepGEMM, "
        "which does not quantise the activations"
    )
    return _gemm_table(both, f"{origin}; {also}", (note,))


def _gemm_table(rows: pd.DataFrame, origin: str, notes: tuple[str, ...]) -> tuple[str, _Table]:
    columns = {"dtype": rows["gemm_dtype"].map(DTYPES).to_numpy(), "n": rows["n"].to_numpy(), "k": rows["k"].to_numpy()}
    return _table("gemm", rows, origin, {**columns, "at": rows["m"].to_numpy()}, _GEMM_REUSE, notes)


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


def _prefill(place: _Place) -> _Found:
    read = place.table("attention", "context_attention")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("context_attention", version)
    _need(rows, _ATTENTION, origin)
    columns = {**_attention_columns(rows), "prior_tokens": rows["step"].to_numpy(), "at": rows["isl"].to_numpy()}
    return [_table("prefill_attention", rows, origin, columns)]


def _decode(place: _Place) -> _Found:
    read = place.table("attention", "generation_attention")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("generation_attention", version)
    _need(rows, _ATTENTION, origin)
    columns = {**_attention_columns(rows), "at": rows["step"].to_numpy() + 1}
    return [_table("decode_attention", rows, origin, columns, _DECODE_REUSE)]


def _kv_bytes(fields: dict[str, Any], context: Floats) -> Floats:
    seen = np.minimum(context, float(fields["window"])) if fields["window"] else context
    held: Floats = seen * float(fields["batch"]) * kv_bytes_per_token(fields)
    return held


_DECODE_REUSE = Reuse(_kv_bytes, lambda fields: 1, share=0.35)
"""What comes nearest to KV read inside a running vLLM (LLMServingSim's tables of the RTX PRO 6000): mean error
7 % and bias +1 %, against 15 % and -12 % with nothing dropped."""


def _moe(place: _Place) -> _Found:
    read = place.table("moe", "moe")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("moe", version)
    _need(rows, ("moe_dtype", *SHAPE, "num_tokens", "distribution"), origin)
    rows, notes = _known_dtypes(rows, "moe_dtype", "moe")
    rows, chosen = routed(rows)
    rows, mended = no_slower(rows)
    return [_expert_table("moe", rows, origin, (*notes, *chosen, *mended))]


def _expert_table(operator: str, rows: pd.DataFrame, origin: str, notes: tuple[str, ...]) -> tuple[str, _Table]:
    names = (
        "dtype",
        "hidden_size",
        "intermediate_size",
        "num_experts",
        "experts_per_token",
        "tp",
        "ep",
    )
    columns = {ours: rows[theirs].to_numpy() for ours, theirs in zip(names, ("moe_dtype", *SHAPE), strict=True)}
    columns |= {"dtype": rows["moe_dtype"].map(DTYPES).to_numpy(), "at": rows["num_tokens"].to_numpy()}
    return _table(operator, rows, origin, columns, None, notes)


@dataclass(frozen=True)
class _OtherExperts:
    """A table of experts in FP8 blocks by a kernel that the engine's newest table has not, or not for these shapes."""

    operator: str
    engine: str
    version: str
    kernel: str
    is_split_only: bool
    """Whether rows of whole experts on several GPUs are left out, since the newest table has the kernel there."""


OTHER_EXPERTS = {
    "9.0": _OtherExperts("moe_cutlass", "trtllm", "9999", "moe_torch_flow_cutlass", is_split_only=True),
    "10.0": _OtherExperts("moe_triton", "vllm", "0.19.0", "vllm_fused_moe", is_split_only=False),
}
"""By compute capability. FlashInfer packages TensorRT-LLM's CUTLASS kernel; vLLM 0.19.0's collector timed Triton's."""


def _other_experts(place: _Place) -> _Found:
    gpu = GPU_NAMES[place.gpu]
    other = OTHER_EXPERTS.get(device_of(gpu, gpu).compute_capability or "")
    if other is None or place.engine != "vllm":
        return []
    source = _Place(place.data, place.gpu, other.engine, other.version)
    read = source.table("moe", "moe")
    while read is not None and other.kernel not in set(read[0]["kernel_source"]):
        source = _Place(place.data, place.gpu, other.engine, _before(source, read[1]))
        read = source.table("moe", "moe")
    if read is None:
        return []
    rows, version = read
    origin = source.origin("moe", version)
    _need(rows, ("moe_dtype", *SHAPE, "num_tokens", "distribution"), origin)
    rows = rows[(rows["kernel_source"] == other.kernel) & (rows["moe_dtype"] == "fp8_block")]
    if other.is_split_only:
        rows = rows[rows["moe_ep_size"] == 1]
    if not len(rows):
        return []
    rows, chosen = routed(rows)
    return [_expert_table(other.operator, rows, origin, chosen)]


def _before(place: _Place, version: str) -> str:
    """The newest version of experts' tables that is older than ``version``; "" where there is none."""
    folder = place.data / place.gpu / "moe" / place.engine
    older = [each for each in _versions(folder, "moe") if _order(each) < _order(version)]
    return older[-1] if older else ""


def _custom_all_reduce(place: _Place) -> _Found:
    read = place.table("comm", "custom_allreduce")
    if read is None:
        return []
    rows, version = read
    origin = place.origin("custom_allreduce", version)
    _need(rows, ("num_gpus", "message_size", "backend"), origin)
    implementation = rows["backend"].map(lambda backend: "custom" if str(backend).endswith("graph") else "custom_eager")
    columns = {
        "implementation": implementation.to_numpy(),
        "num_gpus": rows["num_gpus"].to_numpy(),
        "at": rows["message_size"].to_numpy() * 2,
    }
    return [_table("all_reduce", rows, origin, columns)]


def _fused_all_reduce(place: _Place) -> _Found:
    """TensorRT-LLM's kernel, which FlashInfer packages and vLLM fuses with the norm that follows."""
    if device_of(GPU_NAMES[place.gpu], GPU_NAMES[place.gpu]).compute_capability not in FUSED_LIMITS:
        return []
    library = _Place(place.data, place.gpu, "trtllm", "9999")
    read = library.table("comm", "custom_allreduce")
    if read is None:
        return []
    rows, version = read
    origin = library.origin("custom_allreduce", version)
    _need(rows, ("num_gpus", "message_size"), origin)
    columns = {
        "implementation": np.full(len(rows), "trtllm", dtype=object),
        "num_gpus": rows["num_gpus"].to_numpy(),
        "at": rows["message_size"].to_numpy() * 2,
    }
    return [_table("all_reduce", rows, origin, columns)]


COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
"""Their name of a collective -> ours."""


def _nccl(place: _Place) -> _Found:
    library = _Place(place.data, place.gpu, "nccl", "9999")
    read = library.table("comm", "nccl")
    if read is None:
        return []
    rows, version = read
    origin = library.origin("nccl", version)
    _need(rows, ("nccl_dtype", "op_name", "num_gpus", "message_size"), origin)
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
            found.append(_table(ours, some, origin, columns))
    return found


def _place(gpu: str, engine: str, version: str | None, path: Path | None) -> _Place:
    data = _data_folder(path)
    engines = sorted({folder.name for folder in (data / gpu / "gemm").glob("*") if folder.is_dir()})
    if not engines:
        raise InputError(f"{data}: no tables of {gpu} there")
    if engine not in engines:
        raise InputError(f"--engine {engine}: {gpu} has tables of {', '.join(engines)}")
    versions = _versions(data / gpu / "gemm" / engine, "gemm")
    if version is None:
        version = versions[-1] if versions else ""
    elif version not in versions and (gpu, engine, version) not in KNOWN_BAD:
        raise InputError(f"--version {version}: {gpu} has GEMM tables of {engine} {', '.join(versions)}")
    for asked in (version, ""):
        wrong = KNOWN_BAD.get((gpu, engine, asked))
        if wrong is not None:
            raise InputError(f"{gpu}, {engine} {version} is refused: {wrong}; take another version or engine")
    return _Place(data, gpu, engine, version)


def _data_folder(path: Path | None) -> Path:
    if path is None:
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"{DISTRIBUTION} is not installed: `pip install {DISTRIBUTION}`, or `--path` to where it is unpacked"
            )
        path = Path(next(iter(spec.submodule_search_locations)))
    for inner in ("", "data", "systems/data", f"{PACKAGE}/systems/data"):
        if any((path / inner / gpu).is_dir() for gpu in GPU_NAMES):
            return path / inner
    raise InputError(f"{path}: no {DISTRIBUTION} there (looked for systems/data/<gpu>)")


def _versions(folder: Path, table: str) -> list[str]:
    """Versions that have a table, oldest first."""
    found = [path.parent.name for path in folder.glob(f"*/{table}_perf.parquet")]
    return sorted(found, key=_order)


def _order(version: str) -> tuple[tuple[int, ...], str]:
    """1.2.0rc5 before 1.2.0, numbers as numbers."""
    release = re.match(r"[0-9.]*", version)
    numbers = tuple(int(part) for part in release.group().split(".") if part) if release else ()
    rest = version[release.end() :] if release else version
    return numbers, rest or "~"


def _package_version(data: Path) -> str:
    """Of the package beside the data, from its metadata; "unknown" where there is none."""
    for folder in (data, *data.parents):
        for info in sorted(folder.glob(f"{PACKAGE}-*.dist-info")):
            return info.name.removeprefix(f"{PACKAGE}-").removesuffix(".dist-info")
        if folder.name == PACKAGE and folder.parent == folder:
            break
    return "unknown"
