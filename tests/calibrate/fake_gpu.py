"""Stand-ins for torch and CuPy, for the code that otherwise only runs on a GPU.

``FakeCuda`` has streams, events and graphs over a clock of its own: what is enqueued moves it, what is captured is kept
and moves it at every replay. ``FakeTorch`` has tensors of shapes and dtypes without data, and refuses what the real one
would refuse. ``fake_cupy`` is NumPy with CuPy's names.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

LAUNCH_NS = 9000.0
"""On top of a kernel that is launched without a graph."""


class FakeNvtx:
    """``torch.cuda.nvtx``: ranges that are open, and all that were."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.seen: list[str] = []

    def range_push(self, name: str) -> int:
        self.open.append(name)
        self.seen.append(name)
        return len(self.open)

    def range_pop(self) -> int:
        self.open.pop()
        return len(self.open)


class FakeCuda:
    """``torch.cuda`` on a clock in nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = 0.0
        self.capturing: list[float] | None = None
        self.graphs = 0
        self.synchronised = 0
        self.used_bytes = 1 << 30
        self.broken = False
        self.nvtx = FakeNvtx()
        outer = self

        class Stream:
            cuda_stream = 1234

            def synchronize(self) -> None:
                outer.synchronize()

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.timing, self.at_ns = enable_timing, None

            def record(self) -> None:
                outer.check()
                self.at_ns = outer.now_ns

            def synchronize(self) -> None:
                outer.check()

            def elapsed_time(self, end: Any) -> float:
                if not (self.timing and end.timing) or self.at_ns is None or end.at_ns is None:
                    raise RuntimeError("event was not recorded with timing")
                return (end.at_ns - self.at_ns) / 1e6

        class CUDAGraph:
            def __init__(self) -> None:
                self.kept: list[float] | None = None

            def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
                if outer.capturing is not None:
                    raise RuntimeError("already capturing")
                outer.capturing = []

            def capture_end(self) -> None:
                if outer.capturing is None:
                    raise RuntimeError("not capturing")
                self.kept, outer.capturing = outer.capturing, None
                outer.graphs += 1

            def replay(self) -> None:
                outer.check()
                if self.kept is None:
                    raise RuntimeError("replay of a graph that was not captured, or was reset")
                outer.now_ns += sum(self.kept)

            def reset(self) -> None:
                self.kept = None

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, CUDAGraph

    def check(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def enqueue(self, ns: float) -> None:
        """One kernel."""
        self.check()
        if self.capturing is not None:
            self.capturing.append(ns)
        else:
            self.now_ns += ns + LAUNCH_NS

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        yield

    def current_stream(self) -> Any:
        return self.Stream()

    def synchronize(self) -> None:
        if self.capturing is not None:
            raise RuntimeError("synchronize while capturing")
        self.check()
        self.synchronised += 1

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def mem_get_info(self) -> tuple[int, int]:
        return (140 << 30) - self.used_bytes, 140 << 30

    def empty_cache(self) -> None:
        self.check()

    def get_device_properties(self, index: int) -> Any:
        return types.SimpleNamespace(
            name="NVIDIA H200",
            major=9,
            minor=0,
            total_memory=150_110_011_392,
            multi_processor_count=132,
            L2_cache_size=60 << 20,
            uuid="0123-abc",
        )


SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8": 1, "uint8": 1, "int32": 4, "int64": 8}


class FakeTensor:
    """A shape, a dtype and where it is."""

    def __init__(self, torch: FakeTorch, shape: tuple[int, ...], dtype: str, transposed: bool = False) -> None:
        self.torch, self.shape, self.dtype, self.transposed = torch, shape, dtype, transposed

    def numel(self) -> int:
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    def view(self, *shape: Any) -> FakeTensor:
        if shape[0] in SIZES:
            return FakeTensor(self.torch, self.shape, shape[0])
        other = FakeTensor(self.torch, shape, self.dtype)
        if other.numel() != self.numel():
            raise RuntimeError(f"shape {shape} is invalid for input of size {self.numel()}")
        return other

    def __getitem__(self, part: Any) -> FakeTensor:
        if not isinstance(part, slice):
            raise TypeError(part)
        length = len(range(*part.indices(self.shape[0])))
        return FakeTensor(self.torch, (length, *self.shape[1:]), self.dtype)

    def t(self) -> FakeTensor:
        return FakeTensor(self.torch, (self.shape[1], self.shape[0]), self.dtype, not self.transposed)

    def to(self, what: str) -> FakeTensor:
        return FakeTensor(self.torch, self.shape, what if what in SIZES else self.dtype)

    def copy_(self, source: FakeTensor, non_blocking: bool = False) -> FakeTensor:
        if source.shape != self.shape:
            raise RuntimeError(f"{source.shape} into {self.shape}")
        self.torch.cuda.enqueue(2000.0 + self.numel() * SIZES[self.dtype] * 2 / 4300.0)
        return self

    def _in_place(self, *_: Any) -> FakeTensor:
        self.torch.cuda.enqueue(2500.0)
        return self

    normal_ = random_ = add_ = div_ = exponential_ = _in_place

    def __truediv__(self, other: FakeTensor) -> FakeTensor:
        self.torch.cuda.enqueue(2500.0)
        return FakeTensor(self.torch, self.shape, self.dtype)

    def argmax(self, dim: int) -> FakeTensor:
        self.torch.cuda.enqueue(2500.0)
        return FakeTensor(self.torch, self.shape[:-1], "int64")

    def numpy(self) -> Any:
        return np.zeros(self.shape, dtype=np.int64)

    def tolist(self) -> list[int]:
        return [7] * self.numel()


class FakeTorch:
    """As much of torch as the kit uses."""

    __version__ = "2.11.0+fake"
    bfloat16, float16, float32 = "bfloat16", "float16", "float32"
    float8_e4m3fn, uint8, int32, int64 = "float8", "uint8", "int32", "int64"

    def __init__(self) -> None:
        self.cuda = FakeCuda()
        self.version = types.SimpleNamespace(cuda="13.0")
        self.flash_calls: list[tuple[Any, ...]] = []
        self.ops = types.SimpleNamespace(aten=types.SimpleNamespace(_flash_attention_forward=self._flash))

    def empty(self, *shape: int, dtype: str, device: str = "cpu", pin_memory: bool = False) -> FakeTensor:
        return FakeTensor(self, shape, dtype)

    zeros = ones_of = empty

    def ones(self, shape: tuple[int, ...], *, dtype: str, device: str) -> FakeTensor:
        return FakeTensor(self, shape, dtype)

    def full(self, shape: tuple[int, ...], value: float, *, dtype: str, device: str) -> FakeTensor:
        return FakeTensor(self, shape, dtype)

    def tensor(self, values: list[int], *, dtype: str, device: str) -> FakeTensor:
        return FakeTensor(self, (len(values),), dtype)

    def empty_like(self, other: FakeTensor) -> FakeTensor:
        return FakeTensor(self, other.shape, other.dtype)

    def softmax(self, logits: FakeTensor, dim: int, dtype: str) -> FakeTensor:
        self.cuda.enqueue(3000.0)
        return FakeTensor(self, logits.shape, dtype)

    def _matrix(self, a: FakeTensor, b: FakeTensor) -> tuple[int, int]:
        if a.shape[1] != b.shape[0] or a.dtype != b.dtype:
            raise RuntimeError(f"mat1 {a.shape} {a.dtype} and mat2 {b.shape} {b.dtype} cannot be multiplied")
        m, k, n = a.shape[0], a.shape[1], b.shape[1]
        traffic = (m * k + n * k) * SIZES[a.dtype] + m * n * 2
        self.cuda.enqueue(3000.0 + max(2 * m * n * k / 700e3, traffic / 4000.0))
        return m, n

    def mm(self, a: FakeTensor, b: FakeTensor, out: FakeTensor) -> FakeTensor:
        if out.shape != self._matrix(a, b) or out.dtype != a.dtype:
            raise RuntimeError("out has another shape or dtype")
        return out

    def _scaled_mm(
        self, a: FakeTensor, b: FakeTensor, *, scale_a: Any, scale_b: Any, out_dtype: str, use_fast_accum: bool
    ) -> FakeTensor:
        if a.dtype != "float8" or not b.transposed:
            raise RuntimeError("_scaled_mm wants fp8, the second matrix by columns")
        return FakeTensor(self, self._matrix(a, b), out_dtype)

    def _flash(self, q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *rest: Any) -> Any:
        if rest != (0.0, True, False) or cu_q.shape != cu_k.shape or k.shape != v.shape or q.shape[2] != k.shape[2]:
            raise RuntimeError("wrong arguments of _flash_attention_forward")
        self.flash_calls.append((q.shape, k.shape, max_q, max_k))
        self.cuda.enqueue(5000.0 + 4 * q.shape[0] * max_k * q.shape[1] * q.shape[2] / 500e3)
        return (q,)


def fake_cupy(torch: FakeTorch) -> Any:
    """NumPy by CuPy's name, whose kernels only move the clock."""
    launched: list[str] = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name, self.max_dynamic_shared_size_bytes = name, 0

        def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
            if len(grid) != 3 or len(block) != 3 or any(isinstance(arg, str) for arg in args):
                raise TypeError("a launch takes a grid, a block and bound arguments")
            launched.append(self.name)
            torch.cuda.enqueue(4000.0)

    class RawModule:
        def __init__(self, code: str, options: Any, backend: str) -> None:
            self.code = code

        def compile(self) -> None:
            """Nothing to do."""

        def get_function(self, name: str) -> Kernel:
            if name not in self.code:
                raise ValueError(name)
            return Kernel(name)

    class Device:
        compute_capability = "90"
        attributes = {"MultiProcessorCount": 132, "L2CacheSize": 60 << 20}

        def __init__(self, index: int = 0) -> None:
            self.index = index

    class Stream:
        @classmethod
        def from_external(cls, other: Any) -> Any:
            assert other.__cuda_stream__() == (0, 1234)
            return cls()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            """Nothing to undo."""

    compiler = types.SimpleNamespace(CompileException=type("CompileException", (Exception,), {}))
    module = types.ModuleType("cupy")
    for name in ("asarray", "zeros", "resize", "ascontiguousarray", "where", "minimum", "random"):
        setattr(module, name, getattr(np, name))
    pool = types.SimpleNamespace(free_all_blocks=lambda: None)

    def dot(a: FakeTensor, b: FakeTensor, out: FakeTensor) -> FakeTensor:
        if torch.cuda.capturing is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        if not b.transposed or a.dtype != "float16":
            raise RuntimeError("weights by columns, as a linear layer has them, in a format that CuPy has")
        return torch.mm(a, b, out)

    module.__dict__.update(
        __version__="14.2.0",
        RawModule=RawModule,
        cuda=types.SimpleNamespace(Device=Device, Stream=Stream, compiler=compiler),
        get_default_memory_pool=lambda: pool,
        launched=launched,
        dot=dot,
        from_dlpack=lambda tensor: tensor,
    )
    return module
