"""Host time of a step: what an engine must at least do on the CPU around each replay of its graph.

Timed is a loop that an engine's step contains whatever its scheduler costs: token ids, positions, slots, block table
rows and lengths of every request written to pinned arrays, five copies to the GPU, a graph of several hundred small
kernels launched, sampled tokens copied back and appended to every request. It is a floor: the scheduler, its queues and
the streaming of answers come on top, and are engine by engine.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gpu_calibrate.timing.replays import quantile

if TYPE_CHECKING:
    from gpu_calibrate.device.cuda import CudaDevice

BATCHES = (1, 32, 64, 128, 256)
STEPS = 40
GRAPH_KERNELS = 350
"""About what a step of a 32-layer model launches."""
MAX_BLOCKS = 256
ORIGIN = "the floor measured here: inputs in NumPy, copies, launch of a graph of 350 kernels, no scheduler"


class _Request:
    """As much of a request as the loop touches."""

    __slots__ = ("block_ids", "computed", "tokens")

    def __init__(self, position: int) -> None:
        self.tokens = [position]
        self.computed = 100 + position
        self.block_ids = list(range(position * 8, position * 8 + 8 + self.computed // 16))


def prepare_inputs(requests: list[_Request], arrays: dict[str, Any]) -> None:
    """Fill the host arrays of one decode step."""
    for row, request in enumerate(requests):
        arrays["token_ids"][row] = request.tokens[-1]
        arrays["positions"][row] = request.computed
        arrays["lengths"][row] = request.computed + 1
        block = request.block_ids[(request.computed // 16) % len(request.block_ids)]
        arrays["slots"][row] = block * 16 + request.computed % 16
        arrays["blocks"][row, : len(request.block_ids)] = request.block_ids


def finish_step(requests: list[_Request], sampled: list[int]) -> None:
    """Give every request its token."""
    for request, token in zip(requests, sampled, strict=True):
        request.tokens.append(token)
        request.computed += 1


def host_arrays(torch: Any, device: str, batch: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Pinned tensors, their NumPy views, and their counterparts on the GPU."""
    shapes = {"token_ids": (batch,), "positions": (batch,), "lengths": (batch,), "slots": (batch,)}
    shapes["blocks"] = (batch, MAX_BLOCKS)  # type: ignore[assignment, unused-ignore]
    pinned = {
        name: torch.zeros(*shape, dtype=torch.int64, pin_memory=device != "cpu") for name, shape in shapes.items()
    }
    views = {name: tensor.numpy() for name, tensor in pinned.items()}
    on_gpu = {name: tensor.to(device) for name, tensor in pinned.items()}
    return pinned, views, on_gpu


def fit_line(batches: tuple[int, ...], times_ns: list[float]) -> tuple[float, float]:
    """Intercept and slope by least squares, neither below zero."""
    import numpy as np

    slope = np.polyfit(np.array(batches, dtype=float), np.array(times_ns), 1)[0]
    slope = max(0.0, float(slope))
    return max(0.0, float(np.median(np.array(times_ns) - slope * np.array(batches)))), slope


def time_host(device: CudaDevice) -> dict[str, Any]:
    """``step_ns``, ``request_ns`` and what they are. Raises DeviceError or whatever CUDA raises."""
    from gpu_calibrate.device.operations import Operation

    torch = device.torch
    small = torch.zeros(64, dtype=torch.float32, device=device.operations.device)

    def kernel() -> None:
        small.add_(1.0)

    times = []
    with device.on_stream():
        operation = Operation([kernel], f"host time: {GRAPH_KERNELS} small kernels")
        handle = device.capture(operation, [kernel], launches=GRAPH_KERNELS)
        for batch in BATCHES:
            times.append(quantile(sorted(_steps(device, torch, handle, batch)), 0.5))
    device.release_handle(handle)
    step_ns, request_ns = fit_line(BATCHES, times)
    return {"step_ns": step_ns, "request_ns": request_ns, "batches": list(BATCHES), "ns": times, "origin": ORIGIN}


def _steps(device: CudaDevice, torch: Any, handle: Any, batch: int) -> list[float]:
    """Host nanoseconds of steps, the wait for the GPU not counted."""
    requests = [_Request(position) for position in range(batch)]
    pinned, views, on_gpu = host_arrays(torch, device.operations.device, batch)
    back = torch.zeros(batch, dtype=torch.int64, pin_memory=device.operations.device != "cpu")
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter_ns()
        prepare_inputs(requests, views)
        for name, tensor in on_gpu.items():
            tensor.copy_(pinned[name], non_blocking=True)
        device.enqueue(handle)
        back.copy_(on_gpu["token_ids"], non_blocking=True)
        launched = time.perf_counter_ns()
        torch.cuda.current_stream().synchronize()
        done = time.perf_counter_ns()
        finish_step(requests, back.tolist())
        times.append(float(launched - begin + time.perf_counter_ns() - done))
    return times[STEPS // 4 :]
