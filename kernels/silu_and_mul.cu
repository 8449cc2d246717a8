// silu_and_mul: out[t, i] = silu(x[t, i]) * x[t, size + i], silu(x) = x / (1 + e^-x): the two halves of a gated MLP.
//
// Bytes     3 * size * 2 per token (two halves read, one written). FLOPs: 4 per output, the exponential not counted.
// Grid      (num_tokens, ceil(size / (8 * threads))); block: size / 8 threads in whole warps, at most 256; 8 outputs
//           each.
#include "vector_rows.cuh"

extern "C" __global__ void __launch_bounds__(256)
    silu_and_mul(Element* __restrict__ out, const Element* __restrict__ input, int size) {
    const long long token = blockIdx.x;
    const int i =
        (static_cast<int>(blockIdx.y) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * ROW_VECTOR;
    if (i >= size) return;
    EightFloats gate = load_row(input + token * 2 * size + i);
    const EightFloats up = load_row(input + token * 2 * size + size + i);
#pragma unroll
    for (int k = 0; k < ROW_VECTOR; k++) {
        const float x = gate.values[k];
        gate.values[k] = x / (1.0f + exp2_fast(-x * LOG2_E)) * up.values[k];
    }
    store_row(out + token * size + i, gate);
}
