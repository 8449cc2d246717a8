// rotary: rotary position embedding of queries and keys in place, dimension i paired with i + ROTARY_DIM / 2 (GPT-NeoX
// style, as Llama and Qwen have it). Dimensions from ROTARY_DIM on stay as they are.
//
// cos_sin_cache [positions, ROTARY_DIM] holds cosines in its first half and sines in its second, as vLLM's does.
// Bytes     per token 2 * (num_q_heads + num_kv_heads) * ROTARY_DIM * 2, ROTARY_DIM * 2 of the table, 8 of the
//           position.
// FLOPs     3 per rotated element.
// Grid      (num_tokens); block: heads * ROTARY_DIM / 16 threads in whole warps, at most 512; 8 pairs at a time.
#include "vector_rows.cuh"

#if !defined(HEAD_SIZE) || !defined(ROTARY_DIM)
#error "compile with -DHEAD_SIZE=... and -DROTARY_DIM=..., a multiple of 16 and at most HEAD_SIZE"
#endif
static_assert(ROTARY_DIM % 16 == 0 && ROTARY_DIM <= HEAD_SIZE, "halves are whole vectors");

extern "C" __global__ void __launch_bounds__(512)
    rotary(const long long* __restrict__ positions, Element* __restrict__ query,
           Element* __restrict__ key,  // [num_tokens, heads, HEAD_SIZE]
           const Element* __restrict__ cos_sin_cache, long long query_stride, long long key_stride, int num_q_heads,
           int num_kv_heads) {
    constexpr int HALF = ROTARY_DIM / 2, VECTORS = HALF / ROW_VECTOR;
    const long long token = blockIdx.x;
    const Element* angles = cos_sin_cache + positions[token] * ROTARY_DIM;
    for (int i = threadIdx.x; i < (num_q_heads + num_kv_heads) * VECTORS; i += blockDim.x) {
        const int head = i / VECTORS, d = i % VECTORS * ROW_VECTOR;
        Element* row = head < num_q_heads ? query + token * query_stride + head * HEAD_SIZE
                                          : key + token * key_stride + (head - num_q_heads) * HEAD_SIZE;
        const EightFloats cosines = load_row(angles + d), sines = load_row(angles + HALF + d);
        EightFloats first = load_row(row + d), second = load_row(row + HALF + d);
#pragma unroll
        for (int k = 0; k < ROW_VECTOR; k++) {
            const float x = first.values[k], y = second.values[k];
            first.values[k] = x * cosines.values[k] - y * sines.values[k];
            second.values[k] = y * cosines.values[k] + x * sines.values[k];
        }
        store_row(row + d, first);
        store_row(row + HALF + d, second);
    }
}
