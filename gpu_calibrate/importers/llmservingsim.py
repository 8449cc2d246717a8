"""Operator tables in LLMServingSim's layout (casys-kaist/LLMServingSim, MIT), which a user has.

Two forms: as its profiler writes them (``<hardware>/<model>/<variant>/tp<N>/dense.csv``, ``attention.csv``,
``per_sequence.csv``, ``moe.csv``) and joined (``v1_dense.parquet`` and so on, with columns ``gpu``, ``model``, ``tp``).
Microseconds of kernels inside a running vLLM of one layer, launched eagerly, each tensor-parallel degree measured on
one GPU with the model's shapes divided (``hf_overrides`` in ``meta.yaml``). Weights and KV are read cold, as in an
engine. Attention is one launch for a mixed batch: one chunk after ``kv_prefill`` tokens, and ``n_decode`` requests of
``kv_decode`` each. Tables of unequal decodes (``skew``) are not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpu_calibrate.importers.devices import resolve_gpu
from gpu_calibrate.importers.frames import Gathered, find_tables, model_of, need_columns, read_table
from sim.latency.model_spec import ModelSpec
from sim.latency.profile.file import Profile, Source

if TYPE_CHECKING:
    import pandas as pd

GPU_NAMES = {"RTXPRO6000": "rtx-pro-6000", "RTX4090": "rtx-4090"}
DTYPE = "bfloat16"
VARIANT = "bf16"
US = 1e3
KERNELS = {
    "gemm": "vLLM's linear layers (cuBLAS)",
    "decode_attention": "vLLM's attention, FlashAttention-2",
    "prefill_attention": "vLLM's attention, FlashAttention-2",
    "mixed_attention": "vLLM's attention, FlashAttention-2",
    "moe": "vLLM's fused experts",
    "elementwise": "vLLM's kernels",
    "sampling": "vLLM's sampler",
}


def import_llmservingsim(gpu: str, *, path: Path | None, name: str | None = None, command: str = "") -> Profile:
    """The profile of a GPU from a folder of LLMServingSim's tables, or one of them. Raises InputError."""
    preset, own = resolve_gpu(gpu, GPU_NAMES, "llmservingsim")
    gathered = Gathered()
    left_out: set[str] = set()
    for file in find_tables(path, ("dense", "attention", "per_sequence", "moe"), "llmservingsim"):
        read = next((READERS[word] for word in READERS if word in file.name), None)
        if read is None or "linear_attention" in file.name:
            continue
        for model_name, tp, rows in _parts(read_table(file), file, own):
            model = model_of(model_name)
            if model is None:
                left_out.add(model_name)
            else:
                read(rows, file, model, tp, gathered)
    if left_out:
        gathered.notes.append(f"models that are no preset are left out: {', '.join(sorted(left_out))}")
    version = _vllm_version(path)
    source = Source(
        kind="imported",
        tool="gpu-calibrate import",
        command=command or f"gpu-calibrate import --from llmservingsim --gpu {own}",
        origin=f"tables in LLMServingSim's layout, {own}, vLLM {version}; LLMServingSim's own are MIT",
    )
    return gathered.profile(preset, own, KERNELS, source, {"vllm": version}, name or preset)


def _vllm_version(path: Path | None) -> str:
    """As the ``meta`` files beside the tables give it; several are told all."""
    metas = sorted(path.rglob("meta*.yaml")) if path is not None and path.is_dir() else []
    found = {match.group(1) for meta in metas for match in re.finditer(r"(?m)^vllm_version: *(\S+)", meta.read_text())}
    return ", ".join(sorted(found)) or "not stated"


def _parts(rows: pd.DataFrame, file: Path, own: str) -> list[tuple[str, int, pd.DataFrame]]:
    """(model, tensor-parallel degree, rows) of one GPU: by columns, else by folders."""
    if "gpu" in rows:
        need_columns(rows, ("model", "tp"), file)
        groups = rows[rows["gpu"] == own].groupby(["model", "tp"])
        return [(str(model), int(str(tp)), some) for (model, tp), some in groups]
    match = re.search(r"/([^/]+)/([^/]+(?:/[^/]+)?)/([^/]+)/tp(\d+)/[^/]+$", file.as_posix())
    if match is None or own not in file.parts or match.group(3) != VARIANT:
        return []
    return [(match.group(2), int(match.group(4)), rows)]


def _dense(rows: pd.DataFrame, file: Path, model: ModelSpec, tp: int, gathered: Gathered) -> None:
    need_columns(rows, ("layer", "tokens", "time_us"), file)
    q, kv, inner = model.q_size // tp, max(model.head_size, model.kv_size // tp), model.intermediate_size // tp
    gemms = {
        "qkv_proj": (q + 2 * kv, model.hidden_size),
        "o_proj": (model.hidden_size, q),
        "gate_up_proj": (2 * inner, model.hidden_size),
        "down_proj": (model.hidden_size, inner),
    }
    elementwise = {
        "layernorm": ("rms_norm", model.hidden_size),
        "qk_norm": ("qk_norm", q + kv),
        "rotary_emb": ("rotary", q + kv),
        "act_fn": ("silu_and_mul", inner),
        "embedding": ("embedding", model.hidden_size),
    }
    for layer, some in rows.groupby("layer"):
        if layer in gemms:
            n, k = gemms[str(layer)]
            gathered.add("gemm", {"dtype": DTYPE, "n": n, "k": k}, some["tokens"], some["time_us"] * US)
        elif layer in elementwise:
            name, width = elementwise[str(layer)]
            gathered.add("elementwise", {"name": name, "width": width}, some["tokens"], some["time_us"] * US)


def _per_sequence(rows: pd.DataFrame, file: Path, model: ModelSpec, tp: int, gathered: Gathered) -> None:
    need_columns(rows, ("layer", "sequences", "time_us"), file)
    head = rows[rows["layer"] == "lm_head"]
    key = {"dtype": DTYPE, "n": model.vocab_size // tp, "k": model.hidden_size}
    gathered.add("gemm", key, head["sequences"], head["time_us"] * US)
    sampler = rows[rows["layer"] == "sampler"]
    # The sampler sees gathered logits; degrees above 1 were timed over a share of the vocabulary, or copied.
    if tp == 1:
        gathered.add("sampling", {"vocab_size": model.vocab_size}, sampler["sequences"], sampler["time_us"] * US)


def _attention(rows: pd.DataFrame, file: Path, model: ModelSpec, tp: int, gathered: Gathered) -> None:
    need_columns(rows, ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"), file)
    heads = {
        "dtype": DTYPE,
        "kv_dtype": DTYPE,
        "num_heads": model.num_attention_heads // tp,
        "num_kv_heads": max(1, model.num_kv_heads // tp),
        "head_size": model.head_size,
        "window": 0,
    }
    decode = rows[(rows["prefill_chunk"] == 0) & (rows["n_decode"] > 0) & (rows["kv_decode"] > 0)]
    gathered.add(
        "decode_attention", {**heads, "batch": decode["n_decode"]}, decode["kv_decode"], decode["time_us"] * US
    )
    prefill = rows[(rows["prefill_chunk"] > 0) & (rows["n_decode"] == 0)]
    key = {**heads, "batch": 1, "prior_tokens": prefill["kv_prefill"]}
    gathered.add("prefill_attention", key, prefill["prefill_chunk"], prefill["time_us"] * US)
    mixed = rows[(rows["prefill_chunk"] > 0) & (rows["n_decode"] > 0) & (rows["kv_decode"] > 0)]
    key = {
        **heads,
        "chunk_tokens": mixed["prefill_chunk"],
        "prior_tokens": mixed["kv_prefill"],
        "num_decodes": mixed["n_decode"],
    }
    gathered.add("mixed_attention", key, mixed["kv_decode"], mixed["time_us"] * US)


def _moe(rows: pd.DataFrame, file: Path, model: ModelSpec, tp: int, gathered: Gathered) -> None:
    """Times by how many experts the tokens touched: taken at what even random routing touches in the mean."""
    need_columns(rows, ("tokens", "activated_experts", "time_us"), file)
    if not model.num_experts:
        return
    tokens, times = [], []
    for count, some in rows.groupby("tokens"):
        chosen = model.experts_per_token / model.num_experts
        touched = model.num_experts * (1.0 - (1.0 - chosen) ** float(str(count)))
        some = some.sort_values("activated_experts")
        experts = np.log(some["activated_experts"].to_numpy(dtype=np.float64))
        time = np.exp(np.interp(np.log(touched), experts, np.log(some["time_us"].to_numpy(dtype=np.float64))))
        tokens.append(int(str(count)))
        times.append(float(time) * US)
    import pandas as pd

    key = {
        "dtype": DTYPE,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.moe_intermediate_size,
        "num_experts": model.num_experts,
        "experts_per_token": model.experts_per_token,
        "tp": tp,
        "ep": 1,
    }
    gathered.add("moe", key, pd.Series(tokens), pd.Series(times))


READERS = {"dense": _dense, "per_sequence": _per_sequence, "attention": _attention, "moe": _moe}
"""By a word of the file's name."""
