"""The code for a real GPU, on stand-ins for torch and CuPy: capture, replay, release, failures."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import LAUNCH_NS, FakeTorch, fake_cupy

from gpu_calibrate.commands import cublas
from gpu_calibrate.commands.calibration import Calibration, cuda_extras, profile_of
from gpu_calibrate.commands.ladder import ladder_table, time_ladder
from gpu_calibrate.device import cuda
from gpu_calibrate.device.base import DeviceError, PointError
from gpu_calibrate.device.cuda import CudaDevice, import_cupy, import_torch, read_facts
from gpu_calibrate.launches import kernels
from gpu_calibrate.plan.grid import CORE_HEADS, Plan
from gpu_calibrate.plan.points import RANDOM, Point
from gpu_calibrate.timing.host import time_host
from gpu_calibrate.timing.mixed_steps import mixes, time_mix
from gpu_calibrate.timing.replays import Settings
from gpu_calibrate.timing.store import Store
from sim.errors import InputError
from sim.latency.models import MODELS
from sim.latency.uniform import reshaped

DECODE = ("bfloat16", "bfloat16", *CORE_HEADS, 0)
L2_BYTES = 4 << 20
POINTS = (
    Point("gemm", ("bfloat16", 512, 256), 8),
    Point("gemm", ("bfloat16", 512, 256), 64),
    Point("gemm", ("bfloat16", 512, 256), 33, RANDOM),
    Point("gemm", ("fp8", 512, 256), 16),
    Point("decode_attention", (*DECODE, 4), 100),
    Point("decode_attention", (*DECODE, 4), 300),
    Point("decode_attention", (*DECODE, 3), 200, RANDOM, skew="one_long"),
    Point("decode_attention", ("bfloat16", "fp8", *CORE_HEADS, 0, 2), 64),
    Point("decode_attention_contiguous", (*DECODE, 4), 100),
    Point("prefill_attention", (*DECODE, 2, 48), 32),
    Point("elementwise", ("rms_norm", 512), 16),
    Point("elementwise", ("silu_and_mul", 512), 16),
    Point("elementwise", ("rotary", 40 * 128), 16),
    Point("elementwise", ("reshape_and_cache", 2 * 8 * 128), 16),
    Point("sampling", (1000,), 4),
    Point("host_copy", ("to_host",), 1 << 16),
    Point("host_copy", ("to_gpu",), 1 << 16),
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    torch = FakeTorch()
    cupy = fake_cupy(torch)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(kernels, "_MODULES", {})
    # A small cache, so that rotating buffers are small, too.
    return CudaDevice(torch, cupy, replace(read_facts(torch, cupy, None, "hash"), l2_bytes=L2_BYTES))


def test_facts_are_read_off_the_card(gpu: CudaDevice) -> None:
    facts = gpu.facts
    assert (facts.gpu.name, facts.num_sms) == ("h200-sxm", 132)
    assert read_facts(gpu.torch, gpu._cupy, "a100-80gb-sxm", "x").gpu.name == "a100-80gb-sxm"
    assert read_facts(gpu.torch, gpu._cupy, None, "x").l2_bytes == 60 << 20
    assert facts.compute_capability == "9.0"
    assert facts.software == facts.software | {"torch": "2.11.0+fake", "cupy": "14.2.0", "kernels": "hash"}


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_every_operator_is_captured_and_timed(gpu: CudaDevice, point: Point) -> None:
    prepared = gpu.prepare(point)
    assert prepared.launches >= 1
    times = gpu.replay([prepared] * 3)
    assert len(times) == 3
    assert all(1000.0 < time < 1e6 for time in times)
    assert max(times) == pytest.approx(min(times))
    assert (prepared.handle.graph is None) == (point.operator == "host_copy")
    gpu.release([prepared])
    assert not prepared.handle.operation.calls


def test_a_replay_is_long_and_the_time_is_of_one_launch(gpu: CudaDevice) -> None:
    small, large = gpu.prepare(POINTS[0]), gpu.prepare(Point("gemm", ("bfloat16", 8192, 8192), 8192))
    assert small.launches == 256
    assert large.launches < 4
    assert gpu.replay([large])[0] == pytest.approx(3000.0 + 2 * 8192**3 / 700e3)


def test_buffers_rotate_over_three_times_the_l2(gpu: CudaDevice) -> None:
    point = Point("gemm", ("bfloat16", 512, 512), 16)
    calls = gpu.operations.build(point).calls
    assert len(calls) == -(-3 * L2_BYTES // (2 * (512 * 512 + 2 * 16 * 512)))
    paged = gpu.operations.build(Point("decode_attention", (*DECODE, 8), 64))
    shared, _ = paged.keep
    assert shared["block_tables"].shape[0] == 8 * len(paged.calls)
    assert shared["k_cache"].nbytes + shared["v_cache"].nbytes >= 0.95 * 3 * L2_BYTES


def test_launches_without_a_graph_take_longer(gpu: CudaDevice) -> None:
    prepared = gpu.prepare(POINTS[0])
    eager = gpu.eager(prepared)
    assert eager is not None
    assert eager == pytest.approx(gpu.replay([prepared])[0] + LAUNCH_NS)
    assert gpu.eager(gpu.prepare(Point("host_copy", ("to_gpu",), 4096))) is None


def test_prefill_is_torch_flash_attention_over_chunk_and_prior(gpu: CudaDevice) -> None:
    prepared = gpu.prepare(Point("prefill_attention", (*DECODE, 2, 48), 32))
    assert "FlashAttention-2" in prepared.kernel
    assert gpu.torch.flash_calls[0] == ((64, 32, 128), (160, 8, 128), 32, 80)


def test_a_point_that_cannot_be_timed_says_why(gpu: CudaDevice) -> None:
    with pytest.raises(PointError, match="no whole number of heads"):
        gpu.prepare(Point("elementwise", ("rotary", 100), 16))
    with pytest.raises(PointError, match="not timed on one GPU"):
        gpu.prepare(Point("moe", ("bfloat16", 64, 64, 8, 2, 1, 1), 16))
    with pytest.raises(PointError, match="the pool is smaller"):
        gpu.prepare(Point("gemm", ("bfloat16", 1 << 17, 1 << 15), 1))
    with pytest.raises(PointError, match="head_size 72"):
        gpu.prepare(Point("decode_attention", ("bfloat16", "bfloat16", 8, 8, 72, 0, 1), 16))


def test_nothing_is_collected_while_capturing(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing device memory in the middle of a capture breaks it."""
    mm = FakeTorch.mm
    collecting: dict[bool, set[bool]] = {True: set(), False: set()}

    def watched(torch: FakeTorch, a: Any, b: Any, out: Any) -> Any:
        collecting[torch.cuda.capturing is not None].add(gc.isenabled())
        return mm(torch, a, b, out)

    monkeypatch.setattr(FakeTorch, "mm", watched)
    gpu.prepare(POINTS[0])
    assert collecting == {True: {False}, False: {True}}
    assert gc.isenabled()


def test_a_failed_capture_leaves_the_device_usable(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    mm = FakeTorch.mm

    def fails_in_capture(torch: FakeTorch, a: Any, b: Any, out: Any) -> Any:
        if torch.cuda.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return mm(torch, a, b, out)

    monkeypatch.setattr(FakeTorch, "mm", fails_in_capture)
    with pytest.raises(PointError, match="not permitted"):
        gpu.prepare(POINTS[0])
    monkeypatch.setattr(FakeTorch, "mm", mm)
    assert gc.isenabled()
    assert gpu.replay([gpu.prepare(POINTS[0])])[0] > 0


def test_after_running_out_of_memory_reserves_are_given_back(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(gpu.torch.cuda, "empty_cache", lambda: given_back.append("torch"))
    monkeypatch.setattr(gpu._cupy.get_default_memory_pool(), "free_all_blocks", lambda: given_back.append("cupy"))

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")

    monkeypatch.setattr(FakeTorch, "mm", fails)
    with pytest.raises(PointError, match=r"out of memory. Tried to allocate 20.00 GiB$"):
        gpu.prepare(POINTS[0])
    assert given_back == ["cupy", "torch"]


def test_large_reserves_are_given_back_between_batches(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(gpu.torch.cuda, "empty_cache", lambda: given_back.append("torch"))
    gpu.release([gpu.prepare(POINTS[0])])
    assert given_back == []
    gpu.torch.cuda.used_bytes = 30 << 30
    gpu.release([gpu.prepare(POINTS[0])])
    assert given_back == ["torch"]


def test_ranges_are_named_after_operator_and_shape(gpu: CudaDevice) -> None:
    nvtx = gpu.torch.cuda.nvtx
    nvtx.seen.clear()
    point = POINTS[1]
    assert str(point) == "gemm(bfloat16, 512, 256; m 64)"
    prepared = gpu.prepare(point)
    assert nvtx.seen == [f"capture {point}"]
    gpu.replay([prepared, prepared])
    gpu.eager(prepared)
    assert nvtx.seen == [f"capture {point}", str(point), str(point), f"eager {point}"]
    assert not nvtx.open


def test_ranges_end_where_a_point_fails(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = gpu.prepare(POINTS[0])
    gpu.torch.cuda.broken = True
    for action in (lambda: gpu.prepare(POINTS[1]), lambda: gpu.replay([prepared])):
        with pytest.raises(DeviceError):
            action()
    assert not gpu.torch.cuda.nvtx.open
    assert len(gpu.torch.cuda.nvtx.seen) > 2


class StubNvtx:
    """As torch's builds for CPUs have it."""

    def range_push(self, name: str) -> int:
        raise RuntimeError("NVTX functions not installed. Are you sure you have a CUDA build?")

    range_pop = range_push


@pytest.mark.parametrize("nvtx", [None, StubNvtx()], ids=["missing", "stub"])
def test_without_nvtx_there_are_no_ranges(gpu: CudaDevice, nvtx: Any) -> None:
    gpu.torch.cuda.nvtx = nvtx
    device = CudaDevice(gpu.torch, gpu._cupy, gpu.facts)
    assert device.replay([device.prepare(POINTS[0])])[0] > 0


def test_a_dead_gpu_is_told_from_a_bad_point(gpu: CudaDevice) -> None:
    prepared = gpu.prepare(POINTS[0])
    gpu.torch.cuda.broken = True
    with pytest.raises(DeviceError, match="illegal memory access"):
        gpu.prepare(POINTS[1])
    with pytest.raises(DeviceError, match="illegal memory access"):
        gpu.replay([prepared])


def test_host_time_is_of_the_host_alone(gpu: CudaDevice) -> None:
    host = time_host(gpu)
    assert host["step_ns"] >= 0
    assert host["request_ns"] > 0, "more requests take longer"
    assert len(host["ns"]) == len(host["batches"])


def test_mixed_layers_are_one_graph(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_calibrate.timing import mixed_steps

    small = reshaped(MODELS["llama-3.1-8b"], hidden_size=512, intermediate_size=1024)
    both = next(mix for mix in mixes() if mix.chunks and mix.decodes)
    mix = mixed_steps.Mix(((60, 0), (20, 40)), (33, 100))
    assert (mix.num_tokens, len(both.decodes) > 0) == (82, True)
    step = time_mix(gpu, small, mix)
    # Per layer: two norms, four matrices, rotary, cache write, activation, prefill and decode attention.
    assert step["launches"] == mixed_steps.LAYERS * 11
    assert step["ns"] > mixed_steps.LAYERS * 11 * 2500
    told = "4 layers of llama-3.1-8b on chunks (60 after 0, 20 after 40), 2 decodes"
    assert gpu.torch.cuda.nvtx.seen.count(told) == mixed_steps.REPLAYS + 2
    assert step["decodes"] == [33, 100]
    assert len(gpu.torch.flash_calls) >= mixed_steps.LAYERS


def test_the_ladder_has_every_rung(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_calibrate.commands.ladder.SHAPES", ((2, 300), (4, 64)))
    record = time_ladder(gpu)
    assert not record["failures"]
    assert len(record["rungs"]) == 2 * 7
    assert record["copy_bytes_per_s"] > 1e12
    lines = ladder_table(record)
    assert sum(line.startswith("| `") for line in lines) == 7
    assert {"paged_attention_naive", "paged_attention_uncoalesced"} < set(gpu._cupy.launched)


SMALL_SHAPES = ((512, 256, 64), (256, 512, 32))


def test_cublas_is_reached_through_torch_and_cupy(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "SHAPES", SMALL_SHAPES)
    record = cublas.time_cublas(gpu)
    assert not record["failures"]
    assert [(each["n"], each["k"], each["m"]) for each in record["shapes"]] == list(SMALL_SHAPES)
    assert cublas.ratios(record) == pytest.approx([1.0, 1.0])
    assert gpu.torch.cuda.graphs == 0, "CuPy refuses to have cuBLAS captured; the stand-in, too"
    assert sum(line.endswith("| 1.000 |") for line in cublas.cublas_table(record)) == 2


def test_torch_slower_than_cupy_is_seen(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "SHAPES", SMALL_SHAPES)
    mm = FakeTorch.mm

    def slow(torch: FakeTorch, a: Any, b: Any, out: Any) -> Any:
        torch.cuda.enqueue(10_000.0)
        return mm(torch, a, b, out)

    monkeypatch.setattr(gpu._cupy, "dot", lambda a, b, out: mm(gpu.torch, a, b, out))
    monkeypatch.setattr(FakeTorch, "mm", slow)
    assert min(cublas.ratios(cublas.time_cublas(gpu))) > 1.0 + cublas.TOLERANCE


def test_a_cupy_without_cublas_is_told(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "SHAPES", SMALL_SHAPES)

    def missing(*_: Any) -> Any:
        raise ImportError("libcublas.so.13: cannot open shared object file")

    monkeypatch.setattr(gpu._cupy, "dot", missing)
    record = cublas.time_cublas(gpu)
    assert (record["shapes"], len(record["failures"])) == ([], 2)
    assert "ImportError: libcublas.so.13" in record["failures"][0]


def test_a_whole_calibration_on_the_stand_in(gpu: CudaDevice, tmp_path: Path) -> None:
    plan = Plan(POINTS, 1.0, 0)
    with Store(tmp_path / "x.partial.jsonl", gpu.facts) as store:
        extras = cuda_extras(gpu, plan, tmp_path, quick=True)
        calibration = Calibration(gpu, plan, store, 1000.0, extras, Settings(min_replays=10, max_replays=12))
        calibration.measure()
        profile = profile_of(calibration, "fake", "test")
    assert not profile.details["failures"]
    assert set(profile.operators) == {point.operator for point in POINTS}
    assert profile.operators["decode_attention"].kernel == "paged_attention_split_kv"
    assert len(str(profile.operators["decode_attention"].kernel_hash)) == 16
    assert profile.host is not None
    assert profile.host.eager_launch_ns is not None
    assert profile.device.copy_bandwidth_bytes_per_s is not None
    assert profile.errors["gemm"]["random_points"].num_points == 1


def test_without_torch_or_gpu_or_cupy_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    present = [True]
    monkeypatch.setattr(cuda, "gpu_present", lambda: present[0])
    with pytest.raises(InputError, match="needs torch"):
        import_torch()
    present[0] = False
    with pytest.raises(InputError, match=r"^no NVIDIA GPU or no driver is on this machine; `gpu-calibrate doctor`"):
        import_torch()
    torch = FakeTorch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(InputError, match="no NVIDIA GPU"):
        import_torch()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(InputError, match="needs CuPy"):
        import_cupy()
