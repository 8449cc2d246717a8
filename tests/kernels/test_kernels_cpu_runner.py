"""The runner that stands for a GPU in these tests: it behaves as CUDA does, and tells what CUDA would not forgive."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from kernels_cpu import Arrays, compile_text, launch, load

from gpu_calibrate.launches import kernels
from gpu_calibrate.launches.plan_types import KernelCall, Plan

SOURCE = """
extern "C" __global__ void reversed(int* out, const int* in) {
    DYNAMIC_SHARED(int, shared);
    shared[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void reversed_without_barrier(int* out, const int* in) {
    DYNAMIC_SHARED(int, shared);
    shared[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
    out[blockIdx.x * blockDim.x + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void butterfly(int* out, const int* in) {
    int sum = in[threadIdx.x];
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    out[threadIdx.x] = sum;
}
extern "C" __global__ void half_a_barrier(int* out, const int* in) {
    if (threadIdx.x < 32) __syncthreads();
    __syncthreads();
    out[threadIdx.x] = in[threadIdx.x];
}
extern "C" __global__ void half_an_exchange(int* out, const int* in) {
    out[threadIdx.x] = threadIdx.x % 32 < 16 ? __shfl_xor_sync(ALL_LANES, in[threadIdx.x], 1) : 0;
}
extern "C" __global__ void returned_too_early(int* out, const int* in) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    out[threadIdx.x] = in[threadIdx.x];
}
extern "C" __global__ void misaligned(int* out, const int* in) {
    unsigned words[4];
    load_once<16>(words, in + 1);
    out[threadIdx.x] = words[0];
}
extern "C" __global__ void product(float* out, const unsigned short* a, const unsigned short* b) {
    const int g = threadIdx.x / 4, j = threadIdx.x % 4;
    const auto pair = [](const unsigned short* from) { return from[0] | static_cast<unsigned>(from[1]) << 16; };
    const unsigned left[4] = {pair(a + 16 * g + 2 * j), pair(a + 16 * (g + 8) + 2 * j), pair(a + 16 * g + 2 * j + 8),
                              pair(a + 16 * (g + 8) + 2 * j + 8)};
    const unsigned right[2] = {pair(b + 16 * g + 2 * j), pair(b + 16 * g + 2 * j + 8)};
    float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    mma_halves(d, left, right);
    for (int i = 0; i < 4; i++) out[8 * (g + i / 2 * 8) + 2 * j + i % 2] = d[i];
}
extern "C" __global__ void transposed(unsigned* out, const unsigned* in) {
    out[threadIdx.x] = transpose_8x8(in[threadIdx.x]);
}
extern "C" __global__ void conversions(float* halves, float* bfloat16s, unsigned short* to_half,
                                       unsigned short* to_bfloat16, const float* numbers) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    halves[i] = half_to_float(i);
    bfloat16s[i] = bfloat16_to_float(i);
    to_half[i] = float_to_half(numbers[i]);
    to_bfloat16[i] = float_to_bfloat16(numbers[i]);
}
"""
ENTRIES = [line.split("void ")[1].split("(")[0] for line in SOURCE.splitlines() if line.startswith("extern")]


@pytest.fixture(scope="module")
def runner(kernel_folder: Path) -> ctypes.CDLL:
    text = kernels.device_text("cpu") + SOURCE + "".join(f"CPU_KERNEL({entry})\n" for entry in ENTRIES)
    return load(compile_text(kernel_folder, text, {}, sanitize=False))


def run(runner: ctypes.CDLL, entry: str, arrays: Arrays, threads: int = 64, blocks: int = 1, order: int = 0) -> None:
    call = KernelCall(entry, (blocks, 1, 1), (threads, 1, 1), 4 * threads, tuple(arrays))
    launch(runner, Plan(entry, {}, "", {}, {}, (call,), 0, 0), arrays, order)


def integers(count: int) -> Arrays:
    return {"out": np.zeros(count, dtype=np.int32), "in": np.arange(1, count + 1, dtype=np.int32)}


@pytest.mark.parametrize("order", range(5))
def test_threads_meet_at_a_barrier(runner: ctypes.CDLL, order: int) -> None:
    arrays = integers(3 * 96)
    run(runner, "reversed", arrays, threads=96, blocks=3, order=order)
    np.testing.assert_array_equal(arrays["out"].reshape(3, 96), arrays["in"].reshape(3, 96)[:, ::-1])


def test_a_missing_barrier_shows_in_every_order(runner: ctypes.CDLL) -> None:
    """Shared memory is NaN (here -1) until it is written."""
    for order in range(5):
        arrays = integers(64)
        run(runner, "reversed_without_barrier", arrays, order=order)
        assert (arrays["out"] == -1).any()


@pytest.mark.parametrize("order", range(4))
def test_shuffles_exchange_within_a_warp(runner: ctypes.CDLL, order: int) -> None:
    arrays = integers(64)
    run(runner, "butterfly", arrays, order=order)
    assert arrays["out"].tolist() == [sum(range(1, 33))] * 32 + [sum(range(33, 65))] * 32


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("half_a_barrier", "after others had returned"),
        ("half_an_exchange", "wait for one another in vain"),
        ("returned_too_early", "after others had returned"),
        ("misaligned", "an address that it does not divide"),
    ],
)
def test_what_a_gpu_would_not_forgive_is_an_error(runner: ctypes.CDLL, entry: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(runner, entry, integers(64))


def test_a_block_must_have_whole_warps(runner: ctypes.CDLL) -> None:
    with pytest.raises(RuntimeError, match="whole warps"):
        run(runner, "reversed", integers(40), threads=40)


def test_matrix_instruction(runner: ctypes.CDLL) -> None:
    """16 x 8 x 16, B given as its transpose; fragments laid out as PTX says (numbers that sum exactly)."""
    random = np.random.default_rng(0)
    a, b = random.integers(-8, 9, (16, 16)).astype(np.float16), random.integers(-8, 9, (8, 16)).astype(np.float16)
    arrays: Arrays = {"out": np.zeros((16, 8), dtype=np.float32), "a": a.view(np.uint16), "b": b.view(np.uint16)}
    run(runner, "product", arrays, threads=32, order=2)
    np.testing.assert_array_equal(arrays["out"], a.astype(np.float32) @ b.astype(np.float32).T + 1)


def test_transposition(runner: ctypes.CDLL) -> None:
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8)
    arrays: Arrays = {"out": np.zeros(32, dtype=np.uint32), "in": matrix.view(np.uint32).ravel()}
    run(runner, "transposed", arrays, threads=32, order=3)
    np.testing.assert_array_equal(arrays["out"].view(np.uint16).reshape(8, 8), matrix.T)


def test_conversions_of_all_16_bit_numbers(runner: ctypes.CDLL) -> None:
    """To float32 all 65,536 patterns; from it numbers of every size, and exact ties."""
    random = np.random.default_rng(1)
    numbers = random.standard_normal(65_536).astype(np.float32) * np.float32(10.0) ** random.integers(-12, 6, 65_536)
    numbers = numbers.astype(np.float32)
    every = np.arange(65_536, dtype=np.uint16)
    ties = every.view(np.float16).astype(np.float32)[:0x7BFF]
    numbers[: len(ties) - 1] = (ties[1:] + ties[:-1]) / 2
    numbers[-4:] = [np.inf, -np.inf, 65_519.0, 65_520.0]
    arrays: Arrays = {
        "halves": np.zeros(65_536, dtype=np.float32),
        "bfloat16s": np.zeros(65_536, dtype=np.float32),
        "to_half": np.zeros(65_536, dtype=np.uint16),
        "to_bfloat16": np.zeros(65_536, dtype=np.uint16),
        "numbers": numbers,
    }
    run(runner, "conversions", arrays, threads=1_024, blocks=64)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(arrays["halves"], every.view(np.float16).astype(np.float32))
        np.testing.assert_array_equal(arrays["to_half"], numbers.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(arrays["bfloat16s"], (every.astype(np.uint32) << 16).view(np.float32))
    bits = numbers.view(np.uint32).astype(np.uint64)
    np.testing.assert_array_equal(arrays["to_bfloat16"], (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
