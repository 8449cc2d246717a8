// paged_attention_uncoalesced: scores are computed once; each thread takes a token of its own.
//
// Adds      tiles with a running softmax: QK is done once instead of HEAD_SIZE + 2 times, and any length fits.
// Leaves    neighbouring threads read keys num_kv_heads * HEAD_SIZE elements apart: every 2-byte load of a warp touches
//           32 sectors. The query is read again from global memory (L1) for every token.
// Computes  as paged_attention_naive.
// Bytes     K and V once per query head, i.e. num_q_heads / num_kv_heads times what is needed; of a 32-byte sector of K
//           one load uses 2 bytes.
// FLOPs     4 * tokens * num_q_heads * HEAD_SIZE.
// Grid      (num_q_heads, num_seqs); block: 128 threads; shared: 32 + 128 floats (reductions, weights of a tile).
#include "paged_kv.cuh"
#include "running_softmax.cuh"

extern "C" __global__ void __launch_bounds__(SCORE_TILE, 8)
    paged_attention_uncoalesced(Element* __restrict__ out, const Element* __restrict__ query,
                                const KvElement* __restrict__ k_cache, const KvElement* __restrict__ v_cache,
                                const int* __restrict__ block_tables, const int* __restrict__ context_lens,
                                int num_q_heads, int num_kv_heads, int max_blocks, long long block_stride,
                                float k_scale, float v_scale) {
    DYNAMIC_SHARED(float, scratch);
    float* weights = scratch + 32;
    constexpr int DIMS = (HEAD_SIZE + SCORE_TILE - 1) / SCORE_TILE;
    const int head = blockIdx.x, seq = blockIdx.y, thread = threadIdx.x, tokens = context_lens[seq];
    const PagedCache cache(block_tables, seq, max_blocks, block_stride, num_kv_heads,
                           head / (num_q_heads / num_kv_heads));
    const long long row = (static_cast<long long>(seq) * num_q_heads + head) * HEAD_SIZE;
    const float scale = score_scale(k_scale);

    RunningSoftmax softmax;
    float sums[DIMS] = {};
    for (int start = 0; start < tokens; start += SCORE_TILE) {
        const int count = min(SCORE_TILE, tokens - start);
        float score = MINUS_INFINITY;
        if (thread < count) {
            const KvElement* key = k_cache + cache.offset(start + thread);
            float dot = 0.0f;
            for (int d = 0; d < HEAD_SIZE; d++) dot += to_float(query[row + d]) * to_float(key[d]);
            score = dot * scale;
        }
        // The barriers within stand between weights and their readers, and between those and the next tile's weights.
        const float shrink = softmax.take(score, scratch, weights[thread]);
#pragma unroll
        for (int i = 0; i < DIMS; i++) {
            const int d = thread + i * SCORE_TILE;
            if (d >= HEAD_SIZE) continue;
            sums[i] *= shrink;
            for (int t = 0; t < count; t++) sums[i] += weights[t] * to_float(v_cache[cache.offset(start + t) + d]);
        }
    }
#pragma unroll
    for (int i = 0; i < DIMS; i++) {
        const int d = thread + i * SCORE_TILE;
        if (d < HEAD_SIZE) out[row + d] = to_element(tokens > 0 ? sums[i] / softmax.sum * v_scale : 0.0f);
    }
}
