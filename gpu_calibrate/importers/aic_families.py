"""What most models do not need, from AIConfigurator's tables: latent and sparse attention, states, 4 bits, exchange.

How they were measured, as far as it matters here:

- ``mla``, ``dsa``, ``msa`` ``_context_module`` and ``_generation_module``: one layer's attention with its projections,
  by heads of one GPU. A prompt of one token takes the decode's path and is left out.
- DSA's prompts were timed without a CUDA graph: up to some 1,024 tokens they all take the 1.5 ms of the host's
  launches. Its kernel takes each query as a decode, so that no prompt counts for longer than its tokens as decodes.
- Gated delta nets and Kimi delta attention: convolution and recurrence as separate kernels, added up here.
- Exchange: DeepEP's kernels over 8 GPUs of one node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_calibrate.importers.aic_experts import moe_table
from gpu_calibrate.importers.aic_tables import Found, Place, Table, make_table, need_layout
from gpu_calibrate.importers.aiconfigurator import gemm_table
from gpu_calibrate.importers.source_tables import Floats, Reuse
from sim.latency.profile.blocks import DSA, DSA_GLM5, MLA, MSA

if TYPE_CHECKING:
    import pandas as pd

MARLIN = "mxfp4_marlin"
ALSO_SGLANG = "w4a8_mxfp4_mxfp8"
"""Format of experts that vLLM's table has for DeepSeek-V4 alone; SGLang's has gpt-oss's, by the same kernel of
FlashInfer. Where both have a shape (gpt-oss under 16 bits), they differ by 2 % in the median."""
FOUR_BIT_GEMM = {"nvfp4": "nvfp4"}
FOUR_BIT_MOE = {"nvfp4": "nvfp4", "w4a16_mxfp4": "mxfp4", MARLIN: MARLIN, "w4a8_mxfp4_mxfp8": "mxfp4_mxfp8"}
"""Their names of number formats -> ours. Marlin's kernel has a name of its own (``_by_kernel``)."""
BLOCK_OF = {
    "DeepseekV3ForCausalLM": MLA,
    "DeepseekV32ForCausalLM": DSA,
    "GlmMoeDsaForCausalLM": DSA_GLM5,
    "MiniMaxM3ForCausalLM": MSA,
}
"""Architecture of the model that was measured -> ``sim.latency.profile.blocks``."""
WITHOUT_GRAPH = (DSA, DSA_GLM5)
"""Blocks whose prompts show the host."""
OTHER_ENGINE = "trtllm"
"""Whose decodes of the same block count where they are less. vLLM's collection has 40 to 45 us more a block than that
on H100, H200, B300 and GB200, whatever the batch (16 heads, one request on an H200: 91 us, of which 16 are attention's
kernel, which SGLang's and TensorRT-LLM's collections put at the same), and none (0 to 3 us) on the B200, whose chip is
GB200's: what launches, not what runs."""
MOST_LAUNCHES_NS = 45_000.0
"""Of a time that are taken off for it. With hundreds of requests, and KV in 8 bits, the two differ by more, which may
be their kernels."""
CONVOLUTION = "causal_conv1d"
V4_WIDTHS = (4096, 7168)
STATE_BYTES = 128 * 128 * 4
"""Of one head."""
WHOLE_DECODE = "fused_kda_decode"
"""Convolution and recurrence in one kernel."""

_MODULE = ("architecture", "kv_cache_dtype", "gemm_type", "num_heads", "batch_size", "isl", "step")
_STATE = ("phase", "batch_size", "seq_len", "num_k_heads", "num_v_heads")


def _modules(place: Place, family: str, table: str) -> Found:
    """``block_decode`` and ``block_prefill`` of one kind of attention."""
    found: Found = []
    decodes = _read(place, family, f"{table}_generation_module", _MODULE)
    if decodes is not None:
        rows, origin = decodes
        columns = _block_columns(rows) | {"at": rows["step"].to_numpy() + _tokens_after_step(rows)}
        found.append(make_table("block_decode", rows, origin, columns))
    prompts = _read(place, family, f"{table}_context_module", _MODULE)
    if prompts is not None:
        rows, origin = prompts
        rows = rows[(rows["step"] == 0) & (rows["isl"] > 1)]
        notes: tuple[str, ...] = ()
        if decodes is not None:
            rows, notes = _no_longer_than_decodes(rows, decodes[0])
        columns = _block_columns(rows) | {"at": rows["isl"].to_numpy()}
        found.append(make_table("block_prefill", rows, origin, columns, None, notes))
    return found


def _read(place: Place, family: str, table: str, layout: tuple[str, ...]) -> tuple[pd.DataFrame, str] | None:
    read = place.table(family, table)
    if read is None:
        return None
    rows, version = read
    origin = place.origin(table, version)
    need_layout(rows, layout, origin)
    return rows, origin


def _tokens_after_step(rows: pd.DataFrame) -> Floats:
    """1 where ``step`` counts the tokens before the new one (1, 3, 7, ...), 0 where it counts all (2, 4, 8, ...)."""
    return (rows["step"].to_numpy() % 2).astype(np.int64)


def _block_columns(rows: pd.DataFrame) -> dict[str, Floats]:
    return {
        "block": rows["architecture"].map(BLOCK_OF).to_numpy(),
        "dtype": rows["gemm_type"].to_numpy(),
        "kv_dtype": rows["kv_cache_dtype"].to_numpy(),
        "num_heads": rows["num_heads"].to_numpy(),
        "batch": rows["batch_size"].to_numpy(),
    }


def _no_longer_than_decodes(rows: pd.DataFrame, decodes: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Prompts of ``WITHOUT_GRAPH`` at the time of their tokens as decodes, where that is less."""
    is_eager = rows["architecture"].map(BLOCK_OF).isin(WITHOUT_GRAPH)
    if not bool(is_eager.any()):
        return rows, ()
    latency = rows["latency"].to_numpy(dtype=np.float64).copy()
    alike = ["architecture", "kv_cache_dtype", "gemm_type", "num_heads"]
    surfaces = {key: _decode_surface(group) for key, group in decodes.groupby(alike)}
    for key, group in rows[is_eager].groupby(alike):
        surface = surfaces.get(key)
        if surface is None:
            continue
        places = rows.index.get_indexer(group.index)
        for place, batch, isl in zip(places, group["batch_size"], group["isl"], strict=True):
            latency[place] = min(latency[place], surface(float(batch * isl), float(isl)))
    less = int((latency < rows["latency"].to_numpy()).sum())
    note = f"block_prefill: {less} prompts timed without a CUDA graph count as their tokens' decodes, which is less"
    return rows.assign(latency=latency), (note,)


def _decode_surface(rows: pd.DataFrame) -> Callable[[float, float], float]:
    """Decode times by batch and context, between measured ones in logarithms; endless beyond the largest batch."""
    medians = rows.groupby(["batch_size", "step"])["latency"].median().unstack("step")
    batches = np.log(medians.index.to_numpy(dtype=np.float64))

    def at(batch: float, context: float) -> float:
        if np.log(batch) > batches[-1]:
            return float("inf")
        of_batches = [_along(medians.iloc[i].dropna(), context) for i in range(len(batches))]
        return float(np.exp(np.interp(np.log(batch), batches, of_batches)))

    return at


def _along(times: pd.Series[float], context: float) -> float:
    places = np.log(times.index.to_numpy(dtype=np.float64))
    return float(np.interp(np.log(context), places, np.log(times.to_numpy(dtype=np.float64))))


def latent(place: Place) -> Found:
    """Multi-head latent attention; decodes at the lesser of vLLM's time and TensorRT-LLM's of the same block."""
    return [
        (name, _no_longer_than_other_engine(place, table) if name == "block_decode" else table)
        for name, table in _modules(place, "mla", "mla")
    ]


def _no_longer_than_other_engine(place: Place, table: Table) -> Table:
    read = _read(Place(place.data, place.gpu, OTHER_ENGINE, "9999"), "mla", "mla_generation_module", _MODULE)
    if read is None:
        return table
    rows, origin = read
    own = table.curves.frame
    other = _frame(_block_columns(rows) | {"at": rows["step"].to_numpy() + _tokens_after_step(rows)})
    other["least"] = rows["latency"].to_numpy(dtype=np.float64) * 1e6
    places = [name for name in own.columns if name != "time_ns"]
    least = own.merge(other.groupby(places, as_index=False)["least"].min(), on=places, how="left")["least"].to_numpy()
    measured = own["time_ns"].to_numpy()
    time_ns = np.fmin(measured, np.fmax(least, measured - MOST_LAUNCHES_NS))
    lessened = int((time_ns < 0.95 * measured).sum())
    note = f"block_decode: {lessened} of {len(own)} rows are over 5 % less, as {OTHER_ENGINE}'s are"
    return replace(
        table,
        curves=replace(table.curves, frame=own.assign(time_ns=time_ns)),
        origin=f"{table.origin}; {origin}",
        notes=(*table.notes, note),
    )


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    """Columns as a frame."""
    import pandas as pd

    return pd.DataFrame(columns)


def sparse(place: Place) -> Found:
    """Latent attention over chosen tokens, and MiniMax-M3's."""
    return [*_modules(place, "sparse_attention", "dsa"), *_modules(place, "msa", "msa")]


def state(place: Place) -> Found:
    """Gated delta nets, Kimi delta attention."""
    found: Found = []
    for name, family in (("gdn", "linear_attention"), ("kda", "kda")):
        read = _read(place, family, name, _STATE)
        if read is None:
            continue
        rows, origin = read
        for phase, operator in (("generation", "state_decode"), ("context", "state_prefill")):
            both = _added_up(rows[rows["phase"] == phase])
            key = {
                "state": np.full(len(both), name, dtype=object),
                "num_key_heads": both["num_k_heads"].to_numpy(),
                "num_heads": both["num_v_heads"].to_numpy(),
            }
            if operator == "state_decode":
                columns, reuse = key | {"at": both["batch_size"].to_numpy()}, _STATE_REUSE
            else:
                columns = key | {"batch": both["batch_size"].to_numpy(), "at": both["seq_len"].to_numpy()}
                reuse = None
            found.append(make_table(operator, both, origin, columns, reuse))
    return found


def _state_bytes(fields: dict[str, Any], requests: Floats) -> Floats:
    moved: Floats = requests * (2.0 * STATE_BYTES * float(fields["num_heads"]))
    return moved


_STATE_REUSE = Reuse(_state_bytes, lambda fields: 1, share=0.35)
"""One set of states was read and written again and again, as decode attention's KV was (``aiconfigurator``)."""


def _added_up(rows: pd.DataFrame) -> pd.DataFrame:
    """Convolution and recurrence together, or the kernel that does both where that is faster."""
    place = ["batch_size", "seq_len", "num_k_heads", "num_v_heads"]
    is_whole = rows["kernel_source"] == WHOLE_DECODE
    is_convolution = rows["kernel_source"].str.startswith(CONVOLUTION) & ~is_whole
    convolution = rows[is_convolution].groupby(place)["latency"].median()
    recurrence = rows[~is_convolution & ~is_whole].groupby(place)["latency"].median()
    whole = rows[is_whole].groupby(place)["latency"].median()
    both = (convolution + recurrence).dropna()
    best = both.where(~(whole.reindex(both.index) < both), whole.reindex(both.index))
    kernels = ", ".join(sorted(str(name) for name in rows["kernel_source"].unique()))
    return best.rename("latency").reset_index().assign(kernel_source=kernels)


def four_bit(place: Place) -> Found:
    """Matrices and experts in NVFP4 and MXFP4."""
    found: Found = []
    read = _read(place, "gemm", "gemm", ("gemm_dtype", "m", "n", "k"))
    if read is not None:
        rows, origin = read
        rows = rows[rows["gemm_dtype"].isin(list(FOUR_BIT_GEMM))]
        if len(rows):
            found.append(gemm_table(rows, origin, (), FOUR_BIT_GEMM))
    experts = moe_table(place, FOUR_BIT_MOE, _by_kernel)
    if experts is not None:
        found.append(experts)
        other = moe_table(Place(place.data, place.gpu, "sglang", "9999"), {ALSO_SGLANG: "mxfp4_mxfp8"}, _without_v4)
        found += [] if other is None else [other]
    return found


def _by_kernel(rows: pd.DataFrame) -> pd.DataFrame:
    """MXFP4 under 16 bits by Marlin's kernel as a format of its own: it is slower with many tokens."""
    is_marlin = (rows["moe_dtype"] == "w4a16_mxfp4") & rows["kernel_source"].str.contains("marlin")
    return rows.assign(moe_dtype=rows["moe_dtype"].where(~is_marlin, MARLIN))


def _without_v4(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the shapes that vLLM's own table has."""
    return rows[~rows["hidden_size"].isin(V4_WIDTHS)]


def exchange(place: Place) -> Found:
    """Tokens on their way to the GPUs of their experts and back."""
    layout = ("comm_backend", "phase", "hidden_size", "topk", "ep_size", "node_num", "num_tokens")
    read = _read(place, "comm", "moe_a2a", layout)
    if read is None:
        return []
    rows, origin = read
    rows = rows[rows["node_num"] == 1]
    rows = rows.assign(latency=rows["latency"] / 1e3)  # microseconds in this table alone
    columns = {
        "implementation": rows["comm_backend"].to_numpy(),
        "direction": rows["phase"].to_numpy(),
        "hidden_size": rows["hidden_size"].to_numpy(),
        "experts_per_token": rows["topk"].to_numpy(),
        "num_gpus": rows["ep_size"].to_numpy(),
        "at": rows["num_tokens"].to_numpy(),
    }
    return [make_table("expert_exchange", rows, origin, columns)]


def vision(place: Place) -> Found:
    """Attention of vision towers."""
    read = _read(place, "encoder_attention", "encoder_attention", ("batch_size", "isl", "num_heads", "head_dim"))
    if read is None:
        return []
    rows, origin = read
    columns = {
        "num_heads": rows["num_heads"].to_numpy(),
        "head_size": rows["head_dim"].to_numpy(),
        "batch": rows["batch_size"].to_numpy(),
        "at": rows["isl"].to_numpy(),
    }
    return [make_table("encoder_attention", rows, origin, columns)]


READERS: dict[str, Callable[[Place], Found]] = {
    "latent": latent,
    "sparse": sparse,
    "state": state,
    "four_bit": four_bit,
    "exchange": exchange,
    "vision": vision,
}
"""By family (``sim.latency.profile.layout.FAMILIES``)."""
