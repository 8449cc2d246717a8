// The number formats of a specialisation.
// DTYPE_BF16  1 = bfloat16, 0 = float16: queries, outputs, activations.
// KV_FP8      1 = the cache holds e4m3 (1 sign, 4 exponent and 3 mantissa bits, bias 7, at most 448) with one scale per
//             tensor; 0 = as the model.
#pragma once
#include "device.cuh"

#ifndef DTYPE_BF16
#error "compile with -DDTYPE_BF16=0 or 1"
#endif
#ifndef KV_FP8
#define KV_FP8 0
#endif

struct Element {
    unsigned short bits;
};
struct Fp8 {
    unsigned char bits;
};
#if KV_FP8
using KvElement = Fp8;
#else
using KvElement = Element;
#endif

#define LOG2_E 1.4426950408889634f

#if DTYPE_BF16
DEVICE float to_float(Element x) { return bfloat16_to_float(x.bits); }
DEVICE Element to_element(float x) { return {float_to_bfloat16(x)}; }
DEVICE unsigned pack(float low, float high) { return pack_bfloat16s(low, high); }
DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_bfloat16s(d, a, b); }
#else
DEVICE float to_float(Element x) { return half_to_float(x.bits); }
DEVICE Element to_element(float x) { return {float_to_half(x)}; }
DEVICE unsigned pack(float low, float high) { return pack_halves(low, high); }
DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_halves(d, a, b); }
#endif

DEVICE float low_to_float(unsigned pair) { return to_float(Element{static_cast<unsigned short>(pair & 0xffffu)}); }
DEVICE float high_to_float(unsigned pair) { return to_float(Element{static_cast<unsigned short>(pair >> 16)}); }

// Four e4m3 numbers of a register become two pairs of the model's format, exactly: exponent and mantissa are moved into
// place, and a product corrects the bias (subnormals come out right too). The one NaN of e4m3, 0x7f, is not kept (it
// reads as 480).
DEVICE void fp8_to_pairs(unsigned four, unsigned& first, unsigned& second) {
    const unsigned low = pick_bytes(four, 0u, 0x1404u),
                   high = pick_bytes(four, 0u, 0x3424u);  // each number in an upper byte
#if DTYPE_BF16
    first = multiply_bfloat16s((low & 0x80008000u) | (low & 0x7f007f00u) >> 4, 0x7b807b80u);  // 2^(127 - 7)
    second = multiply_bfloat16s((high & 0x80008000u) | (high & 0x7f007f00u) >> 4, 0x7b807b80u);
#else
    first = multiply_halves((low & 0x80008000u) | (low & 0x7f007f00u) >> 1, 0x5c005c00u);  // 2^(15 - 7)
    second = multiply_halves((high & 0x80008000u) | (high & 0x7f007f00u) >> 1, 0x5c005c00u);
#endif
}

DEVICE float to_float(Fp8 x) {
    unsigned first, second;
    fp8_to_pairs(x.bits, first, second);
    return low_to_float(first);
}

// To the nearest e4m3, ties to even, saturating at 448.
DEVICE Fp8 to_fp8(float x) {
    const unsigned bits = float_bits(x), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<unsigned char>(0x7fu)};
    if (magnitude >= 0x43e00000u) return {static_cast<unsigned char>(sign | 0x7eu)};  // 448 or more
    unsigned code;
    if (magnitude < 0x3c800000u) {
        // Below 2^-6: a multiple of 2^-9. Adding 2^14 (whose last bit is worth 2^-9) rounds to one.
        const float positive = x < 0.0f ? -x : x;
        code = float_bits(positive + 16384.0f) - 0x46800000u;
    } else {
        code = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u) - (120u << 23)) >> 20;
    }
    return {static_cast<unsigned char>(sign | (code < 0x7eu ? code : 0x7eu))};
}

// What a load of COUNT numbers of the cache leaves in registers, as pairs of the model's format: COUNT / 2 registers.
template <int COUNT>
DEVICE void to_pairs(unsigned (&pairs)[COUNT / 2], const unsigned* words) {
#if KV_FP8
    if constexpr (COUNT == 2) {
        unsigned unused;
        fp8_to_pairs(words[0], pairs[0], unused);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++) fp8_to_pairs(words[i], pairs[2 * i], pairs[2 * i + 1]);
    }
#else
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) pairs[i] = words[i];
#endif
}
