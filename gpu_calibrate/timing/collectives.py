"""All-reduce over NCCL, where there are several GPUs: one process each, graphs of several calls."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CALLS = 20
REPLAYS = 15
WARMUP = 5
TIMEOUT_S = 120


def free_port() -> int:
    """A TCP port on the loopback interface that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def worker(rank: int, num_gpus: int, sizes: Sequence[int], port: int, out: str, backend: str) -> None:
    """One process: rank 0 writes a line of samples per size. ``gloo`` runs on CPUs, without graphs, for tests."""
    import json

    import torch  # type: ignore[import-not-found, unused-ignore]
    import torch.distributed as dist  # type: ignore[import-not-found, unused-ignore]

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    on_gpu = backend == "nccl"
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, rank=rank, world_size=num_gpus)
    try:
        lines = []
        for size in sizes:
            device = f"cuda:{rank}" if on_gpu else "cpu"
            tensor = torch.ones(max(1, size // 2), dtype=torch.bfloat16, device=device)
            lines.append(_graph_samples(torch, dist, tensor) if on_gpu else _plain_samples(dist, tensor))
        if rank == 0:
            Path(out).write_text(json.dumps(lines), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def _graph_samples(torch: Any, dist: Any, tensor: Any) -> list[float]:
    """Nanoseconds per all-reduce, one sample per replay. Values overflow to infinity; that costs the same."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            dist.all_reduce(tensor)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(CALLS):
                dist.all_reduce(tensor)
        finally:
            graph.capture_end()
        samples = []
        for _ in range(REPLAYS):
            # Together, or the first to come would time its wait for the others.
            dist.barrier()
            torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(float(start.elapsed_time(end)) * 1e6 / CALLS)
    return samples


def _plain_samples(dist: Any, tensor: Any) -> list[float]:
    samples = []
    for _ in range(REPLAYS):
        begin = time.perf_counter_ns()
        dist.all_reduce(tensor)
        samples.append(float(time.perf_counter_ns() - begin))
    return samples


def time_all_reduce(
    num_gpus: int, sizes: Sequence[int], scratch: Path, backend: str = "nccl"
) -> dict[int, list[float]]:
    """Samples by message size in bytes, of rank 0. Raises RuntimeError where a process fails or hangs."""
    import json

    import torch.multiprocessing as processes  # type: ignore[import-not-found, unused-ignore]

    out = scratch / f"all_reduce_{num_gpus}.json"
    context = processes.spawn(
        worker, args=(num_gpus, list(sizes), free_port(), str(out), backend), nprocs=num_gpus, join=False
    )
    deadline_s = time.monotonic() + TIMEOUT_S
    # One call waits for the next process to end, not for all of them.
    while not context.join(timeout=1.0):
        if time.monotonic() > deadline_s:
            for process in context.processes:
                process.kill()
            raise RuntimeError(f"{num_gpus} processes did not finish within {TIMEOUT_S} s")
    return dict(zip(sizes, json.loads(out.read_text(encoding="utf-8")), strict=True))
