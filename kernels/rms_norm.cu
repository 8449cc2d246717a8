// rms_norm: out = x / sqrt(mean(x^2) + epsilon) * weight, row by row.
// fused_add_rms_norm: the same of x + residual, both in place.
//
// Bytes     2 * hidden_size * 2 per row (4 * when fused: both are read and written), the weight once; the second pass
//           over a row finds it in L1 or L2. FLOPs: 4 per element, 5 when fused.
// Grid      (num_tokens); block: hidden_size / 8 threads in whole warps, at most 1024; shared: 32 floats.
#include "reduce.cuh"
#include "vector_rows.cuh"

DEVICE float sum_of_squares(const EightFloats& row) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_VECTOR; i++) sum += row.values[i] * row.values[i];
    return sum;
}

DEVICE void scale_row(Element* to, const Element* from, const Element* weight, float factor) {
    EightFloats row = load_row(from);
    const EightFloats weights = load_row(weight);
#pragma unroll
    for (int i = 0; i < ROW_VECTOR; i++) row.values[i] *= factor * weights.values[i];
    store_row(to, row);
}

extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(Element* __restrict__ out, const Element* __restrict__ input, const Element* __restrict__ weight,
             float epsilon, int hidden_size) {
    DYNAMIC_SHARED(float, scratch);
    const long long row = static_cast<long long>(blockIdx.x) * hidden_size;
    float sum = 0.0f;
    for (int i = threadIdx.x * ROW_VECTOR; i < hidden_size; i += blockDim.x * ROW_VECTOR)
        sum += sum_of_squares(load_row(input + row + i));
    const float factor = rsqrtf(block_sum(sum, scratch) / hidden_size + epsilon);
    for (int i = threadIdx.x * ROW_VECTOR; i < hidden_size; i += blockDim.x * ROW_VECTOR)
        scale_row(out + row + i, input + row + i, weight + i, factor);
}

// residual becomes input + residual (rounded), input the norm of that.
extern "C" __global__ void __launch_bounds__(1024)
    fused_add_rms_norm(Element* input, Element* residual, const Element* __restrict__ weight, float epsilon,
                       int hidden_size) {
    DYNAMIC_SHARED(float, scratch);
    const long long row = static_cast<long long>(blockIdx.x) * hidden_size;
    float sum = 0.0f;
    for (int i = threadIdx.x * ROW_VECTOR; i < hidden_size; i += blockDim.x * ROW_VECTOR) {
        EightFloats both = load_row(residual + row + i);
        const EightFloats added = load_row(input + row + i);
#pragma unroll
        for (int k = 0; k < ROW_VECTOR; k++) both.values[k] = to_float(to_element(both.values[k] + added.values[k]));
        sum += sum_of_squares(both);
        store_row(residual + row + i, both);
    }
    const float factor = rsqrtf(block_sum(sum, scratch) / hidden_size + epsilon);
    // Each thread reads back what it wrote itself.
    for (int i = threadIdx.x * ROW_VECTOR; i < hidden_size; i += blockDim.x * ROW_VECTOR)
        scale_row(input + row + i, residual + row + i, weight + i, factor);
}
