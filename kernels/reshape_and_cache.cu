// reshape_and_cache: writes the keys and values of new tokens into their slots of the paged cache.
//
// Slot s is offset s % BLOCK_SIZE of physical block s / BLOCK_SIZE; a negative slot marks padding and is left out.
// Under fp8 the numbers are divided by the tensor's scale and rounded to e4m3. key_stride and value_stride are elements
// from token to token, so that slices of a fused QKV projection can be passed.
// Bytes     per token 2 * num_kv_heads * HEAD_SIZE * (2 + sizeof(kv)), and 8 for the slot. FLOPs: none that count.
// Grid      (num_tokens); block: num_kv_heads * HEAD_SIZE / 8 threads in whole warps, at most 512; 16 bytes at a time.
#include "paged_kv.cuh"
#include "vector_rows.cuh"

DEVICE void cache_row(KvElement* to, const Element* from, float inverse_scale) {
#if KV_FP8
    const EightFloats row = load_row(from);
    unsigned words[2] = {0u, 0u};
#pragma unroll
    for (int i = 0; i < ROW_VECTOR; i++)
        words[i / 4] |= static_cast<unsigned>(to_fp8(row.values[i] * inverse_scale).bits) << i % 4 * 8;
    reinterpret_cast<unsigned*>(to)[0] = words[0];
    reinterpret_cast<unsigned*>(to)[1] = words[1];
#else
    (void)inverse_scale;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
#endif
}

extern "C" __global__ void __launch_bounds__(512)
    reshape_and_cache(const Element* __restrict__ key,
                      const Element* __restrict__ value,  // [num_tokens, num_kv_heads, HEAD_SIZE]
                      KvElement* __restrict__ k_cache, KvElement* __restrict__ v_cache,
                      const long long* __restrict__ slot_mapping, long long key_stride, long long value_stride,
                      int num_kv_heads, long long block_stride, float k_scale, float v_scale) {
    const long long token = blockIdx.x, slot = slot_mapping[token];
    if (slot < 0) return;
    const int width = num_kv_heads * HEAD_SIZE;
    const long long to = slot / BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * width;
    for (int i = threadIdx.x * ROW_VECTOR; i < width; i += blockDim.x * ROW_VECTOR) {
        cache_row(k_cache + to + i, key + token * key_stride + i, 1.0f / k_scale);
        cache_row(v_cache + to + i, value + token * value_stride + i, 1.0f / v_scale);
    }
}
