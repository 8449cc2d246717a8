// paged_attention_shared: query and scores in shared memory, a warp per token, sums by shuffles.
//
// Adds      a warp reads a key together, neighbouring lanes neighbouring elements: all bytes of a sector are used. The
//           query is read from global memory once.
// Leaves    2-byte loads (64 bytes per load of a warp); five shuffles per token; K and V once per query head.
// Computes  as paged_attention_naive.
// Bytes     num_q_heads / num_kv_heads times what is needed. FLOPs: 4 * tokens * num_q_heads * HEAD_SIZE.
// Grid      (num_q_heads, num_seqs); block: 128 threads; shared: 32 + 128 + HEAD_SIZE floats (reductions, scores of a
//           tile, query).
#include "paged_kv.cuh"
#include "running_softmax.cuh"

extern "C" __global__ void __launch_bounds__(SCORE_TILE, 8)
    paged_attention_shared(Element* __restrict__ out, const Element* __restrict__ query,
                           const KvElement* __restrict__ k_cache, const KvElement* __restrict__ v_cache,
                           const int* __restrict__ block_tables, const int* __restrict__ context_lens, int num_q_heads,
                           int num_kv_heads, int max_blocks, long long block_stride, float k_scale, float v_scale) {
    DYNAMIC_SHARED(float, scratch);
    float* scores = scratch + 32;
    float* shared_query = scores + SCORE_TILE;
    constexpr int DIMS = (HEAD_SIZE + SCORE_TILE - 1) / SCORE_TILE;
    const int head = blockIdx.x, seq = blockIdx.y, thread = threadIdx.x, tokens = context_lens[seq];
    const int warp = thread / 32, lane = thread % 32;
    const PagedCache cache(block_tables, seq, max_blocks, block_stride, num_kv_heads,
                           head / (num_q_heads / num_kv_heads));
    const long long row = (static_cast<long long>(seq) * num_q_heads + head) * HEAD_SIZE;

    const float scale = score_scale(k_scale);
    for (int d = thread; d < HEAD_SIZE; d += SCORE_TILE) shared_query[d] = to_float(query[row + d]) * scale;
    __syncthreads();

    RunningSoftmax softmax;
    float sums[DIMS] = {};
    for (int start = 0; start < tokens; start += SCORE_TILE) {
        const int count = min(SCORE_TILE, tokens - start);
        for (int t = warp; t < count; t += SCORE_TILE / 32) {
            const KvElement* key = k_cache + cache.offset(start + t);
            float part = 0.0f;
#pragma unroll
            for (int d = lane; d < HEAD_SIZE; d += 32) part += shared_query[d] * to_float(key[d]);
            part = warp_sum(part);
            if (lane == 0) scores[t] = part;
        }
        __syncthreads();  // all scores are there
        float weight;
        const float shrink = softmax.take(thread < count ? scores[thread] : MINUS_INFINITY, scratch, weight);
        scores[thread] = weight;  // each thread its own: nobody else has read this one
        __syncthreads();
#pragma unroll
        for (int i = 0; i < DIMS; i++) {
            const int d = thread + i * SCORE_TILE;
            if (d >= HEAD_SIZE) continue;
            sums[i] *= shrink;
            for (int t = 0; t < count; t++) sums[i] += scores[t] * to_float(v_cache[cache.offset(start + t) + d]);
        }
        __syncthreads();  // all weights have been read
    }
#pragma unroll
    for (int i = 0; i < DIMS; i++) {
        const int d = thread + i * SCORE_TILE;
        if (d < HEAD_SIZE) out[row + d] = to_element(tokens > 0 ? sums[i] / softmax.sum * v_scale : 0.0f);
    }
}
