"""The operations with the real torch, on a CPU: arguments, dtypes and shapes are those that torch takes.

Only where torch is installed; streams, events and graphs are stand-ins.
"""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import FakeCuda, fake_cupy

from gpu_calibrate.device.buffers import Buffers
from gpu_calibrate.device.cuda import CudaDevice, read_facts
from gpu_calibrate.device.flash import torch_flash, vllm_flash
from gpu_calibrate.launches import kernels
from gpu_calibrate.plan.points import LADDER, Point
from gpu_calibrate.timing.collectives import time_all_reduce
from gpu_calibrate.timing.host import time_host

torch = pytest.importorskip("torch", reason="torch is an extra")


class OnCpu:
    """torch, but for ``torch.cuda``."""

    def __init__(self) -> None:
        self.cuda, self.version = FakeCuda(), types.SimpleNamespace(cuda="13.0")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    stand_in = OnCpu()
    cupy = fake_cupy(stand_in)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(kernels, "_MODULES", {})
    facts = replace(read_facts(stand_in, cupy, None, "hash"), l2_bytes=1 << 19)
    return CudaDevice(stand_in, cupy, facts, device="cpu", pool_scale=0.004)


@pytest.mark.parametrize(
    "point",
    [
        Point("gemm", ("bfloat16", 512, 256), 8),
        Point("gemm", ("float16", 512, 256), 8),
        Point("gemm", ("float16", 512, 256), 8, LADDER, "torch"),
        Point("gemm", ("fp8", 512, 256), 16),
        Point("sampling", (1000,), 4),
        Point("host_copy", ("to_host",), 1 << 16),
        Point("host_copy", ("to_gpu",), 1 << 16),
        Point("host_copy", ("on_gpu",), 1 << 16),
        Point("elementwise", ("rms_norm", 512), 16),
        Point("decode_attention", ("bfloat16", "bfloat16", 8, 2, 64, 0, 2), 40),
    ],
    ids=str,
)
def test_torch_takes_what_it_is_given(gpu: CudaDevice, point: Point) -> None:
    prepared = gpu.prepare(point)
    assert len(prepared.handle.operation.calls) >= 1
    for call in prepared.handle.operation.calls:
        call()
    gpu.release([prepared])


def test_matrices_are_multiplied_as_a_linear_layer_does() -> None:
    from gpu_calibrate.device.operations import Operations

    buffers = Buffers(torch, "cpu", 1e-4)
    (call, *_) = Operations(torch, "cpu", buffers, 1 << 16, None).build(Point("gemm", ("bfloat16", 32, 64), 4)).calls
    out = call()
    activations, weights = call.args  # type: ignore[attr-defined]
    expected = torch.nn.functional.linear(activations, weights.t())
    assert out.shape == (4, 32)
    assert torch.allclose(out.float(), expected.float(), rtol=0.02, atol=0.1)
    assert float(out.abs().sum()) > 0, "random data, not zeros"


def test_the_sampler_draws_tokens_of_the_vocabulary(gpu: CudaDevice) -> None:
    (call,) = gpu.operations.build(Point("sampling", (50,), 200)).calls
    drawn = call()
    assert drawn.shape == (200,)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 50
    assert len(set(drawn.tolist())) > 10
    assert not torch.equal(call(), call()), "noise is drawn anew"


def test_flash_attention_is_called_as_torch_declares_it() -> None:
    """On tensors without data: torch checks names and shapes, and says what comes out."""
    flash = torch_flash(torch)
    assert flash is not None
    ran: list[Any] = []
    call = replace(flash, run=lambda batch: ran.append(flash.run(batch))).call(
        Buffers(torch, "meta", 1e-2), [32, 17], [80, 17], 8, 2, 64, "bfloat16"
    )
    call()
    assert ran[0][0].shape == (49, 8, 64)


def test_paged_flash_attention_gets_a_block_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    module = types.ModuleType("vllm.vllm_flash_attn")
    module.flash_attn_varlen_func = lambda **named: asked.append(named)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn", module)
    flash = vllm_flash((9, 0))
    assert flash is not None
    flash.call(Buffers(torch, "cpu", 1e-3), [32, 1], [80, 33], 8, 2, 64, "bfloat16")()
    (named,) = asked
    assert named["block_table"].shape == (2, 5)
    assert sorted([*named["block_table"][0].tolist(), *named["block_table"][1, :3].tolist()]) == list(range(8))
    assert named["k"].shape == (8, 16, 2, 64)
    assert named["seqused_k"].tolist() == [80, 33]
    assert named["cu_seqlens_q"].tolist() == [0, 32, 33]


def test_host_time_with_real_arrays(gpu: CudaDevice) -> None:
    host = time_host(gpu)
    assert host["request_ns"] > 0


def test_all_reduce_between_processes(tmp_path: Path) -> None:
    """Two processes on this machine, over gloo: the ways of the NCCL version, without graphs."""
    samples = time_all_reduce(2, [1024, 65536], tmp_path, backend="gloo")
    assert list(samples) == [1024, 65536]
    assert all(len(each) > 10 and min(each) > 0 for each in samples.values())
