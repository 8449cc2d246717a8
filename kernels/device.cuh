// What the kernels ask of the hardware, with CUDA bodies; cpu/device.cuh has the same functions for a CPU. Nothing else
// differs. No CUDA header is included, so NVRTC needs none: 16-bit and 8-bit numbers are held as bits and converted by
// PTX. Needs sm_80 (A100) or newer: bf16 matrix instructions, asynchronous copies.
#pragma once

#define DEVICE __device__ __forceinline__
#define DYNAMIC_SHARED(type, name)                                        \
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared_bytes)

#define ALL_LANES 0xffffffffu
#define MINUS_INFINITY __int_as_float(0xff800000)

DEVICE float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

DEVICE float bfloat16_to_float(unsigned short bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

DEVICE unsigned short float_to_bfloat16(float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Two numbers in one register, the first in the lower half.
DEVICE unsigned pack_halves(float low, float high) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE unsigned pack_bfloat16s(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE unsigned multiply_halves(unsigned a, unsigned b) {
    unsigned product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// sm_80 has no bf16 multiplication of its own: a multiply-add with -0.
DEVICE unsigned multiply_bfloat16s(unsigned a, unsigned b) {
    unsigned product;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
    return product;
}

DEVICE unsigned float_bits(float value) { return __float_as_uint(value); }

// 2^x with a relative error of about 2^-22; 2^-inf = 0.
DEVICE float exp2_fast(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// The four bytes of the result are picked from the eight of (high, low) by the nibbles of `selector`.
DEVICE unsigned pick_bytes(unsigned low, unsigned high, unsigned selector) { return __byte_perm(low, high, selector); }

// BYTES (2, 4, 8 or 16) of global memory that this launch does not write, read once: not kept in L1, 128 bytes brought
// into L2.
template <int BYTES>
DEVICE void load_once(unsigned* words, const void* address) {
    static_assert(BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16, "what one instruction loads");
    if constexpr (BYTES == 16) {
        asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "l"(address));
    } else if constexpr (BYTES == 8) {
        asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                     : "=r"(words[0]), "=r"(words[1])
                     : "l"(address));
    } else if constexpr (BYTES == 4) {
        asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(words[0]) : "l"(address));
    } else {
        unsigned short half;
        asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(half) : "l"(address));
        words[0] = half;
    }
}

// What another block of this launch has written: from L2, which all blocks share, not from this multiprocessor's L1.
DEVICE float load_from_others(const float* address) {
    float value;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(address));
    return value;
}

DEVICE void load_four_from_others(float (&values)[4], const float* address) {
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(values[0]), "=f"(values[1]), "=f"(values[2]), "=f"(values[3])
                 : "l"(address));
}

// D += A x B on a warp's tensor core, 16 x 8 x 16, float32 sums. Fragments as PTX's mma.m16n8k16 lays them out: with g
// = lane / 4 and j = lane % 4, a = {(g; 2j), (g + 8; 2j), (g; 2j + 8), (g + 8; 2j + 8)}, each a pair along k; b = {(2j;
// g), (2j + 8; g)}, a pair along k; d = {(g; 2j), (g; 2j + 1), (g + 8; 2j), (g + 8; 2j + 1)}.
DEVICE void mma_halves(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_bfloat16s(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// An 8 x 8 matrix of 16-bit numbers, transposed across a warp: lane 4r + j holds the pair (row r; columns 2j, 2j + 1)
// before and after.
DEVICE unsigned transpose_8x8(unsigned pair) {
    unsigned transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
}

// 16 bytes from global to shared memory without passing through registers; visible after the wait and a __syncthreads.
DEVICE void copy_async_16(void* shared, const void* global) {
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's latest groups are under way.
template <int PENDING>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
