"""Smaller parts: buffers, FlashAttention as installed, the ladder's table, figures for plots, collectives' port."""

from __future__ import annotations

import socket
import sys
import types
from typing import Any

import pytest
from fake_gpu import FakeTorch

from gpu_calibrate.commands.calibration import _all_reduces
from gpu_calibrate.commands.ladder import REASONS, SHAPES, TWIN, best_share, ladder_points, read_rungs
from gpu_calibrate.commands.utilisation import decode_heads, gemm_curves, pick, utilisation
from gpu_calibrate.device.base import PointError
from gpu_calibrate.device.buffers import Buffers, num_sets
from gpu_calibrate.device.flash import Flash, find_flash, package_flash, torch_flash, vllm_flash
from gpu_calibrate.device.operations import Operations
from gpu_calibrate.launches.plans import DECODE_LADDER
from gpu_calibrate.plan.points import Point, work_of
from gpu_calibrate.timing.collectives import free_port
from gpu_calibrate.timing.host import MAX_BLOCKS, _Request, finish_step, fit_line, prepare_inputs
from sim.latency.profile.file import load_profile
from sim.latency.profile.library import BUILTIN


def test_rotating_sets_make_up_three_times_the_cache() -> None:
    assert num_sets(32 << 20, 50 << 20) == 5
    assert num_sets(1 << 30, 50 << 20) == 1
    assert num_sets(1, 50 << 20) == 256, "no more than a graph has launches"


def test_views_of_a_pool_lie_apart_until_it_is_used_up() -> None:
    buffers = Buffers(FakeTorch(), "cuda", scale=1e-6)
    pool = buffers._pool("bfloat16").numel()
    starts = []
    for _ in range(4):
        starts.append(buffers._next["bfloat16"])
        assert buffers.take("bfloat16", 10, 30).shape == (10, 30)
    assert starts == [0, 512, 1024, 1536], "on multiples of 256 elements"
    with pytest.raises(PointError, match="pool is smaller"):
        buffers.take("bfloat16", pool + 1)
    assert buffers.take("fp8", 8, 8).dtype == "float8"
    assert buffers.scratch(4, 4).shape == (4, 4)
    buffers.release()
    assert not buffers._pools


def test_the_engines_own_flash_attention_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = FakeTorch()
    for name in ("vllm", "vllm.vllm_flash_attn", "flash_attn"):
        monkeypatch.setitem(sys.modules, name, None)
    assert vllm_flash((9, 0)) is None
    assert package_flash() is None
    found = find_flash(torch, (9, 0))
    assert found is not None
    assert (found.paged, "FlashAttention-2, contiguous KV" in found.name) == (False, True)
    calls: list[dict[str, Any]] = []
    vllm = types.ModuleType("vllm.vllm_flash_attn")
    vllm.flash_attn_varlen_func = lambda **arguments: calls.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn", vllm)
    assert "FlashAttention-2" in str(vllm_flash((8, 0)))
    found = find_flash(torch, (9, 0))
    assert found is not None
    assert (found.paged, found.name) == (True, "vllm_flash_attn FlashAttention-3, paged")
    package = types.ModuleType("flash_attn")
    package.__version__ = "2.8"  # type: ignore[attr-defined]
    package.flash_attn_varlen_func = lambda *arguments, **named: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    assert "flash_attn 2.8" in str(package_flash())


def test_torch_without_flash_attention_is_none() -> None:
    torch = FakeTorch()
    torch.ops = types.SimpleNamespace(aten=types.SimpleNamespace())
    assert torch_flash(torch) is None
    operations = Operations(torch, "cuda", Buffers(torch, "cuda", 0.001), 1 << 20, None)
    with pytest.raises(PointError, match="no FlashAttention"):
        operations.build(Point("prefill_attention", ("bfloat16", "bfloat16", 8, 8, 64, 0, 1, 0), 16))
    with pytest.raises(PointError, match="needs CuPy"):
        operations.build(Point("decode_attention", ("bfloat16", "bfloat16", 8, 8, 64, 0, 1), 16))


def test_charged_decode_is_the_engines_where_it_is_paged() -> None:
    torch = FakeTorch()
    ran: list[Any] = []
    flash = Flash("an engine's", False, ran.append)
    own: list[str] = []

    def record(kernel: str, sets: int, **shape: Any) -> Any:
        own.append(kernel)
        raise PointError(kernel)

    point = Point("decode_attention", ("bfloat16", "bfloat16", 8, 8, 64, 0, 2), 16)
    operations = Operations(torch, "cuda", Buffers(torch, "cuda", 0.01), 1 << 16, flash, record)
    with pytest.raises(PointError):
        operations.build(point)
    assert own == ["paged_attention_split_kv"]
    prefill = Point("prefill_attention", ("bfloat16", "bfloat16", 8, 8, 64, 0, 2, 10), 16)
    operation = operations.build(prefill)
    assert operation.kernel == "an engine's"
    operation.calls[0]()
    with pytest.raises(PointError, match="an engine's is not called with FP8 KV"):
        operations.build(Point("prefill_attention", ("bfloat16", "fp8", 8, 8, 64, 0, 2, 10), 16))
    (batch,) = ran
    assert (batch.max_query, batch.max_context, batch.query.shape[0], batch.key.shape[0]) == (16, 26, 32, 52)


def test_the_ladder_covers_both_sizes_that_are_asked_for() -> None:
    points = ladder_points()
    assert len(points) == len(SHAPES) * 7
    sizes = {work_of(point).bytes for point in points}
    assert any(30e6 < size < 130e6 for size in sizes)
    assert any(size > 256e6 for size in sizes)
    assert set(REASONS) == {*DECODE_LADDER, TWIN}


def test_the_best_share_is_of_the_better_kernel_at_the_worse_shape() -> None:
    record = {
        "rungs": [
            {"kernel": kernel, "batch": batch, "context": 1, "bytes": 1000, "ns": 1000 / share}
            for kernel, batch, share in (
                ("paged_attention_gqa", 1, 0.9),
                ("paged_attention_split_kv", 1, 0.7),
                ("paged_attention_gqa", 2, 0.3),
                ("paged_attention_split_kv", 2, 0.8),
                ("paged_attention_naive", 2, 1.0),
            )
        ]
    }
    assert best_share(read_rungs(record), 1e9, 0, 10_000) == pytest.approx(0.8)
    assert best_share(read_rungs(record), 1e9, 2000, 10_000) is None


def test_host_inputs_of_a_step() -> None:
    import numpy as np

    requests = [_Request(position) for position in range(3)]
    arrays = {name: np.zeros(3, dtype=np.int64) for name in ("token_ids", "positions", "lengths", "slots")}
    arrays["blocks"] = np.zeros((3, MAX_BLOCKS), dtype=np.int64)
    prepare_inputs(requests, arrays)
    assert arrays["lengths"].tolist() == [101, 102, 103]
    # Request 1 is at token 101: block 101 // 16 = 6 of its own, which is number 8 + 6; place 5 in it.
    assert arrays["slots"][1] == (8 + 6) * 16 + 5
    finish_step(requests, [7, 8, 9])
    assert [request.tokens[-1] for request in requests] == [7, 8, 9]
    assert requests[0].computed == 101


def test_a_line_through_host_times() -> None:
    assert fit_line((1, 32, 64), [1000.0 + 10, 1000.0 + 320, 1000.0 + 640]) == pytest.approx((1000.0, 10.0))
    assert fit_line((1, 32, 64), [500.0, 400.0, 300.0])[1] == 0.0


def test_all_reduces_become_measurements() -> None:
    record = {"num_gpus": 4, "bytes": 8192, "ns": [float(n) for n in range(1000, 1015)], "launches": 20}
    (measured,) = _all_reduces({"all_reduce": [record]})
    assert measured.point == Point("all_reduce", ("nccl", 4), 8192)
    assert measured.median_ns == 1007.0
    assert list(_all_reduces({})) == []


def test_a_free_port_is_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_figures_of_a_built_in_profile() -> None:
    profile = load_profile(BUILTIN / "h200-sxm.json.gz", allow_failed_gates=True)
    assert decode_heads(profile)[0][2:5] == (32, 8, 128), "much-served heads first"
    curves = gemm_curves(profile)
    assert 1 <= len(curves) <= 6
    sizes = [int(curve.key[1]) * int(curve.key[2]) for curve in curves]
    assert sizes == sorted(sizes)
    for _, share in utilisation(profile, curves[-1]):
        assert 0 < share < 1.05
    assert pick(curves, 2) == [curves[0], curves[-1]]
