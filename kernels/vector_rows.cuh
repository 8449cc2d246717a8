// Eight 16-bit numbers per access, for the kernels that stream rows.
#pragma once
#include "numbers.cuh"

constexpr int ROW_VECTOR = 8;

struct EightFloats {
    float values[ROW_VECTOR];
};

DEVICE EightFloats unpack_row(const uint4& bits) {
    return {{low_to_float(bits.x), high_to_float(bits.x), low_to_float(bits.y), high_to_float(bits.y),
             low_to_float(bits.z), high_to_float(bits.z), low_to_float(bits.w), high_to_float(bits.w)}};
}

DEVICE EightFloats load_row(const Element* address) { return unpack_row(*reinterpret_cast<const uint4*>(address)); }

DEVICE void store_row(Element* address, const EightFloats& row) {
    const float (&v)[ROW_VECTOR] = row.values;
    *reinterpret_cast<uint4*>(address) = uint4{pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7])};
}
