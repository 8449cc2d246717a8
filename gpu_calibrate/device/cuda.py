"""A real GPU: points become CUDA graphs of several launches, timed by events.

torch does what it can do (GEMM, FlashAttention, sampling, streams, events, graphs), CuPy compiles and launches this
project's kernels on torch's stream. Nothing here changes a setting of the card.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu_calibrate.device.base import DeviceError, DeviceFacts, DeviceState, PointError, Prepared, preset_of
from gpu_calibrate.device.buffers import Buffers
from gpu_calibrate.device.flash import find_flash
from gpu_calibrate.device.nvtx import Ranges
from gpu_calibrate.device.operations import Call, Operation, Operations
from gpu_calibrate.device.state import StateReader, gpu_present
from gpu_calibrate.plan.points import Point
from sim.errors import InputError

TARGET_NS = 1.2e6
"""A replay lasts about this long, so that starting it and reading the clock are no part of the time."""
MAX_LAUNCHES = 256
LAUNCH_BOUND_NS = 30_000.0
MAX_EAGER = 32
WARMUP_CALLS = 3
OBSERVE_EVERY_S = 0.2
WITHOUT_GPU = "`gpu-calibrate doctor` looks for the reason, `gpu-calibrate import` makes profiles from published tables"


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """What a replay needs: a graph, or the calls themselves where there can be none."""

    graph: Any
    operation: Operation
    launches: int
    name: str
    """Operator and shape, for profilers."""


def import_torch() -> Any:
    """torch with a usable GPU. Raises InputError, in one line, where there is none."""
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        if not gpu_present():
            # Before 3 GB are installed in vain.
            raise InputError(f"no NVIDIA GPU or no driver is on this machine; {WITHOUT_GPU}") from None
        raise InputError("measuring needs torch: pip install 'simrun-llm[torch]'") from None
    if not torch.cuda.is_available():
        raise InputError(f"no NVIDIA GPU that torch can use is on this machine; {WITHOUT_GPU}")
    return torch


def import_cupy() -> Any:
    """CuPy. Raises InputError where it is missing: decode attention and the element-wise kernels need it."""
    try:
        import cupy  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise InputError(
            "measuring needs CuPy: pip install 'simrun-llm[gpu-cu13]', or gpu-cu12 for CUDA 12 drivers"
        ) from None
    return cupy


class _StreamHandle:
    """torch's stream by the protocol that CuPy 14 reads streams with."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._pointer)


def cupy_stream(cupy: Any, pointer: int) -> Any:
    """CuPy's view of a stream that torch made; older CuPy has its own class for that."""
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_StreamHandle(pointer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return cupy.cuda.ExternalStream(pointer)


def read_facts(torch: Any, cupy: Any, gpu: str | None, kernels_hash: str) -> DeviceFacts:
    """The card and the software around it."""
    properties = torch.cuda.get_device_properties(0)
    major, minor = properties.major, properties.minor
    software = {
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "cupy": str(cupy.__version__),
        "driver": StateReader(_uuid(properties)).driver,
        "kernels": kernels_hash,
    }
    return DeviceFacts(
        name=str(properties.name),
        gpu=preset_of(properties.name, properties.total_memory, gpu),
        num_sms=int(properties.multi_processor_count),
        memory_bytes=int(properties.total_memory),
        l2_bytes=int(getattr(properties, "L2_cache_size", 0)) or int(cupy.cuda.Device(0).attributes["L2CacheSize"]),
        compute_capability=f"{major}.{minor}",
        num_gpus=int(torch.cuda.device_count()),
        software=software,
    )


def _uuid(properties: Any) -> str | None:
    uuid = getattr(properties, "uuid", None)
    return None if uuid is None else f"GPU-{uuid}"


class CudaDevice:
    """The first visible GPU. ``torch`` and ``cupy`` are the modules, or stand-ins in tests, which have another
    ``device`` and smaller pools."""

    def __init__(
        self, torch: Any, cupy: Any, facts: DeviceFacts, *, device: str = "cuda", pool_scale: float = 1.0
    ) -> None:
        from gpu_calibrate.device import own_kernels

        self._torch, self._cupy, self._facts = torch, cupy, facts
        self._ranges = Ranges(torch)
        self._stream = torch.cuda.Stream()
        self._cupy_stream = cupy_stream(cupy, self._stream.cuda_stream)
        self._buffers = Buffers(torch, device, pool_scale)
        major, _, minor = facts.compute_capability.partition(".")
        self._operations = Operations(
            torch,
            device,
            self._buffers,
            facts.l2_bytes,
            find_flash(torch, (int(major), int(minor or 0))),
            partial(own_kernels.operation, cupy, facts.num_sms),
            cupy,
        )
        self._reader = StateReader(_uuid(torch.cuda.get_device_properties(0)))
        self._busy: DeviceState | None = None
        self._observed_s = 0.0

    @property
    def facts(self) -> DeviceFacts:
        return self._facts

    @property
    def torch(self) -> Any:
        """For measurements that are no points: mixed steps, host time."""
        return self._torch

    @property
    def operations(self) -> Operations:
        """For the same."""
        return self._operations

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """torch and CuPy both enqueue on this device's stream."""
        with ExitStack() as stack:
            stack.enter_context(self._torch.cuda.stream(self._stream))
            stack.enter_context(self._cupy_stream)
            yield

    def prepare(self, point: Point) -> Prepared:
        try:
            with self.on_stream():
                operation = self._operations.build(point)
                handle = self.capture(operation, operation.calls, name=str(point))
        except (PointError, DeviceError):
            raise
        except Exception as error:
            self.still_alive(error)
            if "out of memory" in str(error).lower():
                self._return_memory()
            raise PointError(f"{type(error).__name__}: {_first_line(error)}") from error
        return Prepared(point, handle.launches, operation.kernel, operation.kernel_hash, handle)

    def capture(
        self,
        operation: Operation,
        calls: Sequence[Call],
        launches: int | None = None,
        warmup: int = WARMUP_CALLS,
        name: str = "",
    ) -> Handle:
        """Warm ``calls`` up and capture a graph that goes round them. On this device's stream.

        ``launches`` is chosen so that a replay lasts about a millisecond, at least once round the buffer sets where
        that is possible. ``name`` is what profilers show: ``capture NAME`` here, ``NAME`` around each replay.
        """
        name = name or operation.kernel
        with self._ranges(f"capture {name}"):
            return self._capture(operation, calls, launches, warmup, name)

    def _capture(
        self, operation: Operation, calls: Sequence[Call], launches: int | None, warmup: int, name: str
    ) -> Handle:
        for number in range(warmup):
            calls[number % len(calls)]()
        if launches is None:
            each_ns = self._time_calls((list(calls) * 4)[:4])
            if each_ns < LAUNCH_BOUND_NS:
                each_ns = max(2000.0, each_ns / 5.0)  # of which most is launching
            launches = int(max(1, min(MAX_LAUNCHES, TARGET_NS // each_ns)))
        if not operation.in_graph:
            return Handle(None, operation, launches, name)
        self._torch.cuda.synchronize()
        graph = self._torch.cuda.CUDAGraph()
        # A collection that frees device memory in the middle of a capture would break it.
        collecting = gc.isenabled()
        gc.disable()
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for number in range(launches):
                    calls[number % len(calls)]()
            finally:
                graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        return Handle(graph, operation, launches, name)

    def _time_calls(self, calls: Sequence[Call]) -> float:
        """Nanoseconds per call, enqueued one by one."""
        start, end = self._events()
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e6 / len(calls)

    def _events(self) -> tuple[Any, Any]:
        event = self._torch.cuda.Event
        return event(enable_timing=True), event(enable_timing=True)

    def replay(self, order: Sequence[Prepared]) -> list[float]:
        pairs = []
        try:
            with self.on_stream():
                for prepared in order:
                    start, end = self._events()
                    with self._ranges(prepared.handle.name):
                        start.record()
                        self.enqueue(prepared.handle)
                        end.record()
                    pairs.append((start, end))
                self._observe()
                self._stream.synchronize()
        except Exception as error:
            raise DeviceError(f"the GPU failed while timing: {_first_line(error)}") from error
        return [
            float(start.elapsed_time(end)) * 1e6 / prepared.launches
            for prepared, (start, end) in zip(order, pairs, strict=True)
        ]

    def time_handle(self, handle: Handle, replays: int) -> list[float]:
        """Nanoseconds of whole replays of something captured by hand, two warm-ups before. Raises DeviceError."""
        prepared = Prepared(Point("gemm", ("bfloat16", 1, 1), 1), 1, "layers", handle=handle)
        self.replay([prepared] * 2)
        return self.replay([prepared] * replays)

    @staticmethod
    def enqueue(handle: Handle) -> None:
        """One replay."""
        if handle.graph is not None:
            handle.graph.replay()
            return
        calls = handle.operation.calls
        for number in range(handle.launches):
            calls[number % len(calls)]()

    def eager(self, prepared: Prepared) -> float | None:
        if prepared.handle.graph is None:
            return None
        calls = prepared.handle.operation.calls
        count = min(MAX_EAGER, prepared.launches)
        try:
            with self.on_stream(), self._ranges(f"eager {prepared.handle.name}"):
                self._torch.cuda.synchronize()
                return self._time_calls([calls[number % len(calls)] for number in range(count)])
        except Exception as error:
            self.still_alive(error)
            return None

    def release(self, prepared: Sequence[Prepared]) -> None:
        """What a point holds goes back to the allocators once the caller forgets it; their reserves go to the card."""
        try:
            self._torch.cuda.synchronize()
            for each in prepared:
                _forget(each.handle)
            if self.memory_used_bytes() > RESERVE_BYTES:
                self._return_memory()
        except Exception as error:
            raise DeviceError(f"the GPU failed: {_first_line(error)}") from error

    def _return_memory(self) -> None:
        """What both allocators hold in reserve goes back to the card."""
        self._cupy.get_default_memory_pool().free_all_blocks()
        self._torch.cuda.empty_cache()

    def release_handle(self, handle: Handle) -> None:
        """As ``release``, of something captured by hand."""
        self.release([Prepared(Point("gemm", ("bfloat16", 1, 1), 1), 1, "layers", handle=handle)])

    def still_alive(self, error: Exception) -> None:
        """Raises DeviceError where ``error`` has ended the CUDA context, and with it everything in this process."""
        try:
            self._torch.cuda.synchronize()
        except Exception:
            raise DeviceError(f"the GPU stopped working: {type(error).__name__}: {_first_line(error)}") from error

    def _observe(self) -> None:
        """The card's state while it works, now and then."""
        if time.monotonic() - self._observed_s > OBSERVE_EVERY_S:
            self._observed_s = time.monotonic()
            self._busy = self._reader.read()

    def state(self) -> DeviceState:
        return self._busy or self._reader.read()

    def memory_used_bytes(self) -> int:
        free, total = self._torch.cuda.mem_get_info()
        return int(total - free)

    def close(self) -> None:
        """Give all memory back."""
        self._buffers.release()
        self._torch.cuda.empty_cache()


RESERVE_BYTES = 16 << 30
"""Memory in use above which what is unused goes back to the card between batches."""


def _forget(handle: Handle) -> None:
    if handle.graph is not None:
        handle.graph.reset()
    handle.operation.calls.clear()
    handle.operation.keep.clear()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def open_device(gpu: str | None = None) -> CudaDevice:
    """The first visible GPU, ready to be timed. Raises InputError where there is none or a library is missing."""
    from gpu_calibrate.launches.kernel_set import kernels_hash

    torch, cupy = import_torch(), import_cupy()
    return CudaDevice(torch, cupy, read_facts(torch, cupy, gpu, kernels_hash()))
