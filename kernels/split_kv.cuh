// What paged_attention_split_kv and its contiguous twin share: where the results of a split go, and the kernel that
// merges them.
#pragma once
#include "decode.cuh"

#ifndef SPLIT_THREADS
#define SPLIT_THREADS 128
#endif

// Splits that a sequence has; one of no tokens has one.
DEVICE int splits_of(int tokens, int tokens_per_split) {
    return tokens <= 0 ? 1 : tokens / tokens_per_split + (tokens % tokens_per_split > 0);
}

// One block: split blockIdx.y of sequence blockIdx.z. With a single split the result is final; else it goes to
// partial_out [num_seqs, num_q_heads, splits, HEAD_SIZE], partial_max and partial_sum [num_seqs, num_q_heads, splits].
// With `last_merges` the block that finishes last of a sequence and head tile merges them (`arrivals`, one counter for
// each, 0 before and after a launch); else the kernel merge_splits has to follow.
template <class Cache>
DEVICE void attend_split(Element* out, float* partial_out, float* partial_max, float* partial_sum, int* arrivals,
                         const Element* query, const KvElement* k_cache, const KvElement* v_cache, const Cache& cache,
                         const decode::HeadTile& heads, int tokens, int num_q_heads, int tokens_per_split,
                         int last_merges, float k_scale, float v_scale) {
    const int seq = blockIdx.z, split = blockIdx.y, splits = gridDim.y;
    const long long begin = static_cast<long long>(split) * tokens_per_split;
    const long long first = static_cast<long long>(seq) * num_q_heads + heads.first_head;
    const int end = tokens - begin < tokens_per_split ? tokens : static_cast<int>(begin) + tokens_per_split;
    const auto part_of = [&](int row, int i) { return (first + row) * splits + i; };
    const auto store_out = [&](int row, int d, float value) { out[(first + row) * HEAD_SIZE + d] = to_element(value); };
    if (split > 0 && begin >= tokens) return;  // a shorter sequence of the batch: nobody reads this split's results
    decode::block(query + first * HEAD_SIZE, heads.rows, k_cache, v_cache, cache, static_cast<int>(begin), end,
                  score_scale(k_scale), [&](int row, int d, const decode::Merged& merged) {
                      if (splits == 1) {
                          store_out(row, d, decode::quotient(merged) * v_scale);
                          return;
                      }
                      const long long part = part_of(row, split);
                      partial_out[part * HEAD_SIZE + d] = merged.value * v_scale;
                      if (d == 0) {
                          partial_max[part] = merged.largest;
                          partial_sum[part] = merged.sum;
                      }
                  });
    if (splits == 1 || !last_merges) return;

    DYNAMIC_SHARED(int, ticket);
    const int used = splits_of(tokens, tokens_per_split);
    int* arrived = arrivals + static_cast<long long>(seq) * gridDim.x + blockIdx.x;
    __threadfence();  // this thread's results are visible to all blocks ...
    __syncthreads();  // ... and so are those of all threads of this block before it counts itself
    if (threadIdx.x == 0) {
        *ticket = atomicAdd(arrived, 1);
        if (*ticket == used - 1) *arrived = 0;
    }
    __syncthreads();
    if (*ticket != used - 1) return;
    __threadfence();
    for (int i = threadIdx.x; i < heads.rows * HEAD_SIZE; i += blockDim.x) {
        const int row = i / HEAD_SIZE, d = i % HEAD_SIZE;
        const decode::Merged merged = decode::merge(used, [&](int k) {
            const long long part = part_of(row, k);
            return decode::Merged{partial_out[part * HEAD_SIZE + d], partial_max[part], partial_sum[part]};
        });
        store_out(row, d, decode::quotient(merged));
    }
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
    const int used = splits_of(context_lens[seq], tokens_per_split);
    for (int d = threadIdx.x; d < HEAD_SIZE; d += blockDim.x) {
        const decode::Merged merged = decode::merge(used, [&](int i) {
            const long long part = row * splits + i;
            return decode::Merged{partial_out[part * HEAD_SIZE + d], partial_max[part], partial_sum[part]};
        });
        out[row * HEAD_SIZE + d] = to_element(decode::quotient(merged));
    }
}
