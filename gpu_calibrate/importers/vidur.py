"""Operator tables in Vidur's layout (microsoft/vidur, MIT), which a user has: ``mlp`` and all-reduce CSVs.

Two forms: as in its repository (``data/profiling/compute/<gpu>/<model>/mlp.csv``, columns
``time_stats.<op>.median``) and joined (columns ``gpu``, ``tp``, ``<op>_ms``). Milliseconds of one layer on one
GPU of a tensor-parallel group, in steps of 1 us. The kernels are Sarathi-Serve's: addition and norm are two, and the
activation takes twice what its bytes need, so no built-in profile has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpu_calibrate.importers.devices import resolve_gpu
from gpu_calibrate.importers.frames import Gathered, find_tables, need_columns, read_table
from sim.latency.profile.file import Profile, Source

if TYPE_CHECKING:
    import pandas as pd

GPU_NAMES = {"a100": "a100-80gb-sxm", "h100": "h100-sxm"}
NETWORKS = {"a100": "a100_dgx", "h100": "h100_dgx"}
"""GPU -> the network whose collectives are taken: all GPUs of a node on NVLink."""

KERNELS = {
    "gemm": "torch linear (Sarathi-Serve)",
    "elementwise": "Sarathi-Serve's kernels",
    "all_reduce": "NCCL",
}
SHAPE = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "use_gated_mlp", "num_tokens")
LAYERS = ("input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "mlp_up_proj", "mlp_act", "mlp_down_proj")
MS = 1e6


def import_vidur(gpu: str, *, path: Path | None, name: str | None = None, command: str = "") -> Profile:
    """The profile of a GPU from a folder of Vidur's tables, or one of them. Raises InputError."""
    preset, own = resolve_gpu(gpu, GPU_NAMES, "vidur")
    gathered = Gathered()
    for file in find_tables(path, ("mlp", "all_reduce", "network"), "vidur"):
        rows = read_table(file)
        if "num_tokens" in rows:
            _layers(_of_gpu(rows, file, own), file, gathered)
        else:
            _collectives(rows, file, own, gathered)
    source = Source(
        kind="imported",
        tool="gpu-calibrate import",
        command=command or f"gpu-calibrate import --from vidur --gpu {own}",
        origin=f"tables in Vidur's layout ({path.name if path else ''}), {own}; Vidur's own are MIT",
    )
    return gathered.profile(preset, own, KERNELS, source, {}, name or preset)


def _of_gpu(rows: pd.DataFrame, file: Path, own: str) -> pd.DataFrame:
    """Rows of one GPU: by the column, else by the folder, else all."""
    if "gpu" in rows:
        return rows[rows["gpu"] == own]
    folders = {part.lower() for part in file.parts}
    return rows[:0] if folders & {"a100", "h100", "a40", "v100"} - {own} else rows


def _layers(rows: pd.DataFrame, file: Path, gathered: Gathered) -> None:
    if rows.empty:
        return
    joined = "input_layernorm_ms" in rows
    form = "{}_ms" if joined else "time_stats.{}.median"
    degree = "tp" if joined else "num_tensor_parallel_workers"
    need_columns(rows, (*SHAPE, degree, *(form.format(layer) for layer in (*LAYERS, "add"))), file)
    columns = [*SHAPE[:-1], degree]
    for group, some in rows.astype({"use_gated_mlp": int}).groupby(columns):
        _one_shape(some, tuple(int(str(part)) for part in group), form, gathered)


def _one_shape(rows: pd.DataFrame, shape: tuple[int, ...], form: str, gathered: Gathered) -> None:
    heads, kv_heads, hidden, inner, gated, tp = shape
    head_size = hidden // heads
    kv_width = max(1, kv_heads // tp) * head_size
    q_width = heads // tp * head_size
    tokens = rows["num_tokens"]

    def time_ns(layer: str) -> pd.Series[float]:
        return rows[form.format(layer)] * MS

    gemms = {
        "attn_pre_proj": (q_width + 2 * kv_width, hidden),
        "attn_post_proj": (hidden, q_width),
        "mlp_up_proj": ((2 if gated else 1) * inner // tp, hidden),
        "mlp_down_proj": (hidden, inner // tp),
    }
    for layer, (n, k) in gemms.items():
        gathered.add("gemm", {"dtype": "float16", "n": n, "k": k}, tokens, time_ns(layer))
    # Ours is with the residual: their norm and their addition.
    norm = time_ns("input_layernorm") + time_ns("add")
    gathered.add("elementwise", {"name": "rms_norm", "width": hidden}, tokens, norm)
    gathered.add("elementwise", {"name": "rotary", "width": q_width + kv_width}, tokens, time_ns("attn_rope"))
    if gated:
        gathered.add("elementwise", {"name": "silu_and_mul", "width": inner // tp}, tokens, time_ns("mlp_act"))


def _collectives(rows: pd.DataFrame, file: Path, own: str, gathered: Gathered) -> None:
    """All-reduces within a node; ``size`` is in bytes."""
    joined = "median_ms" in rows
    time = "median_ms" if joined else "time_stats.all_reduce.median"
    need_columns(rows, ("collective", "num_workers", "devices_per_node", "size", time), file)
    rows = rows[(rows["collective"] == "all_reduce") & (rows["num_workers"] == rows["devices_per_node"])]
    if joined:
        rows = rows[rows["network"] == NETWORKS[own]] if "network" in rows else rows
    elif NETWORKS[own] not in file.parts and any(
        "_" in part and part.split("_")[0] in GPU_NAMES for part in file.parts
    ):
        return
    rows = rows[rows["num_workers"] > 1]
    if len(rows):
        key = {"implementation": "nccl", "num_gpus": rows["num_workers"]}
        gathered.add("all_reduce", key, rows["size"], rows[time] * MS)
