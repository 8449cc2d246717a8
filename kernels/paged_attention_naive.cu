// paged_attention_naive: decode attention as it is written down, in three passes over the sequence. The bottom rung.
//
// Computes  out[s, h] = sum_t softmax_t(q[s, h] . k[t] / sqrt(d)) v[t] over the context_lens[s] tokens of sequence s.
// Passes    the largest score; the sum of the weights; the weighted sum of V. Scores are recomputed in every pass, and
//           in the third by every thread for itself: 1 + 1 + HEAD_SIZE times the QK work (130x at head size 128).
// Bytes     needed: 2 * tokens * num_kv_heads * HEAD_SIZE * sizeof(kv). Here K is read HEAD_SIZE + 2 times (mostly from
//           cache) and V once, per query head.
// FLOPs     needed: 4 * tokens * num_q_heads * HEAD_SIZE. Here 2 * tokens * num_q_heads * HEAD_SIZE * (HEAD_SIZE + 3).
// Grid      (num_q_heads, num_seqs); block: HEAD_SIZE threads, rounded up to whole warps; shared: 32 floats.
#include "paged_kv.cuh"
#include "reduce.cuh"

DEVICE float naive_score(const Element* query, const KvElement* key) {
    float sum = 0.0f;
    for (int d = 0; d < HEAD_SIZE; d++) sum += to_float(query[d]) * to_float(key[d]);
    return sum;
}

extern "C" __global__ void paged_attention_naive(
    Element* __restrict__ out,          // [num_seqs, num_q_heads, HEAD_SIZE]
    const Element* __restrict__ query,  // [num_seqs, num_q_heads, HEAD_SIZE]
    const KvElement* __restrict__ k_cache, const KvElement* __restrict__ v_cache, const int* __restrict__ block_tables,
    const int* __restrict__ context_lens, int num_q_heads, int num_kv_heads, int max_blocks, long long block_stride,
    float k_scale, float v_scale) {
    DYNAMIC_SHARED(float, scratch);
    const int head = blockIdx.x, seq = blockIdx.y, tokens = context_lens[seq];
    const PagedCache cache(block_tables, seq, max_blocks, block_stride, num_kv_heads,
                           head / (num_q_heads / num_kv_heads));
    const long long row = (static_cast<long long>(seq) * num_q_heads + head) * HEAD_SIZE;
    const float scale = score_scale(k_scale);

    float largest = MINUS_INFINITY;
    for (int token = threadIdx.x; token < tokens; token += blockDim.x)
        largest = fmaxf(largest, naive_score(query + row, k_cache + cache.offset(token)) * scale);
    largest = block_max(largest, scratch);

    float sum = 0.0f;
    for (int token = threadIdx.x; token < tokens; token += blockDim.x)
        sum += exp2_fast(naive_score(query + row, k_cache + cache.offset(token)) * scale - largest);
    sum = block_sum(sum, scratch);

    const int d = threadIdx.x;
    if (d >= HEAD_SIZE) return;
    float weighted = 0.0f;
    for (int token = 0; token < tokens; token++) {
        const long long at = cache.offset(token);
        const float weight = exp2_fast(naive_score(query + row, k_cache + at) * scale - largest);
        weighted += weight * to_float(v_cache[at + d]);
    }
    out[row + d] = to_element(tokens > 0 ? weighted / sum * v_scale : 0.0f);
}
