// What paged_attention_split_kv and its contiguous twin share: where the results of a split go, and the kernel that
// merges them.
#pragma once
#include "decode.cuh"

#ifndef SPLIT_THREADS
#define SPLIT_THREADS 128
#endif
// Blocks per multiprocessor that the registers must allow.
#ifndef SPLIT_BLOCKS
#define SPLIT_BLOCKS (HEAD_SIZE <= 64 ? 4 : HEAD_SIZE <= 128 ? 3 : 2)
#endif

// One block: split blockIdx.y of sequence blockIdx.z. With a single split the result is final; else it goes to
// partial_out [num_seqs, num_q_heads, splits, HEAD_SIZE], partial_max and partial_sum [num_seqs, num_q_heads, splits].
template <class Cache>
DEVICE void attend_split(Element* out, float* partial_out, float* partial_max, float* partial_sum, const Element* query,
                         const KvElement* k_cache, const KvElement* v_cache, const Cache& cache,
                         const decode::HeadTile& heads, int tokens, int num_q_heads, int tokens_per_split,
                         float k_scale, float v_scale) {
    const int seq = blockIdx.z, split = blockIdx.y, splits = gridDim.y;
    const long long begin = static_cast<long long>(split) * tokens_per_split;
    if (split > 0 && begin >= tokens) return;  // a shorter sequence of the batch: nobody reads this split's results
    const int end = tokens - begin < tokens_per_split ? tokens : static_cast<int>(begin) + tokens_per_split;
    const long long first = static_cast<long long>(seq) * num_q_heads + heads.first_head;
    decode::block(query + first * HEAD_SIZE, heads.rows, k_cache, v_cache, cache, static_cast<int>(begin), end,
                  score_scale(k_scale), [&](int r, int d, const decode::Merged& merged) {
                      if (splits == 1) {
                          out[(first + r) * HEAD_SIZE + d] = to_element(decode::quotient(merged) * v_scale);
                          return;
                      }
                      const long long part = (first + r) * splits + split;
                      partial_out[part * HEAD_SIZE + d] = merged.value * v_scale;
                      if (d == 0) {
                          partial_max[part] = merged.largest;
                          partial_sum[part] = merged.sum;
                      }
                  });
}

// merge_splits: out = sum_i 2^(max_i - max) partial_out_i / sum_i 2^(max_i - max) partial_sum_i over the splits that
// the sequence has. Bytes: (HEAD_SIZE + 2) * 4 per split and query head, small against the split itself. Grid
// (num_q_heads, num_seqs), block 128.
extern "C" __global__ void __launch_bounds__(128)
    merge_splits(Element* __restrict__ out, const float* __restrict__ partial_out,
                 const float* __restrict__ partial_max, const float* __restrict__ partial_sum,
                 const int* __restrict__ context_lens, int tokens_per_split, int splits) {
    const int seq = blockIdx.y;
    const long long row = static_cast<long long>(seq) * gridDim.x + blockIdx.x;
    const int tokens = context_lens[seq], used = tokens / tokens_per_split + (tokens % tokens_per_split > 0);
    for (int d = threadIdx.x; d < HEAD_SIZE; d += blockDim.x) {
        const decode::Merged merged = decode::merge(used, [&](int i) {
            const long long part = row * splits + i;
            return decode::Merged{partial_out[part * HEAD_SIZE + d], partial_max[part], partial_sum[part]};
        });
        out[row * HEAD_SIZE + d] = to_element(decode::quotient(merged));
    }
}
