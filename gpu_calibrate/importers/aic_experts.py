"""Tables of routed experts from ``aiconfigurator-core``: the newest, and those of kernels that it has not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_calibrate.importers.aic_tables import GPU_NAMES, Found, Place, Table, make_table, need_layout, order, versions
from gpu_calibrate.importers.devices import device_of
from gpu_calibrate.importers.expert_tables import SHAPE, no_slower, routed

if TYPE_CHECKING:
    import pandas as pd

DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "fp8": "fp8", "fp8_block": "fp8_block", "int4_wo": "int4"}
"""Their names of number formats -> ours. Others (nvfp4, mxfp4: ``aic_families``) are left out and counted."""


def known_dtypes(
    rows: pd.DataFrame, column: str, table: str, dtypes: Mapping[str, str] = DTYPES
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows in number formats that a profile has names for, and what to say of the others."""
    known = rows[column].isin(list(dtypes))
    if bool(known.all()):
        return rows, ()
    others = ", ".join(sorted(str(name) for name in rows[column][~known].unique()))
    return rows[known], (f"{table}: {int((~known).sum())} rows in other number formats left out ({others})",)


def moe_table(
    place: Place, dtypes: Mapping[str, str], choose: Callable[[pd.DataFrame], pd.DataFrame] | None = None
) -> tuple[str, Table] | None:
    """Experts in the number formats of ``dtypes``, after ``choose``; None where there are none."""
    read = place.table("moe", "moe")
    if read is None:
        return None
    rows, version = read
    origin = place.origin("moe", version)
    need_layout(rows, ("moe_dtype", *SHAPE, "num_tokens", "distribution"), origin)
    if choose is not None:
        rows = choose(rows)
    rows, notes = known_dtypes(rows, "moe_dtype", "moe", dtypes)
    if not len(rows):
        return None
    rows, chosen = routed(rows)
    rows, mended = no_slower(rows)
    return expert_table("moe", rows, origin, (*notes, *chosen, *mended), dtypes)


def expert_table(
    operator: str, rows: pd.DataFrame, origin: str, notes: tuple[str, ...], dtypes: Mapping[str, str]
) -> tuple[str, Table]:
    """Rows of experts as curves of ``operator``."""
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
    columns |= {"dtype": rows["moe_dtype"].map(dict(dtypes)).to_numpy(), "at": rows["num_tokens"].to_numpy()}
    return make_table(operator, rows, origin, columns, None, notes)


@dataclass(frozen=True)
class OtherExperts:
    """A table of experts in FP8 blocks by a kernel that the engine's newest table has not, or not for these shapes."""

    operator: str
    engine: str
    version: str
    kernel: str
    is_split_only: bool
    """Whether rows of whole experts on several GPUs are left out, since the newest table has the kernel there."""


OTHER_EXPERTS = {
    "9.0": OtherExperts("moe_cutlass", "trtllm", "9999", "moe_torch_flow_cutlass", is_split_only=True),
    "10.0": OtherExperts("moe_triton", "vllm", "0.19.0", "vllm_fused_moe", is_split_only=False),
}
"""By compute capability. FlashInfer packages TensorRT-LLM's CUTLASS kernel; vLLM 0.19.0's collector timed Triton's."""


def other_experts(place: Place) -> Found:
    """Experts in FP8 blocks by kernels beside the newest table's."""
    gpu = GPU_NAMES[place.gpu]
    other = OTHER_EXPERTS.get(device_of(gpu, gpu).compute_capability or "")
    if other is None or place.engine != "vllm":
        return []
    source = Place(place.data, place.gpu, other.engine, other.version)
    read = source.table("moe", "moe")
    while read is not None and other.kernel not in set(read[0]["kernel_source"]):
        source = Place(place.data, place.gpu, other.engine, _before(source, read[1]))
        read = source.table("moe", "moe")
    if read is None:
        return []
    rows, version = read
    origin = source.origin("moe", version)
    need_layout(rows, ("moe_dtype", *SHAPE, "num_tokens", "distribution"), origin)
    rows = rows[(rows["kernel_source"] == other.kernel) & (rows["moe_dtype"] == "fp8_block")]
    if other.is_split_only:
        rows = rows[rows["moe_ep_size"] == 1]
    if not len(rows):
        return []
    rows, chosen = routed(rows)
    return [expert_table(other.operator, rows, origin, chosen, DTYPES)]


def _before(place: Place, version: str) -> str:
    """The newest version of experts' tables that is older than ``version``; "" where there is none."""
    folder = place.data / place.gpu / "moe" / place.engine
    older = [each for each in versions(folder, "moe") if order(each) < order(version)]
    return older[-1] if older else ""
