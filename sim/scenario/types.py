"""The value types of the scenario format: numbers with bounds, strict about what they take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LARGEST = 10**9
"""Bound of every count, token number, rate and time in seconds: integer nanoseconds then never overflow."""


def _whole(value: Any) -> Any:
    """``1e4`` is a whole number; ``10.5``, ``true`` and ``"10"`` are not."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
Int = Annotated[int, Field(strict=True, ge=-LARGEST, le=LARGEST), Whole]
PositiveInt = Annotated[int, Field(strict=True, gt=0, le=LARGEST), Whole]
NumOutputs = Annotated[int, Field(strict=True, gt=0, le=16384), Whole]
Bytes = Annotated[int, Field(strict=True, gt=0, le=10**13), Whole]
Replicas = Annotated[int, Field(strict=True, gt=0, le=100_000), Whole]
"""Each has a scheduler of its own in memory."""
NonNegativeInt = Annotated[int, Field(strict=True, ge=0, le=LARGEST), Whole]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63), Whole]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, le=LARGEST, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0, le=LARGEST, allow_inf_nan=False)]
SpellSeconds = Annotated[float, Field(strict=True, ge=0.001, le=LARGEST, allow_inf_nan=False)]
"""Seconds, a thousandth at least: each spell is an event of the run."""
Figure = Annotated[float, Field(strict=True, ge=0.001, le=LARGEST, allow_inf_nan=False)]
"""Of a datasheet, in its usual units: times that follow stay within 64 bits."""
Fraction = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Ratio = Annotated[float, Field(strict=True, ge=1, le=LARGEST, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
All2AllBackend = Literal[
    "allgather_reducescatter",
    "deepep_high_throughput",
    "deepep_low_latency",
    "deepep_v2",
    "flashinfer_all2allv",
    "flashinfer_nvlink_one_sided",
    "flashinfer_nvlink_two_sided",
    "moonep",
    "mori_high_throughput",
    "mori_low_latency",
    "naive",
    "nixl_ep",
    "passthrough",
    "pplx",
]
"""vLLM's names (``vllm/config/parallel.py``)."""


class Strict(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)


def name_or_section(value: Any) -> str:
    """Which of the two a value is that may be either; the discriminator of such unions."""
    return "section" if isinstance(value, dict | BaseModel) else "name"
