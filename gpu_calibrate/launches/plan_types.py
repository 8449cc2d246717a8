"""What a plan is made of, and the checks that all planners share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_calibrate.launches.kernels import BLOCK_SIZES, DTYPES, HEAD_SIZES, KV_DTYPES, KernelError

HEADS_PER_TILE = 8
"""Query heads that one matrix instruction serves at once (its N): a KV head with more is read once per 8 of them."""
WARP = 32

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "fp8": 1, "float32": 4, "int32": 4, "int64": 8}

Scalar = np.int32 | np.int64 | np.float32


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array of a launch, in C order.

    ``dtype``: ``float16``, ``bfloat16`` (as bits, uint16), ``fp8`` (bits, uint8), ``float32``, ``int32`` or ``int64``.
    ``values`` holds what integers must be; floating inputs are random, ``output`` and ``scratch`` need no content,
    a ``counter`` must be 0 before the first launch and is left so.
    """

    shape: tuple[int, ...]
    dtype: str
    role: str
    values: NDArray[Any] | None = None

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One kernel launch: ``args`` are names of arrays or NumPy scalars, in the order of the kernel's parameters."""

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    args: tuple[str | Scalar, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is needed to run one operation."""

    op: str
    shape: Mapping[str, Any]
    file: str
    """The kernel file, a key of ``kernels.FILES``."""
    defines: Mapping[str, int]
    arrays: Mapping[str, ArraySpec]
    calls: tuple[KernelCall, ...]
    bytes_moved: int
    """Bytes that any implementation must move: every input read once, every output written once."""
    flops: int
    """A multiply-add counted as two; exponentials and conversions are not counted."""
    details: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention layout of a model on one GPU."""

    num_q_heads: int
    num_kv_heads: int
    head_size: int
    dtype: str = "bfloat16"
    kv_dtype: str = "auto"
    block_size: int = 16

    def __post_init__(self) -> None:
        one_of("head_size", self.head_size, HEAD_SIZES)
        one_of("block_size", self.block_size, BLOCK_SIZES)
        one_of("dtype", self.dtype, DTYPES)
        one_of("kv_dtype", self.kv_dtype, KV_DTYPES)
        if self.num_kv_heads < 1 or self.num_q_heads < 1 or self.num_q_heads % self.num_kv_heads:
            raise KernelError(
                f"num_q_heads {self.num_q_heads} is no multiple of num_kv_heads {self.num_kv_heads}: "
                "every KV head serves the same number of query heads"
            )

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def head_tiles(self) -> int:
        return -(-self.group // HEADS_PER_TILE)

    @property
    def cache_dtype(self) -> str:
        return "fp8" if self.kv_dtype == "fp8" else self.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_kv_heads * self.head_size * ITEM_BYTES[self.cache_dtype]

    def defines(self) -> dict[str, int]:
        return {
            "HEAD_SIZE": self.head_size,
            "BLOCK_SIZE": self.block_size,
            "DTYPE_BF16": int(self.dtype == "bfloat16"),
            "KV_FP8": int(self.kv_dtype == "fp8"),
        }


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise KernelError(f"{name} {value!r} is not supported: choose one of {', '.join(map(str, allowed))}")


def positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise KernelError(f"{name} must be at least 1, is {value}")
