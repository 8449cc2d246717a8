// Sums and maxima over a warp and over a block.
#pragma once
#include "device.cuh"

// Over SPAN neighbouring lanes (a power of two); every lane gets the result.
template <int SPAN = 32>
DEVICE float warp_sum(float value) {
#pragma unroll
    for (int lanes = SPAN / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(ALL_LANES, value, lanes);
    return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, lanes));
    return value;
}

// `scratch`: 32 floats of shared memory. All threads call, all get the result; the barriers also order what was written
// to shared memory before the call for everybody after it.
DEVICE float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    __syncthreads();  // the last result has been read by everybody
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) total += scratch[warp];
    return total;
}

DEVICE float block_max(float value, float* scratch) {
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    float largest = MINUS_INFINITY;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) largest = fmaxf(largest, scratch[warp]);
    return largest;
}
