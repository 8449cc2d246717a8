"""Which ranks hold the experts of a layer and exchange tokens for them: data and expert parallelism of MoE models.

vLLM 0.32.0: ``FusedMoEParallelConfig.make`` (``model_executor/layers/fused_moe/config.py``) spreads the experts over
data_parallel_size * tensor_parallel_size GPUs, whole ones with ``enable_expert_parallel``, else a share of each.
``AgRsAll2AllManager`` (``distributed/device_communicators/all2all.py``) moves the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from sim.errors import Problem
from sim.latency.model_spec import ModelSpec
from sim.latency.precision import Precision

if TYPE_CHECKING:
    from sim.scenario.schema import EngineSection

AG_RS = "allgather_reducescatter"
DEEPEP_HT = "deepep_high_throughput"

_NO_TABLE = "no table holds the times of its kernels"
WHY_NO_BACKEND: Mapping[str, str] = MappingProxyType(
    {
        "naive": "vLLM has removed it and takes allgather_reducescatter in its place",
        "pplx": "vLLM has removed it and takes allgather_reducescatter in its place",
        "deepep_low_latency": f"{_NO_TABLE}, and its fixed buffers per expert are not modelled",
        "deepep_v2": _NO_TABLE,
        "mori_high_throughput": f"{_NO_TABLE}; it is for AMD's GPUs",
        "mori_low_latency": f"{_NO_TABLE}; it is for AMD's GPUs",
        "moonep": f"{_NO_TABLE}, and it makes experts redundant as it goes",
        "nixl_ep": f"{_NO_TABLE}, and its fixed buffers per expert are not modelled",
        "flashinfer_all2allv": _NO_TABLE,
        "flashinfer_nvlink_two_sided": _NO_TABLE,
        "flashinfer_nvlink_one_sided": _NO_TABLE,
        "passthrough": "vLLM takes it by itself where experts exchange tokens in their own kernel, not by this setting",
    }
)
"""vLLM's other values of ``all2all_backend``, and why none of them can be costed."""


@dataclass(frozen=True, slots=True)
class ExpertGroup:
    """The GPUs that hold the experts of one layer between them, and how tokens get there."""

    dp: int
    """Ranks that step together: ``data_parallel_size`` of an MoE model, else 1."""
    tp: int
    is_whole: bool
    """Whole experts on each GPU (``enable_expert_parallel``), in place of a share of every expert."""
    backend: str = AG_RS
    imbalance: float | None = None
    """Tokens on the busiest GPU over the mean; None = as the tables were measured, or even."""

    @classmethod
    def of(cls, engine: EngineSection, model: ModelSpec, imbalance: float | None = None) -> ExpertGroup:
        """The group of ``engine``; ranks of a dense model have nothing to do with each other."""
        dp, tp = (engine.data_parallel_size if model.num_experts else 1), engine.tensor_parallel_size
        is_whole = bool(engine.enable_expert_parallel and model.num_experts and dp * tp > 1)
        backend = engine.all2all_backend if is_whole and dp > 1 else AG_RS
        return cls(dp, tp, is_whole, backend, imbalance if is_whole else None)

    @property
    def num_gpus(self) -> int:
        """GPUs that hold experts."""
        return self.dp * self.tp

    @property
    def ep(self) -> int:
        """Expert parallel size; 1 = every expert is split."""
        return self.num_gpus if self.is_whole else 1

    @property
    def split(self) -> tuple[int, int]:
        """(tp, ep) of the experts, as the profiles' tables name it."""
        return (1, self.num_gpus) if self.is_whole else (self.num_gpus, 1)

    @property
    def is_lockstep(self) -> bool:
        """Whether ranks exchange tokens in every MoE layer, so that they have to step together."""
        return self.dp > 1

    @property
    def is_sequence_parallel(self) -> bool:
        """Whether each GPU of a rank hands over its own share of the rank's tokens, not all of them
        (``ParallelConfig.use_sequence_parallel_moe``)."""
        return self.is_whole and self.tp > 1 and self.dp > 1

    @property
    def exchange_gpus(self) -> int:
        """GPUs between which one collective moves tokens: all, or one of each rank (the DP group)."""
        return self.num_gpus if self.is_sequence_parallel else self.dp

    @property
    def is_eager(self) -> bool:
        """Whether vLLM runs without CUDA graphs because of the exchange (``CompilationConfig``: DeepEP's
        high-throughput kernels cannot be captured)."""
        return self.is_lockstep and self.backend == DEEPEP_HT

    def destinations(self, experts_per_token: int) -> float:
        """GPUs that a token's experts are on, in the mean, if it chooses them evenly at random."""
        return self.num_gpus * (1.0 - (1.0 - 1.0 / self.num_gpus) ** experts_per_token)


ALONE = ExpertGroup(1, 1, False)
"""One GPU."""


def dispatch_bytes(model: ModelSpec, precision: Precision) -> float:
    """Bytes of one token on its way to the experts: its hidden state (quantised first where experts multiply in 8 bits,
    ``naive_dp_ep.py``; a scale per 128 elements), and the numbers and weights of its experts."""
    is_small = precision.weights in ("fp8", "fp8_block", "int8")
    each = 1.0 + 4.0 / 128.0 if is_small else float(precision.activation_bytes)
    return model.hidden_size * each + 8.0 * model.experts_per_token


def expert_problems(engine: EngineSection, model: ModelSpec) -> list[Problem]:
    """What cannot be about the spread of experts over ``data_parallel_size`` ranks; empty when nothing."""
    group = ExpertGroup.of(engine, model)
    if not group.is_lockstep:
        return []
    where, gpus = "engine.data_parallel_size", f"{group.dp} ranks of {group.tp} GPU{'s' * (group.tp > 1)}"
    if group.is_whole and model.num_experts % group.num_gpus:
        return [Problem(f"{where}: {gpus} do not divide the {model.num_experts} experts of {model.name}")]
    if not group.is_whole and model.moe_intermediate_size % group.num_gpus:
        return [
            Problem(
                f"{where}: without enable_expert_parallel every expert is split over all GPUs, and {gpus} do not "
                f"divide its width {model.moe_intermediate_size} in {model.name}"
            )
        ]
    return []
